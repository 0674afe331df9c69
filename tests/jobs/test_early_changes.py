"""``checkpoint.overlapped_staging=true`` with a model that changes its state before the optimizer does: in every file is its
own step, whoever made the change, and whether torch counts it.
"""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from ckptrun.build import _has_code_of_the_user
from ckptrun.checks.saved import check_saved
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.evidence.verdict import Status
from ckptrun.formats.open_source import open_source
from tests.support.configs import config_of
from tests.support.jobs import run_here

pytestmark = pytest.mark.distributed

ROWS = 64


class Early(nn.Module):
    """In forward rows are cut, a parameter is changed past torch's counter, and extra state; in backward another one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 8, max_norm=1.0)
        nn.init.normal_(self.table.weight, std=9.0)
        self.unseen = nn.Parameter(torch.zeros(100))
        self.bits = nn.Parameter(torch.zeros(100), requires_grad=False)
        self.out = nn.Linear(8, 8)
        self.seen = torch.zeros(ROWS)
        self.unseen.register_post_accumulate_grad_hook(self._update)

    @staticmethod
    def _update(parameter: nn.Parameter) -> None:
        with torch.no_grad():
            parameter.add_(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, 0].long()
        self.seen[rows] += 1
        self.bits.data.add_(1)
        self.bits.numpy()[0] += 1
        return self.out(self.table(rows)) + self.unseen.sum() * 0

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = state["seen"]


class Rows(Dataset):  # type: ignore[type-arg]
    """Each row is looked up by one sample."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((8,), float(i)), torch.zeros(8)


class SlowCopy:
    """Copying takes longer than a step."""

    def __init__(self) -> None:
        from ckptrun.engine import staging

        original = staging._copy
        if original.__name__ != "slow":

            def slow(*args: object) -> object:
                time.sleep(0.1)
                return original(*args)  # type: ignore[arg-type]

            staging._copy = slow  # type: ignore[assignment]

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


def test_every_file_holds_what_was_live_at_its_step(tmp_path: Path) -> None:
    here = sys.modules[__name__].__name__
    done = run_here(
        tmp_path,
        "model=custom",
        f"model._target_={here}.Early",
        "model.loss=mse",
        "data=custom",
        f"data._target_={here}.Rows",
        f"components.slow._target_={here}.SlowCopy",
        "train.micro_batch=4",
        "train.steps=5",
        "parallelism=none",
        "optimizer=sgd",
        "optimizer.weight_decay=0",
        "checkpoint=async",
        "checkpoint.overlapped_staging=true",
        "checkpoint.interval_steps=1",
    )
    assert done == 0, done
    root = tmp_path / "checkpoints"
    assert list_committed(root) == [1, 2, 3, 4, 5]
    assert check_saved([step_folder(root, step) for step in range(1, 6)], damaged={}).status is Status.equal
    for step in range(1, 6):
        with open_source(step_folder(root, step)) as source:
            found = {name.rpartition(".")[2]: source.read_rows(name, 0, source.leaves[name].rows) for name in _TENSORS}
        assert int(found["seen"].sum()) == 4 * step
        assert found["unseen"].unique().tolist() == [float(step)]
        assert found["bits"].tolist() == [2.0 * step, *[float(step)] * 99]
        # A row that was looked up is at most 1 long; one that never was is about 25 long.
        assert int((found["weight"].norm(dim=1) < 2).sum()) == 4 * step


_TENSORS = (
    "model.table.weight",
    "model.unseen",
    "model.bits",
    "model._extra_state.seen",
)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], False),
        (["model=gpt", "data=python_source", "optimizer=muon"], False),
        (["model=custom", "model._target_=torch.nn.Identity"], True),
        (["data=custom", "data._target_=torch.utils.data.Dataset"], True),
        (["optimizer=custom", "optimizer._target_=torch.optim.SGD"], True),
        (["schedule=custom", "schedule._target_=torch.optim.lr_scheduler.ConstantLR"], True),
        (["+components.x._target_=collections.Counter"], True),
    ],
)
def test_code_of_the_user_may_change_the_state_at_any_moment(overrides: list[str], expected: bool) -> None:
    assert _has_code_of_the_user(config_of("run.name=test", *overrides)) is expected
