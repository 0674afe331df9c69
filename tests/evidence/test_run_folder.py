"""The names of what lies in a run folder are the same wherever they are spelled."""

from pathlib import Path

from ckptrun.evidence.run_folder import CHECKPOINTS, FAULTS
from ckptrun.fault.record import FaultRecord
from tests.support.configs import run_in


def test_rooms_below_spell_the_names_of_what_they_make_as_it_is_spelled_here(tmp_path: Path) -> None:
    assert run_in(tmp_path).checkpoint_root == str(tmp_path / CHECKPOINTS)
    assert FaultRecord(tmp_path)._folder == tmp_path / FAULTS
