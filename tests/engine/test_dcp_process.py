"""The process that DCP saves in for a rank ends when the rank saves no more, and does not outlive it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint import _async_process_executor as dcp_executor

from ckptrun.engine.commit import list_in_flight, remove_leftovers
from ckptrun.engine.locate import locate
from tests.support.killed_ranks import run_until_killed
from tests.support.known_saves import PROCESS, SMALL, manage, versions_in
from tests.support.run_ranks import run_ranks
from tests.support.storage_backends import WaitingBackend, on, wait_for

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def save_twice(folder: Path) -> tuple[str, bool]:
    """Save as two runs do; return what processes are left and whether DCP has forgotten them."""
    for step in (1, 2):
        manage(locate(str(folder)), step, step, size=SMALL, mode=PROCESS, keep_last=None)
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(), dcp_executor._CHECKPOINT_PROCESS is None


def test_the_saving_process_ends_when_nothing_more_is_saved(tmp_path: Path) -> None:
    assert run_ranks(save_twice, 2, tmp_path, fresh=True) == [("", True)] * 2
    assert versions_in(tmp_path) == {1: 1, 2: 2}


def die_while_saving(folder: Path, gate: Path) -> None:
    """Save to a storage that does not answer until then; rank 1 dies once its part is on the way."""
    backend = WaitingBackend(gate)

    def die() -> None:
        wait_for(backend.arrived)
        os.kill(os.getpid(), signal.SIGKILL)

    if dist.get_rank() == 1:
        threading.Thread(target=die).start()
    manage(on(backend, folder), 1, 1, size=SMALL, mode=PROCESS)


def test_the_saving_process_is_gone_with_its_rank_in_the_middle_of_a_save(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    # The other rank is killed as well, by whoever waits for them.
    assert run_until_killed(die_while_saving, 2, folder, tmp_path / "gate")[1] == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] != []
    until = time.monotonic() + 30
    while list_in_flight(folder):
        assert time.monotonic() < until, "who saves for a rank goes on without it"
        time.sleep(0.01)
    assert remove_leftovers(folder) != []
    assert list(folder.iterdir()) == []
