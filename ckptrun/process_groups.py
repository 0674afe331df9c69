"""The process groups of a run, and the device of a rank."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ckptrun.config.run import Device, RunConfig
from ckptrun.errors import ConfigError

__all__ = ["Groups", "choose_device", "hosted_by_agent", "launcher_store", "open_groups", "store_prefix"]

_OPENED: list[str] = []
# A store that does not answer by then has no word of another rank either.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """What ranks talk through."""

    prefix: str
    """Their corner of the store: no other set of ranks has the same."""
    store: Store
    """Outlives a rank that dies: the launcher's own, or rank 0's."""
    control: dist.ProcessGroup
    """Plain objects, on the main thread."""
    saving: dist.ProcessGroup
    """Saves; perhaps on another thread while training goes on. Nothing else may use it."""
    connect: Callable[[], Store]
    """Gives a connection to the store of its own: one that a thread waits in answers no other thread."""


def choose_device(wanted: Device) -> torch.device:
    """The device of this rank.

    Raises:
        ConfigError: CUDA was asked for and is not there, or has fewer devices than ranks.
    """
    if wanted is Device.cpu or (wanted is Device.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= devices:
        raise ConfigError(
            f"device={wanted}: rank {local_rank} of this machine has no CUDA device of its own ({devices} found). "
            "Start fewer ranks per machine, or use device=cpu."
        )
    return torch.device("cuda", local_rank)


def hosted_by_agent() -> bool:
    """Whether the store is the launcher's; otherwise it is rank 0's, and ends with it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_prefix() -> str:
    """Where the ranks of this process's next groups meet in the store; see ``open_groups``."""
    return f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{len(_OPENED)}"


def launcher_store() -> Store | None:
    """A connection to the store that the launcher hosts, before there are groups; None: there is none yet.

    Without such a launcher rank 0 hosts the store, once it is there.
    """
    if not hosted_by_agent():
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        shared = TCPStore(address, port, None, False, timedelta(seconds=_PATIENCE_SECONDS), wait_for_workers=False)
    except (RuntimeError, OSError):
        return None
    return PrefixStore(store_prefix(), shared)


def open_groups(config: RunConfig, device: torch.device, *, beside: str | None = None) -> Groups:
    """Open the default group and the two others. All ranks call; or a process beside each of them, all with ``beside``.

    The store is prefixed by the attempt: a launcher that restarts ranks keeps its store, where the addresses of dead
    ranks are still written. And by how often this process has opened groups: a sweep under torchrun does for each
    cell, and what the ranks of one cell have written there must not be read by those of the next.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=config.launch.timeout_seconds)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = TCPStore(
        address,
        port,
        world_size,
        is_master=rank == 0 and not hosted_by_agent() and beside is None,
        timeout=timeout,
        multi_tenant=True,
    )
    prefix = store_prefix() if beside is None else f"{beside}/beside"
    if beside is None:
        _OPENED.append(prefix)
    store = PrefixStore(prefix, shared)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return Groups(
        prefix=prefix,
        store=store,
        control=dist.new_group(backend="gloo", timeout=timeout),
        saving=dist.new_group(backend="gloo", timeout=timeout),
        connect=lambda: PrefixStore(prefix, TCPStore(address, port, world_size, is_master=False, timeout=timeout)),
    )
