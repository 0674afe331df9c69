"""Real checkpoints as a run leaves them: every leaf with the digest of what was live, and its place in the state."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ckptrun.digest import digest_leaves
from ckptrun.engine.layout import step_name
from ckptrun.engine.storage import ShardWriter
from ckptrun.state.components import flatten, name_of
from tests.support.bits import random_tensor

FILE = "rank_00000.safetensors"


def live_state(seed: int = 0) -> dict[str, Any]:
    """A small state with all components, and one of a user's own; the same for the same ``seed``."""
    streams = {f"rank_{rank:05d}": {"python": [seed, rank], "torch": torch.full((16,), seed + rank)} for rank in (0, 1)}
    return {
        "data": {"epoch": 0, "position": 8 * seed},
        "memory": {"last": torch.arange(4.0) + seed},
        "model": {
            "embed": random_tensor(torch.bfloat16, (11, 6), seed),
            "weight": torch.arange(12.0).view(3, 4) + seed,
            "empty": torch.zeros(0, 3),
        },
        "optimizer": {
            "state": {"weight": {"exp_avg": torch.ones(3, 4) * seed, "step": torch.tensor(float(seed))}},
            "param_groups": [{"lr": 0.1 + seed, "betas": (0.9, 0.999)}],
        },
        "progress": {"step": seed},
        "rng": streams,
        "schedule": {"last_lr": [0.1 + seed]},
    }


def save(
    root: Path,
    step: int,
    state: dict[str, Any],
    *,
    live: dict[str, Any] | None = None,
    no_dist: bool = True,
    **run: Any,
) -> Path:
    """Save ``state`` with the digests of ``live``, as the manager does; return the folder. ``run`` is said of the run."""
    leaves, seen = flatten(state), flatten(state if live is None else live)
    folder = root / step_name(step)
    digests = digest_leaves({name_of(path): value for path, value in seen.items()})
    writer = ShardWriter(
        folder, digests=digests, paths={name_of(path): path for path in leaves}, run={"step": step, **run}
    )
    named = {name_of(path): leaves[path] for path in sorted(leaves, key=name_of)}
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save(named, storage_writer=writer, planner=planner, no_dist=no_dist)
    return folder
