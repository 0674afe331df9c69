"""Starts processes from a fork server of our own (``fork_server.py``), with an environment that is theirs alone.

``multiprocessing`` has one fork server per process, which belongs to the user: their preloaded modules, their children,
their environment. A proof in somebody's pytest may neither change it nor mistake its children for ranks.
"""

import atexit
import contextlib
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver, popen_forkserver, process, reduction, resource_tracker, spawn, util
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from typing import Any, NoReturn

from ckptrun.errors import InternalError, RankFailedError
from ckptrun.launch.fork_server import be_forked_server
from ckptrun.processes import LEFT_TO_RANKS, children_of, held_back

__all__ = ["ForkedInterpreter", "Interpreter"]

_LOOK_SECONDS = 0.1
_MAIN = "import sys; sys.path[:] = {path!r}; from ckptrun.launch.fork_server import main; main(**{pipes})"


class Interpreter:
    """A Python process with torch in it that children are forked from; it ends with the last of those who hold it.

    Args:
        environment: What it is started with. Its children have their own, see ``process``.
        preload: Modules that it loads beside torch.
    """

    def __init__(self, environment: Mapping[str, str], *, preload: Sequence[str] = ()) -> None:
        self._environment = dict(environment)
        self._preload = tuple(preload)
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._address = ""
        self._alive = self._loaded = -1
        self.told = -1
        """Readable when the server was told to end."""
        atexit.register(self._end_loading, os.getpid())

    @property
    def hash_seed(self) -> dict[str, str]:
        """The variable that fixes the seed of ``hash()`` in it and in its children; none where it is drawn."""
        return {name: value for name, value in self._environment.items() if name == "PYTHONHASHSEED"}

    @property
    def pid(self) -> int | None:
        """Of the server; None: not started."""
        return self._pid

    def start(self) -> None:
        """Start the server unless it runs; returns before it has loaded torch."""
        with self._lock:
            if self._pid is not None and not self._has_ended(self._pid):
                return
            self._forget()
            # The tracker sits out what it was started with, too; it unblocks SIGINT and SIGTERM once it ignores them.
            with held_back():
                resource_tracker.ensure_running()
            self._spawn()

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Return when the server can fork, or when it is not needed any more.

        Args:
            is_over: Whether this process is told to end; asked now and then. A server that still loads is ended then,
                which is safe: nothing was forked from it.

        Raises:
            RankFailedError: The server has ended.
        """
        while self._loaded >= 0:
            if connection.wait([self._loaded], timeout=_LOOK_SECONDS):
                if not os.read(self._loaded, 1):
                    self._has_not_loaded()
                os.close(self._loaded)
                self._loaded = -1
            elif is_over():
                self._kill()
                self.close()

    def process(self, target: Callable[..., object], args: tuple[Any, ...] = (), **more: Any) -> "process.BaseProcess":
        """A child that is going to call ``target(*args)``, with this process's working folder and import path."""
        return _Process(self, target=target, args=args, **more)

    def close(self) -> None:
        """Let the server end, which it does with the last of its children; nobody waits for that."""
        with self._lock:
            if self._pid is not None:
                os.close(self._alive)
                self._alive = -1
                self._see_off(self._pid)
                self._forget()

    def children(self) -> set[int]:
        """Those that were started from it, and what those have started and left behind."""
        return set() if self._pid is None else set(children_of(self._pid))

    @property
    def address(self) -> str:
        """Where it listens for who wants a child."""
        return self._address

    def fork(self, fds: list[int]) -> tuple[int, int]:
        """Ask for a child; return where its pid and exit code can be read, and where it reads what it is to do."""
        self.start()
        return _asked(self._address, self._alive, fds)

    def _spawn(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            self._address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
            listener.bind(self._address)
            if not util.is_abstract_socket_namespace(self._address):
                Path(self._address).chmod(0o600)
            listener.listen()
            alive, self._alive = os.pipe()
            self.told, told = os.pipe()
            self._loaded, loaded = os.pipe()
            pipes = {"listener": listener.fileno(), "alive": alive, "told": told, "loaded": loaded}
            main = _MAIN.format(path=import_path(), pipes={**pipes, "preload": self._preload})
            flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, *flags, "-c", main],
                    self._environment,
                    # To itself: what makes a descriptor outlive exec.
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in pipes.values()],
                    # Ranks inherit that, too, until they can answer. [Note: signals of the fork server]
                    setsigmask=LEFT_TO_RANKS,
                )
            finally:
                for fd in (alive, told, loaded):
                    os.close(fd)

    def _has_not_loaded(self) -> NoReturn:
        pid, status = self._pid, 0
        if pid is not None:
            with contextlib.suppress(ChildProcessError):
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._forget()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
        raise RankFailedError(
            f"The process that ranks are forked from ended {how} while it loaded torch; what it said stands above. "
            f"Try it alone: {sys.executable} -c 'import torch, ckptrun'"
        )

    def _has_ended(self, pid: int) -> bool:
        try:
            return os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            # Somebody has waited for all children of this process, or it is not the one that has started the server.
            return True

    def _see_off(self, pid: int) -> None:
        """Let nothing be left of a server that is about to end."""
        threading.Thread(target=_wait_for, args=(pid,), name="ForkServerEnd", daemon=True).start()

    def _end_loading(self, of_process: int) -> None:
        """Once it has loaded, it ends by itself; until then it would outlive this process."""
        if os.getpid() == of_process and self._loaded >= 0 and not connection.wait([self._loaded], timeout=0):
            self._kill()

    def _kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def _forget(self) -> None:
        for fd in (self._alive, self.told, self._loaded):
            if fd >= 0:
                os.close(fd)
        self._pid, self._alive, self.told, self._loaded = None, -1, -1, -1


