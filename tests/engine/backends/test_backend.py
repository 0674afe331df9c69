"""Every backend keeps the promises of the seam."""

import os
from pathlib import Path

import pytest

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.locate import locate
from tests.engine.backends.conformance import Promises, write


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return locate(tmp_path / "a folder")
    return locate(f"memory://{tmp_path.name}/a folder")


class TestBackend(Promises):
    """On this machine."""


def test_a_local_folder_is_renamed(tmp_path: Path) -> None:
    old = locate(tmp_path / "old")
    old.backend.make_folder(old.path)
    write(old.child("f"), b"x")
    old.backend.rename_folder(old.path, old.sibling("new").path)
    assert old.backend.list_names(str(tmp_path)) == ["new"]


def test_an_existing_local_file_is_never_written_over(tmp_path: Path) -> None:
    file = locate(tmp_path / "f")
    write(file, b"x")
    with pytest.raises(FileExistsError):
        write(file, b"y")
    assert (tmp_path / "f").read_bytes() == b"x"


def test_a_local_file_and_its_name_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(locate(tmp_path / "f"), b"x")
    assert synced == [str(tmp_path / "f"), str(tmp_path)]


def test_a_relative_path_is_fixed_when_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate("a b/c")
    monkeypatch.chdir("/")
    assert location == Location(location.backend, str(tmp_path / "a b/c"))
    assert isinstance(location.backend, LocalBackend)


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    assert str(locate(f"file://{tmp_path}/x")) == f"{tmp_path}/x"


def test_a_url_is_shown_as_it_was_given() -> None:
    assert str(locate("memory://run/step_00000001")).endswith("run/step_00000001")
    assert str(locate("memory://run/step_00000001")).startswith("memory://")


@pytest.mark.parametrize("url", ["/a/b", "/a/b/"])
def test_name_and_parent_do_not_mind_a_last_slash(url: str) -> None:
    location = Location(LocalBackend(), url)
    assert (location.name, location.parent.path, location.sibling("c").path) == ("b", "/a", "/a/c")


def test_the_same_place_is_equal_to_itself(folder: Location) -> None:
    assert locate(str(folder)) == locate(str(folder))
    assert locate(str(folder)) != locate(f"{folder}x")
    assert hash(locate(str(folder))) == hash(locate(str(folder)))
