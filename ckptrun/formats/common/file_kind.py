"""What a file is that is no checkpoint which the tools read, told from its bytes, and what its user can do with it.

Whole files of other programs are no damaged checkpoints. Must not unpickle, nor read more than both ends of a file.
"""

import io
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ckptrun.engine.backends.interface import Location, read_file
from ckptrun.errors import CheckpointNotFoundError
from ckptrun.formats.common.archive_kind import archive_kind, first_name
from ckptrun.formats.common.files import Files, RangeFile
from ckptrun.text import cut_text

__all__ = ["Kind", "is_safetensors", "kind_of", "require_fetched", "require_kind"]

_HEAD_BYTES = 4096
# What torch.save began with before it wrote archives: this number, pickled.
_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that is not read."""

    what: str
    """It is ..."""
    way_out: str


_DOWNLOAD = "Download the file itself"
_UNPACK = "Unpack it, and name what was in it"
_EXPORT = "Load it with the program that wrote it, and save its tensors with torch.save or safetensors"

_MAGICS: Sequence[tuple[bytes, str, str]] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, which stands for a file that was not fetched",
     "Fetch it: git lfs pull"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer, which stands for a file that was not fetched",
     "Fetch it: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, which stands for a file that was not fetched",
     "Fetch it: git annex get"),
    (b"GGUF", "a GGUF file (llama.cpp)", "Name the checkpoint that it was made from"),
    (b"lmgg", "a GGML file (llama.cpp)", "Name the checkpoint that it was made from"),
    (b"fmgg", "a GGML file (llama.cpp)", "Name the checkpoint that it was made from"),
    (b"tjgg", "a GGML file (llama.cpp)", "Name the checkpoint that it was made from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5, NetCDF, MATLAB 7.3)", _EXPORT),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", _EXPORT),
    (b"\x93NUMPY", "a NumPy array (.npy)", "Save it as a tensor: torch.save(torch.from_numpy(numpy.load(FILE)), NEW)"),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"FEA1", "a Feather file", _EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"ftrt", "a TensorRT engine", "Name the checkpoint that it was made from"),
    (b"ptrt", "a TensorRT engine", "Name the checkpoint that it was made from"),
    (b"%PDF-", "a PDF document", _DOWNLOAD),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _DOWNLOAD),
    (b"\xff\xd8\xff", "a JPEG image", _DOWNLOAD),
    (b"\x7fELF", "a program (ELF)", _EXPORT),
    (b"MZ\x90\x00", "a program for Windows", _EXPORT),
)  # fmt: skip

# Those of protocol 0 are text: a dict or list, or a class by its name.
_OLD_PICKLE = re.compile(rb"\([dl]p\d+\n|\(?[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")


def require_kind(place: Location) -> None:
    """Refuse a file of another kind.

    Raises:
        CheckpointNotFoundError: It is one; says what it is, and what to do.
        OSError: From the storage.
    """
    kind = kind_of(place, place.backend.size(place.path))
    if kind is not None:
        raise _refusal(place, kind)


def require_fetched(place: Location) -> None:
    """Refuse what stands in the place of a file of any format: a pointer to it, or a server's answer.

    Raises:
        CheckpointNotFoundError: It is one; says what it is, and what to do.
        OSError: From the storage.
    """
    head = read_file(place, _HEAD_BYTES)
    kind = _by_magic(head) or _web_page(head)
    if kind is not None:
        raise _refusal(place, kind)


def _refusal(place: Location, kind: Kind) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"{place} is no checkpoint that is read here: it is {kind.what}. {kind.way_out}.", folder=str(place)
    )


def kind_of(place: Location, length: int) -> Kind | None:
    """Return what the file at ``place`` is; None for one that may be a checkpoint, whole or damaged.

    Raises:
        OSError: From the storage.
    """
    if not length:
        return Kind("an empty file, 0 bytes", "Whoever wrote it was ended before, or the disk was full; copy it again")
    head = read_file(place, min(_HEAD_BYTES, length))
    return next((kind for kind in _found(place, head, length) if kind is not None), None)


def _found(place: Location, head: bytes, length: int) -> Iterator[Kind | None]:
    yield _by_magic(head)
    if place.name.endswith(".distcp"):
        yield Kind("a file of a checkpoint of torch.distributed.checkpoint (DCP)", "Name its folder")
    if head.startswith(b"PK\x03\x04"):
        yield _archive(place, head, length)
        return
    if is_safetensors(head, length):
        return
    yield _pickle(head, place)
    yield _tar(head)
    yield _table(place, length)
    yield _message_pack(head, place.name)
    yield _protobuf(head, place.name)
    yield _text(head, place.name)


def _by_magic(head: bytes) -> Kind | None:
    return next((Kind(what, way_out) for magic, what, way_out in _MAGICS if head.startswith(magic)), None)


def is_safetensors(head: bytes, length: int) -> bool:
    """Whether a file of ``length`` bytes that begins with ``head``, 9 bytes or more, looks like one of safetensors."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= length - 8


