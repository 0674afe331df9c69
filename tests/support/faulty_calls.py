"""System calls that count themselves, kill their process, or fail; put under ``LocalBackend(calls)`` in place of the real.

Every call of the seam is watched, those that it may get later too. All of it pickles, so that it works in a saving
process. Ranks are told apart by ``RANK``; without it a process is rank 0.

[Note: which rank makes the folder]
All ranks of a save make its working folder, whoever comes first, and the others make fewer calls. To number the calls
of a save the same in every run, ``maker`` says who comes first: the others wait, before they look whether the folder is
there, until it is.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pickle
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.engine.backends.system_calls import SystemCalls

__all__ = [
    "CALLS",
    "CHANGE_NOTHING",
    "CountingCalls",
    "FailingCalls",
    "KillingCalls",
    "Operation",
    "RecordingCalls",
    "calls_in",
    "record_in",
]

CALLS = tuple(name for name in vars(SystemCalls) if not name.startswith("_"))
_SAVE_ID = re.compile(r"[0-9a-f]{32}")
_WORKING_FOLDER = re.compile(r".*\.tmp-[0-9a-f]{32}")
_MAKING_SECONDS = 30


class WatchedCalls(SystemCalls):
    """Every call goes through :meth:`around`."""

    def around(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        """Do call ``name``; ``real(*arguments)`` does it."""
        return real(*arguments)


def _watched(name: str) -> Callable[..., Any]:
    def call(self: WatchedCalls, *arguments: Any) -> Any:
        return self.around(name, functools.partial(getattr(SystemCalls, name), self), *arguments)

    return call


for _name in CALLS:
    setattr(WatchedCalls, _name, _watched(_name))


class NumberedCalls(WatchedCalls):
    """Numbers the calls of one rank from 1 on, whatever thread they come from.

    Args:
        rank: The rank; the others' calls are the real ones.
        maker: The rank that makes the working folder of a save. See [Note: which rank makes the folder].
    """

    def __init__(self, *, rank: int = 0, maker: int = 0) -> None:
        self.rank = rank
        self.maker = maker
        self.count = 0
        self._counting = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counting": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _counting=threading.Lock())

    def around(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        own = _rank()
        if own != self.maker and name == "is_folder" and _WORKING_FOLDER.fullmatch(arguments[0]):
            self._wait_for(Path(arguments[0]))
        if own != self.rank:
            return real(*arguments)
        with self._counting:
            self.count += 1
            number = self.count
        return self.numbered(number, name, real, *arguments)

    def numbered(self, number: int, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        """Do call ``number``."""
        return real(*arguments)

    def has_struck(self) -> bool:
        """Whether the maker may never make the folder."""
        return False

    def _wait_for(self, folder: Path) -> None:
        until = time.monotonic() + _MAKING_SECONDS
        while not folder.is_dir() and not self.has_struck():
            if time.monotonic() > until:
                raise TimeoutError(f"{folder} was not made within {_MAKING_SECONDS} s")
            time.sleep(0.001)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


class CountingCalls(NumberedCalls):
    """The real calls, listed in a file; :func:`calls_in` reads it."""

    def __init__(self, log: Path, *, rank: int = 0, maker: int = 0) -> None:
        super().__init__(rank=rank, maker=maker)
        self._log = log

    def numbered(self, number: int, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        line = json.dumps([name, _target(arguments[0])]) + "\n"
        with self._log.open("a") as log:
            log.write(line)
        return real(*arguments)


def _target(argument: Any) -> str:
    """What a call is about, without what differs from run to run."""
    path = Path(f"/proc/self/fd/{argument}").readlink() if isinstance(argument, int) else Path(argument)
    below = path.parts[-2:]
    return _SAVE_ID.sub("*", "/".join(below))


def calls_in(log: Path) -> list[tuple[str, str]]:
    """Name and target of each call that :class:`CountingCalls` has listed, in order."""
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


class KillingCalls(NumberedCalls):
    """The process gets SIGKILL right before call ``number``, or, with ``half``, after the first half of its bytes.

    ``log``, if there is one, is made right before that.
    """

    def __init__(
        self, number: int, *, rank: int = 0, maker: int = 0, half: bool = False, log: Path | None = None
    ) -> None:
        super().__init__(rank=rank, maker=maker)
        self._number = number
        self._half = half
        self._log = log

    def numbered(self, number: int, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if number == self._number:
            if self._half:
                descriptor, block, offset = arguments
                # Past the page cache only whole sectors can be written.
                count = block.nbytes // 2 // 4096 * 4096 or block.nbytes // 2
                real(descriptor, block[:count], offset)
            if self._log is not None:
                self._log.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(_MAKING_SECONDS)
        return real(*arguments)


class FailingCalls(NumberedCalls):
    """Call ``number`` fails; with ``lasting`` all later ones of its name, too. ``log`` says what failed."""

    def __init__(
        self, number: int, error: int, log: Path, *, rank: int = 0, maker: int = 0, lasting: bool = False
    ) -> None:
        super().__init__(rank=rank, maker=maker)
        self._number = number
        self._error = error
        self._log = log
        self._lasting = lasting
        self._failed = ""

    def numbered(self, number: int, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if number == self._number:
            self._failed = name
            self._log.write_text(json.dumps([name, _target(arguments[0])]) + "\n")
        if number == self._number or (self._lasting and name == self._failed):
            if name == "close":
                # Linux gives the descriptor back whatever close() says.
                real(*arguments)
            raise OSError(self._error, os.strerror(self._error))
        return real(*arguments)

    def has_struck(self) -> bool:
        return self._log.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call that changes what lies on storage, or makes it durable; or a mark between them."""

    kind: str
    """``open`` ``write`` ``allocate`` ``fsync`` ``mkdir`` ``rename`` ``unlink`` ``rmdir`` or ``mark``."""
    path: str = ""
    """Of ``rename`` the old one; of ``mark`` its text."""
    new_path: str = ""
    handle: str = ""
    """What ``open`` returned, under a name that no other file gets."""
    flags: int = 0
    offset: int = 0
    data: bytes = b""
    length: int = 0


