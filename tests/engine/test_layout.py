"""Names are made and parsed in one place, and nothing that only looks similar is taken for ours."""

import pytest

from ckptrun.engine.layout import (
    LeftoverKind,
    is_shard_file_name,
    leftover_name,
    lock_name,
    new_save_id,
    parse_leftover,
    parse_save_file,
    parse_step,
    shard_file_name,
    step_folder,
    step_name,
)

SAVE_ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("step", [0, 20, 99_999_999, 100_000_000, 12_345_678_901])
def test_a_step_is_read_back_from_its_name(step: int) -> None:
    assert parse_step(step_name(step)) == step


@pytest.mark.parametrize(
    "name",
    [
        "step_20",
        "step_00000020 ",
        "xstep_00000020",
        "step_00000020.tmp-" + SAVE_ID,
        "step_0000002a",
        "step_000000020",
        "",
    ],
)
def test_a_similar_name_is_no_step(name: str) -> None:
    assert parse_step(name) is None


@pytest.mark.parametrize("name", ["step_0000002\uff10", "step_00000020\n"])
def test_other_digits_and_line_ends_are_no_step(name: str) -> None:
    assert parse_step(name) is None


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("/a b/c", "/a b/c/step_00000020"),
        ("/a/", "/a/step_00000020"),
        ("memory://", "memory://step_00000020"),
        ("s3://bucket/run", "s3://bucket/run/step_00000020"),
    ],
)
def test_a_checkpoint_folder_is_under_its_root(root: str, folder: str) -> None:
    assert step_folder(root, 20) == folder


@pytest.mark.parametrize("kind", [LeftoverKind.tmp, LeftoverKind.old, LeftoverKind.gone])
def test_a_leftover_is_read_back_from_its_name(kind: LeftoverKind) -> None:
    leftover = parse_leftover(leftover_name("step_00000020", kind, SAVE_ID))
    assert leftover is not None
    assert (leftover.name, leftover.kind, leftover.save_id) == ("step_00000020", kind, SAVE_ID)


def test_a_lock_is_read_back_from_its_name() -> None:
    leftover = parse_leftover(lock_name("step_00000020", SAVE_ID, in_folder=False))
    assert leftover is not None
    assert (leftover.name, leftover.kind, leftover.save_id) == ("step_00000020", LeftoverKind.lock, SAVE_ID)
    assert parse_save_file(lock_name("step_00000020", SAVE_ID, in_folder=True)) == SAVE_ID


@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json", shard_file_name(0), f"{SAVE_ID}.txt"])
def test_files_that_are_of_no_save_are_not_taken_for_its_own(name: str) -> None:
    assert parse_save_file(name) is None


@pytest.mark.parametrize(
    "name", ["step_00000020", "a.tmp-123", f"a.bak-{SAVE_ID}", f"a.tmp-{SAVE_ID}x", f".tmp-{SAVE_ID}"]
)
def test_other_names_are_no_leftovers(name: str) -> None:
    assert parse_leftover(name) is None


@pytest.mark.parametrize(
    "name", [shard_file_name(3), shard_file_name(123456, part=2), shard_file_name(0, save_id=SAVE_ID)]
)
def test_a_shard_file_is_known_by_its_name(name: str) -> None:
    assert is_shard_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["../rank_00000.safetensors", "/rank_00000.safetensors", "rank_0.safetensors", "rank_00000.safetensors\n", "a"],
)
def test_a_name_that_points_elsewhere_is_no_shard_file(name: str) -> None:
    assert not is_shard_file_name(name)


def test_no_two_saves_have_one_id() -> None:
    assert len({new_save_id() for _ in range(1000)}) == 1000
