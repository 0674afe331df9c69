import re
from pathlib import Path

import pytest

from ckptrun.rank_names import (
    RANK_NAME,
    fault_file_name,
    leading_rank,
    parse_fault_file,
    rank_in,
    rank_name,
    rank_of,
    start_of,
)

PACKAGE = Path(__file__).resolve().parents[1] / "ckptrun"


@pytest.mark.parametrize("rank", [0, 3, 99_999])
def test_names_of_ranks_are_read_back(rank: int) -> None:
    assert re.fullmatch(RANK_NAME, rank_name(rank))
    assert (rank_in(rank_name(rank)), leading_rank(f"{rank_name(rank)}.safetensors")) == (rank, rank)
    assert parse_fault_file(fault_file_name(2, rank)) == (2, rank)
    assert rank_name(rank, start=1) == f"start_00001.{rank_name(rank)}"
    assert start_of(f"{rank_name(rank, start=12)}.jsonl") == 12


@pytest.mark.parametrize("name", ["rank_3", "rank_00003.json", "x.rank_00003", "00001.rank_00003.json.tmp", ""])
def test_other_names_are_no_rank_s(name: str) -> None:
    assert (rank_in(name), parse_fault_file(name)) == (None, None)


def test_a_leaf_is_of_the_rank_that_an_element_of_its_path_names() -> None:
    assert rank_of(("rng", "ranks", "rank_00003", "torch")) == 3
    assert rank_of(("mine", "data_rank_00002", 0)) == 2
    assert rank_of(("model", "rank", 0)) is None


def test_nobody_else_spells_the_name_of_a_rank() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "rank_names.py"]
    spelled = re.compile(r"rank_\{[a-z_]*:05d|rank_\(?(\[0-9\]|\\d)\{5")
    assert [str(path) for path in others if spelled.search(path.read_text())] == []


def test_a_file_of_no_start_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no start"):
        start_of("rank_00000.jsonl")
