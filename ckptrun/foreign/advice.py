"""Where to look when a job that is not ours has not come back: what usually causes it. Torch-free."""

import re

from ckptrun.evidence.verdict import Status, Verdict
from ckptrun.foreign.alignment import is_of_copy
from ckptrun.foreign.written import WRITTEN

__all__ = ["advice_on"]

_OF_OPTIMIZER = re.compile(r"(?:optimizer|schedule)\.#(\d+)\.")
_ADVICE = (
    "Something that decides the step was not saved, or not put back: a counter, a cache or a running value in an "
    "attribute, a global or a closure, of the model, the loss, a hook or the trainer; data that come from no "
    "DataLoader (their position, a replay memory, a generator of their own)."
)
_ADVICE_ON_CHECKS = {
    "resume": "What the kill left behind cannot be loaded, or the resume itself fails: its own words stand above.",
    "lost_work": (
        "The resume does not take the newest complete checkpoint: look at how it is chosen (the order of names, a "
        "marker that is written too late or never read, a path that is another one after a restart)."
    ),
}
_ADVICE_ON_COMPONENTS = {
    "model": (
        "Weights were cast, left out (strict=False takes names that do not fit for none), or overwritten after the "
        "load: look at load_state_dict and what follows it."
    ),
    "optimizer": (
        "Moments or options were not saved, not loaded, or loaded before the optimizer was built anew: look at the "
        "optimizer's state_dict and load_state_dict, and at their order."
    ),
    "schedule": (
        "The schedule was not loaded, steps once more or once less, or the learning rate is set again after the load."
    ),
    "scaler": "The loss scaler was not saved or not loaded: look at its state_dict and load_state_dict.",
    "buffers": "Buffers (running statistics) are not in the checkpoint, or a forward pass ran before they were loaded.",
    "rng": (
        "Random streams were not saved or not put back, or something draws between the load and the first step: "
        "seed_everything(), set_seed(), a loader's iterator, a sampler, skipped batches that augment."
    ),
    "progress": (
        "The resumed job ends elsewhere: look at how many steps or epochs it takes to be left (counted anew?), at what "
        "stops it early (a count of bad epochs), above all where the checkpoint is the last of an epoch, and at a "
        "loader whose state is that of its end."
    ),
    "data": (
        "The resumed epoch has another order, another place, or is augmented anew: look at the sampler's seed and "
        "epoch, at generators that loader, sampler or dataset have of their own, at how batches are skipped, at what "
        "is drawn while they are, and at persistent_workers, whose streams no checkpoint has."
    ),
}
_ADVICE_ON_COPIES = (
    "A copy of the model (an average of its weights, a teacher, a target network) was not saved, not loaded, or made "
    "anew after the load."
)
_ADVICE_ON_PARTS = (
    "The job keeps it in its checkpoints beside what it trains, and did not put it back, or made it anew after the "
    "load: look at where the resume reads this part."
)
_ADVICE_ON_DETERMINISM = (
    "The job does not repeat itself, resumed or not: look for time, process numbers, unseeded generators, the order of "
    "sets, threads, and kernels that are not deterministic (job.deterministic=true)."
)


def advice_on(verdict: Verdict) -> str:
    """What usually causes it, and where to look in a job that is not ours."""
    first = verdict.first_difference
    place = _OF_OPTIMIZER.match(first.leaf or "") if first is not None else None
    which = "" if place is None else f" (#{place[1]} is optimizer {int(place[1]) + 1} of the job, by first steps.)"
    return _on(verdict) + which


def _on(verdict: Verdict) -> str:
    if verdict.status is Status.different:
        decided = verdict.reason.partition(":")[0]
        first = verdict.first_difference
        is_copy = verdict.blame == "model" and first is not None and is_of_copy(first.leaf or "")
        is_written = first is not None and (first.leaf or "").startswith(WRITTEN)
        otherwise = _ADVICE_ON_PARTS if is_written else _ADVICE
        of_component = _ADVICE_ON_COPIES if is_copy else _ADVICE_ON_COMPONENTS.get(verdict.blame or "", otherwise)
        return (
            of_component
            if (decided, verdict.blame) == ("resume", "progress")
            else _ADVICE_ON_CHECKS.get(decided, of_component)
        )
    return _ADVICE_ON_DETERMINISM if "not deterministic" in verdict.reason else verdict.advice
