"""The archives that ``torch.save`` writes: zip files without compression, with a CRC-32 of each record.

torch itself does not look at the CRC-32, so it loads what is damaged without a word; here each is checked. A CRC-32 of
0 is none: torch can be told to leave it out.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptrun.errors import ForeignFileError
from ckptrun.text import cut

__all__ = ["ZipRecord", "check_archive", "check_record", "read_record", "read_records"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAX_PICKLE_BYTES = 256 * 2**20
_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipRecord:
    """A file in an archive."""

    name: str
    """Without the folder that all are in."""
    begin: int
    """Where its bytes start in the archive."""
    bytes: int
    crc: int


def read_records(stream: io.IOBase, length: int, *, what: str) -> Mapping[str, ZipRecord]:
    """Return the records of an archive of ``length`` bytes, by name; ``what`` names it in messages.

    Raises:
        ForeignFileError: It is cut or damaged, or holds more than its length.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
        records = {record.name: record for record in _locate(stream, entries, length)}
    except (zipfile.BadZipFile, struct.error, ValueError, ArithmeticError, NotImplementedError) as error:
        raise ForeignFileError(f"{what}: no archive of torch.save is there ({error}).", folder=what) from error
    if sum(record.bytes for record in records.values()) > length:
        raise ForeignFileError(f"{what} says that it holds more than its {length} bytes.", folder=what)
    return records


def _locate(stream: io.IOBase, entries: list[zipfile.ZipInfo], length: int) -> Iterator[ZipRecord]:
    for entry in entries:
        # The content comes after a header of its own, whose length the directory does not tell.
        stream.seek(entry.header_offset)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        begin = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed")
        if magic != b"PK\3\4" or begin + entry.file_size > length:
            raise ValueError(f"{cut(entry.filename, 80)} is not where it should be")
        yield ZipRecord(name=entry.filename.partition("/")[2], begin=begin, bytes=entry.file_size, crc=entry.CRC)


def check_archive(stream: io.IOBase, length: int, *, what: str) -> bytes:
    """Check every record of an archive, and that ``torch.load`` needs no more memory for it than it is long.

    Returns:
        The first two bytes of its pickle; none where it has no pickle.

    Raises:
        ForeignFileError: It is damaged, or no archive.
    """
    records = read_records(stream, length, what=what)
    for record in records.values():
        if record.name.endswith(".pkl") and record.bytes > _MAX_PICKLE_BYTES:
            raise ForeignFileError(f"{what} has a pickle of more than {_MAX_PICKLE_BYTES} bytes.", folder=what)
        check_record(stream, record, what=what)
    first = records.get("data.pkl")
    if first is None:
        return b""
    stream.seek(first.begin)
    return bytes(stream.read(2))


def read_record(stream: io.IOBase, record: ZipRecord, *, what: str) -> bytes:
    """Return a small record, checked.

    Raises:
        ForeignFileError: It is damaged.
    """
    check_record(stream, record, what=what)
    stream.seek(record.begin)
    return bytes(stream.read(record.bytes))


def check_record(stream: io.IOBase, record: ZipRecord, *, what: str) -> None:
    """Compare a record with its CRC-32.

    Raises:
        ForeignFileError: It is damaged.
    """
    if not record.crc:
        return
    stream.seek(record.begin)
    left, found = record.bytes, 0
    while left:
        piece = stream.read(min(left, _PIECE_BYTES))
        if not piece:
            break
        found = zlib.crc32(piece, found)
        left -= len(piece)
    if left or found != record.crc:
        raise ForeignFileError(
            f"{what} is damaged: {cut(record.name, 80)} has CRC-32 {found:08x}, and {record.crc:08x} when it was "
            "saved.",
            folder=what,
        )
