"""Nothing outlasts its time: real processes that end too early, too late, or not at all."""

import os
import signal
import threading
import time
from multiprocessing import Pipe

import pytest

from ckptrun.launch.stillness import Stillness
from ckptrun.launch.supervisor import RankProcess, Signals, Supervisor
from ckptrun.run.watch.tether import Tether, Word
from tests.support.fork_server import CONTEXT

pytestmark = pytest.mark.distributed


def is_done(tether: Tether) -> None:
    tether.done(0)


def is_done_and_stays(tether: Tether) -> None:
    threading.Thread(target=threading.Event().wait).start()
    tether.done(0)


def ends_with_0_in_the_middle(tether: Tether) -> None:
    os._exit(0)


def ends_with_7_in_the_middle(tether: Tether) -> None:
    os._exit(7)


def kills_itself(tether: Tether) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(tether: Tether) -> None:
    tether.passed("before_step", 3)
    threading.Event().wait()


def ends_when_told(tether: Tether) -> None:
    word = tether.read()
    tether.done({Word.stop: 1, Word.end: 4}[word])


def tells_its_launcher_to_end(tether: Tether) -> None:
    os.kill(int(os.environ["TOLD"]), signal.SIGTERM)
    ends_when_told(tether)


class Start:
    """One start of ranks that do what they are given."""

    def __init__(self, folder, *functions, limit_seconds: float = 60.0, environment=None) -> None:
        self.said: list[tuple[int, str]] = []
        self.ranks = []
        for rank, function in enumerate(functions):
            here, there = Pipe()
            progress = folder / str(rank)
            process = CONTEXT.Process(target=be, args=(function, Tether(there, progress), dict(environment or {})))
            process.start()
            there.close()
            stillness = Stillness(limit_seconds=limit_seconds, now=time.monotonic())
            self.ranks.append(
                RankProcess(rank=rank, process=process, connection=here, progress=progress, stillness=stillness)
            )

    def end(self, *, stop_seconds: float = 30.0) -> list[int]:
        """Wait for the end; return what came of each rank."""
        nothing, end = os.pipe()
        with Signals() as self.signals:
            Supervisor(
                self.ranks,
                signals=self.signals,
                told=nothing,
                stop_seconds=stop_seconds,
                on_early_end=lambda rank, text: self.said.append((rank, text)),
            ).run()
        os.close(nothing)
        os.close(end)
        assert all(rank.process.exitcode is not None for rank in self.ranks)
        return [rank.code for rank in self.ranks]


def be(function, tether: Tether, environment) -> None:
    os.environ.update(environment)
    function(tether)


def test_ranks_that_are_done_end_well_and_one_that_stays_does_not_change_that(tmp_path) -> None:
    start = Start(tmp_path, is_done, is_done_and_stays)
    assert start.end(stop_seconds=0.2) == [0, 0]
    assert start.said == []
    assert [rank.was_killed_here for rank in start.ranks] == [False, True]


@pytest.mark.parametrize(("function", "code"), [(ends_with_0_in_the_middle, 0), (ends_with_7_in_the_middle, 7)])
def test_a_rank_that_ends_before_it_is_done_has_failed_and_its_peers_are_told(function, code, tmp_path) -> None:
    start = Start(tmp_path, ends_when_told, function)
    assert start.end() == [4, code]
    assert [rank.failed for rank in start.ranks] == [False, True]
    assert start.said == [(1, f"rank 1 ended with exit code {code} before it was done, as if by os._exit({code}).")]


def test_a_signal_that_kills_a_rank_speaks_for_itself(tmp_path) -> None:
    start = Start(tmp_path, kills_itself, ends_when_told)
    assert start.end() == [-signal.SIGKILL, 4]
    assert start.said == []


def test_a_rank_that_stands_still_is_named_with_its_place_and_killed(tmp_path) -> None:
    start = Start(tmp_path, hangs, limit_seconds=0.5)
    while not start.ranks[0].passed().number:
        time.sleep(0.01)
    assert start.end() == [-signal.SIGKILL]
    assert start.ranks[0].was_killed_here
    ((rank, text),) = start.said
    assert rank == 0
    assert text.startswith("rank 0 stands still after before_step of step 3 for ")


def test_a_rank_that_does_not_listen_is_killed_when_its_time_is_over(tmp_path) -> None:
    start = Start(tmp_path, hangs, ends_with_0_in_the_middle)
    assert start.end(stop_seconds=0.0) == [-signal.SIGKILL, 0]
    assert [rank for rank, _ in start.said] == [1]


def test_sigterm_reaches_the_ranks_as_a_word_and_handlers_are_put_back(tmp_path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)]
    start = Start(tmp_path, tells_its_launcher_to_end, ends_when_told, environment={"TOLD": str(os.getpid())})
    assert start.end() == [1, 1]
    assert [number for _, number in start.signals.came] == [signal.SIGTERM]
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)]
    assert after == before
