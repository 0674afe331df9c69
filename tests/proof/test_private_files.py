"""What each leg finds where ``proof.private`` points, and that it is put back."""

import pytest

from ckptrun.errors import ConfigError
from ckptrun.proof.private_files import PrivateFiles, check_private
from tests.support.configs import config_of


def files_of(folder):
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run(tmp_path):
    def make(*names: str):
        private = [str(tmp_path / name) for name in names]
        config = config_of(f"run.dir={tmp_path}/run", f"proof.private=[{','.join(private)}]")
        check_private(config)
        (tmp_path / "run/proof").mkdir(parents=True, exist_ok=True)
        return PrivateFiles(config)

    return make


def test_each_leg_finds_what_was_there_before_and_a_resumed_start_what_it_had_left(run, tmp_path) -> None:
    cache, counter = tmp_path / "cache", tmp_path / "counter"
    (cache / "deep").mkdir(parents=True)
    (cache / "deep/old").write_text("old")
    counter.write_text("0")
    files = run("cache", "counter")
    files.keep()

    files.begin("reference", 0, begins_as=None)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old"}, "0")
    (cache / "reference").write_text("1")
    (cache / "deep/old").unlink()
    counter.write_text("12")

    files.begin("run", 0, begins_as=None)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old"}, "0")
    (cache / "run").write_text("1")
    counter.write_text("5")

    # On another mesh, an uninterrupted run goes on from what the run is about to find.
    files.begin("resumed_reference", 0, begins_as=1)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old", "run": "1"}, "5")
    counter.write_text("99")

    files.begin("run", 1, begins_as=None)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old", "run": "1"}, "5")
    counter.write_text("12")
    (cache / "late").write_text("1")

    files.begin("run", 2, begins_as=None)
    assert counter.read_text() == "12"
    files.begin("controls", 0, begins_as=1)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old", "run": "1"}, "5")
    files.begin("traced_run", 0, begins_as=2)
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old", "run": "1", "late": "1"}, "12")

    files.put_back()
    assert (files_of(cache), counter.read_text()) == ({"deep/old": "old"}, "0")
    assert not (tmp_path / "run/proof/private").exists()


def test_what_was_not_there_is_not_there_again(run, tmp_path) -> None:
    cache = tmp_path / "cache"
    files = run("cache")
    files.keep()
    files.begin("reference", 0, begins_as=None)
    cache.mkdir()
    (cache / "made").write_text("1")
    files.begin("run", 0, begins_as=None)
    assert not cache.exists()
    files.put_back()
    assert not cache.exists()


def test_a_link_stays_a_link_and_what_it_leads_to_is_private(run, tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    files = run("cache")
    files.keep()
    files.begin("reference", 0, begins_as=None)
    (tmp_path / "cache/made").write_text("1")
    files.put_back()
    assert (tmp_path / "cache").is_symlink()
    assert files_of(tmp_path / "disk") == {}


@pytest.mark.parametrize("name", [".", "run", "run/checkpoints", ".."])
def test_what_no_leg_may_replace_is_refused(name, run) -> None:
    with pytest.raises(ConfigError, match="cannot be replaced"):
        run(name)


def test_the_working_folder_is_refused(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "project/code").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project/code")
    with pytest.raises(ConfigError, match="cannot be replaced"):
        run("project")


def test_a_proof_that_was_killed_says_where_the_files_are(run, tmp_path) -> None:
    (tmp_path / "counter").write_text("0")
    files = run("counter")
    files.keep()
    files.begin("reference", 0, begins_as=None)
    (tmp_path / "counter").write_text("7")
    with pytest.raises(ConfigError, match="was killed before it had put back") as error:
        run("counter")
    assert str(tmp_path / "run/proof/private/0/before") in str(error.value)
    assert (tmp_path / "run/proof/private/0/before/content").read_text() == "0"
    (tmp_path / "run/proof/private.json").unlink()
    run("counter")