def _wait_for(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _asked(address: str, alive: int, fds: Sequence[int]) -> tuple[int, int]:
    """Ask the server that listens at ``address`` for a child, which keeps ``alive`` open; see ``Interpreter.fork``."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        status, child_status = os.pipe()
        child_data, data = os.pipe()
        try:
            tracker = resource_tracker.getfd() or -1
            reduction.sendfds(client, [child_data, child_status, alive, tracker, *fds])
        except BaseException:
            os.close(status)
            os.close(data)
            raise
        finally:
            os.close(child_data)
            os.close(child_status)
    return status, data


class ForkedInterpreter(Interpreter):
    """The same, forked from the server of another process, whose interpreter it shares: it has loaded torch already.

    Its children, what they print and what they leave behind are this process's. Where that server has ended, this one
    is an interpreter of its own.

    Args:
        environment: What the other server was started with, as far as interpreters look at it.
        address: Where that listens.
    """

    def __init__(self, environment: Mapping[str, str], address: str) -> None:
        super().__init__(environment)
        self._origin = address
        self._server: process.BaseProcess | None = None

    def _spawn(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            self._address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
            listener.bind(self._address)
            listener.listen()
            alive, self._alive = os.pipe()
            self.told, told = os.pipe()
            self._loaded, loaded = os.pipe()
            given = (
                listener,
                connection.Connection(alive, writable=False),
                connection.Connection(told, readable=False),
                connection.Connection(loaded, readable=False),
                tuple(connection.Connection(os.dup(number), readable=False) for number in (1, 2)),
                os.getpgrp(),
            )
            server = _Process(_Origin(self._origin), target=be_forked_server, args=given)
            try:
                server.start()
            except OSError:
                # That server has ended, as nobody of its own process needs it any more.
                for fd in (self._alive, self.told, self._loaded):
                    os.close(fd)
                super()._spawn()
                return
            finally:
                for pipe in (*given[1:4], *given[4]):
                    pipe.close()
            # It ends when nobody holds ``_alive``: this process must not wait for that when it ends itself.
            process._children.discard(server)  # type: ignore[attr-defined]
        self._server, self._pid = server, server.pid

    def _has_ended(self, pid: int) -> bool:
        return super()._has_ended(pid) if self._server is None else self._server.exitcode is not None

    def _see_off(self, pid: int) -> None:
        if self._server is None:
            super()._see_off(pid)
        # Otherwise who has forked it waits for it.


class _Origin:
    """A server of another process, seen from this one."""

    def __init__(self, address: str) -> None:
        self._address = address

    def fork(self, fds: list[int]) -> tuple[int, int]:
        """See :meth:`Interpreter.fork`; the child does not keep that server from ending."""
        alive = os.open(os.devnull, os.O_RDONLY)
        try:
            return _asked(self._address, alive, fds)
        finally:
            os.close(alive)


def import_path() -> list[str]:
    """Where ranks import from: a console script does not look into the working folder, where users' modules may lie."""
    here = str(Path.cwd())
    path = [here if entry == "" else entry for entry in sys.path]
    return path if here in path else [here, *path]


class _Process(process.BaseProcess):
    """A child of an interpreter."""

    # In its own children, what the platform has: as under torchrun.
    _start_method = None

    def __init__(self, interpreter: "Interpreter | _Origin", **what: Any) -> None:
        super().__init__(**what)
        self._interpreter: Interpreter | _Origin | None = interpreter

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_interpreter": None}

    def _Popen(self, process_obj: process.BaseProcess) -> "_Popen":  # multiprocessing's name for it
        if self._interpreter is None:
            raise InternalError("A child of the fork server cannot start itself.")
        return _Popen(process_obj, self._interpreter)


class _Popen(popen_forkserver.Popen):
    """As ``multiprocessing`` has it, from a server that is not the one of the process.

    The main module is not imported again: ranks need nothing of it, and a script without a guard would begin anew.
    """

    def __init__(self, process_obj: process.BaseProcess, interpreter: Interpreter | _Origin) -> None:
        self._interpreter = interpreter
        super().__init__(process_obj)

    def _launch(self, process_obj: process.BaseProcess) -> None:
        buffer = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(_preparation(process_obj.name), buffer)
            reduction.dump(process_obj, buffer)
        finally:
            set_spawning_popen(None)
        self.sentinel, data = self._interpreter.fork(self._fds)  # type: ignore[attr-defined]
        # Open as long as this process lives: the child's way to know that it does.
        alive = os.dup(data)
        self.finalizer = util.Finalize(self, util.close_fds, (alive, self.sentinel))  # type: ignore[attr-defined]
        with os.fdopen(data, "wb") as stream:
            stream.write(buffer.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


def _preparation(name: str) -> dict[str, Any]:
    """What ``multiprocessing.spawn.prepare`` does before anything is unpickled."""
    return {
        "name": name,
        "authkey": process.current_process().authkey,
        "sys_path": import_path(),
        "sys_argv": sys.argv,
        "dir": str(Path.cwd()),
        "orig_dir": str(spawn.process.ORIGINAL_DIR),  # type: ignore[attr-defined]
    }
