"""What a proof cannot be is said before anything is started, with the key and the way out."""

import pytest

from ckptrun.errors import ConfigError
from ckptrun.proof.preflight import check_proof
from ckptrun.proof.prove import run_proof
from tests.support.configs import config_of


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint.load.exclude=[rng]"], ["checkpoint.load.exclude=['rng']", "proof.controls"]),
        (["checkpoint.load.only=[model]"], ["checkpoint.load.only=['model']", "proof.controls"]),
        (["checkpoint.resume=3"], ["checkpoint.resume=3", "Leave the key out"]),
        (["checkpoint.resume=none"], ["checkpoint.resume=none", "Leave the key out"]),
        (["checkpoint=none"], ["checkpoint=none", "sync or async"]),
        (["fault=chaos", "train.steps=2", "fault.mean_steps=1000"], ["train.steps=2", "fault.mean_steps=1000"]),
        (["fault.more=[{kind: oom, step: true}]"], ["fault.more[0]", "True"]),
        (["fault.more=[{kind: oom, step: 6, share: big}]"], ["fault.more[0].share", "'big'"]),
    ],
)
def test_a_contradiction_is_named(overrides, words) -> None:
    with pytest.raises(ConfigError) as raised:
        check_proof(config_of("fault=sigkill", *overrides))
    for word in words:
        assert word in str(raised.value)


def test_weights_of_another_run_may_be_begun_from() -> None:
    assert check_proof(config_of("fault=sigkill", "checkpoint.load={from: /other, only: [model]}"))


@pytest.mark.parametrize("place", ["file", "file/below", "folder"])
def test_a_folder_that_is_somebody_elses_is_left_as_it_is(place, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    config = config_of("fault=sigkill", f"run.dir={tmp_path / place}")
    with pytest.raises(ConfigError, match=r"run\.dir=.*(Choose another|folder of its own)"):
        run_proof(config, plan=check_proof(config), command=[])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "notes.txt"]
