"""The scripts in ``benchmarks/`` still find what they take from the package; that they measure is seen by running them."""

import inspect
import runpy
from pathlib import Path

import pytest

from ckptrun.trainer import Observer

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_benchmark_loads(script: Path) -> None:
    assert callable(runpy.run_path(str(script))["main"])


def test_the_observer_that_is_measured_is_told_of_all_that_a_run_is() -> None:
    measured = runpy.run_path(str(next(script for script in SCRIPTS if script.name == "proof.py")))["_Measured"]
    wanted = {name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")}
    assert wanted <= set(dir(measured))
