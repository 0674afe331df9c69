"""Whether ranks mean the same by a name: of a tensor that several ranks hold in full, one of them is stored for all.

DCP's planner looks only at names when it drops all but one, and a load would fail, or go wrong, where the others were
of another shape or dtype.
"""

from collections.abc import Mapping, Sequence

from torch.distributed.checkpoint.planner import SavePlan

from ckptrun.engine.tensor_bytes import dtype_name
from ckptrun.errors import CheckpointError
from ckptrun.rank_names import rank_name

__all__ = ["kinds_in", "require_same_kinds"]


def kinds_in(plan: SavePlan) -> dict[str, str]:
    """Name -> dtype and full shape, of the tensors in the plan of one rank; goes to rank 0 with it."""
    return {
        item.index.fqn: f"{dtype_name(item.tensor_data.properties.dtype)} of shape {tuple(item.tensor_data.size)}"
        for item in plan.items
        if item.tensor_data is not None
    }


def require_same_kinds(kinds: Sequence[Mapping[str, str] | None]) -> None:
    """Check what all ranks have said, by rank; None where a rank has said nothing because nothing has changed.

    Raises:
        CheckpointError: Two ranks have tensors of different dtype or shape under one name; names it.
    """
    first: dict[str, tuple[int, str]] = {}
    for rank, of_rank in enumerate(kinds):
        for name, kind in (of_rank or {}).items():
            known_rank, known = first.setdefault(name, (rank, kind))
            if known != kind:
                raise CheckpointError(
                    f"Leaf '{name}' is {known} on rank {known_rank} but {kind} on rank {rank}, and only one of "
                    f"them would be stored. Give each rank a leaf of its own, by a name with its rank: "
                    f"'{name}.{rank_name(rank)}'."
                )
