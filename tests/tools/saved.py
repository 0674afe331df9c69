"""Real checkpoints that the tests of the tools look at."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ckptrun.engine.storage import ShardWriter
from tests.support.bits import random_tensor
from tests.support.run_ranks import run_ranks

LAYOUTS = {
    "model.blocks.0.weight": Shard(0),
    "model.blocks.1.weight": Shard(1),
    "model.norm": Replicate(),
    "model.large": Shard(0),
}


def truth(seed: int = 0) -> dict[str, Any]:
    """A nested state of full tensors and plain values; the same for the same ``seed``."""
    weights = {
        "blocks": [
            {"weight": random_tensor(torch.float32, (5, 8), seed)},
            {"weight": random_tensor(torch.bfloat16, (3, 6), seed + 1)},
        ],
        "norm": random_tensor(torch.float64, (7,), seed + 2),
        "large": random_tensor(torch.float32, (300, 1000), seed + 3),
        "scale": torch.tensor(1.5 + seed),
        "mask": random_tensor(torch.bool, (4, 2), seed + 4),
        "empty": torch.zeros(0, 3, dtype=torch.float16),
    }
    plain = {"lr": 0.1, "betas": (0.9, float("nan")), "names": ["a", None, b"\x00"], "step": 20 + seed}
    return {"model": weights, "optimizer": plain}


def sharded(state: Any, name: str = "") -> Any:
    """The same state with the tensors of ``LAYOUTS`` on a mesh of all ranks."""
    if isinstance(state, dict):
        return {key: sharded(value, f"{name}.{key}".strip(".")) for key, value in state.items()}
    if isinstance(state, list):
        return [sharded(value, f"{name}.{index}") for index, value in enumerate(state)]
    if name in LAYOUTS:
        return distribute_tensor(state, init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)), [LAYOUTS[name]])
    return state


def save(folder: Path, state: Any, **run: Any) -> Path:
    """Save with this process alone; return the folder."""
    dcp.save(state, storage_writer=ShardWriter(folder, run=run), no_dist=True)
    return folder


def save_run(root: str) -> None:
    """On each of two ranks: two checkpoints with other bits, as a run leaves them."""
    for step, seed in ((20, 0), (40, 1)):
        run = {"step": step, "world_size": 2, "mesh": {"replicate": 1, "shard": 2}, "threads": 1}
        state = sharded(truth(seed))
        writer = ShardWriter(f"{root}/step_{step:08d}", run=run, digests={"model.norm": f"digest {seed}"})
        dcp.save(state, storage_writer=writer)


def make_run(folder: Path) -> Path:
    """Make a run folder with checkpoints of steps 20 and 40, saved by two ranks."""
    run_ranks(save_run, 2, str(folder / "checkpoints"))
    (folder / "config.yaml").write_text("run: {}\n")
    return folder
