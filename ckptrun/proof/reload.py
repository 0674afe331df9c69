"""The reload check: what a checkpoint gives back, in freshly built objects, has the bits that were live at the request.

The expected digests were taken from live state when the save was requested, never from what went through the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from ckptrun.checkpoint.load import Loaded
from ckptrun.checkpoint.manager import SaveRequest, digest_state
from ckptrun.checkpoint.state import TrainingState
from ckptrun.proof.verdict import Check, Status
from ckptrun.ranks import Ranks

__all__ = ["Difference", "check_loaded", "check_reload", "check_replicas"]

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One leaf on one rank that came back with other bits, or did not come back."""

    step: int
    rank: int
    component: str
    leaf: str
    expected: str
    """Digest at the request, or ``absent``."""
    got: str
    """Digest after the load, or ``absent``."""


def check_reload(
    expected: Mapping[str, str],
    load_fresh: Callable[[], TrainingState],
    *,
    step: int,
    ranks: Ranks,
) -> Check:
    """Load into freshly built objects and compare every leaf of every component on every rank. All ranks call.

    Args:
        expected: Leaf name -> digest of this rank's live values at the request.
        load_fresh: Builds new objects, loads the checkpoint of ``step`` into them and returns their state.
        step: The checkpoint's step, for the report.
        ranks: All ranks of the run.
    """
    return _compare("loaded_equals_saved", expected, digest_state(load_fresh().leaves()), step=step, ranks=ranks)


def check_loaded(state: TrainingState, loaded: Loaded, *, ranks: Ranks) -> Check:
    """Compare the live state right after a load with the digests in the manifest. All ranks call.

    Covers the leaves that were loaded; those that were left out on purpose are not compared.
    """
    live = digest_state(state.leaves())
    got = {name: digest for name, digest in live.items() if name in loaded.digests}
    return _compare("loaded_equals_saved", loaded.digests, got, step=loaded.step, ranks=ranks)


def check_replicas(request: SaveRequest) -> Check:
    """Report whether ranks that should hold the same values did when the save was requested."""
    if not request.replica_conflicts:
        detail = f"ranks agreed on every shared leaf at step {request.step}"
        return Check(name="replicas", status=Status.equal, detail=detail)
    leaf = request.replica_conflicts[0]
    more = f" and {len(request.replica_conflicts) - 1} more" if len(request.replica_conflicts) > 1 else ""
    return Check(
        name="replicas",
        status=Status.different,
        detail=f"step {request.step}: ranks hold different values of '{leaf}'{more}; what is each rank's own "
        "must stand under a key such as 'rank_00003' in its state_dict()",
        first_difference={
            "step": request.step,
            "rank": None,
            "component": leaf.partition(".")[0],
            "leaf": leaf,
            "index": None,
            "expected": None,
            "got": None,
            "ulp": None,
        },
    )


def _compare(name: str, expected: Mapping[str, str], got: Mapping[str, str], *, step: int, ranks: Ranks) -> Check:
    own = [
        Difference(
            step=step,
            rank=ranks.rank,
            component=leaf.partition(".")[0],
            leaf=leaf,
            expected=expected.get(leaf, "absent"),
            got=got.get(leaf, "absent"),
        )
        for leaf in sorted(expected.keys() | got.keys())
        if expected.get(leaf) != got.get(leaf)
    ]
    found = [difference for of_rank in ranks.gather(own) for difference in of_rank]
    compared = min(ranks.gather(len(expected)))
    if found:
        first = found[0]
        shown = "; ".join(f"'{d.leaf}' on rank {d.rank}" for d in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return Check(
            name=name,
            status=Status.different,
            detail=f"step {step}: {shown}{more}: expected digest {first.expected}, got {first.got}",
            first_difference={**asdict(first), "index": None, "ulp": None},
        )
    if compared == 0:
        return Check(name=name, status=Status.not_verified, detail=f"step {step}: there was no leaf to compare")
    plural = "s" if ranks.world_size > 1 else ""
    return Check(
        name=name,
        status=Status.equal,
        detail=f"{compared} leaves on {ranks.world_size} rank{plural} bitwise equal at step {step}",
    )
