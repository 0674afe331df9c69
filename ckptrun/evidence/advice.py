"""What usually causes a difference, and where to look: one line, by the check that found it and what it is about.

Torch-free.
"""

from collections.abc import Mapping

from ckptrun.config.run import COMPONENTS
from ckptrun.evidence.difference import Difference

__all__ = ["advice"]

_OWN = "*"

# An operation in a part of a step: (component, what it is) -> what to do.
_OPERATIONS: Mapping[tuple[str, str], str] = {
    ("model", "output"): (
        "Forward goes by something that is in no state: a counter, a running value or a generator in an "
        "attribute, a global or a closure. Make it a buffer (register_buffer) or return it from "
        "get_extra_state()."
    ),
    ("model", "weight"): (
        "A parameter or buffer is in no checkpoint, or code (a thread, a clamp, a hook) changes it by a value"
        " that is not saved. Look at the state-dict code of its module; keep what decides the change in "
        "register_buffer."
    ),
    ("model", "random stream"): (
        "Forward draws more or fewer random numbers than without the resume: look for draws, a second forward"
        " or dropout that depend on a counter or flag which is not saved; make that a buffer "
        "(register_buffer)."
    ),
    ("model", "gradient"): (
        "Backward goes by something that is in no state: look at hooks (register_hook, "
        "register_full_backward_hook) and autograd functions that keep a value between steps; make it a "
        "buffer (register_buffer)."
    ),
    ("optimizer", "update"): (
        "step() goes by something that only the optimizer object knows: a counter, slow weights, gathered "
        "gradients in an attribute. Keep it in self.state[parameter] or as an option of the group."
    ),
    ("optimizer", "kept gradient"): (
        "Gradients are carried from one step to the next, and no checkpoint holds them. Set them to zero "
        "after each step, or keep what is carried in self.state[parameter]."
    ),
    ("optimizer", "optimizer state"): (
        "Moments were not saved, or went to another parameter. Look at the optimizer's state_dict and "
        "load_state_dict, and at the order of its parameters."
    ),
    ("optimizer", "option"): (
        "The optimizer that trains is not the one that was loaded, or its options are set again after the "
        "load. Build it once, before the load: schedule and checkpoint hold that object."
    ),
    ("schedule", "option"): (
        "What the schedule counts is not in its state_dict, or a resume steps it once more or once less. Look"
        " at its step() and load_state_dict(), at globals and closures."
    ),
    ("data", "batch"): (
        "Samples depend on something that is in no state: a generator, a shuffle buffer, a counter. Give the "
        "dataset state_dict and load_state_dict, or make a sample a function of its index."
    ),
    ("data", "random stream"): (
        "Loading a batch draws from the streams of the process. Build iterators before the streams are "
        "restored, and give samplers a generator of their own."
    ),
    (_OWN, "random stream"): (
        "Its on_step draws from the streams of the process. Give it a generator of its own, and return that "
        "generator's state from its state_dict()."
    ),
    (_OWN, "weight"): (
        "Its on_step changes weights by something that its state_dict() does not return. Return it, and take "
        "it back in load_state_dict()."
    ),
    (_OWN, ""): (
        "Its on_step goes by something that its state_dict() does not return. Return it, and take it back in "
        "load_state_dict()."
    ),
    ("rng", "random stream"): (
        "Somebody seeds or draws between the load and the first step: look for seed_everything(), "
        "manual_seed() and iterators that are built after the load."
    ),
    ("ema", ""): ("The average was made anew, or was not taken back. Look at who makes or copies it after the load."),
    ("scaler", ""): (
        "The loss scale was not saved or not taken back. Look at what is done to the scaler after the load."
    ),
}
_SAME_AS = {"input": "output", "reduced gradient": "gradient", "moment": "optimizer state"}

