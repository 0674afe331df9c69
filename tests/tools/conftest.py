"""What the tests of the tools share."""

import shutil
from pathlib import Path

import pytest

from tests.tools.saved import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of two ranks; not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def step_20(run_folder: Path) -> Path:
    """Its first checkpoint; not to be changed."""
    return run_folder / "checkpoints/step_00000020"


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run_folder, tmp_path / "copy")
