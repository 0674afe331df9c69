"""Starts ranks on this machine, in one command.

A fork server with torch preloaded makes ranks start in tenths of a second; it loads torch while this process does.
Everything that a start sets (environment, import path, signal handlers) is of that start: the process that it is asked
for in may be somebody's pytest, and asks for the next one with other settings.

Processes that are forked from one server share what an interpreter draws at its start: the seed of ``hash()`` and with
it the order of sets of strings, the addresses of what is loaded, hence ``id()`` and the order of sets of objects, and
what has been imported before. A job that depends on them repeats itself until it is really started again. So the first
resume of a proof comes from a second server: an interpreter that was started by itself, with another seed, as that of a
command typed again would be. Both seeds are fixed: what depends on them shows every time, not every other time.
"""

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING, Any, TypeAlias

from ckptrun.exit_codes import ExitCode
from ckptrun.launch import supervisor
from ckptrun.launch.interpreter import ForkedInterpreter, Interpreter
from ckptrun.launch.stillness import Stillness
from ckptrun.launch.supervisor import RankProcess, Supervisor
from ckptrun.rank_names import rank_name
from ckptrun.run.watch.tether import Tether

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Outcome", "RanksToStart", "origins", "start_fork_server", "start_ranks", "use_origins"]

_OWN_CODES = (ExitCode.config, ExitCode.different, ExitCode.not_verified)
# Interpreters and libraries look at these when they are loaded, and never again.
_READ_AT_START = ("PYTHON", "LD_", "MALLOC_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TORCH_")
# Ranks notice by themselves within launch.timeout_seconds, and shall be heard before they are ended.
_LAST_SECONDS = 2.0
# On a busy machine everything stands still for a second or two.
_LEAST_SECONDS = 10.0
# Of hash seeds below 64, the two under which the order of most sets of two common words (train and val, a and b) is
# another.
_USUAL_SEED, _OTHER_SEED = "32", "45"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a set of ranks ended."""

    exit_code: int
    killed: Mapping[int, int] = field(default_factory=dict)
    """Rank -> the signal that ended it, without those that were ended from here."""
    interrupted_by: Signals | None = None
    """What this process was told meanwhile."""
    reason: str | None = None
    """What no rank could say: one stood still, or ended as if it were done."""
    is_silent: bool = False
    """Whether this process was told to end, and no rank has said that it ends before its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksToStart:
    """Processes to start.

    Attributes:
        count: How many.
        call: Called in each, as ``call(*arguments, environment, tether)``; importable, and the arguments pickle.
        arguments: The same for all.
        environment: Of each, without who it is.
        run_dir: Where it is put on record what brought them down.
        log_file: Rank -> where it prints to; None: to the terminal.
        timeout_seconds: A rank that stands still for longer is killed.
        stop_seconds: What a rank may take to end once it is told to.
        in_proof: Whether they need a hash seed that is known.
        fresh: Whether they come from the other of the two interpreters of a proof.
    """

    count: int
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]
    run_dir: Path
    log_file: Callable[[int], Path | None]
    timeout_seconds: float
    stop_seconds: float
    in_proof: bool = False
    fresh: bool = False


def start_ranks(what: RanksToStart) -> Outcome:
    """Start processes, wait until all have ended, and say how. Prints nothing itself.

    Raises:
        RankFailedError: No rank can be started.
        KeyboardInterrupt: SIGINT came before there were ranks.
    """
    # Imported here: it loads torch, which the fork server does meanwhile.
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    server = start_fork_server(what.environment, in_proof=what.in_proof, fresh=what.fresh)
    with tempfile.TemporaryDirectory(prefix="ckptrun-") as folder, supervisor.Signals() as signals:
        server.wait(lambda: bool(signals.came))
        if signals.came:
            number = signals.came[0][1]
            if number is Signals.SIGINT:
                # Otherwise ranks would speak of it.
                raise KeyboardInterrupt
            return Outcome(exit_code=ExitCode.failed, interrupted_by=number)
        before = frozenset(server.children())
        ranks = _started(what, server, port=store.port, folder=Path(folder))
        spoken: list[str] = []
        try:
            Supervisor(
                ranks,
                signals=signals,
                told=server.told,
                stop_seconds=what.stop_seconds,
                on_early_end=lambda rank, text: spoken.extend(_recorded(what, store, rank, text)),
            ).run()
        finally:
            _leave_nothing(ranks, server, before=before)
        told = [number for _, number in signals.came]
    outcome = _outcome(ranks, interrupted_by=told[0] if told else None, reason=spoken[0] if spoken else None)
    return replace(outcome, is_silent=bool(told) and not _has_spoken(store))


_Settings: TypeAlias = tuple[object, ...]
_SERVERS: dict[tuple[_Settings, bool, str | None], Interpreter] = {}


_ORIGINS: dict[tuple[_Settings, bool, str | None], str] = {}
"""Servers of the process that has started this one, by what they are good for -> where they listen."""


def origins(environment: Mapping[str, str], *, preload: Sequence[str]) -> dict[Any, str]:
    """Start both servers of a proof, and return what lets another process fork its own from them: ``use_origins``.

    Args:
        environment: Of the ranks.
        preload: Modules that the first of them loads beside torch.
    """
    start_fork_server(environment, in_proof=True, preload=preload)
    start_fork_server(environment, in_proof=True, fresh=True)
    # Without the number of this process.
    return {(key[0][1:], *key[1:]): server.address for key, server in _SERVERS.items()}


def use_origins(found: Mapping[Any, str]) -> None:
    """Fork the servers of this process from those of another one, where they are good for that."""
    _ORIGINS.update(found)


