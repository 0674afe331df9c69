"""The reader that ``docs/format.md`` shows, run as it stands there: whoever has only that page can read a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckptrun.engine.dtypes import is_known, item_bytes
from ckptrun.engine.storage import ShardWriter
from tests.support.bits import bits, flip, random_tensor
from tests.support.run_ranks import run_ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
DTYPES = ["float32", "bfloat16", "complex128", "float8_e8m0fnu", "bool"]
SHAPES: list[tuple[int, ...]] = [(), (0, 3), (5,), (7, 6), (4, 6, 2)]


def tensors() -> dict[str, torch.Tensor]:
    return {
        f"{dtype}/{shape}": random_tensor(getattr(torch, dtype), shape, seed=len(shape))
        for dtype in DTYPES
        for shape in SHAPES
    }


def save(folder: Path) -> None:
    """On a mesh of two axes: even dims of some tensors are cut along rows, those of others along columns too."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    state: dict[str, Any] = {}
    for name, tensor in tensors().items():
        cuts = [Shard(0), Shard(1)] if tensor.ndim > 1 and tensor.dtype is torch.float32 else None
        state[name] = distribute_tensor(tensor, mesh, cuts) if cuts else tensor
    dcp.save({**state, "large": torch.ones(300_000), "lr": 0.5}, storage_writer=ShardWriter(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "c"
    run_ranks(save, 4, folder)
    return folder


@pytest.mark.distributed
def test_the_reader_of_the_page_reads_every_bit(page: dict[str, Any], folder: Path) -> None:
    found = page["read"](folder)
    assert found.pop("lr") == 0.5
    assert found.pop("large") == ("float32", (300_000,), bits(torch.ones(300_000))[2])
    expected = {name: bits(tensor) for name, tensor in tensors().items()}
    assert found == {name: (str(dtype)[6:], shape, raw) for name, (dtype, shape, raw) in expected.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["manifest.json", "rank_00000.safetensors"])
def test_the_reader_of_the_page_finds_damage(name: str, page: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size = (tmp_path / name).stat().st_size
    for position in (size // 3, size - 4):
        flip(tmp_path / name, position)
        with pytest.raises(ValueError, match=r"manifest|header|/|large"):
            page["read"](tmp_path)
        flip(tmp_path / name, position)
    page["read"](tmp_path)


def test_the_page_names_every_dtype_and_its_size(page: dict[str, Any]) -> None:
    assert {name: item_bytes(name) for name in page["BYTES"]} == page["BYTES"]
    known = [name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
    assert {str(getattr(torch, name))[6:] for name in known if is_known(str(getattr(torch, name))[6:])} == set(
        page["BYTES"]
    )
    text = PAGE.read_text()
    assert [name for name in page["BYTES"] if f"`{name}`" not in text] == []
