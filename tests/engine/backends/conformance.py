"""What every backend promises, as tests of whatever the fixture ``folder`` gives."""

from contextlib import closing

import pytest

from ckptrun.engine.backends.interface import Location, write_file

__all__ = ["Promises", "write"]


def write(file: Location, *blocks: bytes) -> None:
    write_file(file, b"".join(blocks))


def read(file: Location, offset: int, *targets: bytearray) -> int:
    with closing(file.backend.open(file.path)) as reader:
        return reader.read(offset, [memoryview(target) for target in targets])


class Promises:
    """Inherited by the tests of each kind of backend; ``folder`` is a place in one that is not there yet."""

    def test_a_file_is_read_back_in_pieces(self, folder: Location) -> None:
        folder.backend.make_folder(folder.path)
        file = folder.child("f")
        write(file, b"0123", b"", b"456789")
        one, other = bytearray(3), bytearray(1)
        assert read(file, 3, one, other) == 4
        assert (bytes(one), bytes(other)) == (b"345", b"6")
        assert file.backend.size(file.path) == 10

    def test_reading_past_the_end_says_how_much_there_was(self, folder: Location) -> None:
        folder.backend.make_folder(folder.path)
        write(folder.child("f"), b"0123")
        assert read(folder.child("f"), 2, bytearray(1), bytearray(8)) == 2
        assert read(folder.child("f"), 9, bytearray(8)) == 0

    def test_a_missing_file_is_a_file_not_found_error(self, folder: Location) -> None:
        file = folder.child("f")
        with pytest.raises(FileNotFoundError):
            file.backend.size(file.path)
        with pytest.raises(FileNotFoundError):
            file.backend.open(file.path)

    def test_names_are_sorted_and_without_their_folder(self, folder: Location) -> None:
        folder.backend.make_folder(folder.child("sub").path)
        write(folder.child("sub").child("inner"), b"x")
        write(folder.child("b"), b"x")
        write(folder.child("a"), b"x")
        assert folder.backend.list_names(folder.path) == ["a", "b", "sub"]

    def test_a_missing_folder_has_no_names(self, folder: Location) -> None:
        assert folder.backend.list_names(folder.child("nowhere").path) == []

    def test_a_folder_is_removed_with_what_is_in_it_and_twice_is_no_error(self, folder: Location) -> None:
        folder.backend.make_folder(folder.child("sub").path)
        write(folder.child("sub").child("f"), b"x")
        folder.backend.remove(folder.child("sub").path)
        folder.backend.remove(folder.child("sub").path)
        assert folder.backend.list_names(folder.path) == []

    def test_making_a_folder_twice_is_no_error(self, folder: Location) -> None:
        folder.backend.make_folder(folder.child("x").child("y").path)
        folder.backend.make_folder(folder.child("x").child("y").path)
        write(folder.child("x").child("y").child("f"), b"x")
        assert folder.child("x").backend.list_names(folder.child("x").path) == ["y"]
