"""The optimizer's state under ``FullyShardedDataParallel``: from the flat parts that ranks hold to DTensors, and back.

FullyShardedDataParallel lays all parameters of a unit end to end and cuts the whole into equal parts, so what a rank
holds of one parameter is a 1-dim piece, or nothing; moments lie likewise. In a checkpoint a moment has the shape of its
parameter. torch has conversions of its own, but on torch 2.13 ``optim_state_dict_to_load`` gives wrong moments when
the parameters are sharded by tensor parallelism too, without an error.

Must not know which optimizer it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from ckptrun.errors import InternalError, UnsupportedLeafError
from ckptrun.optimizer.disjoint import add_bytes_

__all__ = ["FlatParts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a parameter lies in its unit."""

    begin: int
    """First element that this rank holds, in the parameter's own order."""
    end: int
    shape: tuple[int, ...]
    """Of what the ranks of ``group`` hold together: under tensor parallelism a part of the whole."""
    whole_shape: tuple[int, ...]
    tensor_placement: Placement | None
    """How tensor parallelism shards it; None: not at all."""
    group: dist.ProcessGroup


class FlatParts:
    """Converts the state of parameters that one FullyShardedDataParallel root manages.

    All ranks call ``gather`` and ``scatter`` for the same parameters in the same order: they use collectives.

    Args:
        root: Built with ``use_orig_params=True`` and a ``device_mesh``, whose last axis is the sharded one.
    """

    def __init__(self, root: nn.Module) -> None:
        if not isinstance(root, FullyShardedDataParallel):
            raise InternalError(f"FlatParts needs a FullyShardedDataParallel, not a {type(root).__name__}.")
        self._places: dict[int, _Place] = {}
        for unit in FullyShardedDataParallel.fsdp_modules(root):
            self._add_unit(unit._handle)
        self._group = root.process_group
        sharding: DeviceMesh | None = getattr(root, "_device_mesh", None)
        if sharding is None:
            raise InternalError("FullyShardedDataParallel must be built with device_mesh for its state to be named.")
        tensor_parallel = any(place.tensor_placement is not None for place in self._places.values())
        self._mesh: DeviceMesh = sharding._get_root_mesh() if tensor_parallel else sharding
        self._shard_axis = (sharding.mesh_dim_names or ("shard",))[-1]
        self._tensor_axis = (self._mesh.mesh_dim_names or ("",))[-1] if tensor_parallel else None

    def _add_unit(self, handle: Any) -> None:
        if handle is None:
            return
        flat = handle.flat_param
        if flat._params is None:
            raise InternalError("FullyShardedDataParallel must be built with use_orig_params=True.")
        parts = zip(flat._params, flat._shard_param_infos, flat._shapes, flat._param_extensions, strict=True)
        for parameter, part, shape, extension in parts:
            begin = part.intra_param_start_idx if part.in_shard else 0
            self._places[id(parameter)] = _Place(
                begin=begin,
                end=part.intra_param_end_idx + 1 if part.in_shard else 0,
                shape=tuple(shape),
                whole_shape=tuple(shape if extension is None else extension.shape),
                tensor_placement=None if extension is None else extension.placements[0],
                group=handle.process_group,
            )

    def manages(self, parameter: nn.Parameter) -> bool:
        """Whether it lies in a unit; parameters of ignored modules do not."""
        return id(parameter) in self._places

    def holds_part_of(self, parameter: nn.Parameter) -> bool:
        """Whether this rank holds an element of it; if not, torch keeps no state for it here."""
        place = self._places[id(parameter)]
        return place.end > place.begin

    def gather(self, parameters: Mapping[str, nn.Parameter], state: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
        """Return name -> key -> copies of the state: moments as DTensors, the rest as it is on a rank that has it.

        Raises:
            UnsupportedLeafError: A tensor is neither as long as the parameter's part nor 0-dim.
        """
        facts = self._facts(parameters, state)
        found: dict[str, dict[str, Any]] = {}
        for name, kinds in facts.items():
            parameter = parameters[name]
            own = state.get(parameter, {})
            found[name] = {
                key: self._to_dtensor(parameter, own.get(key), kind) if isinstance(kind, torch.dtype) else kind
                for key, kind in kinds.items()
            }
        return found

    def _facts(self, parameters: Mapping[str, nn.Parameter], state: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
        """Name -> key -> dtype of a moment, or the value itself; for all names that any rank has state for."""
        own: dict[str, dict[str, Any]] = {}
        refusal = None
        try:
            for name, parameter in parameters.items():
                if state.get(parameter):
                    own[name] = {
                        key: _fact(value, parameter, f"{name}.{key}") for key, value in state[parameter].items()
                    }
        except UnsupportedLeafError as error:
            # Raised after the exchange: the other ranks would wait for this one.
            refusal = str(error)
        of_ranks: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(of_ranks, (refusal, own), group=self._group)
        for message, _ in of_ranks:
            if message is not None:
                raise UnsupportedLeafError(message)
        merged: dict[str, dict[str, Any]] = {}
        for name in parameters:
            on = [facts[name] for _, facts in of_ranks if name in facts]
            if on:
                merged[name] = {**on[0], **own.get(name, {})}
        return merged

    def whole_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """The shape of ``parameter`` in the user's model."""
        return self._places[id(parameter)].whole_shape

    def lies_right(self, parameter: nn.Parameter, moment: Tensor) -> bool:
        """Whether ``moment`` lies as :meth:`zeros` does."""
        if not isinstance(moment, DTensor) or moment.device_mesh != self._mesh:
            return False
        return list(moment.placements) == self._placements(self._places[id(parameter)])

    def zeros(self, parameter: nn.Parameter, dtype: torch.dtype) -> DTensor:
        """Return a DTensor of zeros for one of its moments."""
        place = self._places[id(parameter)]
        rows = torch.zeros(place.shape, dtype=dtype, device=parameter.device)[self._rows(place)]
        return self._wrap(rows.contiguous(), place)

    def _to_dtensor(self, parameter: nn.Parameter, part: Tensor | None, dtype: torch.dtype) -> DTensor:
        place = self._places[id(parameter)]
        together = torch.zeros(place.shape, dtype=dtype, device=parameter.device)
        if part is not None:
            together.view(-1)[place.begin : place.end] = part
        add_bytes_(together, place.group)
        return self._wrap(together[self._rows(place)].clone(), place)

    def scatter(self, parameter: nn.Parameter, moment: DTensor) -> Tensor:
        """Return this rank's flat part of ``moment``, which lies as :meth:`zeros` does."""
        place = self._places[id(parameter)]
        together = torch.zeros(place.shape, dtype=moment.dtype, device=parameter.device)
        together[self._rows(place)] = moment.to_local()
        add_bytes_(together, place.group)
        return together.view(-1)[place.begin : place.end].clone()

    def _rows(self, place: _Place) -> slice:
        """The rows of this rank, cut as ``Shard(0)`` cuts."""
        count, rank = dist.get_world_size(place.group), dist.get_rank(place.group)
        size = -(-place.shape[0] // count)
        return slice(min(rank * size, place.shape[0]), min((rank + 1) * size, place.shape[0]))

    def _wrap(self, rows: Tensor, place: _Place) -> DTensor:
        stride = torch.empty(place.whole_shape, device="meta").stride()
        shape = torch.Size(place.whole_shape)
        return DTensor.from_local(
            rows, self._mesh, self._placements(place), run_check=False, shape=shape, stride=stride
        )

    def _placements(self, place: _Place) -> list[Placement]:
        return [self._placement(axis, place) for axis in self._mesh.mesh_dim_names or (self._shard_axis,)]

    def _placement(self, axis: str, place: _Place) -> Placement:
        tensor = place.tensor_placement
        if axis == self._shard_axis:
            # Tensor parallelism cuts first, so the rows of a rank are a part of its tensor-parallel part.
            cut_already = isinstance(tensor, Shard) and tensor.dim == 0
            return _StridedShard(0, split_factor=self._mesh.size(self._mesh.ndim - 1)) if cut_already else Shard(0)
        return tensor if axis == self._tensor_axis and tensor is not None else Replicate()


def _fact(value: Any, parameter: nn.Parameter, place: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        return value.detach().cpu().clone()
    if value.shape != parameter.shape:
        raise UnsupportedLeafError(
            f"Leaf 'optimizer.state.{place}' has shape {tuple(value.shape)} beside a flat part of shape "
            f"{tuple(parameter.shape)}: under FullyShardedDataParallel state must be 0-dim or of the parameter's "
            "shape. Use fully_shard (parallelism=fsdp, hsdp, fsdp_tp) for this optimizer."
        )
    return value.dtype
