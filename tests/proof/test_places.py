"""A proof begins with empty places, on local paths and URLs alike, and keeps copies of what its run removes."""

import uuid
from pathlib import Path

import pytest

from ckptrun.checks.checkpoints import compare_checkpoints
from ckptrun.engine.backends.interface import write_file
from ckptrun.engine.commit import list_committed, remove_checkpoint
from ckptrun.engine.locate import locate
from ckptrun.errors import ConfigError
from ckptrun.evidence.verdict import Status
from ckptrun.proof.places import clear_checkpoints, clear_place, keep_copies, place_beside
from tests.support.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


@pytest.fixture(params=["path", "file", "memory"])
def root(request, tmp_path: Path) -> str:
    """An empty place: a path, a file URL, or in an object store that this process holds."""
    return {
        "path": str(tmp_path / "place"),
        "file": f"file://{tmp_path}/place",
        "memory": f"memory://{uuid.uuid4().hex}/place",
    }[request.param]


def put(root: str, local: Path) -> None:
    """Upload a checkpoint file by file, the manifest last."""
    for file in sorted(local.iterdir(), key=lambda file: file.name == "manifest.json"):
        target = locate(f"{root}/{local.name}/{file.name}")
        target.backend.make_folder(target.parent.path)
        write_file(target, file.read_bytes())


@pytest.fixture
def filled(root: str, tmp_path: Path) -> str:
    """What an earlier proof has left: two checkpoints of its run, and the end of its reference."""
    for step in (2, 4):
        put(root, save(tmp_path / "local", step, live_state(step)))
    put(place_beside(root, "reference"), tmp_path / "local/step_00000004")
    return root


def test_what_an_earlier_proof_has_left_goes_with_all_its_legs(filled: str) -> None:
    clear_checkpoints(filled, is_ours=True)
    assert list_committed(filled) == []
    assert list_committed(place_beside(filled, "reference")) == []
    clear_checkpoints(filled, is_ours=False)


def test_what_is_not_known_to_be_a_proofs_is_refused_and_stays(filled: str) -> None:
    with pytest.raises(ConfigError, match="steps 2, 4"):
        clear_checkpoints(filled, is_ours=False)
    for step in (2, 4):
        remove_checkpoint(filled, step)
    # The end of a reference alone would be resumed from, too.
    with pytest.raises(ConfigError, match="proof/reference"):
        clear_checkpoints(filled, is_ours=False)
    assert list_committed(place_beside(filled, "reference")) == [4]


def test_the_place_of_a_leg_is_emptied_and_no_other(filled: str) -> None:
    clear_place(place_beside(filled, "reference"))
    clear_place(place_beside(filled, "never there"))
    assert list_committed(place_beside(filled, "reference")) == []
    assert list_committed(filled) == [2, 4]


def test_copies_outlive_the_checkpoints_and_follow_a_save_that_took_the_place(filled: str, tmp_path: Path) -> None:
    copies = dict(keep_copies(filled, tmp_path / "kept"))
    assert list(copies) == [str(locate(f"{filled}/step_0000000{step}")) for step in (2, 4)]
    remove_checkpoint(filled, 2)
    copy = copies[str(locate(f"{filled}/step_00000002"))]
    assert compare_checkpoints(tmp_path / "local/step_00000002", copy, step=2).status is Status.equal
    remove_checkpoint(filled, 4)
    put(filled, save(tmp_path / "anew", 4, live_state(5)))
    (anew,) = dict(keep_copies(filled, tmp_path / "kept")).values()
    assert compare_checkpoints(tmp_path / "anew/step_00000004", anew, step=4).status is Status.equal
