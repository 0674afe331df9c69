"""Sends requests to an S3 server until they succeed or trying again makes no sense. What is left is ``OSError``.

fsspec's event loop carries all requests of a process; whoever calls waits for his own. Tries are counted here and
nowhere else: those of botocore and s3fs are switched off or not used, because tries of tries take minutes.

Every request that is sent here may be sent twice: its answer may get lost after the server has done what it says.

Must not know what is in the objects.
"""

import asyncio
import errno
import io
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync

from ckptrun.engine.backends.fsspec import ProcessFileSystem

__all__ = ["Body", "S3Requests", "Send", "error_code"]

_TRIES = 5
_PAUSE_S = 0.5
_TRY_S = 300
"""Of one try. Longer than the time-outs of s3fs, which do not see a server that takes no more bytes."""
_TRYING_S = 120
"""After so long no further try is started."""
_CONNECTIONS = 32
# Not the generator of the random module: its state is training's, and a save must not move it.
_DICE = random.SystemRandom()

_FAILURES = (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, OSError, ValueError)
_MAY_PASS = (
    HTTPClientError,
    BotoConnectionError,
    IncompleteReadError,
    ChecksumError,
    FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
_MAY_PASS_CODES = (
    "BadDigest",
    "ClientDisconnected",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "XAmzContentSHA256Mismatch",
)
_MAY_PASS_STATUS = (408, 429, 500, 502, 503, 504)

_ERRNO_OF_CODE = {
    "EntityTooLarge": errno.EFBIG,
    "NotImplemented": errno.ENOSYS,
    "QuotaExceeded": errno.EDQUOT,
    "XMinioStorageFull": errno.ENOSPC,
    "InvalidAccessKeyId": errno.EACCES,
    "SignatureDoesNotMatch": errno.EACCES,
    "ExpiredToken": errno.EACCES,
    "InvalidToken": errno.EACCES,
}
_ERRNO_OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 412: errno.ESTALE, 501: errno.ENOSYS}
_NOT_ALLOWED = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)

_T = TypeVar("_T")


class Send(Protocol):
    """Sends one request, once: the name of a method of a boto client and its parameters but the bucket."""

    def __call__(self, method: str, **parameters: Any) -> Awaitable[dict[str, Any]]:
        """Return the answer."""


class S3Requests:
    """The way to one S3 server. Used in any thread; pickles; works on in a forked process.

    Args:
        file_system: An ``s3fs.S3FileSystem``; says where the server is and who we are.
        tries: How often a request is sent that fails for a reason that may pass.
        pause_s: How long to wait at most before the second try; then twice as long each time.
    """

    def __init__(self, file_system: Any, *, tries: int = _TRIES, pause_s: float = _PAUSE_S) -> None:
        self._file_system = ProcessFileSystem(_without_tries(file_system))
        self._tries = tries
        self._pause_s = pause_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Requests) and self._file_system.get() == other._file_system.get()

    def __hash__(self) -> int:
        return hash(self._file_system.get())

    def split(self, path: str) -> tuple[str, str]:
        """Return bucket and key."""
        bucket, key, _ = self._file_system.get().split_path(path)
        return bucket, key

    def address(self, path: str) -> str:
        """Return ``path`` as a user would write it."""
        return str(self._file_system.get().unstrip_protocol(path))

    def send(self, method: str, path: str, **parameters: Any) -> dict[str, Any]:
        """Send one request about the bucket of ``path``; return the answer.

        Raises:
            OSError: Names ``path``.
        """
        return self.attempt(path, lambda send: send(method, **parameters))

    def attempt(self, path: str, attempt: Callable[[Send], Awaitable[_T]]) -> _T:
        """Call ``attempt`` until it returns; return what it returns. It may raise what requests raise.

        Raises:
            OSError: Names ``path``. EIO when all tries were in vain.
        """
        file_system = self._file_system.get()
        return sync(file_system.loop, self._attempt, file_system, path, attempt)  # type: ignore[no-any-return]

    async def _attempt(self, file_system: Any, path: str, attempt: Callable[[Send], Awaitable[_T]]) -> _T:
        bucket, _ = self.split(path)

        async def send(method: str, **parameters: Any) -> dict[str, Any]:
            await file_system.set_session()
            function = getattr(await file_system.get_s3(bucket), method)
            allowed = file_system._get_s3_method_kwargs(function, Bucket=bucket, **parameters)
            return await function(**allowed)  # type: ignore[no-any-return]

        began = time.monotonic()
        number = 1
        while True:
            try:
                return await asyncio.wait_for(attempt(send), _TRY_S)
            except _FAILURES as error:
                seconds = time.monotonic() - began
                if not _may_pass(error):
                    raise _os_error(error, self.address(path)) from error
                if number >= self._tries or seconds > _TRYING_S:
                    what = f"gave up after {number} tries in {seconds:.1f} s: {_text(error)}"
                    raise OSError(errno.EIO, what, self.address(path)) from error
            # Ranks that were turned away together shall not come back together.
            await asyncio.sleep(self._pause_s * 2 ** (number - 1) * _DICE.uniform(0.5, 1))
            number += 1


def _without_tries(file_system: Any) -> Any:
    options = file_system.storage_options
    config = {
        "max_pool_connections": _CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        **(options.get("config_kwargs") or {}),
    }
    return type(file_system)(*file_system.storage_args, **{**options, "config_kwargs": config})


def error_code(error: BaseException | None) -> str:
    """Return what the server calls an error, such as ``NoSuchUpload``; empty when it is none of the server's."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return error_code(error) in _MAY_PASS_CODES or _status(error) in _MAY_PASS_STATUS
    return isinstance(error, _MAY_PASS)


def _os_error(error: BaseException, address: str) -> OSError:
    if isinstance(error, OSError):
        return error
    code = errno.EIO
    if isinstance(error, ClientError):
        code = _ERRNO_OF_CODE.get(error_code(error)) or _ERRNO_OF_STATUS.get(_status(error), errno.EIO)
    elif isinstance(error, _NOT_ALLOWED):
        code = errno.EACCES
    elif isinstance(error, ValueError):
        code = errno.EINVAL
    return OSError(code, _text(error), address)


def _text(error: BaseException) -> str:
    """One line."""
    if isinstance(error, ClientError):
        message = error.response.get("Error", {}).get("Message", "")
        return f"{error_code(error)}: {message} ({error.operation_name})"
    if isinstance(error, TimeoutError) and not str(error):
        return f"TimeoutError: not done after {_TRY_S} s"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Body(io.RawIOBase):
    """Bytes to send, without a copy.

    Close it after the request: what still sends, because the server did not answer in time, must not read memory that
    is used for something else by then.
    """

    def __init__(self, block: memoryview) -> None:
        super().__init__()
        self._block = block
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes: it is read once for its checksum and once to be sent."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._block.nbytes}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill ``target``; return how many bytes there were."""
        if self.closed:
            raise ValueError("The request that this is the body of has ended.")
        part = self._block[self._position : self._position + len(target)]
        target[: part.nbytes] = part
        self._position += part.nbytes
        return part.nbytes
