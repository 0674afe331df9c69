"""Checkpoints of every format, written by torch and safetensors; and readers of every format that know nothing of ckptrun."""

import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ckptrun.engine.storage import ShardWriter
from ckptrun.formats.open_source import open_source
from tests.support.bits import all_bits, random_tensor
from tests.support.run_ranks import run_ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "complex64", "complex128", "int64"),
    *("int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
]
NOT_IN_SAFETENSORS = ("complex32", "complex128")
IN_SAFETENSORS = [name for name in DTYPES if name not in NOT_IN_SAFETENSORS]
FORMATS = ["ckptrun", "dcp", "torch", "safetensors"]

MARKS = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint"),
]
"""For tests that write every format with torch itself."""


def tensors(names: list[str] = DTYPES) -> dict[str, Tensor]:
    """Every dtype, any bits; shapes of every kind."""
    found = {name: random_tensor(getattr(torch, name), (6, 4), seed) for seed, name in enumerate(names)}
    more = {
        "zero_dim": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3),
        "empty_columns": torch.zeros(3, 0, dtype=torch.int16),
        "row": random_tensor(torch.float32, (1, 5), 90),
        "deep": random_tensor(torch.bfloat16, (3, 2, 1, 4), 91),
        "long": random_tensor(torch.float32, (1001, 7), 92),
    }
    return found | more


def state(names: list[str] = DTYPES) -> dict[str, Any]:
    """A nested state of tensors and plain values of every kind."""
    plain = {
        "none": None,
        "lr": 0.1,
        "nan": float("nan"),
        "minus_zero": -0.0,
        "large": 2**70,
        "text": "wörld",
        "bytes": b"\x00\xff",
        "betas": (0.9, (1, "x")),
        "params": [0, 1, [2]],
        "empty_list": [],
    }
    group = [{"lr": 1e-3, "params": [0]}, {"lr": 2e-3, "momentum": torch.arange(3.0)}]
    return {"model": tensors(names), "optimizer": {"param_groups": group}, "plain": plain}


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Its leaves, named as DCP names them."""
    return flatten_state_dict(nested)[0]


def only_tensors(nested: dict[str, Any]) -> dict[str, Tensor]:
    """The leaves that safetensors files hold."""
    return {name: leaf for name, leaf in flat(nested).items() if isinstance(leaf, Tensor)}


def write(format: str, nested: dict[str, Any], path: Path) -> Path:
    """Save with the tool that the format belongs to, in this process alone; return ``path``."""
    if format == "ckptrun":
        dcp.save(nested, storage_writer=ShardWriter(path), no_dist=True)
    elif format == "dcp":
        dcp.save(nested, checkpoint_id=path, no_dist=True)
    elif format == "torch":
        torch.save(nested, path)
    else:
        safetensors.torch.save_file({k: v.contiguous() for k, v in only_tensors(nested).items()}, path)
    return path


def _read_ckptrun(path: Path) -> dict[str, Any]:
    """With the reader that stands in ``docs/format.md``."""
    names: dict[str, Any] = {}
    exec(compile(PAGE.read_text().partition("```python\n")[2].partition("```")[0], str(PAGE), "exec"), names)
    found = {}
    for name, leaf in names["read"](path).items():
        if isinstance(leaf, tuple):
            dtype, shape, raw = leaf
            flat_tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0).byte()
            leaf = flat_tensor.view(getattr(torch, dtype)).view(shape)
        found[name] = leaf
    return found


def _read_dcp(path: Path) -> dict[str, Any]:
    """Everything, by what ``.metadata`` says."""
    nested: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()
    _load_state_dict(nested, storage_reader=dcp.FileSystemReader(path), planner=planner, no_dist=True)
    return flat(nested)


def _read_torch(path: Path) -> dict[str, Any]:
    return flat(torch.load(path, weights_only=True))


def _read_safetensors(path: Path) -> dict[str, Any]:
    files = [path]
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"] if index.exists() else None
        files = [path / name for name in (set(weight_map.values()) if weight_map else ["model.safetensors"])]
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no dict
    return found


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ckptrun": _read_ckptrun,
    "dcp": _read_dcp,
    "torch": _read_torch,
    "safetensors": _read_safetensors,
}


def read_bits(format: str, path: Path) -> dict[str, Any]:
    """All leaves by name, with type and bits, read without ckptrun."""
    return {name: all_bits(leaf) for name, leaf in READERS[format](path).items()}


def read_all(path: object) -> dict[str, Any]:
    """Every leaf, whole, as ckptrun reads it."""
    with open_source(path) as source:  # type: ignore[arg-type]
        return {
            name: source.read_rows(name, 0, leaf.rows).view(leaf.shape) if leaf.is_tensor else leaf.value
            for name, leaf in source.leaves.items()
        }


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def edit_metadata(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change what ``.metadata`` of a DCP folder says."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def sharded() -> dict[str, Any]:
    """Tensors cut in every way over two ranks; on one of them alone, or on all."""
    mesh = init_device_mesh("cpu", (2,))
    cuts = {
        "rows": (random_tensor(torch.float32, (7, 5), 1), Shard(0)),
        "columns": (random_tensor(torch.bfloat16, (4, 9), 2), Shard(1)),
        "inner": (random_tensor(torch.int32, (3, 4, 5), 3), Shard(2)),
        "one_row": (random_tensor(torch.float64, (1, 6), 4), Shard(0)),
        "replicated": (random_tensor(torch.float32, (5,), 5), Replicate()),
        "empty": (torch.zeros(0, 3), Shard(0)),
        "long": (random_tensor(torch.float32, (2001, 33), 6), Shard(0)),
    }
    model: dict[str, Any] = {name: distribute_tensor(value, mesh, [cut]) for name, (value, cut) in cuts.items()}
    return {"model": {**model, "plain": random_tensor(torch.float16, (3, 3), 7)}}


def sharded_truth() -> dict[str, Tensor]:
    """Its full tensors, by name."""
    return {
        "model.rows": random_tensor(torch.float32, (7, 5), 1),
        "model.columns": random_tensor(torch.bfloat16, (4, 9), 2),
        "model.inner": random_tensor(torch.int32, (3, 4, 5), 3),
        "model.one_row": random_tensor(torch.float64, (1, 6), 4),
        "model.replicated": random_tensor(torch.float32, (5,), 5),
        "model.empty": torch.zeros(0, 3),
        "model.long": random_tensor(torch.float32, (2001, 33), 6),
        "model.plain": random_tensor(torch.float16, (3, 3), 7),
    }


def _save_sharded(root: str) -> None:
    value = sharded()
    dcp.save(value, checkpoint_id=f"{root}/dcp")
    dcp.save(value, storage_writer=ShardWriter(f"{root}/ckptrun"))
    writer = HuggingFaceStorageWriter(f"{root}/safetensors", save_distributed=True)
    dcp.save(flat(value), storage_writer=writer)


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    """Saved once per process; goes when it ends."""
    place = tempfile.TemporaryDirectory(prefix="ckptrun-sharded-")
    run_ranks(_save_sharded, 2, place.name)
    return place


def sharded_in(format: str) -> Path:
    """What two ranks have saved of ``sharded()`` as ``dcp``, ``ckptrun`` or ``safetensors``; not to be changed."""
    return Path(_place().name) / format
