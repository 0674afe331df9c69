"""Storage that fails as planned, in the place of the backend: see ``ckptrun.engine.backends.interface.Backend``.

Here strikes what is planned at ``writing``: at a byte, which no caller of ``reached(point, step)`` knows. The bytes
that a rank hands over for the shard files of one save are counted. Space for all files of a rank is asked for before
the first byte, so the share that is written is known. Everything else passes through.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any, assert_never

from ckptrun.config.fault import FaultKind
from ckptrun.engine.backends.interface import Backend, FileReader, FileWriter, Location
from ckptrun.engine.layout import is_shard_file_name, parse_leftover, parse_step
from ckptrun.errors import InternalError
from ckptrun.fault.injector import FaultInjector
from ckptrun.fault.plan import PlannedFault

__all__ = ["FaultyBackend", "with_faults"]

_SECTOR_BYTES = 4096
_ERRORS = {FaultKind.disk_full: errno.ENOSPC, FaultKind.io_error: errno.EIO}


def with_faults(root: Location, injector: FaultInjector) -> Location:
    """Return ``root`` on storage that fails as ``injector`` has it planned."""
    return Location(FaultyBackend(root.backend, injector), root.path)


def step_of(folder: str) -> int | None:
    """The step that files in ``folder`` are of, be it a checkpoint or a save in flight; None for anything else."""
    name = folder.rstrip("/").rpartition("/")[2]
    leftover = parse_leftover(name)
    return parse_step(name if leftover is None else leftover.name)


class FaultyBackend:
    """See :class:`~ckptrun.engine.backends.interface.Backend`.

    Args:
        inner: The real one.
        injector: Knows what is planned.
    """

    def __init__(self, inner: Backend, injector: FaultInjector) -> None:
        self.inner = inner
        self.renames_folders = inner.renames_folders
        self._injector = injector
        self._saves: dict[int, _SaveFault] = {}

    def make_folder(self, folder: str) -> None:
        """See ``Backend``."""
        self.inner.make_folder(folder)

    def list_names(self, folder: str) -> list[str]:
        """See ``Backend``."""
        return self.inner.list_names(folder)

    def size(self, path: str) -> int:
        """See ``Backend``."""
        return self.inner.size(path)

    def create(self, path: str, length: int) -> FileWriter:
        """See ``Backend``."""
        writer = self.inner.create(path, length)
        folder, _, name = path.rpartition("/")
        step = step_of(folder) if is_shard_file_name(name) else None
        fault = None if step is None else self._injector.of_bytes(step)
        if step is None or fault is None:
            return writer
        save = self._saves.setdefault(step, _SaveFault(fault, self._injector, step))
        save.total += length
        return _FaultyWriter(writer, save)

    def open(self, path: str) -> FileReader:
        """See ``Backend``."""
        return self.inner.open(path)

    def rename_folder(self, old: str, new: str) -> None:
        """See ``Backend``."""
        self.inner.rename_folder(old, new)

    def remove(self, path: str) -> None:
        """See ``Backend``."""
        self.inner.remove(path)

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """See ``Backend``."""
        return self.inner.hold(path, note)

    def holder(self, path: str) -> str | None:
        """See ``Backend``."""
        return self.inner.holder(path)

    def address(self, path: str) -> str:
        """See ``Backend``."""
        return self.inner.address(path)


class _SaveFault:
    """What strikes the bytes of one rank in one save; shared by its files, and by the threads that write them."""

    def __init__(self, fault: PlannedFault, injector: FaultInjector, step: int) -> None:
        self.fault = fault
        self.total = 0
        self._injector = injector
        self._step = step
        self._seen = 0
        self._lock = threading.Lock()
        self._has_struck = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def cut(self, count: int) -> int | None:
        """Take note of ``count`` bytes; return how many of them come before the fault, None when all do."""
        with self._lock:
            before, self._seen = self._seen, self._seen + count
            place = int(self.fault.share * self.total)
            if self._has_struck:
                return 0 if self.fault.kind.is_silent else None
            if self._seen < place:
                return None
            self._has_struck = self._injector.of_bytes(self._step) is not None
            return max(0, min(count, place - before))

    def note(self) -> bool:
        return self._injector.note(self.fault, self._step)

    def strike(self) -> None:
        self._injector.strike(self.fault, self._step)


class _FaultyWriter:
    """See :class:`~ckptrun.engine.backends.interface.FileWriter`."""

    def __init__(self, inner: FileWriter, save: _SaveFault) -> None:
        self._inner = inner
        self._save = save
        self.block_bytes = inner.block_bytes
        self.writes_at_once = inner.writes_at_once

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        cut = self._save.cut(block.nbytes)
        if cut is None:
            self._inner.write(offset, block)
            return
        fault = self._save.fault
        match fault.kind:
            case FaultKind.slow_storage:
                self._save.note()
                time.sleep(fault.seconds)
                self._inner.write(offset, block)
            case FaultKind.torn_write:
                self._save.note()
                # The space was reserved: what never arrives reads as zeros.
                self._inner.write(offset, memoryview(bytes(block[:cut]) + bytes(block.nbytes - cut)))
            case FaultKind.bit_flip:
                self._inner.write(offset, self._flipped(block, cut))
            case FaultKind.disk_full | FaultKind.io_error:
                self._write_whole_sectors(offset, block[:cut])
                self._save.note()
                code = _ERRORS[fault.kind]
                raise OSError(code, f"{os.strerror(code)} (planned fault: {fault})")
            case FaultKind.sigterm | FaultKind.sigint:
                # The process goes on until it takes note of the signal.
                self._save.strike()
                self._inner.write(offset, block)
            case (
                FaultKind.sigkill
                | FaultKind.exit
                | FaultKind.exception
                | FaultKind.oom
                | FaultKind.hang
                | FaultKind.sigstop
            ):
                self._write_whole_sectors(offset, block[:cut])
                self._save.strike()
            case FaultKind.none | FaultKind.lost_file | FaultKind.chaos:
                raise InternalError(f"{fault.kind} strikes no bytes.")
            case _:
                assert_never(fault.kind)

    def _write_whole_sectors(self, offset: int, part: memoryview) -> None:
        whole = part.nbytes // _SECTOR_BYTES * _SECTOR_BYTES
        if whole:
            self._inner.write(offset, part[:whole])

    def _flipped(self, block: memoryview, cut: int) -> memoryview:
        """A copy of ``block`` with one bit flipped; the block itself once that is done."""
        if not self._save.note():
            return block
        changed = bytearray(block)
        changed[min(cut, len(changed) - 1)] ^= 1 << self._save.fault.seed % 8
        return memoryview(changed)

    def finish(self) -> None:
        """See ``FileWriter``."""
        self._inner.finish()

    def abort(self) -> None:
        """See ``FileWriter``."""
        self._inner.abort()
