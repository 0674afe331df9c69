"""What the first run of a command, to which nothing happens, must have shown for there to be anything to prove.

Torch-free.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ckptrun.config.job import JobConfig
from ckptrun.errors import ConfigError
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.process import CommandEnd, last_lines
from ckptrun.foreign.records import Heard

__all__ = ["check_reference", "words_of_end"]


def check_reference(heard: Heard, saved: Sequence[SavedStep], output: Path) -> None:
    """See that it has trained, and saved something to resume from.

    Args:
        heard: What its ranks did.
        saved: What they saved.
        output: The folder that it was told to write to.

    Raises:
        ConfigError: It has not; says what is to be done.
    """
    if not heard.steps:
        raise ConfigError(_takes_no_step(heard))
    elsewhere = _saved_elsewhere(saved, output)
    if elsewhere is not None:
        raise ConfigError(
            f"The job saves to {elsewhere}, which is not in {{run}}: runs of a proof would find each other's "
            "checkpoints. Let the command write to {run}."
        )
    if not any(one.is_complete for one in saved):
        raise ConfigError(_saves_nothing(heard))


def words_of_end(heard: Heard, end: CommandEnd, log: Path, job: JobConfig) -> str:
    """Return why a start came to nothing, in the job's own words."""
    if end.timed_out:
        text = f"was killed after job.timeout_seconds={job.timeout_seconds:g} s"
    else:
        text = f"ended with exit code {end.exit_code}"
    said = heard.exceptions[0] if heard.exceptions else ""
    lines = last_lines(log)
    text += f": {said}" if said else ""
    if said.startswith(("ModuleNotFoundError", "ImportError")) and heard.interpreters:
        text += f". It was run by {' and '.join(heard.interpreters)}; ckptrun itself runs in {sys.executable}"
    if said.startswith("EOFError") or "Inappropriate ioctl" in said:
        text += ". The command of a proof has no terminal, and nothing to read from its input"
    return text + (f"; the end of its log:\n{lines}" if lines and not said else "")


def _takes_no_step(heard: Heard) -> str:
    """Why nothing was heard of a command that ended well."""
    if not heard.processes:
        return (
            "The command ended with exit code 0, and no process of it has used torch where ckptrun could hear it. It "
            "listens through PYTHONPATH and sitecustomize: does a shell script replace PYTHONPATH (let it say "
            "PYTHONPATH=folder:$PYTHONPATH), or start Python with -I, -E or -S? Does it train with torch at all?"
        )
    return (
        "The command ended with exit code 0 and has taken no optimizer step: there is nothing to prove. Let it train, "
        "with an optimizer of torch; {run} is empty when it starts."
    )


def _saved_elsewhere(saved: Sequence[SavedStep], output: Path) -> Path | None:
    """A checkpoint that is not in the folder of the run, where none of its step is."""
    root = output.resolve()
    within = {one.step for one in saved if any(root in file.resolve().parents for file in one.files)}
    return next((one.files[0] for one in saved if one.step not in within), None)


def _saves_nothing(heard: Heard) -> str:
    """Why there is nothing to resume from."""
    saves = [save for rank in heard.ranks for save in rank.saves]
    of_its_own = "If it does so by functions of its own, say which files they are: job.checkpoints=checkpoint-*."
    if saves:
        return (
            f"The job has saved {saves[0].path.name}, in which there is nothing of an optimizer: nothing to resume "
            f"from. Let it save checkpoints, with the moments. {of_its_own}"
        )
    return (
        f"The job has taken {heard.steps} steps and saved nothing: there is nothing to resume from. Let it save "
        f"checkpoints before its end, to {{run}}. {of_its_own}"
    )
