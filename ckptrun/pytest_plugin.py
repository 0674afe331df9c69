"""For pytest: a failing test says what its proof has found. Loaded by pytest itself; loads no torch until a test does.

::

    from ckptrun import prove

    def test_my_model_resumes_exactly(tmp_path):
        verdict = prove(["experiment=smoke", "model=custom", "model._target_=my_module.MyModel", f"run.dir={tmp_path}"])
        assert verdict.status == "equal"
"""

import sys
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["pytest_runtest_makereport", "pytest_runtest_setup"]

_API = "ckptrun.api"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What an earlier test has proved is not this test's."""
    api = sys.modules.get(_API)
    if api is not None:
        api.PROVED.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """Add the verdicts of a failed test to its report: the first difference, and who is to blame."""
    outcome = yield
    report, api = outcome.get_result(), sys.modules.get(_API)
    if api is None or report.when != "call" or not report.failed:
        return
    from ckptrun.proof.view import text_of

    for verdict in api.PROVED:
        report.sections.append((f"ckptrun proof {verdict.path}", text_of(verdict)))
