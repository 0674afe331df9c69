"""A model with every kind of parameter that optimizers stumble over, and a store that stands in for a checkpoint."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Tiny(nn.Module):
    """Matrices, vectors, a 4-dim tensor, one row (empty on most ranks), a frozen layer, one that is never used, and one
    that ``freeze_later`` freezes after some steps."""

    def __init__(self):
        super().__init__()
        self.block = Block()
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.later = nn.Linear(6, 6)
        self.kernel = nn.Parameter(torch.randn(5, 3, 2, 2))
        self.row = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        return self.later(self.frozen(self.norm(self.block(x)))) * self.kernel.square().mean() * self.row.sum()

    def freeze_later(self):
        for parameter in self.later.requires_grad_(False).parameters():
            parameter.grad = None


DECAYED = frozenset(
    {"block.up.weight", "block.down.weight", "frozen.weight", "unused.weight", "later.weight", "kernel", "row"}
)
MATRICES = frozenset({"block.up.weight", "block.down.weight", "frozen.weight", "later.weight", "kernel"})


def tiny(dtype=torch.float32, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny().to(dtype)


def train(model, optimizer, steps, *, first=0):
    """Steps on inputs that depend on the number of the step."""
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        model(inputs).float().square().mean().backward()
        optimizer.step()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def raw(value):
    """Type, layout and bits of a leaf on this rank."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value)
    part = local(value).detach().cpu().contiguous().reshape(-1)
    place = repr(value.placements) if isinstance(value, DTensor) else None
    return (
        str(value.dtype),
        tuple(value.shape),
        place,
        part.view(torch.uint8).numpy().tobytes() if part.numel() else b"",
    )


def leaves(state, path=()):
    """Path -> leaf; empty dicts are leaves."""
    if isinstance(state, dict) and state:
        return {where: leaf for key, value in state.items() for where, leaf in leaves(value, (*path, key)).items()}
    return {path: state}


def bits(state):
    return {path: raw(leaf) for path, leaf in leaves(state).items()}


@dataclass
class Stored:
    """One leaf of a checkpoint, whole. Pickles without torch's shared memory."""

    path: tuple[str, ...]
    value: Any = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    content: bytes = b""

    def tensor(self):
        empty = torch.empty(self.shape, dtype=self.dtype)
        if empty.numel():
            empty.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(self.content), dtype=torch.uint8))
        return empty


def store(state):
    """What a checkpoint holds of ``state``. All ranks call."""
    found = []
    for path, leaf in leaves(state).items():
        if isinstance(leaf, torch.Tensor):
            whole = leaf.full_tensor() if isinstance(leaf, DTensor) else leaf
            flat = whole.detach().cpu().contiguous().reshape(-1)
            found.append(
                Stored(
                    path, dtype=leaf.dtype, shape=tuple(leaf.shape), content=flat.view(torch.uint8).numpy().tobytes()
                )
            )
        else:
            found.append(Stored(path, value=leaf))
    return found


def fill(template, stored):
    """Fill the tensors of ``template`` in place, as a loader does."""
    by_path = {leaf.path: leaf for leaf in stored}
    found = leaves(template)
    assert found.keys() == by_path.keys()
    with torch.no_grad():
        for path, leaf in found.items():
            if isinstance(leaf, torch.Tensor):
                assert (leaf.dtype, tuple(leaf.shape)) == (by_path[path].dtype, by_path[path].shape)
                whole = by_path[path].tensor()
                local(leaf).copy_(whole[_box(leaf)] if isinstance(leaf, DTensor) else whole)


def _box(tensor):
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


def resume(component, stored):
    """Load as ckptrun does: template, fill in place, load."""
    template = component.template(stored)
    fill(template, stored)
    component.load_state_dict(template)
