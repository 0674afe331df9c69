"""When the faults of a start strike."""

import sys
from pathlib import Path

import pytest

from ckptrun.probe import site_folder
from tests.support.listened import write_plan

sys.path.insert(0, str(site_folder()))

from _ckptrun_probe.plan import Plan
from _ckptrun_probe.strikes import Strikes, Struck


def fault(folder: Path, index: int, point: str, step: int | None, rank: int) -> dict[str, object]:
    files = {str(rank): str(folder / f"{index}.json")}
    return {"index": index, "kind": "exception", "point": point, "step": step, "ranks": [rank], "share": 0.5} | {
        "files": files
    }


def test_a_fault_at_any_step_waits_for_the_one_before_it_on_whatever_rank(tmp_path):
    """A save that is struck in shall be the one that a signal is answered with, not one before it."""
    planned = [fault(tmp_path, 0, "after_optimizer", 3, rank=1), fault(tmp_path, 1, "at_request", None, rank=0)]
    plan = Plan(str(write_plan(tmp_path, faults=planned)))
    first, second = Strikes(plan), Strikes(plan)
    first.at("at_request", step=2, rank=0)
    with pytest.raises(Struck):
        second.at("after_optimizer", step=3, rank=1)
    with pytest.raises(Struck):
        first.at("at_request", step=5, rank=0)
    assert sorted(path.name for path in tmp_path.glob("[01].json")) == ["0.json", "1.json"]
