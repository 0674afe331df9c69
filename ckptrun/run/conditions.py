"""What decides the bits of a step beside the state: the config, the mesh, the device, torch and its threads.

A checkpoint says under which it was made; here is what changed since, and what may not. Loads torch when it is asked.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptrun.config.parallelism import MeshShape
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["changed_keys", "check_identity", "conditions_of", "deciding_keys", "surroundings"]

# Their state would be loaded into something else: refused. Everything else that changed is only reported.
_IDENTITY = ("model", "optimizer")
# Groups that decide nothing of what is computed.
_OPERATION = ("run", "launch", "proof", "fault", "checkpoint", "device")
# Decides what is printed.
_TELLS_ONLY = ("train.log_interval_steps",)


def surroundings() -> Mapping[str, Any]:
    """What this process computes with, as a manifest tells it."""
    import torch

    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def conditions_of(config: RunConfig, mesh_shape: MeshShape, *, device: "torch.device") -> str:
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


def check_identity(config: RunConfig, saved_run: Mapping[str, Any], folder: str) -> None:
    """Refuse a checkpoint of another model or optimizer.

    Raises:
        ConfigError: names the keys that differ, and both values.
    """
    selection = config.checkpoint.selection
    changed = [
        (key, before, now)
        for key, before, now in changed_keys(config, saved_run)
        if key.split(".")[0] in _IDENTITY and selection.takes(key.split(".")[0])
    ]
    if changed:
        # "choice" is how the config is recorded; it is typed as model=gpt.
        named = [(key.removesuffix(".choice"), before, now) for key, before, now in changed]
        listed = "; ".join(f"{key} was {before!r}, now {now!r}" for key, before, now in named)
        group = changed[0][0].split(".")[0]
        takes_weights = (
            ""
            if any(key == "model" for key, _, _ in named)
            else (f" Or take over the weights only with run.name=... checkpoint.load.from={folder}.")
        )
        raise ConfigError(
            f"{folder} is a checkpoint of another {group}: {listed}. Go back to those values, or start a run of its "
            f"own with run.name=... .{takes_weights}"
        )


def changed_keys(config: RunConfig, saved_run: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys that decide what is computed and differ from the run that saved: (key, then, now)."""
    before, now = saved_run.get("config"), to_plain(config)
    if not isinstance(before, Mapping):
        return []
    flat_before, flat_now = deciding_keys(before), deciding_keys(now)
    return [
        (key, flat_before.get(key), flat_now.get(key))
        for key in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(key) != flat_now.get(key)
    ]


def deciding_keys(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that decide what is computed, full name -> value; ``plain`` is what ``to_plain`` gives."""
    return {key: value for key, value in _flat(plain).items() if key.split(".")[0] not in _OPERATION}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
