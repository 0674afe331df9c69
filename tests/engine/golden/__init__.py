"""Checkpoints of format 1 as this package wrote them once. They must load for ever; nothing here is made anew.

``python -m tests.engine.golden`` wrote them; it is kept for the next format, and refuses to write over what is there.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

FOLDER = Path(__file__).parent
ONE_RANK = FOLDER / "format_1_one_rank"
TWO_RANKS = FOLDER / "format_1_two_ranks"

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "complex128",
    "complex64",
    "complex32",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
]

VALUES: dict[str, Any] = {
    "none": None,
    "yes": True,
    "count": 2**70,
    "text": "Grüße \u0000 \U0001f680",
    "bytes": b"\x00\xff",
    "floats": [0.1, -0.0, 1e-320, float("inf"), float("-inf"), float("nan")],
    "pair": (1, [2, {"three": 3}]),
    "in a tuple": ({1: "a", "1": "b"}, {"$float": "not a tag"}),
}


def pattern(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Bytes that any program can compute: byte i is (37 i + i // 256 + length of the dtype's name) mod 256; bools are 0, 1."""
    kind = getattr(torch, dtype)
    count = int(torch.tensor(shape).prod()) if shape else 1
    index = torch.arange(count * kind.itemsize)
    raw = (37 * index + index // 256 + len(dtype)) % (2 if dtype == "bool" else 256)
    return raw.to(torch.uint8).view(kind).view(shape)


def tensors() -> dict[str, torch.Tensor]:
    """What both checkpoints hold."""
    found = {f"{dtype}.matrix": pattern(dtype, (5, 3)) for dtype in DTYPES}
    found |= {f"{dtype}.scalar": pattern(dtype, ()) for dtype in ("float32", "bfloat16", "complex128")}
    return found | {"float32.empty": pattern("float32", (0, 4)), "float32.large": pattern("float32", (300, 70))}


def _make_one() -> None:
    from ckptrun import ShardWriter

    state = {"tensors": tensors(), "values": VALUES, "tied": {"a": (w := pattern("float32", (4,))), "b": w}}
    dcp.save(state, storage_writer=ShardWriter(ONE_RANK, run={"step": 20}), no_dist=True)


def _make_two() -> None:
    from ckptrun import ShardWriter

    mesh = init_device_mesh("cpu", (2,))
    state: dict[str, Any] = {"values": VALUES, "tensors": {}, f"rank_{dist.get_rank():05d}": {"own": dist.get_rank()}}
    for name, tensor in tensors().items():
        dim = 1 if name == "float32.large" else 0
        placement = Shard(dim) if tensor.dim() and "float4" not in name else Replicate()
        # As bytes: not every dtype can be scattered.
        width = tensor.element_size()
        raw = tensor.view(-1).view(torch.uint8).view(*tensor.shape, width)
        local = distribute_tensor(raw, mesh, [placement]).to_local().contiguous()
        part = local.view(-1).view(tensor.dtype).view(local.shape[:-1])
        state["tensors"][name] = torch.distributed.tensor.DTensor.from_local(
            part, mesh, [placement], run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    dcp.save(state, storage_writer=ShardWriter(TWO_RANKS, run={"step": 20}))


def _main() -> None:
    from tests.support.run_ranks import run_ranks

    for folder in (ONE_RANK, TWO_RANKS):
        if folder.exists():
            raise SystemExit(f"{folder} is there, and what is golden is not made anew.")
    _make_one()
    run_ranks(_make_two, 2)


if __name__ == "__main__":
    _main()
