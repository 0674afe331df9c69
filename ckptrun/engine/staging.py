"""``HostStager``: copies a state dict into host memory that nobody changes, so that training goes on meanwhile.

A DCP ``AsyncStager``, usable with any writer. Order of events in ``dcp.async_save``: ``stage()`` is called on the main
thread; what it returns, or the result of the future that it returns, goes to DCP's thread or process, which writes it.

Where the bytes go is in ``host_memory``; what a tensor looks like without them is in ``staged_state``.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.staging import AsyncStager

from ckptrun.engine.host_memory import HostMemory, Lease
from ckptrun.engine.points import PointHook, untold
from ckptrun.engine.staged_state import Survey
from ckptrun.forks import OfProcess

__all__ = ["HostStager"]


class HostStager(AsyncStager):
    """Copies every tensor of a state dict to host memory.

    DTensors keep mesh and placements, tied tensors stay tied, of a view only its own elements are copied, plain values
    are copied at the call. One stager belongs to one thread; in a forked child it takes memory and thread of its own.
    ``close()`` it after the last save.

    A tensor that is changed while it is copied fails the save: the copy, or its future, raises, and names the leaf. So
    far as torch counts the change: not through ``.data``, NumPy or a raw pointer.

    Args:
        cached: Keep host memory from save to save. It is used again only once nothing refers to any tensor of the
            earlier save any more; a save that is still being written makes the next one take fresh memory.
        overlapped: ``stage()`` returns a future at once and copies in a thread. Whoever changes the state next must
            call ``wait()`` first.
        shared: Take memory that other processes can map. Without it a save in a process works too, and costs one more
            copy.

    Attributes:
        reached: Told of ``staging``, in the thread that copies, see ``ckptrun.engine.points``.
        on_copied: Called likewise with the copy, before anybody else gets it. What it raises fails the save.
        overlapped: Whether it copies in a thread.
    """

    def __init__(self, *, cached: bool = True, overlapped: bool = False, shared: bool = False) -> None:
        self._own = OfProcess(lambda: _OfProcess(cached=cached, overlapped=overlapped, shared=shared))
        self.overlapped = overlapped
        self.reached: PointHook = untold
        self.on_copied: Callable[[Mapping[str, Any]], None] = _nothing

    @property
    def _memory(self) -> HostMemory:
        return self._own.get().memory

    def prepare(self, state_dict: dict[str, Any]) -> None:
        """Take the memory for ``state_dict`` now, and touch every page of it, so that the first save need not.

        Does nothing when memory is not kept from save to save.
        """
        self._memory.prepare(Survey.of(state_dict).bytes)

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any] | Future[dict[str, Any]]:
        """Return the copy of ``state_dict``, or its future.

        Raises:
            MemoryError, RuntimeError: There is not enough host memory.
            SaveRefusedError: A leaf was changed meanwhile; it is named.
        """
        own = self._own.get()
        if own.copying is not None:
            # What went wrong with it is told by its own future.
            wait_for([own.copying])
            own.copying = None
        survey = Survey.of(state_dict)
        lease = self._memory.take(survey.bytes)
        # Kernels that produce the values may still run; another thread's stream would not wait for them.
        ready = _record_streams(survey.devices)
        before: list[Callable[[], None]] = [*ready, partial(self.reached, "staging")]
        if own.executor is None:
            return _copy_and_tell(survey, lease, before, self.on_copied)
        own.copying = own.executor.submit(_copy_and_tell, survey, lease, before, self.on_copied)
        return own.copying

    def wait(self) -> None:
        """Return once nothing is copied from live tensors any more. Raises what copying raised."""
        own = self._own.get()
        if own.copying is not None:
            copying, own.copying = own.copying, None
            copying.result()

    def synchronize_staging(self) -> None:
        """See :meth:`wait`; DCP's name for it."""
        self.wait()

    def close(self) -> None:
        """Wait for copying and give the memory back. Tensors that were handed out stay valid."""
        own = self._own.get()
        if own.executor is not None:
            own.executor.shutdown(wait=True)
        self._memory.close()


class _OfProcess:
    """What a stager has in one process."""

    def __init__(self, *, cached: bool, overlapped: bool, shared: bool) -> None:
        self.memory = HostMemory(cached=cached, shared=shared)
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="HostStager") if overlapped else None
        self.copying: Future[dict[str, Any]] | None = None


def _record_streams(devices: Iterable[torch.device]) -> list[Callable[[], None]]:
    """Return what a thread must call before it may read tensors on ``devices``."""
    waits: list[Callable[[], None]] = []
    for device in (device for device in devices if device.type == "cuda"):
        event = torch.cuda.current_stream(device).record_event()
        waits.append(partial(_wait_for_event, device, event))
    return waits


def _wait_for_event(device: torch.device, event: torch.cuda.Event) -> None:
    torch.cuda.current_stream(device).wait_event(event)


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


def _copy_and_tell(
    survey: Survey, lease: Lease, before: list[Callable[[], None]], after: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    copied = _copy(survey, lease, before)
    after(copied)
    return copied


@torch.no_grad()
def _copy(survey: Survey, lease: Lease, before: list[Callable[[], None]]) -> dict[str, Any]:
    for call in before:
        call()
    return survey.fill(lease)
