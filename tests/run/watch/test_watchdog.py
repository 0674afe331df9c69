"""Ranks that really hang, in real processes: the others say which, where, and before gloo gives up."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.engine.backends.local import LocalBackend, LocalFileWriter
from ckptrun.ranks import Ranks
from ckptrun.run.watch.watchdog import Watchdog
from ckptrun.state.components import TrainingState
from tests.run.watch.watched_ranks import Declared, Rank, hang, run_watched
from tests.support.storage_backends import on

pytestmark = pytest.mark.distributed

TIMEOUT = 4.0


def the_stall(scenario: Any, folder: Path, **options: Any) -> Declared:
    found = run_watched(scenario, folder=str(folder), timeout_seconds=TIMEOUT, **options)
    assert isinstance(found, Declared), f"nothing was declared: {found}"
    # Before gloo gives up; or, where a loaded machine made it late, while ranks wait for a better word than gloo's.
    assert found.after_seconds < TIMEOUT + 3
    return found


class Model(nn.Module):
    """Rank 1 never comes out of its third forward."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.rank = rank
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.rank.rank == 1 and self.calls == 3:
            self.rank.begins_to_hang()
            hang()
        return self.linear(inputs)


def hangs_in_forward(rank: Rank) -> None:
    model = DistributedDataParallel(Model(rank), find_unused_parameters=True)
    for step in range(1, 6):
        rank.watchdog.passed("before_step", step)
        loss = model(torch.ones(2, 4)).sum()
        rank.watchdog.passed("after_forward", step)
        loss.backward()
        rank.watchdog.passed("after_backward", step)


def test_a_rank_that_hangs_in_the_users_code_is_named_with_its_line(tmp_path) -> None:
    """The others wait in backward, in C++."""
    found = the_stall(hangs_in_forward, tmp_path)
    (culprit,) = found.stall.culprits
    assert (culprit.rank, culprit.stopped, found.by) == (1, False, found.by)
    assert found.by != 1
    message = found.stall.message
    assert "rank 1 has not moved for" in message
    assert "it stands in step 3 after 'before_step' (threading.py:" in message
    assert "called from tests/run/watch/watched_ranks.py:" in message
    assert "in hang)" in message
    assert "launch.timeout_seconds=4" in message


def is_stopped(rank: Rank) -> None:
    for step in range(1, 6):
        rank.watchdog.passed("before_step", step)
        if rank.rank == 2 and step == 3:
            # Time to say which step it is.
            time.sleep(0.6)
            rank.begins_to_hang()
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(1))


def test_a_stopped_rank_is_named_as_one_that_does_not_answer(tmp_path) -> None:
    found = the_stall(is_stopped, tmp_path)
    (culprit,) = found.stall.culprits
    assert (culprit.rank, culprit.stopped) == (2, True)
    assert "rank 2 has said nothing for" in found.stall.message
    assert "its process does not answer" in found.stall.message
    assert "step 3 after 'before_step'" in found.stall.message


def hosts_the_store_and_is_stopped(rank: Rank) -> None:
    rank.watchdog.passed("before_step", 1)
    if rank.rank == 0:
        rank.begins_to_hang()
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_no_reason_to_be_silent(tmp_path) -> None:
    """Under a scheduler's own launcher rank 0 hosts it."""
    found = the_stall(hosts_the_store_and_is_stopped, tmp_path, nproc=2, store_on_rank_0=True)
    assert found.stall.store_is_silent
    assert "the store of the launcher, or of rank 0, does not answer" in found.stall.message


class HangingBackend(LocalBackend):
    """Local files; rank 1 never gets to write its tensors."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._hangs = rank

    def create(self, path: str, length: int) -> LocalFileWriter:
        self._hangs.watchdog.passed("writing", 7)
        if self._hangs.rank == 1 and path.endswith(".safetensors"):
            self._hangs.begins_to_hang()
            hang()
        return super().create(path, length)


class Weights:
    """A component with a leaf of each rank."""

    def state_dict(self) -> dict[str, Any]:
        return {f"rank_{dist.get_rank():05d}": torch.ones(3)}

    def load_state_dict(self, state: Any) -> None:
        """Not loaded here."""


def hangs_in_its_save(rank: Rank) -> None:
    manager = CheckpointManager(
        on(HangingBackend(rank), Path(rank.folder)),
        mode=SaveMode.async_thread,
        keep=KeepLast(count=None),
        ranks=Ranks(),
        saving_group=dist.new_group(backend="gloo"),
        stager=None,
        facts={},
    )
    manager.save(TrainingState({"model": Weights()}), 7)
    if rank.rank == 0:
        manager.wait()
    for _ in range(200):
        rank.watchdog.passed("before_step", 8)
        time.sleep(0.1)


def test_a_save_that_hangs_on_one_rank_is_named_while_training_goes_on(tmp_path) -> None:
    found = the_stall(hangs_in_its_save, tmp_path)
    (culprit,) = found.stall.culprits
    assert (culprit.rank, culprit.stopped) == (1, False)
    assert "the checkpoint thread of rank 1 has not moved for" in found.stall.message
    assert "step 7 after 'writing' (threading.py:" in found.stall.message
    assert "in hang)" in found.stall.message


def is_slow(rank: Rank) -> str:
    """Everything that takes longer than a rank may hang, and is no hang."""
    watchdog = rank.watchdog
    watchdog.passed("all compute", 1)
    # More ranks than cores, so this is a loaded machine too. One of them sleeps, and takes a little longer.
    until = time.monotonic() + 2.4
    while rank.rank != 1 and time.monotonic() < until:
        torch.ones(200, 200) @ torch.ones(200, 200)
    if rank.rank == 1:
        time.sleep(3.2)
    dist.barrier()
    watchdog.passed("one is slow and moves", 2)
    for _ in range(6 if rank.rank == 1 else 0):
        time.sleep(0.4)
        watchdog.passed("moving", 2)
    dist.barrier()
    watchdog.passed("many collectives", 3)
    until = time.monotonic() + 2.4
    going = torch.ones(1)
    while going:
        going = torch.tensor(float(time.monotonic() < until))
        dist.all_reduce(going, op=dist.ReduceOp.MIN)
    return "done"


@pytest.mark.slow
def test_ranks_that_are_slow_together_or_that_move_are_left_alone(tmp_path) -> None:
    outcome = run_watched(is_slow, folder=str(tmp_path), timeout_seconds=2.0, group_seconds=60)
    assert outcome == ["done"] * 3


def test_one_rank_alone_is_not_watched() -> None:
    watchdog = Watchdog(connect=dist.HashStore, rank=0, world_size=1, timeout_seconds=1, on_stall=print)
    before = threading.active_count()
    watchdog.start()
    assert threading.active_count() == before
    watchdog.close()
