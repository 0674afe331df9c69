"""The reload check: what a checkpoint gives back, in freshly built objects, has the bits that were live at the request.

The expected digests were taken from live state when the save was requested, never from what went through the file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from ckptrun.checkpoint.load import Loaded
from ckptrun.checkpoint.manager import SaveRequest, conflicts_of, digest_state
from ckptrun.checks.element import DifferingPart, first_element, first_entry
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.leaf_digests import differing
from ckptrun.engine.read_state import read_leaf
from ckptrun.errors import StateMismatchError
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.verdict import Check, Status
from ckptrun.ranks import Ranks
from ckptrun.state import preserved, stream_digests
from ckptrun.state.components import TrainingState, name_of
from ckptrun.text import counted

__all__ = ["check_loaded", "check_reload", "check_replicas", "check_resumed"]

NOTHING = Ignored()
_SHOWN = 3
_ABSENT = "absent"
# A schedule writes it: when both differ, the schedule was first.
_RATE = re.compile(r"optimizer\.param_groups\..*\.lr")


def check_reload(
    expected: Mapping[str, str],
    load_fresh: Callable[[], TrainingState],
    *,
    step: int,
    folder: str,
    ranks: Ranks,
    ignored: Ignored = NOTHING,
) -> Check:
    """Load into freshly built objects and compare every leaf of every component on every rank. All ranks call.

    Args:
        expected: Leaf name -> digest of this rank's live values at the request.
        load_fresh: Builds new objects, loads the checkpoint of ``step`` into them and returns their state.
        step: The checkpoint's step, for the report.
        folder: The checkpoint, to show what should be there.
        ranks: All ranks of the run.
        ignored: What is not compared.
    """
    state = load_fresh()
    live = ignored.kept(digest_state(state.leaves()))
    check = _compare("loaded_equals_saved", ignored.kept(expected), live, step=step, ranks=ranks)
    return _with_element(check, state, folder, ranks)


def check_loaded(state: TrainingState, loaded: Loaded, *, ranks: Ranks, ignored: Ignored = NOTHING) -> Check:
    """Compare the live state right after a load with the digests in the manifest. All ranks call.

    Covers the leaves that were loaded; those that were left out on purpose are not compared.
    """
    return _with_element(_check_live(digest_state(state.leaves()), loaded, ranks, ignored), state, loaded.folder, ranks)


def _check_live(live: Mapping[str, str], loaded: Loaded, ranks: Ranks, ignored: Ignored) -> Check:
    expected = ignored.kept(loaded.digests)
    got = {name: digest for name, digest in live.items() if name in expected}
    return _compare("loaded_equals_saved", expected, got, step=loaded.step, ranks=ranks)


def check_resumed(state: TrainingState, loaded: Loaded, *, ranks: Ranks, ignored: Ignored = NOTHING) -> list[Check]:
    """Compare the live state right after a resume with the manifest, and ranks with each other. All ranks call.

    A component that draws random numbers when it is asked for its state is found first: nothing else would mean much.
    Leaves that were left out at load are not compared with the manifest.
    """
    noisy = _check_quiet(state, step=loaded.step, ranks=ranks)
    if noisy is not None:
        return [noisy]
    live = digest_state(state.leaves())
    conflicts = [leaf for leaf in conflicts_of(live, state, ranks) if ignored.counts(leaf)]
    loads = _with_element(_check_live(live, loaded, ranks, ignored), state, loaded.folder, ranks)
    return [loads, _replicas(conflicts, step=loaded.step, leaves=len(live), ranks=ranks)]


def _check_quiet(state: TrainingState, *, step: int, ranks: Ranks) -> Check | None:
    """Find a component that moves the random streams when it is asked for its state: then saving leaves a trace."""
    own = None
    with preserved():
        for name, component in state.components.items():
            before = stream_digests()
            component.state_dict()
            if own is None and stream_digests() != before:
                own = name
    found = [(rank, name) for rank, name in enumerate(ranks.gather(own)) if name is not None]
    if not found:
        return None
    rank, name = found[0]
    return Check(
        name="saving_is_invisible",
        status=Status.different,
        detail=f"{name}.state_dict() draws random numbers on rank {rank}, so a run that saves goes on otherwise",
        first_difference=Difference.of_leaf(
            name, step=step, rank=rank, expected="random streams left alone", got="random streams moved"
        ),
    )


def check_replicas(request: SaveRequest, *, ranks: Ranks, ignored: Ignored = NOTHING) -> Check:
    """Report whether ranks that should hold the same values did when the save was requested. All ranks call."""
    conflicts = [leaf for leaf in request.replica_conflicts if ignored.counts(leaf)]
    return _replicas(conflicts, step=request.step, leaves=len(request.digests), ranks=ranks)


def _replicas(conflicts: Sequence[str], *, step: int, leaves: int, ranks: Ranks) -> Check:
    covered = {"leaves": leaves, "ranks": ranks.world_size}
    if not conflicts:
        detail = f"{counted(ranks.world_size, 'rank')} agreed on every shared leaf at step {step}"
        return Check(name="replicas", status=Status.equal, detail=detail, covered=covered)
    leaf = conflicts[0]
    more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
    return Check(
        name="replicas",
        status=Status.different,
        covered=covered,
        detail=f"step {step}: ranks hold different values of '{leaf}'{more}; what is each rank's own "
        "must stand under a key such as 'rank_00003' in its state_dict()",
        first_difference=Difference.of_leaf(leaf, step=step, rank=None),
    )


def _with_element(check: Check, state: TrainingState, folder: str, ranks: Ranks) -> Check:
    """Add the first element of the first leaf that differs, with both values. All ranks call, with the same check."""
    first = check.first_difference
    if check.status is not Status.different or first is None:
        return check
    name, rank = str(first.leaf), first.rank or 0
    live = {name_of(path): value for path, value in state.leaves().items()}.get(name)
    if isinstance(live, DTensor):
        # All ranks of its mesh hold a part of it.
        live = live.full_tensor()
    is_there = _ABSENT not in (first.expected, first.got)
    own = _first_part(live, name, folder) if ranks.rank == rank and is_there else None
    part = ranks.gather(own)[rank]
    if part is None:
        return check
    return replace(check, detail=f"{check.detail}; {part}", first_difference=part.narrowed(first))


def _first_part(live: Any, name: str, folder: str) -> DifferingPart | None:
    """The first part of ``live`` that is not what ``folder`` holds; None where the two cannot be laid side by side."""
    try:
        saved = read_leaf(folder, name)
    except StateMismatchError:
        return None
    if type(live) is Tensor and isinstance(saved, Tensor):
        here = live.detach().cpu()
        return first_element(saved, here) if (here.dtype, here.shape) == (saved.dtype, saved.shape) else None
    if isinstance(live, Tensor) or isinstance(saved, Tensor):
        return None
    return first_entry(saved, live, name=name)


def _how(first: Difference) -> str:
    if first.expected == _ABSENT:
        return f"'{first.leaf}' was not saved"
    if first.got == _ABSENT:
        return f"'{first.leaf}' did not come back"
    return f"'{first.leaf}' came back with other bits"


def _compare(name: str, expected: Mapping[str, str], got: Mapping[str, str], *, step: int, ranks: Ranks) -> Check:
    wrong = [*differing(expected, got), *(expected.keys() - got.keys())]
    own = [
        Difference.of_leaf(
            leaf, step=step, rank=ranks.rank, expected=expected.get(leaf, _ABSENT), got=got.get(leaf, _ABSENT)
        )
        for leaf in sorted(wrong, key=lambda leaf: (_RATE.fullmatch(leaf) is not None, leaf))
    ]
    found = [difference for of_rank in ranks.gather(own) for difference in of_rank]
    compared = min(ranks.gather(len(expected)))
    if found:
        first = found[0]
        shown = "; ".join(f"'{d.leaf}' on rank {d.rank}" for d in found[:_SHOWN])
        components = ", ".join(sorted({str(difference.component) for difference in found}))
        more = f" and {len(found) - _SHOWN} more, of {components}" if len(found) > _SHOWN else ""
        return Check(
            name=name,
            status=Status.different,
            detail=f"step {step}: {shown}{more}: {_how(first)}",
            first_difference=first,
        )
    if compared == 0:
        return Check(name=name, status=Status.not_verified, detail=f"step {step}: there was no leaf to compare")
    return Check(
        name=name,
        status=Status.equal,
        detail=f"{compared} leaves on {counted(ranks.world_size, 'rank')} bitwise equal at step {step}",
        covered={"leaves": compared, "ranks": ranks.world_size},
    )