class RecordingCalls(WatchedCalls):
    """The real calls; those that matter to a power cut are written down in ``record``, in the order they happened in.

    Several threads, ranks and saving processes may share a record: a call and its line are one, under a lock.

    Args:
        record: The file; :func:`record_in` reads it.
        never_synced: ``fsync`` does nothing and is not written down: of ``"file"``, or of ``"folder"``.
    """

    def __init__(self, record: Path, *, never_synced: str = "") -> None:
        record.touch()
        self._record = record
        self._never_synced = never_synced
        self._handles: dict[int, str] = {}

    def mark(self, text: str) -> None:
        """Write down that something has happened that the world can see."""
        with self._locked():
            self._append(Operation(kind="mark", path=text))

    def around(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if name == "fsync" and self._never_synced == _kind(arguments[0]):
            return None
        with self._locked():
            result = real(*arguments)
            if name == "open":
                self._handles[result] = uuid.uuid4().hex
            elif name == "close":
                del self._handles[arguments[0]]
            if name in _OPERATIONS:
                self._append(_OPERATIONS[name](self._handles, result, *arguments))
        return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A description of its own for each call: such locks keep threads apart, too.
        with self._record.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _append(self, operation: Operation) -> None:
        with self._record.open("ab") as record:
            pickle.dump(operation, record)


def _kind(descriptor: int) -> str:
    return "folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file"


_OPERATIONS: dict[str, Callable[..., Operation]] = {
    "open": lambda handles, result, path, flags: Operation(kind="open", path=path, handle=handles[result], flags=flags),
    "allocate": lambda handles, _, descriptor, length: Operation(
        kind="allocate", handle=handles[descriptor], length=length
    ),
    "pwrite": lambda handles, count, descriptor, block, offset: Operation(
        kind="write", handle=handles[descriptor], offset=offset, data=bytes(block[:count])
    ),
    "fsync": lambda handles, _, descriptor: Operation(kind="fsync", handle=handles[descriptor]),
    "mkdir": lambda _, __, path: Operation(kind="mkdir", path=path),
    "rename": lambda _, __, path, new_path: Operation(kind="rename", path=path, new_path=new_path),
    "unlink": lambda _, __, path: Operation(kind="unlink", path=path),
    "rmdir": lambda _, __, path: Operation(kind="rmdir", path=path),
}


CHANGE_NOTHING = {
    "set_direct",
    "free_bytes",
    "preadv",
    "will_need",
    "lock",
    "close",
    "length",
    "is_same",
    "is_folder",
    "is_link",
    "names",
}
# A call that the seam gets later must be known to the model of a power cut, or to change nothing.
assert set(CALLS) == _OPERATIONS.keys() | CHANGE_NOTHING, set(CALLS) ^ (_OPERATIONS.keys() | CHANGE_NOTHING)


def record_in(record: Path, root: Path) -> list[Operation]:
    """What :class:`RecordingCalls` has written down, in order; paths are relative to ``root``."""
    operations = []
    with record.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            operations.append(_relative(pickle.load(file), root))
    return operations


def _relative(operation: Operation, root: Path) -> Operation:
    if operation.kind == "mark":
        return operation
    below = [str(Path(path).relative_to(root)) if path else "" for path in (operation.path, operation.new_path)]
    return dataclasses.replace(operation, path=below[0], new_path=below[1])