# What a load has not given back, by component.
_LOADS: Mapping[str, str] = {
    "model": (
        "Its module did not take the value, or cast, permuted or renamed it. Look at load_state_dict, "
        "_load_from_state_dict and load hooks of the module that holds it."
    ),
    "optimizer": (
        "Moments or options were not taken, were cast, or went to another parameter. Look at the optimizer's "
        "load_state_dict and what runs after it."
    ),
    "schedule": ("Look at the schedule's load_state_dict, and at who calls step() while a run is resumed."),
    "data": (
        "Look at state_dict and load_state_dict of your dataset: they must name the next sample, also at the "
        "end of an epoch."
    ),
    "rng": (
        "Somebody seeds or draws after the streams were restored, or an except hides that they were not. They"
        " must be restored last."
    ),
    "progress": ("Look at who sets or counts steps while a run is resumed."),
    "scaler": ("Look at who sets the loss scale after the load."),
    "ema": ("Look at who makes or copies the average after the load."),
    _OWN: ("Its load_state_dict() does not give back what its state_dict() returned."),
}

# By check, whatever it is about.
_CHECKS: Mapping[str, str] = {
    "saved_equals_live": (
        "What was written is not what was live when the save was asked for: a state_dict() that returns "
        "reused or changing memory, one name for several ranks' values, or damaged storage (ckptrun verify)."
    ),
    "replicas": (
        "Ranks compute it apart: look for parameters whose gradients are not reduced and buffers that nobody "
        "synchronises. What is meant to be each rank's own belongs under a key such as 'rank_00003'."
    ),
    "saves_differ": (
        "state_dict() gives the same tensors again and again: a copy that was made once, or objects that no "
        "longer train."
    ),
    "saving_is_invisible": (
        "Saving leaves a trace: look at state_dict() and its hooks for draws, train()/eval() and counters."
    ),
    "nothing_lost": (
        "A checkpoint is not where it was promised: look at what removes, renames or overwrites checkpoints, "
        "and at who waits for the last save."
    ),
    "data_order": (
        "The order of samples depends on the number of ranks: draw it from (seed, epoch) alone, and split it "
        "afterwards."
    ),
    "damage_noticed": (
        "A damaged checkpoint was loaded without a word: look at what reads it without comparing checksums."
    ),
    "resume": (
        "Only a resumed run comes by here: look at the line above, and at load_state_dict() and what is first"
        " used after it."
    ),
    "faults": ("The place of the fault was not reached: choose another fault.step, fault.point or fault.rank."),
    "controls": (
        "Leaving it out changed nothing: use more steps, or name the components that matter: proof.controls=[...]."
    ),
    "final_state": (
        "Something that no step depends on is changed by a value that is in no state: return it from "
        "state_dict(), and take it back in load_state_dict()."
    ),
}
_NOT_DETERMINISTIC = (
    "The job does not repeat itself, resumed or not: look for time, process numbers, unseeded generators,"
    " the order of sets, threads, and kernels that are not deterministic (train.deterministic=true)."
)
_PROGRESS = "Steps are counted apart from what was done: look at who sets or counts them at a save and at a resume."


def advice(check: str, detail: str, *, blame: str | None, first: Difference | None) -> str:
    """Return one line on what usually causes it and where to look; empty where nothing useful is known.

    Args:
        check: The check that decided.
        detail: What it says.
        blame: The component at fault.
        first: The first difference.
    """
    if detail.startswith("not deterministic"):
        return _NOT_DETERMINISTIC
    what = str((first.details.get("what") if first is not None else None) or "")
    kind = blame if blame in COMPONENTS else _OWN
    if blame is not None and what:
        found = _of_operation(kind, what)
        if found:
            return found
    if check == "loaded_equals_saved" and blame is not None:
        return _LOADS[kind]
    if check in _CHECKS:
        return _CHECKS[check]
    return _of_step(kind) if blame is not None and check in ("trajectory", "second_resume", "repeats") else ""


def _of_operation(kind: str, what: str) -> str:
    known = _SAME_AS.get(what, what)
    return _OPERATIONS.get((kind, known)) or _OPERATIONS.get((kind, "")) or ""


def _of_step(kind: str) -> str:
    """Where a step differed, and no operation is known."""
    usual = {"data": "batch", "rng": "random stream", "schedule": "option", "model": "output", "optimizer": "update"}
    return _PROGRESS if kind == "progress" else _of_operation(kind, usual.get(kind, ""))
