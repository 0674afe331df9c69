"""A state dict whose tensors all lie in one piece of host memory, and how it is made from live tensors.

A survey walks the state once: it notes where each tensor will lie, and what it looked like (mesh, placements, shards).
Filling copies the bytes. The result is a dict that crosses to another process as that one piece of memory plus the
notes: torch hands over a file descriptor for each storage, and thousands of small tensors with a storage each use up
what a process may have.
"""

import copy
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor

from ckptrun.embedded import holds_tensor
from ckptrun.engine.checkpointable import StagedShards, is_checkpointable, shards_of
from ckptrun.engine.host_memory import Lease, shared_memory
from ckptrun.engine.tensor_bytes import detached, require_storable
from ckptrun.errors import SaveRefusedError, UnsupportedLeafError
from ckptrun.values import Refused, kind_name

__all__ = ["StagedState", "Survey"]

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Plain:
    """A tensor at a place in the memory."""

    begin: int
    bytes: int
    dtype: torch.dtype
    shape: torch.Size

    def build(self, memory: Tensor) -> Tensor:
        if not self.bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        return memory[self.begin : self.begin + self.bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class _Copied:
    """A tensor of a kind that has no storage of its own; it copied itself."""

    tensor: Tensor

    def build(self, memory: Tensor) -> Tensor:
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Distributed:
    """A DTensor: its local part, its mesh and placements."""

    local: Any
    spec: Any

    def build(self, memory: Tensor) -> DTensor:
        # Not from_local(): it would move the local part back to the device of the mesh.
        return DTensor(self.local.build(memory), self.spec, requires_grad=False)  # type: ignore[no-any-return,no-untyped-call,unused-ignore]


@dataclass(frozen=True, slots=True)
class _Sharded:
    """A ShardedTensor, as FSDP1 makes them: its local shards and what it says of all."""

    shards: tuple[tuple[Any, Any], ...]
    metadata: Any

    def build(self, memory: Tensor) -> ShardedTensor:
        shards = [Shard(note.build(memory), metadata) for note, metadata in self.shards]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, self.metadata)


