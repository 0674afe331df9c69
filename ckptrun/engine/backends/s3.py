"""S3: files are written in parts, several at once, and read in ranges, several at once.

Order of a file that is written: an upload is created; its parts are sent, in any order; the upload is completed, which
makes the object, at once or not at all. A small file is put in one request. Until then nothing can be seen of it, but
the server keeps the parts, and they cost money: whoever gives up aborts the upload. What a killed process left is
listed among the files of its folder, as far as its name belongs to a save, and goes with ``remove()``.

Nothing is ever taken from a cache. Every request may be sent twice, see ``s3_requests``.
"""

import contextlib
import errno
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from botocore.exceptions import ClientError

from ckptrun.engine.backends.fsspec import Scatter
from ckptrun.engine.backends.owner import is_alive
from ckptrun.engine.backends.s3_requests import Body, S3Requests, Send, error_code
from ckptrun.forks import only_here

__all__ = ["S3Backend"]

_PUT_BYTES = 8 * 2**20
"""Up to here a file is held in memory and put in one request."""
_PART_BYTES = 16 * 2**20
_MAX_PARTS = 10_000
_WRITES_AT_ONCE = 8
_MEMORY_BYTES = 256 * 2**20
_SPARE_BLOCKS = 2
"""Of whoever fills blocks while the others are written."""
_READS_AT_ONCE = 16
_RANGE_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_NOTE_BYTES = 4096
_DELETES_AT_ONCE = 1000


class S3Backend:
    """See :class:`~ckptrun.engine.backends.interface.Backend`.

    Args:
        file_system: An ``s3fs.S3FileSystem``.
        save_of: The save that a file name belongs to; None for others, whose unfinished uploads are not listed. Must
            pickle.
        options: Of :class:`~ckptrun.engine.backends.s3_requests.S3Requests`.
    """

    renames_folders = False

    def __init__(self, file_system: Any, *, save_of: Callable[[str], str | None], **options: Any) -> None:
        self._requests = S3Requests(file_system, **options)
        self._save_of = save_of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Backend) and self._requests == other._requests

    def __hash__(self) -> int:
        return hash(self._requests)

    def make_folder(self, folder: str) -> None:
        """See ``Backend``. There are no folders; a bucket is never made, since its name may be a typing error."""

    def list_names(self, folder: str) -> list[str]:
        """See ``Backend``.

        Raises:
            FileNotFoundError: There is no such bucket.
        """
        _, key = self._requests.split(folder)
        prefix = _prefix(key)
        names = {found.partition("/")[0] for found in self._keys(folder, prefix, delimiter="/")}
        for found, _ in _uploads(self._requests, folder, prefix):
            name, slash, _ = found.partition("/")
            # Others are no leftovers: the manifest of a save that is being committed is not there yet.
            if slash or self._save_of(name) is not None:
                names.add(name)
        return sorted(names - {""})

    def _keys(self, path: str, prefix: str, *, delimiter: str = "") -> Iterator[str]:
        """What follows ``prefix`` in the names of objects; only up to the next ``delimiter``."""
        more: dict[str, Any] = {"Delimiter": delimiter} if delimiter else {}
        while True:
            answer = self._requests.send("list_objects_v2", path, Prefix=prefix, **more)
            for found in answer.get("Contents", ()):
                yield found["Key"].removeprefix(prefix)
            for found in answer.get("CommonPrefixes", ()):
                yield found["Prefix"].removeprefix(prefix)
            if not answer.get("IsTruncated"):
                return
            more["ContinuationToken"] = answer["NextContinuationToken"]

    def size(self, path: str) -> int:
        """See ``Backend``."""
        return _head(self._requests, path)[0]

    def create(self, path: str, length: int) -> "S3FileWriter | S3SmallFileWriter":
        """See ``Backend``. Replaces a file of that name once it is complete."""
        if length <= _PUT_BYTES:
            return S3SmallFileWriter(self._requests, path, length)
        return S3FileWriter(self._requests, path, length)

    def open(self, path: str) -> "S3FileReader":
        """See ``Backend``."""
        return S3FileReader(self._requests, path)

    def rename_folder(self, old: str, new: str) -> None:
        """Never called: ``renames_folders`` is False."""
        raise OSError(f"{self.address(old)} cannot be renamed to {self.address(new)}: an object store has no folders.")

    def remove(self, path: str) -> None:
        """See ``Backend``."""
        _, key = self._requests.split(path)
        key = key.rstrip("/")
        if not key:
            raise OSError(errno.EPERM, "a whole bucket is not removed", self.address(path))
        for rest, upload_id in _uploads(self._requests, path, key):
            if not rest or rest.startswith("/"):
                _abort(self._requests, path, key + rest, upload_id)
        found = [key + rest for rest in self._keys(path, key) if not rest or rest.startswith("/")]
        for first in range(0, len(found), _DELETES_AT_ONCE):
            self._requests.attempt(path, _deletion(found[first : first + _DELETES_AT_ONCE]))

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """See ``Backend``. Nothing takes it back when this process dies; whoever looks judges by the note."""
        _, key = self._requests.split(path)
        self._requests.send("put_object", path, Key=key, Body=note.encode())

        @only_here
        def release() -> None:
            # May be called while the interpreter shuts down. What stays is a leftover once this process is gone.
            with contextlib.suppress(OSError):
                self._requests.send("delete_object", path, Key=key)

        return release

    def holder(self, path: str) -> str | None:
        """See ``Backend``."""
        raw = bytearray(_NOTE_BYTES)
        try:
            count = self.open(path).read(0, [memoryview(raw)])
        except FileNotFoundError:
            return None
        note = raw[:count].decode(errors="replace")
        return note if is_alive(note) else None

    def address(self, path: str) -> str:
        """See ``Backend``."""
        return self._requests.address(path)