def _archive(place: Location, head: bytes, length: int) -> Kind | None:
    try:
        with Files(place.parent) as files, zipfile.ZipFile(RangeFile(files, place.name, 0, length)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, io.UnsupportedOperation):
        if not first_name(head).endswith(".npy"):
            return None
        return Kind("arrays of NumPy (.npz), cut", "Copy it again")
    found = archive_kind(entries)
    return None if found is None else Kind(*found)


def _pickle(head: bytes, place: Location) -> Kind | None:
    is_pickle = (
        (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
        or _OLD_PICKLE.match(head) is not None
        or (place.name.endswith((".pkl", ".pickle")) and head[:1] in b"(c]}l\x80")
    )
    if not is_pickle or _TORCH_MAGIC in head[:32]:
        return None
    if place.name == ".metadata" or place.name.endswith(".metadata"):
        return Kind("the metadata of a checkpoint of torch.distributed.checkpoint (DCP)", "Name its folder")
    return Kind(
        "a pickle that torch.save has not written; to read it is to run the code that it names, so it was not read",
        "Load it where you trust it, and save its tensors and plain values with torch.save",
    )


def _tar(head: bytes) -> Kind | None:
    if head[257:262] != b"ustar":
        return None
    return Kind(
        "a tar archive", f"{_UNPACK}. (One that torch before version 0.2 saved: load it there, and save it anew)"
    )


def _table(place: Location, length: int) -> Kind | None:
    """The tables that TensorFlow writes, the index of a checkpoint and those of version 1, end in a number."""
    if length < 48:
        return None
    with closing(place.backend.open(place.path)) as reader:
        tail = bytearray(8)
        reader.read(length - 8, [memoryview(tail)])
    if bytes(tail) != b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return None
    return Kind("a checkpoint of TensorFlow, or its index", _EXPORT)


def _message_pack(head: bytes, name: str) -> Kind | None:
    """A map whose first key is text: what flax writes."""
    first = head[:1]
    width = {b"\xde": 3, b"\xdf": 5}.get(first, 1 if b"\x81" <= first <= b"\x8f" else 0)
    key = head[width : width + 1]
    is_key = bool(width) and (b"\xa1" <= key <= b"\xbf" or key in (b"\xd9", b"\xda"))
    if not is_key and not name.endswith(".msgpack"):
        return None
    return Kind("MessagePack, as flax writes it", _EXPORT)


def _protobuf(head: bytes, name: str) -> Kind | None:
    if head[4:8] == b"TFL3":
        return Kind("a model of TensorFlow Lite", _EXPORT)
    if name.endswith(".pb"):
        return Kind("a graph of TensorFlow (.pb)", _EXPORT)
    # ModelProto: the version, a small number, comes first; then the producer's name, a text.
    is_model = len(head) > 4 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
    if name.endswith(".onnx") or (
        is_model and head[2] == 0x12 and head[4 : 4 + head[3]].isascii() and 0 < head[3] < 64
    ):
        return Kind("an ONNX model", "Name the checkpoint that it was exported from")
    return None


def _start(head: bytes) -> bytes:
    """Without what may stand before any text."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()


def _web_page(head: bytes) -> Kind | None:
    lowered = _start(head)[:512].lower()
    if lowered.startswith(_WEB_PAGE) or (lowered.startswith(b"<?xml") and b"<html" in lowered):
        return Kind("a web page, as servers send it in place of a file", f"{_DOWNLOAD}; perhaps one must be logged in")
    return None


def _text(head: bytes, name: str) -> Kind | None:
    page = _web_page(head)
    if page is not None or not _is_text(head):
        return page
    text = _start(head)
    if text.startswith(b"<?xml"):
        return Kind("an XML file", _DOWNLOAD)
    if text[:1] in (b"{", b"["):
        folder = " Name the folder that it is in." if name in ("manifest.json", "config.json") else ""
        return Kind("a JSON file", f"Name the checkpoint itself.{folder}".rstrip("."))
    first = cut_text(text.decode(errors="replace").splitlines()[0].strip(), 40) if text else ""
    return Kind(f"a text file, which begins with {first!r}", "Name the checkpoint itself")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)
