"""No damage to a checkpoint goes unnoticed, whatever it is: every class of it gives an error of its own, naming the file."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckptrun import ShardReader, ShardWriter
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.read_state import read_state
from ckptrun.errors import CheckpointDamagedError, CheckpointNotFoundError, ManifestError, ShardFileError
from tests.support.bits import flip
from tests.support.run_ranks import run_ranks

FILES = ("rank_00000.safetensors", "rank_00001.safetensors")


def _save_two(root: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for step in (1, 2):
        values = torch.arange(40_000.0).reshape(200, 200) * step
        state = {"w": distribute_tensor(values, mesh, [Shard(0)]), "b": torch.full((7,), step), "step": step}
        dcp.save(state, storage_writer=ShardWriter(root / f"step_{step:08d}"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2 of the same state on 2 ranks."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(_save_two, 2, root)
    assert list_committed(root) == [1, 2]
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def error_of(folder: Path) -> Exception:
    """What reading everything raises; loading through DCP must raise the same kind."""
    with pytest.raises((CheckpointDamagedError, CheckpointNotFoundError)) as alone:
        read_state(folder)
    into = {"w": torch.zeros(200, 200), "b": torch.zeros(7, dtype=torch.int64), "step": 0}
    with pytest.raises(CheckpointException) as through_dcp:
        dcp.load(into, storage_reader=ShardReader(folder), no_dist=True)
    (cause, _) = through_dcp.value.failures[0]
    assert type(cause) is type(alone.value)
    return alone.value


def header_bytes(file: Path) -> int:
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("place", ["first byte", "header length", "json", "padding", "first of data", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_of_a_shard_file_is_found(root: Path, name: str, place: str, bit: int) -> None:
    file = root / "step_00000002" / name
    data, end = header_bytes(file), file.stat().st_size
    positions = {
        "first byte": 0,
        "header length": 7,
        "json": 60,
        "padding": data - 1,
        "first of data": data,
        "middle": (data + end) // 2,
        "last": end - 1,
    }
    flip(file, positions[place], bit)
    error = error_of(file.parent)
    assert isinstance(error, ShardFileError)
    assert name in str(error)
    assert "step_00000002" in str(error)


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(root: Path) -> None:
    file = root / "step_00000002" / MANIFEST
    raw = file.read_bytes()
    for position in range(0, len(raw), 5):
        flip(file, position, position % 8)
        with pytest.raises(ManifestError, match=r"manifest\.json"):
            read_state(file.parent)
        file.write_bytes(raw)
    assert read_state(file.parent)["step"] == 2


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_file_cut_anywhere_is_found(root: Path, name: str) -> None:
    file = root / "step_00000002" / name
    raw = file.read_bytes()
    ends = {0, 1, 7, 8, 9, 100, 4095, 4096, 4097, len(raw) // 2, len(raw) - 4096, len(raw) - 1}
    kind = ManifestError if name == MANIFEST else ShardFileError
    for end in sorted(end for end in ends if 0 <= end < len(raw)):
        file.write_bytes(raw[:end])
        with pytest.raises(kind, match=name):
            read_state(file.parent)
    file.write_bytes(raw + b"\0")
    with pytest.raises(kind, match=name):
        read_state(file.parent)


def swap(one: Path, other: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "two shard files swapped": (
        lambda root: swap(*(root / "step_00000002" / name for name in FILES)),
        ShardFileError,
        "rank_0000",
    ),
    "a shard file deleted": (lambda root: (root / "step_00000002" / FILES[1]).unlink(), ShardFileError, FILES[1]),
    "a folder in place of a shard file": (
        lambda root: ((root / "step_00000002" / FILES[1]).unlink(), (root / "step_00000002" / FILES[1]).mkdir()),
        ShardFileError,
        FILES[1],
    ),
    "a shard file of another step": (
        lambda root: shutil.copy(root / "step_00000001" / FILES[0], root / "step_00000002" / FILES[0]),
        ShardFileError,
        FILES[0],
    ),
    "the files of two saves mixed": (
        lambda root: shutil.copy(root / "step_00000001" / MANIFEST, root / "step_00000002" / MANIFEST),
        ShardFileError,
        "rank_0000",
    ),
    "no manifest": (lambda root: (root / "step_00000002" / MANIFEST).unlink(), CheckpointNotFoundError, MANIFEST),
    "an empty manifest": (lambda root: (root / "step_00000002" / MANIFEST).write_bytes(b""), ManifestError, MANIFEST),
    "a folder in place of the manifest": (
        lambda root: ((root / "step_00000002" / MANIFEST).unlink(), (root / "step_00000002" / MANIFEST).mkdir()),
        ManifestError,
        MANIFEST,
    ),
    "a foreign manifest": (
        lambda root: (root / "step_00000002" / MANIFEST).write_text('{"name": "an npm package"}'),
        ManifestError,
        "is no manifest",
    ),
    "a future version": (
        lambda root: (root / "step_00000002" / MANIFEST).write_text('{"format": 2, "manifest": {}}\n'),
        ManifestError,
        "'format' must be 1",
    ),
    "another file in safetensors format": (
        lambda root: (root / "step_00000002" / FILES[0]).write_bytes(struct.pack("<Q", 2) + b"{}"),
        ShardFileError,
        FILES[0],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_what_was_written_is_refused_with_its_own_error(root: Path, damage: str) -> None:
    change, kind, named = DAMAGE[damage]
    change(root)
    error = error_of(root / "step_00000002")
    assert type(error) is kind
    assert named in str(error)
    assert read_state(root / "step_00000001")["step"] == 1


def test_only_the_reader_of_a_damaged_part_is_stopped(root: Path) -> None:
    file = root / "step_00000002" / FILES[1]
    flip(file, file.stat().st_size - 1, 0)
    first_half = {"w": torch.zeros(200, 200)}
    with pytest.raises(CheckpointException):
        dcp.load(first_half, storage_reader=ShardReader(file.parent), no_dist=True)
    into = {"b": torch.zeros(7, dtype=torch.int64)}
    dcp.load(into, storage_reader=ShardReader(file.parent), no_dist=True)
    assert into["b"].tolist() == [2] * 7
