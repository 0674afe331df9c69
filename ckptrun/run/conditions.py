"""What decides the bits of a step beside the state: the config, the mesh, the device, torch and its threads."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ckptrun.config.parallelism import MeshShape
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.run.preflight import deciding_keys

__all__ = ["conditions_of", "surroundings"]

# Decides what is printed.
_TELLS_ONLY = ("train.log_interval_steps",)


def surroundings() -> Mapping[str, Any]:
    """What this process computes with, as a manifest tells it."""
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def conditions_of(config: RunConfig, mesh_shape: MeshShape, *, device: torch.device) -> str:
    """Return a fingerprint of everything that decides what a step of ``config`` computes from one state."""
    keys = {key: value for key, value in deciding_keys(to_plain(config)).items() if key not in _TELLS_ONLY}
    facts = {
        "config": keys,
        "mesh": mesh_shape.degrees,
        "world_size": mesh_shape.world_size,
        "device": device.type,
        **surroundings(),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
