"""Starts somebody's command, waits for it, and leaves nothing of it behind, whatever it has started in turn.

Processes of a job are known by the environment that they have inherited: a launcher may put its ranks into sessions of
their own, and end before them. Torch-free.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ckptrun.errors import ConfigError
from ckptrun.launch.supervisor import Signals

__all__ = ["Command", "CommandEnd", "last_lines", "run_command"]

_LOOK_SECONDS = 0.05
# What a launcher may take to end the other ranks of one that was killed: torchrun gives them 30 s.
_LAUNCHER_SECONDS = 45.0
# Nobody ends a job that hangs; whoever looks after it does, some time.
_HANG_SECONDS = 3.0
_FAREWELL_SECONDS = 8.0
_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is started.

    Attributes:
        argv: As in a shell, split.
        folder: Where it runs; None: here.
        environment: All of it.
        mark: A variable and its value, by which its processes are known; added to the environment.
        log: What it prints goes there.
        timeout_seconds: It is killed when it takes longer.
        before: A program that starts it, with its arguments; it watches.
    """

    argv: Sequence[str]
    folder: Path | None
    environment: Mapping[str, str]
    mark: tuple[str, str]
    log: Path
    timeout_seconds: float
    before: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnd:
    """How a command ended."""

    exit_code: int
    """As a shell has it: 128 and the signal that ended it."""
    seconds: float
    interrupted_by: signal.Signals | None = None
    """What this process was told meanwhile."""
    timed_out: bool = False
    was_ended: bool = False
    """Whether it went on after its fault had struck, and was killed from here."""


def run_command(command: Command, *, struck: Callable[[], str | None]) -> CommandEnd:
    """Run a command to its end; no process of it is left.

    Args:
        command: What is started.
        struck: Which kind of fault has struck so far; None: none.

    Raises:
        ConfigError: There is no such program.
    """
    began = time.monotonic()
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as output, Signals() as signals:
        process = _started(command, output)
        try:
            timed_out, was_ended = _wait(process, signals, deadline=began + command.timeout_seconds, struck=struck)
        finally:
            told = signals.came[0][1] if signals.came else None
            _end(process, command.mark, is_gentle=told is not None)
    code = process.returncode
    return CommandEnd(
        exit_code=code if code >= 0 else 128 - code,
        seconds=time.monotonic() - began,
        interrupted_by=told,
        timed_out=timed_out,
        was_ended=was_ended,
    )


def _started(command: Command, output: IO[bytes]) -> "subprocess.Popen[bytes]":
    program = shutil.which(command.argv[0], path=command.environment.get("PATH"))
    if program is None and not (command.folder or Path()).joinpath(command.argv[0]).is_file():
        raise ConfigError(
            f"job.command: there is no program {command.argv[0]!r}. Give it as you would type it in a shell."
        )
    name, value = command.mark
    try:
        return subprocess.Popen(
            [*command.before, *command.argv],
            cwd=command.folder,
            env={**command.environment, name: value},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        where = error.filename or command.argv[0]
        raise ConfigError(f"job.command: {where!r} cannot be started: {error.strerror}.") from None


def _wait(
    process: "subprocess.Popen[bytes]", signals: Signals, *, deadline: float, struck: Callable[[], str | None]
) -> tuple[bool, bool]:
    """Wait until it ends, or has to be ended; return whether it took too long, and whether it outlived its fault."""
    struck_at: float | None = None
    while process.poll() is None and not signals.came:
        now = time.monotonic()
        kind = struck()
        struck_at = now if kind is not None and struck_at is None else struck_at
        patience = _HANG_SECONDS if kind in ("hang", "sigstop") else _LAUNCHER_SECONDS
        was_ended = struck_at is not None and now - struck_at > patience
        if was_ended or now > deadline:
            return not was_ended, was_ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
    return False, False


def _end(process: "subprocess.Popen[bytes]", mark: tuple[str, str], *, is_gentle: bool) -> None:
    """End the command and all that it has started."""
    if is_gentle and process.poll() is None:
        for pid in {process.pid, *_marked(mark)}:
            _send(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_FAREWELL_SECONDS)
    limit = time.monotonic() + _FAREWELL_SECONDS
    while time.monotonic() < limit:
        left = _marked(mark)
        if process.poll() is None:
            left.add(process.pid)
        if not left:
            break
        for pid in left:
            _send(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
    process.wait()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _marked(mark: tuple[str, str]) -> set[int]:
    """Processes with the mark in their environment, but for those that have ended already."""
    wanted = f"{mark[0]}={mark[1]}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def last_lines(log: Path) -> str:
    """The end of what a command has printed."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines()]
    return "\n".join([line for line in lines if line][-_SHOWN_LINES:])
