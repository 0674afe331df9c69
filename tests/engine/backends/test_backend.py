"""Every backend keeps the promises of the seam."""

import os
from contextlib import closing
from pathlib import Path

import pytest

from ckptrun.engine.backends.interface import Location, write_file
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.locate import locate


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return locate(tmp_path / "a folder")
    return locate(f"memory://{tmp_path.name}/a folder")


def write(file: Location, *blocks: bytes) -> None:
    write_file(file, b"".join(blocks))


def read(file: Location, offset: int, *targets: bytearray) -> int:
    with closing(file.backend.open(file.path)) as reader:
        return reader.read(offset, [memoryview(target) for target in targets])


def test_a_file_is_read_back_in_pieces(folder: Location) -> None:
    folder.backend.make_folder(folder.path)
    file = folder.child("f")
    write(file, b"0123", b"", b"456789")
    one, other = bytearray(3), bytearray(1)
    assert read(file, 3, one, other) == 4
    assert (bytes(one), bytes(other)) == (b"345", b"6")
    assert file.backend.size(file.path) == 10


def test_reading_past_the_end_says_how_much_there_was(folder: Location) -> None:
    folder.backend.make_folder(folder.path)
    write(folder.child("f"), b"0123")
    assert read(folder.child("f"), 2, bytearray(1), bytearray(8)) == 2
    assert read(folder.child("f"), 9, bytearray(8)) == 0


def test_a_missing_file_is_a_file_not_found_error(folder: Location) -> None:
    file = folder.child("f")
    with pytest.raises(FileNotFoundError):
        file.backend.size(file.path)
    with pytest.raises(FileNotFoundError):
        file.backend.open(file.path)


def test_names_are_sorted_and_without_their_folder(folder: Location) -> None:
    folder.backend.make_folder(folder.child("sub").path)
    write(folder.child("sub").child("inner"), b"x")
    write(folder.child("b"), b"x")
    write(folder.child("a"), b"x")
    assert folder.backend.list_names(folder.path) == ["a", "b", "sub"]


def test_a_missing_folder_has_no_names(folder: Location) -> None:
    assert folder.backend.list_names(folder.child("nowhere").path) == []


def test_a_folder_is_removed_with_what_is_in_it_and_twice_is_no_error(folder: Location) -> None:
    folder.backend.make_folder(folder.child("sub").path)
    write(folder.child("sub").child("f"), b"x")
    folder.backend.remove(folder.child("sub").path)
    folder.backend.remove(folder.child("sub").path)
    assert folder.backend.list_names(folder.path) == []


def test_making_a_folder_twice_is_no_error(folder: Location) -> None:
    folder.backend.make_folder(folder.child("x").child("y").path)
    folder.backend.make_folder(folder.child("x").child("y").path)
    write(folder.child("x").child("y").child("f"), b"x")
    assert folder.child("x").backend.list_names(folder.child("x").path) == ["y"]


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
