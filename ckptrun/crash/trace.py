"""What strace has written down of a job: one call after the other, in the order in which they came to their end.

Strings are written in hex (``-xx``), so that nothing in a name or in a file's bytes can be mistaken for anything else.
Torch-free.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptrun.errors import ConfigError

__all__ = ["CHANGES", "CLONES", "LOOKS", "Call", "path_of", "read_calls", "strace", "string_of", "strings_of"]

CHANGES = (
    "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,"
    "symlinkat,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,"
    "fsync,fdatasync,sync,syncfs,lseek,mmap,dup,dup2,dup3,fcntl,chdir,fchdir,clone,clone3,fork,vfork,ioctl"
)
"""Calls by which files are changed, or that decide where the next one writes."""
LOOKS = "%file,chdir,fchdir,clone,clone3,fork,vfork"
"""Calls that name a file."""
CLONES = ("clone", "clone3", "fork", "vfork")
"""Calls that return the number of a new thread or process."""

_LONGEST_STRING = 1 << 28
_NAME_WITHIN = 80
_LINE = re.compile(rb"(\d+) +(\d+\.\d+) (.*)")
_RESUMED = re.compile(rb"<\.\.\. (\w+) resumed>")
_CALL = re.compile(rb"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)", re.DOTALL)
_UNFINISHED = b" <unfinished ...>"
_STRING = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_PATH = re.compile(rb"<((?:\\x[0-9a-f]{2})*)>")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call.

    Attributes:
        thread: Who made it.
        time: When, in seconds.
        name: Of the call.
        arguments: As strace writes them.
        result: What it returned; -1: it has failed.
        rest: What strace says behind that: of a descriptor, its path.
    """

    thread: int
    time: float
    name: str
    arguments: Sequence[bytes]
    result: int
    rest: bytes


def strace(trace: Path, calls: str) -> list[str]:
    """Return what goes before a command so that its calls, and those of all that it starts, are written to ``trace``.

    Raises:
        ConfigError: There is no strace.
    """
    program = shutil.which("strace")
    if program is None:
        raise ConfigError(
            "crash=save needs strace, which writes down how the job changes its files, and there is none here. Install "
            "it (apt install strace, dnf install strace); it needs no privileges."
        )
    return [
        program, "-f", "-q", "-y", "-xx", "-ttt", "--seccomp-bpf", "-s", str(_LONGEST_STRING), "-e", f"trace={calls}",
        "-e", "signal=none", "-o", str(trace), "--",
    ]  # fmt: skip


def read_calls(
    trace: Path, *, with_failed: bool = False, begin: int = 0, names: Sequence[bytes] = ()
) -> Iterator[Call]:
    """Read what has succeeded, or all, from a byte of the file on; a line that a kill has cut is none.

    With ``names`` only calls whose lines have one of them near their beginning are read, which is fast.
    """
    begun: dict[int, bytes] = {}
    with trace.open("rb") as file:
        file.seek(begin)
        for line in file:
            if names and not any(name in line[:_NAME_WITHIN] for name in names):
                continue
            found = _LINE.fullmatch(line.rstrip(b"\n"))
            if found is None:
                continue
            thread, text = int(found[1]), found[3]
            if text.endswith(_UNFINISHED):
                begun[thread] = text[: -len(_UNFINISHED)]
                continue
            resumed = _RESUMED.match(text)
            if resumed is not None:
                text = begun.pop(thread, b"") + text[resumed.end() :]
            call = _CALL.fullmatch(text)
            if call is None or call[3] == b"?":
                continue
            if call[3].startswith(b"-") and not with_failed:
                continue
            yield Call(
                thread=thread,
                time=float(found[2]),
                name=call[1].decode(),
                arguments=_split(call[2]),
                result=int(call[3], 0),
                rest=call[4],
            )


def _split(text: bytes) -> list[bytes]:
    """Arguments of a call: split at commas that stand in no brackets."""
    if b"[" not in text and b"{" not in text:
        return [part.strip() for part in text.split(b",")]
    parts, depth, begin = [], 0, 0
    for found in re.finditer(rb"[\[\]{}(),]", text):
        sign = found[0]
        if sign == b",":
            if not depth:
                parts.append(text[begin : found.start()].strip())
                begin = found.end()
        else:
            depth += 1 if sign in b"[{(" else -1
    return [*parts, text[begin:].strip()]


def string_of(argument: bytes) -> bytes:
    """The bytes of an argument that is a string, or a list of ``iovec``."""
    return b"".join(_unhex(found) for found in _STRING.findall(argument))


def strings_of(arguments: Sequence[bytes]) -> list[str]:
    """The names among arguments."""
    found = [string_of(argument) for argument in arguments if argument.startswith(b'"')]
    return [name.decode(errors="surrogateescape") for name in found]


def path_of(argument: bytes) -> str | None:
    """The path of an argument that is a descriptor; None where strace knows none."""
    found = _PATH.search(argument)
    return None if found is None else _unhex(found[1]).decode(errors="surrogateescape")


def _unhex(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(rb"\x", b"").decode())
