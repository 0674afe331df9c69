"""A copy for a save that is not what was live at the request is never committed, however the state was changed."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ckptrun import HostStager
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.digest import digest_leaves, digest_with_parts, part_digests
from ckptrun.engine.commit import list_committed
from ckptrun.errors import SaveRefusedError
from ckptrun.ranks import Ranks
from ckptrun.state.components import TrainingState

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

# All but these go past torch's counter.
COUNTED = {"in place", "a view"}
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda w: w.add_(1),
    "a view": lambda w: w[3:5].zero_(),
    ".data": lambda w: w.data.add_(1),
    "NumPy": lambda w: w.numpy().fill(5),
    "one element": lambda w: w.numpy().__setitem__(7, 2.0),
}


class Holder:
    """A component of one tensor and a plain value."""

    def __init__(self) -> None:
        self.w, self.n = torch.ones(1000), 1

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w, "n": self.n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.w, self.n = state["w"], state["n"]


class Gate:
    """Stops the copying thread before it copies."""

    def __init__(self, stager: HostStager) -> None:
        self.may_copy = threading.Event()
        original = HostStager.stage

        def stage(state: dict[str, Any]) -> Any:
            reached = stager.reached
            stager.reached = lambda point: (reached(point), self.may_copy.wait(60))[0]
            return original(stager, state)

        stager.stage = stage  # type: ignore[method-assign]


def manager_of(root: Path, stager: HostStager) -> CheckpointManager:
    return CheckpointManager(
        root,
        mode=SaveMode.async_thread,
        keep=KeepLast(count=None),
        ranks=Ranks(None),
        saving_group=None,
        stager=stager,
        facts={},
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_the_copy_is_made_fails_the_save_and_names_the_leaf(tmp_path: Path, change: str) -> None:
    stager, holder = HostStager(overlapped=True), Holder()
    manager, gate = manager_of(tmp_path, stager), Gate(stager)
    manager.save(TrainingState({"held": holder}), 1)
    CHANGES[change](holder.w)
    gate.may_copy.set()
    with pytest.raises(SaveRefusedError, match=r"'held\.w'.*overlapped_staging=false") as error:
        manager.wait()
    assert error.value.leaves == ("held.w",)
    with pytest.raises(SaveRefusedError):
        manager.close()
    assert list_committed(tmp_path) == []


def test_a_change_after_the_copy_does_no_harm(tmp_path: Path) -> None:
    stager, holder = HostStager(overlapped=True), Holder()
    manager = manager_of(tmp_path, stager)
    manager.save(TrainingState({"held": holder}), 1)
    manager.wait_staged()
    holder.w.add_(1)
    holder.n = 2
    manager.close()
    assert list_committed(tmp_path) == [1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_stager_by_itself_notices_what_torch_counts(change: str) -> None:
    stager = HostStager(overlapped=True)
    gate = Gate(stager)
    live = {"model": {"w": torch.ones(1000)}, "list": [torch.ones(1)]}
    staged = stager.stage(live)
    CHANGES[change](live["model"]["w"])  # type: ignore[call-overload]
    gate.may_copy.set()
    if change in COUNTED:
        with pytest.raises(SaveRefusedError, match=r"Leaf 'model\.w' was changed while it was copied"):
            staged.result()
    else:
        staged.result()


def test_parts_tell_copies_apart_on_one_rank_and_whole_digests_stay_what_they_are() -> None:
    leaves = {
        "w": torch.randn(33, 5),
        "half": torch.ones(7, dtype=torch.bfloat16),
        "v": [1, "x"],
        "none": torch.ones(0),
    }
    digests, parts = digest_with_parts(leaves)
    assert digests == digest_leaves(leaves)
    assert parts == part_digests(leaves)
    assert parts == part_digests({name: v.clone() if isinstance(v, Tensor) else v for name, v in leaves.items()})
    leaves["w"][3, 3] = -leaves["w"][3, 3]
    changed = part_digests(leaves)
    assert [name for name in parts if parts[name] != changed[name]] == ["w"]
    assert part_digests({"w": leaves["half"].view(torch.int16)})["w"] != parts["half"]
