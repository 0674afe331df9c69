"""Bugs of the list that no case of the zoo holds, and why. Nothing is claimed of these."""

__all__ = ["LEFT_OUT"]

LEFT_OUT = {
    "A14": "Recomputing with another dropout mask is wrong in the same way in every run: it resumes exactly.",
    "C19": "Planted where the metric decides something. One that nothing depends on and that is in no state is in no "
    "checkpoint, so there is nothing to compare.",
    "C23": "A proof resumes with the config that it began with. That a changed one is told, and another model refused, "
    "is tested in `tests/jobs/test_user_errors.py`.",
    "E8": "Shrinking and growing again takes three meshes; a proof resumes on one other.",
    "E22 I1 I2 I3 I4 I5": "Memory, on a GPU or at all, is no part of a verdict.",
    "F8 H23": "Another run's checkpoint is refused before a proof would start: `tests/jobs/test_user_errors.py`.",
    "G15": "Running out of file descriptors depends on limits of the machine.",
    "H9": "There is no pointer file that could be behind: a folder with a manifest is a checkpoint.",
    "H10": "A full disk is a fault that a run has to survive, and does: `fault=disk_full` in `tests/jobs/test_proof.py`.",
    "H16": "A hang with a cause that nobody has seen; hangs with a known one are above.",
    "H17": "Needs several hosts on one network file system.",
    "H20": "What a chain of checkpoints is worth after a bad one takes days of saves.",
    "I7 I8 I9": "Speed is no part of a verdict.",
}
