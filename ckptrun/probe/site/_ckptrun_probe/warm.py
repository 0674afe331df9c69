"""A process that has imported all that a job imports, and turns into the job each time that is started.

Importing takes most of the time of a start that ends after a few steps. Where a process of the job is started and there
is such a server for its program, it hands over: arguments, environment, folder and standard streams go to a child that
the server forks, and it waits for that child's end. In the child the program runs as ``__main__``, as it would have,
and ends as it would have, but for taking every imported module apart.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any, NoReturn

__all__ = ["hand_over", "key_of", "serve"]

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LENGTH = struct.Struct("!I")
_STANDARD = (0, 1, 2)


def key_of(arguments: list[str]) -> str | None:
    """The program of a Python command line; None: it is started in a way that is not understood here."""
    rest = arguments[1:]
    while rest and rest[0] in ("-u", "-B"):
        rest = rest[1:]
    if not rest or rest[0].startswith("-"):
        return f"-m {rest[1]}" if rest[:1] == ["-m"] and len(rest) > 1 else None
    return os.path.realpath(rest[0])


# --- the process that is started ---


def hand_over(servers: dict[str, str]) -> None:
    """Let a server do what this process was started for, and end as that does; return where there is none for it."""
    arguments = list(getattr(sys, "orig_argv", ()))
    key = key_of(arguments)
    place = None if key is None else servers.get(key)
    if place is None:
        return
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(place)
    except OSError:
        return
    job = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    text = json.dumps(job).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(text))], _STANDARD)
    connection.sendall(text)
    (child,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
    for number in _FORWARDED:
        signal.signal(number, lambda came, _: _send(child, came))
    (status,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            # The server is gone, and the child with it.
            os._exit(1)
        data += more
    return data


def _send(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        return


# --- the server ---


def serve(place: str, modules: list[str], retarget: Any) -> NoReturn:
    """Import, wait for jobs, and fork for each, which ends with its job.

    Args:
        place: Of the socket.
        modules: What is imported first.
        retarget: Called in a child with the path of its plan, before the job runs.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001  # the job imports it again, and sees for itself
            continue
    # Children share these pages until somebody looks for garbage in them.
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{place}.new")
    listening.listen(64)
    os.rename(f"{place}.new", place)  # noqa: PTH104
    job = _Server(listening).job()
    code = 1
    try:
        code = _code_of(job, retarget)
    finally:
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _code_of(job: dict[str, Any], retarget: Any) -> int:
    """Run a job and all that waits for its end; return the exit code, of which a signal is the negative.

    What a process still does after that, once nothing of a program runs any more, took longer than its steps.
    """
    code = 0
    try:
        _become(job, retarget)
    except SystemExit as ended:
        code = _told(ended.code)
    except BaseException as error:  # noqa: BLE001  # as the interpreter itself
        at = error.__traceback__
        while at is not None and at.tb_frame.f_code.co_filename == __file__:
            at = at.tb_next
        sys.excepthook(type(error), error.with_traceback(at), at)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return code


def _told(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


class _Server:
    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._waiting: dict[int, socket.socket] = {}
        self._wake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakes = wakes
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)

    def job(self) -> dict[str, Any]:
        """Wait for jobs; return in each child, with its own."""
        while True:
            ready, _, _ = select.select([self._listening, self._wake, *self._waiting.values()], [], [])
            for one in ready:
                if one is self._listening:
                    job = self._accept()
                    if job is not None:
                        return job
                elif one == self._wake:
                    self._reap()
                else:
                    self._abandon(one)

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listening.accept()
        head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, len(_STANDARD))
        (length,) = _LENGTH.unpack(head)
        text = b""
        while len(text) < length:
            text += connection.recv(length - len(text))
        child = os.fork()
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            self._waiting[child] = connection
            connection.sendall(_LENGTH.pack(child))
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for held in (self._listening, connection, *self._waiting.values()):
            held.close()
        os.close(self._wake)
        os.close(self._wakes)
        for descriptor, standard in zip(descriptors, _STANDARD, strict=True):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        job: dict[str, Any] = json.loads(text)
        return job

    def _reap(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            return
        while self._waiting:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            connection = self._waiting.pop(child, None)
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.sendall(_LENGTH.pack(status))
                connection.close()

    def _abandon(self, connection: socket.socket) -> None:
        """Who handed over is gone: so is its job."""
        for child, held in list(self._waiting.items()):
            if held is connection:
                del self._waiting[child]
                _send(child, signal.SIGKILL)
                os.waitpid(child, 0)
        connection.close()


def _become(job: dict[str, Any], retarget: Any) -> None:
    """Run the job's program in this process, as Python would have."""
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    arguments = job["arguments"]
    sys.orig_argv = list(arguments)
    # As in a process that has just begun, nobody knows where it stands.
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    retarget(os.environ["CKPTRUN_PROBE"])
    rest = arguments[1:]
    while rest[0] in ("-u", "-B"):
        if rest[0] == "-u":
            sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        rest = rest[1:]
    if rest[0] == "-m":
        import runpy

        sys.path[0] = job["folder"]
        sys.argv = ["-m", *rest[2:]]
        runpy._run_module_as_main(rest[1])  # type: ignore[attr-defined]
        return
    script = rest[0]
    sys.argv = rest
    sys.path[0] = os.path.dirname(os.path.realpath(script))  # noqa: PTH120
    main = sys.modules["__main__"]
    for name in [name for name in vars(main) if not name.startswith("__")]:
        delattr(main, name)
    main.__file__ = script
    main.__spec__ = None
    with open(script, "rb") as file:  # noqa: PTH123
        code = compile(file.read(), script, "exec")
    exec(code, vars(main))
