"""What a checkpoint holds: ``manifest.json`` as records, and back. Its presence is the commit.

``docs/format.md`` is the normative text. Nothing in a manifest is taken on trust: it carries a checksum of itself, its
size is bounded before it is read, and every field is checked before the records exist.

Must not import torch: launchers and tools read manifests without it.
"""

import errno
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from ckptrun.engine.backends.interface import Location, Url, read_file
from ckptrun.engine.dtypes import is_known, item_bytes
from ckptrun.engine.geometry import overlap
from ckptrun.engine.json_fields import MAX_INDEX, Fields
from ckptrun.engine.layout import MANIFEST, is_save_id, is_shard_file_name
from ckptrun.engine.locate import locate
from ckptrun.errors import CheckpointNotFoundError, ManifestError
from ckptrun.values import decode, encode, is_container_kind

__all__ = [
    "FORMAT",
    "MAX_BLOCK_BYTES",
    "Chunk",
    "Leaf",
    "Manifest",
    "ShardFile",
    "check",
    "from_bytes",
    "read_manifest",
    "to_bytes",
]

FORMAT = 1

MAX_BLOCK_BYTES = 16 * 2**20
"""What a reader must have in memory to check a byte."""

_MAX_BYTES = 256 * 2**20
_MOST_BYTES = 2**63
_MAX_FIRST_LINE = 256
_quote = json.encoder.encode_basestring_ascii
_VERSION = re.compile(rb'\{"format": ([0-9]{1,9})\b')
_END = b"\n}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The part of a leaf that lies in one piece in one shard file: a box in the full tensor, row-major."""

    file: str
    begin: int
    """Where its bytes start in the file."""
    bytes: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    block_bytes: int
    """Each checksum covers so many bytes; the last one what is left."""
    checksums: tuple[str, ...]
    """xxh3-128 of each block, as hex."""

    @property
    def elements(self) -> int:
        """How many elements it holds."""
        return math.prod(self.sizes)

    def place_of(self, block: int) -> tuple[int, int]:
        """Where a block begins and ends in the file."""
        begin = self.begin + block * self.block_bytes
        return begin, min(begin + self.block_bytes, self.begin + self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One tensor or plain value."""

    name: str
    path: tuple[str | int, ...]
    """Its place in the nested state; an int is an index into a list."""
    dtype: str | None
    """As torch names it, without ``torch.``; None for a plain value."""
    shape: tuple[int, ...] | None
    """Of the full tensor; None for a plain value."""
    value: Any
    """The plain value; None for a tensor (``dtype`` tells a tensor from the plain value None)."""
    digest: str | None
    """Of its bits when the save was requested; None where none was taken."""
    chunks: tuple[Chunk, ...]

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor rather than a plain value."""
        return self.dtype is not None

    @property
    def is_whole(self) -> bool:
        """Whether the chunks hold every element. They never overlap."""
        return self.shape is None or sum(chunk.elements for chunk in self.chunks) == math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A file with chunks in it."""

    name: str
    bytes: int
    header_bytes: int
    """Everything before the first chunk."""
    header_checksum: str
    """xxh3-128 of these bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a checkpoint but the bytes of its tensors."""

    save_id: str
    created: str
    """When the manifest was made, ISO 8601 in UTC."""
    torch: str
    """Version of torch that wrote it."""
    world_size: int
    run: Mapping[str, Any]
    """What the writer was told of the run: step, mesh axes, config fingerprint, ..."""
    files: Mapping[str, ShardFile]
    leaves: Mapping[str, Leaf]
    shared: tuple[tuple[str, ...], ...]
    """Names of leaves that were the same memory (tied weights); each is stored in full."""
    containers: Mapping[tuple[str | int, ...], str] | None = None
    """Path -> kind of each container on the way to leaves that is no plain dict and no list. None where the writer knew
    nothing of containers; otherwise leaves are in the order of the state."""
    planner_data: Any = None
    """What a planner of the user's own wants to find again; None where it is no more than the paths of the leaves."""


def read_manifest(url: Url) -> Manifest:
    """Read the manifest of the checkpoint in ``url``, checked.

    Raises:
        CheckpointNotFoundError: There is no committed checkpoint.
        ManifestError: There is one, and its manifest cannot be trusted; names the field.
    """
    folder = locate(url)
    return from_bytes(_read_all(folder), source=str(folder.child(MANIFEST)))


def _read_all(folder: Location) -> bytes:
    file = folder.child(MANIFEST)
    try:
        size = file.backend.size(file.path)
        if size > _MAX_BYTES:
            raise ManifestError(f"{file} has {size} bytes; a manifest has at most {_MAX_BYTES}.", folder=str(folder))
        return read_file(file, size)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ManifestError(f"{file} is no manifest: it is no regular file.", folder=str(folder)) from error
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        raise CheckpointNotFoundError(
            f"{folder} is not a checkpoint: it has no {MANIFEST}. A save that was cut off leaves no manifest; "
            "take another step.",
            folder=str(folder),
        ) from error


def to_bytes(manifest: Manifest) -> bytes:
    """Return what ``manifest.json`` holds.

    Raises:
        ManifestError: It would be larger than any reader accepts.
    """
    body = "".join(_body(manifest)).encode()
    if len(body) + _MAX_FIRST_LINE > _MAX_BYTES:
        raise ManifestError(f"The manifest would have {len(body)} bytes; at most {_MAX_BYTES} are allowed.")
    return _first_line(body) + body + _END


def _first_line(body: bytes) -> bytes:
    return f'{{"format": {FORMAT}, "bytes": {len(body)}, "xxh3_128": "{_checksum(body)}", "manifest":\n'.encode()


def _checksum(raw: bytes) -> str:
    return xxhash.xxh3_128(raw).hexdigest()


def _body(manifest: Manifest) -> Iterator[str]:
    """The text that the checksum covers: one line for each file and leaf, so that people can read and compare it."""
    head = {
        "save_id": manifest.save_id,
        "created": manifest.created,
        "torch": manifest.torch,
        "world_size": manifest.world_size,
        "run": encode(dict(manifest.run), name="run"),
        "shared": manifest.shared,
    }
    if manifest.containers is not None:
        head["containers"] = [{"path": path, "kind": kind} for path, kind in manifest.containers.items()]
    if manifest.planner_data is not None:
        head["planner_data"] = encode(manifest.planner_data, name="planner_data")
    yield json.dumps(head, allow_nan=False)[:-1]
    files = map(asdict, manifest.files.values())
    leaves = map(_leaf_line, manifest.leaves.values())
    for name, lines in (("files", map(json.dumps, files)), ("leaves", leaves)):
        yield f',\n"{name}": [\n'
        yield ",\n".join(lines)
        yield "\n]"
    yield "}"


def _leaf_line(leaf: Leaf) -> str:
    # Written by hand: there are tens of thousands of them, and json.dumps() takes four times as long.
    path = ", ".join(_quote(element) if isinstance(element, str) else str(element) for element in leaf.path)
    digest = "null" if leaf.digest is None else _quote(leaf.digest)
    head = f'{{"name": {_quote(leaf.name)}, "path": [{path}], "digest": {digest}'
    if leaf.dtype is None:
        return f'{head}, "value": {json.dumps(encode(leaf.value, name=leaf.name), allow_nan=False)}}}'
    chunks = ", ".join(map(_chunk_text, leaf.chunks))
    return f'{head}, "dtype": "{leaf.dtype}", "shape": {list(leaf.shape or ())}, "chunks": [{chunks}]}}'


def _chunk_text(chunk: Chunk) -> str:
    checksums = '"' + '", "'.join(chunk.checksums) + '"' if chunk.checksums else ""
    return (
        f'{{"file": "{chunk.file}", "begin": {chunk.begin}, "bytes": {chunk.bytes}, '
        f'"offsets": {list(chunk.offsets)}, "sizes": {list(chunk.sizes)}, '
        f'"block_bytes": {chunk.block_bytes}, "checksums": [{checksums}]}}'
    )


def from_bytes(raw: bytes, *, source: str) -> Manifest:
    """Undo :func:`to_bytes`; ``source`` names the file in messages.

    Raises:
        ManifestError: See :func:`read_manifest`.
    """
    body = _checked_body(raw, source)
    fields = Fields(_parse(body, source), source=source)
    files = [_file_from_json(item) for item in fields.objects("files")]
    by_name = {file.name: file for file in files}
    if len(by_name) != len(files):
        raise ManifestError(f"{source}: field 'files' names a file twice.", folder=source)
    leaves = [_leaf_from_json(item, by_name) for item in fields.objects("leaves")]
    manifest = Manifest(
        save_id=fields.text("save_id", is_save_id),
        created=fields.text("created"),
        torch=fields.text("torch"),
        world_size=fields.integer("world_size", 1),
        run=_decode(fields, "run", name="run"),
        files=by_name,
        leaves={leaf.name: leaf for leaf in leaves},
        shared=fields.lists_of_texts("shared"),
        containers=_containers(fields),
        planner_data=_decode(fields, "planner_data", name="planner_data") if fields.has("planner_data") else None,
    )
    if len(manifest.leaves) != len(leaves):
        raise ManifestError(f"{source}: field 'leaves' names a leaf twice.", folder=source)
    return manifest


def _containers(fields: Fields) -> dict[tuple[str | int, ...], str] | None:
    if not fields.has("containers"):
        return None
    return {item.path("path"): item.text("kind", is_container_kind) for item in fields.objects("containers")}


def _checked_body(raw: bytes, source: str) -> bytes:
    first_line = raw[:_MAX_FIRST_LINE].partition(b"\n")[0]
    version = _VERSION.match(raw)
    if version is not None and int(version[1]) != FORMAT:
        raise ManifestError(
            f"{source}: field 'format' must be {FORMAT}, which is all that this ckptrun reads, got {int(version[1])}.",
            folder=source,
        )
    head = Fields(_parse(first_line + b"null}", source), source=source)
    found = head.any("format")
    if type(found) is not int or found != FORMAT:
        raise head.error("format", f"must be {FORMAT}", found)
    body = raw[len(first_line) + 1 :][: -len(_END)]
    if not raw.endswith(_END) or len(body) != head.integer("bytes"):
        raise ManifestError(f"{source} is cut or has bytes too many: {len(raw)} bytes.", folder=source)
    expected, found = head.text("xxh3_128"), _checksum(body)
    if expected != found:
        raise ManifestError(f"{source} is damaged: it has checksum {found}, and says {expected}.", folder=source)
    if not raw.startswith(_first_line(body)):
        raise ManifestError(f"{source} is damaged: its first line is {first_line!r}.", folder=source)
    return body


def _parse(raw: bytes, source: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{source} is no manifest: it cannot be parsed ({error}).", folder=source) from error


def _decode(fields: Fields, field: str, *, name: str) -> Any:
    try:
        return decode(fields.any(field), name=name)
    except RecursionError as error:
        raise fields.error(field, "is nested too deeply", "...") from error


def _file_from_json(fields: Fields) -> ShardFile:
    return ShardFile(
        name=fields.text("name", is_shard_file_name),
        bytes=fields.integer("bytes"),
        header_bytes=fields.integer("header_bytes"),
        header_checksum=fields.text("header_checksum"),
    )


def _leaf_from_json(fields: Fields, files: Mapping[str, ShardFile]) -> Leaf:
    name = fields.text("name")
    digest = fields.any("digest")
    if digest is not None and not isinstance(digest, str):
        raise fields.error("digest", "must be a string or null", digest)
    if not fields.has("dtype"):
        value = _decode(fields, "value", name=name)
        return Leaf(name=name, path=fields.path("path"), dtype=None, shape=None, value=value, digest=digest, chunks=())
    dtype, shape = fields.text("dtype", is_known), fields.integers("shape")
    if math.prod(filter(None, shape)) * item_bytes(dtype) >= _MOST_BYTES:
        raise fields.error("shape", "must be that of a tensor", list(shape))
    chunks = tuple(_chunk_from_json(item, dtype, shape, files) for item in fields.objects("chunks"))
    if len(chunks) > 1 and overlap([(chunk.offsets, chunk.sizes) for chunk in chunks]):
        raise fields.error("chunks", "must not overlap", [chunk.offsets for chunk in chunks])
    return Leaf(name=name, path=fields.path("path"), dtype=dtype, shape=shape, value=None, digest=digest, chunks=chunks)


def _chunk_from_json(fields: Fields, dtype: str, shape: tuple[int, ...], files: Mapping[str, ShardFile]) -> Chunk:
    chunk = Chunk(
        file=fields.text("file", files.__contains__),
        begin=fields.integer("begin"),
        bytes=fields.integer("bytes"),
        offsets=fields.integers("offsets"),
        sizes=fields.integers("sizes"),
        block_bytes=fields.integer("block_bytes", 1),
        checksums=fields.texts("checksums"),
    )
    wrong = _fault_in(chunk, dtype, shape, files)
    if wrong is not None:
        raise fields.error(*wrong)
    return chunk


def check(manifest: Manifest) -> None:
    """Check what a reader checks beyond types, so that no save commits what no reader accepts.

    Raises:
        ManifestError: Names leaf and field.
    """
    for leaf in manifest.leaves.values():
        if any(isinstance(element, int) and element >= MAX_INDEX for element in leaf.path):
            raise ManifestError(
                f"The manifest cannot be written: the path of leaf '{leaf.name}' has an index above {MAX_INDEX}."
            )
        if leaf.dtype is None or leaf.shape is None:
            continue
        for chunk in leaf.chunks:
            wrong = _fault_in(chunk, leaf.dtype, leaf.shape, manifest.files)
            if wrong is not None:
                name, what, found = wrong
                raise ManifestError(
                    f"The manifest cannot be written: leaf '{leaf.name}': '{name}' {what}, got {found}."
                )
        if len(leaf.chunks) > 1 and overlap([(chunk.offsets, chunk.sizes) for chunk in leaf.chunks]):
            raise ManifestError(f"The manifest cannot be written: chunks of leaf '{leaf.name}' overlap.")


def _fault_in(
    chunk: Chunk, dtype: str, shape: tuple[int, ...], files: Mapping[str, ShardFile]
) -> tuple[str, str, Any] | None:
    """Return field, what it must be, and what it is; None where the chunk can be right."""
    if not _is_box_in(chunk, shape):
        return "offsets", f"and 'sizes' must be a box in {list(shape)}", [chunk.offsets, chunk.sizes]
    length = chunk.elements * item_bytes(dtype)
    if chunk.bytes != length:
        return "bytes", f"must be {length}", chunk.bytes
    file = files[chunk.file]
    if chunk.begin < file.header_bytes or chunk.begin + chunk.bytes > file.bytes:
        return "begin", f"must leave {chunk.bytes} bytes in {file.name}", chunk.begin
    if chunk.block_bytes > MAX_BLOCK_BYTES:
        return "block_bytes", f"must be at most {MAX_BLOCK_BYTES}", chunk.block_bytes
    if len(chunk.checksums) != -(-chunk.bytes // chunk.block_bytes):
        return "checksums", "must be one for each block", chunk.checksums
    return None


def _is_box_in(chunk: Chunk, shape: tuple[int, ...]) -> bool:
    if chunk.sizes == shape and not any(chunk.offsets):
        return len(chunk.offsets) == len(shape)
    if not len(chunk.offsets) == len(chunk.sizes) == len(shape):
        return False
    return all(o + s <= full for o, s, full in zip(chunk.offsets, chunk.sizes, shape, strict=True))