@dataclass(frozen=True, slots=True)
class _Shards:
    """A tensor of DCP's protocol: the plain tensors that it hands out, and what it says of them."""

    items: tuple[WriteItem, ...]
    shards: tuple[Any, ...]
    size: torch.Size
    dtype: torch.dtype

    def build(self, memory: Tensor) -> StagedShards:
        return StagedShards(self.items, [note.build(memory) for note in self.shards], self.size, self.dtype)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A plain value that is no scalar; already a copy."""

    value: Any

    def build(self, memory: Tensor) -> Any:
        return self.value


_NOTES = (_Plain, _Copied, _Distributed, _Sharded, _Shards, _Kept, Refused)
_SCALARS = (type(None), bool, int, float, str, bytes)


class StagedState(dict[str, Any]):
    """The staged copy: a plain dict to everyone who reads it.

    Args:
        notes: The state with a note in place of each tensor.
        lease: The memory that the notes refer to.
    """

    def __init__(self, notes: dict[str, Any], lease: Lease) -> None:
        super().__init__(_build(notes, torch.from_numpy(lease.array)))
        self._notes = notes
        self._owner = lease.owner

    def __reduce__(self) -> tuple[Any, ...]:
        notes = _picklable(self._notes, ())
        memory = self._owner
        if not memory.is_shared():  # type: ignore[no-untyped-call]
            # Pickling it as it is would move it to shared memory under the tensors that were made on it.
            memory = shared_memory(self._owner.numel()).copy_(self._owner)
        return _rebuild, (notes, memory)


def _rebuild(notes: dict[str, Any], memory: Tensor) -> dict[str, Any]:
    return dict(_build(notes, memory))


def _build(notes: Any, memory: Tensor) -> Any:
    if isinstance(notes, _NOTES):
        return notes.build(memory)
    if isinstance(notes, dict):
        return _like(notes, {key: _build(value, memory) for key, value in notes.items()})
    if isinstance(notes, list | tuple):
        return _like(notes, [_build(value, memory) for value in notes])
    return notes


def _like(container: Any, held: Any) -> Any:
    """A container of the kind of ``container``, where that can be told; ``held`` is a dict or a list."""
    kind = type(container)
    if isinstance(container, defaultdict):
        return defaultdict(container.default_factory, held) if kind is defaultdict else held
    if kind in (OrderedDict, Counter):
        return kind(held)
    if isinstance(container, tuple):
        return kind(*held) if hasattr(kind, "_fields") else tuple(held)
    return held


def _name_of(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _picklable(notes: Any, path: tuple[Any, ...]) -> Any:
    """``notes``, with a Refused that names the leaf in place of what cannot go to another process."""
    if isinstance(notes, dict):
        return _like(notes, {key: _picklable(item, (*path, key)) for key, item in notes.items()})
    if isinstance(notes, list | tuple):
        return _like(notes, [_picklable(item, (*path, index)) for index, item in enumerate(notes)])
    value = notes.value if isinstance(notes, _Kept) else notes
    if not isinstance(value, _NOTES) and type(value) not in _SCALARS:
        try:
            ForkingPickler.dumps(value)
        except Exception as error:  # noqa: BLE001  # whatever classes raise when they are pickled
            return Refused(
                f"Leaf '{_name_of(path)}' is or holds a {kind_name(value)} that cannot be handed to the process that "
                f"saves ({type(error).__name__}: {error}). Return a tensor or a plain value from state_dict()."
            )
    return notes


@dataclass(frozen=True, slots=True)
class _Source:
    """A live tensor that is to be copied, and what tells whether it was changed since."""

    tensor: Tensor
    path: tuple[Any, ...]
    watched: Tensor
    """What the user's program changes: where ``tensor`` is a part of it, only its counter goes up."""
    versions: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, path: tuple[Any, ...], watched: Tensor) -> "_Source":
        return cls(tensor, path, watched, (_version(tensor), _version(watched)))

    def require_unchanged(self) -> None:
        if (_version(self.tensor), _version(self.watched)) != self.versions:
            name = _name_of(self.path)
            raise SaveRefusedError(
                f"Leaf '{name}' was changed while it was copied for a save, so the copy may be of neither the one "
                "moment nor the other. Nothing is saved of it. Wait for the copy before the state is changed: "
                "HostStager.wait(), or checkpoint.overlapped_staging=false.",
                leaves=[name],
            )


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(slots=True)
class Survey:
    """What there is to copy, and to where."""

    notes: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    """How much memory the copy takes."""
    _sources: list[_Source] = field(default_factory=list)
    _places: list[_Plain] = field(default_factory=list)
    _known: dict[Any, _Plain] = field(default_factory=dict)

    @classmethod
    def of(cls, state_dict: Mapping[str, Any]) -> "Survey":
        """Walk ``state_dict``. Plain values are copied now."""
        survey = cls()
        survey.notes = survey._note(state_dict, ())
        return survey

    @property
    def devices(self) -> set[torch.device]:
        """Where the tensors lie."""
        return {source.tensor.device for source in self._sources}

    def fill(self, lease: Lease) -> StagedState:
        """Copy all tensors into ``lease``. They must not change meanwhile.

        Raises:
            SaveRefusedError: One has changed since the survey, before its copy was complete; names it.
        """
        memory = torch.from_numpy(lease.array)
        for source, place in zip(self._sources, self._places, strict=True):
            place.build(memory).copy_(source.tensor)
            # One that changes after its copy does no harm.
            source.require_unchanged()
        return StagedState(self.notes, lease)

    def _note(self, value: Any, path: tuple[Any, ...]) -> Any:
        try:
            return self._note_of(value, path)
        except UnsupportedLeafError as error:
            if not (dist.is_initialized() and dist.get_world_size() > 1):
                raise
            return Refused(str(error))

    def _note_of(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._note_tensor(value, path, value)
        if isinstance(value, Mapping):
            return _like(value, {key: self._note(item, (*path, key)) for key, item in value.items()})
        if isinstance(value, list | tuple) and holds_tensor(value):
            return _like(value, [self._note(item, (*path, index)) for index, item in enumerate(value)])
        return value if type(value) in _SCALARS else _Kept(_copy_of(value, _name_of(path)))

    def _note_tensor(self, tensor: Tensor, path: tuple[Any, ...], watched: Tensor) -> Any:
        name = _name_of(path)
        if is_checkpointable(tensor):
            shards = shards_of(tensor, name=name)
            notes = tuple(self._note_tensor(shard, path, shard) for _, shard in shards)
            return _Shards(tuple(item for item, _ in shards), notes, tensor.size(), tensor.dtype)
        if isinstance(tensor, DTensor):
            return _Distributed(self._note_tensor(tensor._local_tensor, path, watched), tensor._spec)
        if isinstance(tensor, ShardedTensor):
            return self._note_sharded(tensor, path)
        bare = detached(tensor, name=name)
        if type(bare) is not Tensor or bare.layout is not torch.strided or bare.is_quantized or bare.is_nested:
            return _Copied(_copied(bare, name))
        require_storable(name, bare.dtype, bare.layout)
        return self._note_plain(bare, path, watched)

    def _note_plain(self, tensor: Tensor, path: tuple[Any, ...], watched: Tensor) -> _Plain:
        # The same memory seen the same way is one tensor: tied weights stay tied.
        bits = (tensor.dtype, tensor.is_conj(), tensor.is_neg())
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), bits)
        if tensor.numel() and memory in self._known:
            return self._known[memory]
        place = _Plain(self.bytes, tensor.numel() * tensor.element_size(), tensor.dtype, tensor.shape)
        self.bytes += -(-place.bytes // _ALIGNMENT) * _ALIGNMENT
        if place.bytes:
            self._sources.append(_Source.of(tensor, path, watched))
            self._places.append(place)
            self._known[memory] = place
        return place

    def _note_sharded(self, tensor: ShardedTensor, path: tuple[Any, ...]) -> _Sharded:
        metadata = copy.deepcopy(tensor.metadata())
        metadata.tensor_properties.pin_memory = False
        metadata.tensor_properties.requires_grad = False
        for shard_metadata in metadata.shards_metadata:
            shard_metadata.placement = _on_cpu(shard_metadata.placement)
        shards = []
        for shard in tensor.local_shards():
            shard_metadata = copy.deepcopy(shard.metadata)
            shard_metadata.placement = _on_cpu(shard_metadata.placement)
            shards.append((self._note_tensor(shard.tensor, path, shard.tensor), shard_metadata))
        return _Sharded(tuple(shards), metadata)


def _copied(tensor: Tensor, name: str) -> Tensor:
    try:
        return tensor.to("cpu", copy=True)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a {kind_name(tensor)} that cannot be copied to the host "
            f"({type(error).__name__}: {error}). Return plain tensors from state_dict()."
        ) from error


def _copy_of(value: Any, name: str) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is or holds a {kind_name(value)} that cannot be copied ({type(error).__name__}: {error}). "
            "Return a tensor or a plain value from state_dict()."
        ) from error


def _on_cpu(placement: Any) -> Any:
    return _remote_device(f"rank:{placement.rank()}/cpu")
