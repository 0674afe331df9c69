"""States, files and saves for tests of object stores."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from s3fs import S3FileSystem

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.s3 import S3Backend
from ckptrun.engine.layout import parse_save_file
from tests.support.bits import random_tensor

MIB = 2**20
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64]


def s3_backend(file_system: S3FileSystem, **options: Any) -> S3Backend:
    return S3Backend(file_system, save_of=parse_save_file, **options)


def through(endpoint: str, path: str) -> Location:
    """A path on the server behind ``endpoint``, with pauses between tries that suit a test."""
    return Location(s3_backend(S3FileSystem(endpoint_url=endpoint), pause_s=0.01), path)


def random_bytes(count: int) -> bytes:
    return random_tensor(torch.uint8, (count,), seed=count).numpy().tobytes()


def write_in_parts(file: Location, raw: bytes) -> None:
    """Write as the engine does: from several threads, here the last block first."""
    writer = file.backend.create(file.path, len(raw))
    offsets = range(0, len(raw), writer.block_bytes)
    with ThreadPoolExecutor(writer.writes_at_once) as threads:
        blocks = [memoryview(raw)[offset : offset + writer.block_bytes] for offset in offsets]
        list(threads.map(writer.write, reversed(offsets), reversed(blocks)))
    writer.finish()


def seconds_to_fail(kind: type[OSError], match: str, function: Any, *args: Any) -> float:
    began = time.monotonic()
    with pytest.raises(kind, match=match) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return time.monotonic() - began


def large_state(value: int) -> dict[str, Any]:
    """More than one part in a file, and some of everything."""
    tensors = {str(dtype): random_tensor(dtype, (7, 5), seed=value) for dtype in DTYPES}
    return {"large": random_tensor(torch.float32, (5, MIB), seed=value), "small": tensors, "value": value}


def empty(state: dict[str, Any]) -> dict[str, Any]:
    """The same structure with other bits."""
    small = {name: torch.zeros_like(value) for name, value in state["small"].items()}
    return {"large": torch.zeros_like(state["large"]), "small": small, "value": -1}