def start_fork_server(
    environment: Mapping[str, str], *, in_proof: bool = False, fresh: bool = False, preload: Sequence[str] = ()
) -> Interpreter:
    """Start the process that ranks are forked from, unless it runs already; returns before it has loaded torch.

    Args:
        environment: Of the ranks.
        in_proof: Whether ranks need a hash seed that is known; otherwise any server will do.
        fresh: The other one of the two that a proof has.
        preload: Modules that it loads beside torch, if it is started now.
    """
    # A process that was forked from this one has inherited its servers, and must have its own.
    settings = (os.getpid(), *sorted((n, value) for n, value in environment.items() if n.startswith(_READ_AT_START)))
    for other in [key for key in _SERVERS if key[0] != settings]:
        stale = _SERVERS.pop(other)
        if other[0][0] == os.getpid():
            stale.close()
    seed = _hash_seed(fresh=fresh) if in_proof else None
    key = (settings, fresh, seed)
    if seed is None:
        foreign = next(((settings, *origin[1:]) for origin in _ORIGINS if origin[0] == settings[1:]), key)
        key = next(iter(_SERVERS), foreign)
    server = _SERVERS.get(key)
    if server is None:
        origin = _ORIGINS.get((key[0][1:], *key[1:]))
        own = {**environment, **_seed(key[2])}
        server = ForkedInterpreter(own, origin) if origin is not None else Interpreter(own, preload=preload)
        _SERVERS[key] = server
    server.start()
    return server


def _hash_seed(*, fresh: bool) -> str:
    """The seed of a start of a proof: that of the user, if they have set one for every start of their job."""
    seed = os.environ.get("PYTHONHASHSEED", "random")
    if seed not in ("", "random"):
        return seed
    return _OTHER_SEED if fresh else _USUAL_SEED


def _seed(seed: str | None) -> dict[str, str]:
    return {} if seed is None else {"PYTHONHASHSEED": seed}


def _started(what: RanksToStart, server: Interpreter, *, port: int, folder: Path) -> list[RankProcess]:
    run_id = uuid.uuid4().hex
    limit = max(_LEAST_SECONDS, what.timeout_seconds + what.stop_seconds - _LAST_SECONDS)
    ranks = []
    for rank in range(what.count):
        here, there = Pipe()
        progress = folder / rank_name(rank)
        environment = {**what.environment, **server.hash_seed, **_place(rank, what.count, port=port, run_id=run_id)}
        arguments = (*what.arguments, environment, Tether(there, progress))
        process = server.process(what.call, arguments, name=f"rank {rank}")
        process.start()
        there.close()
        stillness = Stillness(limit_seconds=limit, now=time.monotonic())
        ranks.append(RankProcess(rank=rank, process=process, connection=here, progress=progress, stillness=stillness))
    return ranks


def _place(rank: int, world_size: int, *, port: int, run_id: str) -> dict[str, str]:
    """What torchrun, too, tells a rank of one machine."""
    own, all_ranks = str(rank), str(world_size)
    return {
        "RANK": own,
        "LOCAL_RANK": own,
        "ROLE_RANK": own,
        "GROUP_RANK": "0",
        "ROLE_NAME": "default",
        "WORLD_SIZE": all_ranks,
        "LOCAL_WORLD_SIZE": all_ranks,
        "ROLE_WORLD_SIZE": all_ranks,
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _recorded(what: RanksToStart, store: "Store", rank: int, text: str) -> list[str]:
    """Put ``text`` on record, unless a rank has said what brought the run down; return what was new."""
    from ckptrun.run.watch.failure import record_once

    if not record_once(text, rank=rank, store=_of_ranks(store), run_dir=what.run_dir):
        return []
    log = what.log_file(rank)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"ckptrun: {text}\n")
    return [text]


def _has_spoken(store: "Store") -> bool:
    from ckptrun.run.watch.failure import has_spoken

    return has_spoken(_of_ranks(store))


def _of_ranks(store: "Store") -> "Store":
    """The part of ``store`` in which ranks say what brought them down."""
    from torch._C._distributed_c10d import PrefixStore

    from ckptrun.process_groups import store_prefix

    return PrefixStore(store_prefix(), store)


def _leave_nothing(ranks: Sequence[RankProcess], server: Interpreter, *, before: frozenset[int]) -> None:
    """End what is left: ranks, if nobody has waited for them, and what they have started and left behind."""
    for rank in ranks:
        rank.signal(SIGKILL)
        rank.connection.close()
    for child in server.children() - before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, SIGKILL)


def _outcome(ranks: Sequence[RankProcess], *, interrupted_by: Signals | None, reason: str | None) -> Outcome:
    """Which ranks were killed, and the exit code of the first rank that failed."""
    failed = sorted((rank for rank in ranks if rank.failed or rank.code != 0), key=lambda rank: rank.ended_at or 0.0)
    if not failed:
        return Outcome(exit_code=ExitCode.done, interrupted_by=interrupted_by)
    killed = {rank.rank: -rank.code for rank in failed if rank.code < 0 and not rank.was_killed_here}
    # Who was told to end, and took it literally.
    causes = {rank: number for rank, number in killed.items() if number != SIGTERM or interrupted_by is None}
    own = [code for code in _OWN_CODES if code in {rank.code for rank in failed}]
    code = own[0] if own and not causes else failed[0].code if failed[0].code in _OWN_CODES else ExitCode.failed
    return Outcome(exit_code=int(code), killed=causes, interrupted_by=interrupted_by, reason=reason)