def _prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _head(requests: S3Requests, path: str) -> tuple[int, str]:
    """Length and version of an object."""
    _, key = requests.split(path)
    answer = requests.send("head_object", path, Key=key)
    return int(answer["ContentLength"]), str(answer.get("ETag", ""))


def _uploads(requests: S3Requests, path: str, prefix: str) -> Iterator[tuple[str, str]]:
    """What follows ``prefix`` in the names of uploads that are neither complete nor aborted, and their ids."""
    more: dict[str, Any] = {}
    while True:
        try:
            answer = requests.send("list_multipart_uploads", path, Prefix=prefix, **more)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.ENOSYS):
                # Who may not see them leaves them to the rules of the bucket.
                return
            raise
        for found in answer.get("Uploads", ()):
            yield found["Key"].removeprefix(prefix), found["UploadId"]
        if not answer.get("IsTruncated"):
            return
        more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _deletion(keys: Sequence[str]) -> Callable[[Send], Awaitable[None]]:
    async def delete(send: Send) -> None:
        objects = [{"Key": key} for key in keys]
        answer = await send("delete_objects", Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", ()):
            # Each object has an outcome of its own, in an answer that says that all is well.
            raise ClientError({"Error": {**failed, "Message": f"{failed.get('Key')}"}}, "DeleteObjects")

    return delete


def _abort(requests: S3Requests, path: str, key: str, upload_id: str) -> None:
    # A part that was on its way may have come after the first; the server then wants to be told again.
    for _ in range(2):
        try:
            requests.send("abort_multipart_upload", path, Key=key, UploadId=upload_id)
        except FileNotFoundError:
            return


def _require_length(requests: S3Requests, path: str, length: int) -> None:
    size, _ = _head(requests, path)
    if size != length:
        raise OSError(errno.EIO, f"has {size} bytes after {length} were written", requests.address(path))


class S3SmallFileWriter:
    """See :class:`~ckptrun.engine.backends.interface.FileWriter`. Nothing is sent before the end."""

    # It is one block; so many at once, lest it slows down a large file beside it.
    block_bytes = _PART_BYTES
    writes_at_once = _WRITES_AT_ONCE

    def __init__(self, requests: S3Requests, path: str, length: int) -> None:
        self._requests = requests
        self._path = path
        self._length = length
        self._held: list[bytes] = []

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        self._held.append(bytes(block))

    def finish(self) -> None:
        """See ``FileWriter``."""
        _, key = self._requests.split(self._path)
        self._requests.send("put_object", self._path, Key=key, Body=b"".join(self._held))
        _require_length(self._requests, self._path, self._length)

    def abort(self) -> None:
        """See ``FileWriter``."""
        self._held.clear()


class S3FileWriter:
    """See :class:`~ckptrun.engine.backends.interface.FileWriter`. Each block is a part."""

    def __init__(self, requests: S3Requests, path: str, length: int) -> None:
        self.block_bytes = _PART_BYTES
        while length > self.block_bytes * _MAX_PARTS:
            self.block_bytes *= 2
        self.writes_at_once = max(1, min(_WRITES_AT_ONCE, _MEMORY_BYTES // self.block_bytes - _SPARE_BLOCKS))
        self._requests = requests
        self._path = path
        self._length = length
        self._parts: dict[int, dict[str, Any]] = {}
        _, self._key = requests.split(path)
        self._creations = 0
        self._upload_id = ""
        try:
            self._upload_id = str(requests.attempt(path, self._create)["UploadId"])
        except BaseException:
            with contextlib.suppress(OSError):
                self._abort_others()
            raise

    async def _create(self, send: Send) -> dict[str, Any]:
        self._creations += 1
        return await send("create_multipart_upload", Key=self._key)

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        number = offset // self.block_bytes + 1

        async def upload(send: Send) -> dict[str, Any]:
            with Body(block) as body:
                return await send("upload_part", Key=self._key, UploadId=self._upload_id, PartNumber=number, Body=body)

        answer = self._requests.attempt(self._path, upload)
        # Where the server was given a checksum of each part, it wants to see it again.
        sums = {name: value for name, value in answer.items() if name.startswith("Checksum") and name != "ChecksumType"}
        self._parts[number] = {"PartNumber": number, "ETag": answer["ETag"], **sums}

    def finish(self) -> None:
        """See ``FileWriter``."""
        parts = [part for _, part in sorted(self._parts.items())]
        try:
            self._requests.attempt(self._path, _Completion(self._key, self._upload_id, parts).complete)
        except BaseException:
            with contextlib.suppress(OSError):
                self.abort()
            raise
        with contextlib.suppress(OSError):
            self._abort_others()
        _require_length(self._requests, self._path, self._length)

    def abort(self) -> None:
        """See ``FileWriter``."""
        _abort(self._requests, self._path, self._key, self._upload_id)
        self._abort_others()

    def _abort_others(self) -> None:
        if self._creations < 2:
            return
        # The answer to a creation got lost, and with it the id of what it had made.
        for rest, upload_id in _uploads(self._requests, self._path, self._key):
            if not rest and upload_id != self._upload_id:
                _abort(self._requests, self._path, self._key, upload_id)


class _Completion:
    """Makes an object of an upload."""

    def __init__(self, key: str, upload_id: str, parts: Sequence[dict[str, Any]]) -> None:
        self._key = key
        self._upload_id = upload_id
        self._parts = list(parts)
        self._tries = 0

    async def complete(self, send: Send) -> None:
        self._tries += 1
        parts = {"Parts": self._parts}
        try:
            await send("complete_multipart_upload", Key=self._key, UploadId=self._upload_id, MultipartUpload=parts)
        except ClientError as error:
            if self._tries == 1 or error_code(error) != "NoSuchUpload":
                raise
            # Gone because an earlier try made the object, and its answer got lost?
            made = await send("head_object", Key=self._key)
            if not str(made["ETag"]).strip('"').endswith(f"-{len(self._parts)}"):
                raise


class S3FileReader:
    """See :class:`~ckptrun.engine.backends.interface.FileReader`. All that is read is of one version of the object."""

    reads_at_once = _READS_AT_ONCE
    block_bytes = _RANGE_BYTES

    def __init__(self, requests: S3Requests, path: str) -> None:
        self._requests = requests
        self._path = path
        _, self._key = requests.split(path)
        self._size, self._version = _head(requests, path)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """See ``FileReader``."""
        end = min(offset + sum(buffer.nbytes for buffer in buffers), self._size)
        scatter = Scatter(buffers)
        if offset < end:
            self._requests.attempt(self._path, functools.partial(self._fill, scatter, offset, end))
        return scatter.count

    async def _fill(self, scatter: Scatter, offset: int, end: int, send: Send) -> None:
        """Go on where an earlier try was cut."""
        begin = offset + scatter.count
        answer = await send("get_object", Key=self._key, Range=f"bytes={begin}-{end - 1}")
        body = answer["Body"]
        try:
            self._check(answer, f"bytes {begin}-{end - 1}/{self._size}")
            while (left := end - offset - scatter.count) > 0:
                piece = await body.read(min(left, _READ_BYTES))
                if not piece:
                    raise ConnectionResetError(f"the answer ended {left} bytes early")
                scatter.put(piece)
        finally:
            body.close()

    def _check(self, answer: dict[str, Any], expected: str) -> None:
        address = self._requests.address(self._path)
        if answer.get("ETag", "") != self._version:
            raise OSError(errno.ESTALE, "was replaced while it was read", address)
        if answer.get("ContentRange") != expected:
            raise OSError(errno.EIO, f"was asked for '{expected}' and gave '{answer.get('ContentRange')}'", address)

    def will_need(self, offset: int, length: int) -> None:
        """See ``FileReader``."""

    def close(self) -> None:
        """See ``FileReader``."""
