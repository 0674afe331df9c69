"""SIGTERM to real processes, whose main thread is in Python, or in C++ where no handler of Python runs."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from ckptrun.run.watch.preemption import EXIT_CODE, Preemption
from tests.support.fork_server import rank_streams
from tests.support.run_ranks import CONTEXT

pytestmark = pytest.mark.distributed


class Child:
    """A process that listens, and says so."""

    def __init__(self, main: Callable[[Any, Any], None], **arguments: Any) -> None:
        rank_streams()
        self.told, told = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=be_child, args=(main, arguments, told))
        self.process.start()
        assert self.hear() == "listening"

    def hear(self) -> Any:
        assert self.told.poll(20), "the child says nothing"
        return self.told.recv()

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def ends(self, within_seconds: float = 20) -> tuple[int, float]:
        """Its exit code, and after which time."""
        began = time.monotonic()
        self.process.join(within_seconds)
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode, time.monotonic() - began


@pytest.fixture
def child():
    children = []

    def start(*args: Any, **arguments: Any) -> Child:
        children.append(Child(*args, **arguments))
        return children[-1]

    yield start
    for each in children:
        each.process.kill()
        each.process.join()


def be_child(main: Callable[[Any, Any], None], arguments: dict[str, Any], tell: Any) -> None:
    peer_fails_after = arguments.pop("peer_fails_after", None)
    preemption = Preemption(**arguments)
    preemption.listen()
    if peer_fails_after is not None:
        at = time.monotonic() + peer_fails_after
        preemption.watch_peers(lambda: time.monotonic() > at)
    main(preemption, tell)


def waits_in_cpp(preemption: Preemption, tell: Any) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    tell.send("listening")
    store.get("what nobody sets")


def test_a_rank_that_waits_in_cpp_ends_when_the_grace_is_over(child) -> None:
    stuck = child(waits_in_cpp, grace_seconds=1.0)
    stuck.terminate()
    code, seconds = stuck.ends()
    assert code == EXIT_CODE == 143
    assert 0.8 < seconds < 5


def test_a_rank_ends_at_once_when_a_peer_has_reported_a_failure(child) -> None:
    stuck = child(waits_in_cpp, grace_seconds=60.0, peer_fails_after=0.0)
    stuck.terminate()
    code, seconds = stuck.ends()
    assert code == 143
    assert seconds < 5


def test_a_second_sigterm_ends_at_once_unless_it_is_the_echo_of_the_first(child) -> None:
    stuck = child(waits_in_cpp, grace_seconds=60.0, echo_seconds=1.0)
    for _ in range(2):
        stuck.terminate()
        time.sleep(0.1)
    time.sleep(1.0)
    assert stuck.process.is_alive()
    stuck.terminate()
    code, seconds = stuck.ends()
    assert code == 143
    assert seconds < 5


def finishes_its_step(preemption: Preemption, tell: Any) -> None:
    tell.send("listening")
    while not preemption.asked:
        time.sleep(0.01)
    time.sleep(0.5)
    tell.send("saved")


def test_a_rank_that_comes_to_its_step_boundary_ends_as_it_likes(child) -> None:
    moving = child(finishes_its_step, grace_seconds=30.0, peer_fails_after=30.0)
    assert moving.process.is_alive()
    moving.terminate()
    assert moving.hear() == "saved"
    assert moving.ends()[0] == 0


def forks(preemption: Preemption, tell: Any) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    tell.send("listening")
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    time.sleep(0.3)
    tell.send((os.waitstatus_to_exitcode(status), preemption.asked))


def test_a_forked_child_ends_by_sigterm_and_does_not_tell_its_parent(child) -> None:
    assert child(forks, grace_seconds=30.0).hear() == (-signal.SIGTERM, False)


def closes(preemption: Preemption, tell: Any) -> None:
    preemption.close()
    preemption.close()
    tell.send("listening")
    time.sleep(60)


def test_after_close_sigterm_does_what_it_did_before(child) -> None:
    closed = child(closes, grace_seconds=0.0)
    closed.terminate()
    assert closed.ends()[0] == -signal.SIGTERM
