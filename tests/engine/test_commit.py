"""A checkpoint appears and disappears at once or not at all, and what is left of a killed save is known for what it is."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun.engine.backends.interface import Location, read_file, write_file
from ckptrun.engine.commit import (
    commit,
    hold_save,
    is_committed,
    list_committed,
    list_in_flight,
    list_leftovers,
    remove_checkpoint,
    remove_leftovers,
    require_free,
    working_folder,
)
from ckptrun.engine.layout import MANIFEST, LeftoverKind, new_save_id, parse_leftover, shard_file_name, step_name
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Leaf, Manifest, ShardFile, read_manifest
from ckptrun.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError, ManifestError
from tests.support.storage_backends import CountingBackend, on


class Killed(BaseException):
    """Stands for the end of the process at a fault point."""


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return locate(tmp_path / "run") if request.param == "local" else locate(f"memory://{tmp_path.name}/run")


@pytest.fixture
def local_root(tmp_path: Path) -> Location:
    return on(CountingBackend(), tmp_path / "run")


def save(root: Location, step: int, *, content: bytes = b"x", killed_at: str = "") -> Manifest:
    """Do what the ranks and the coordinator of a save do, up to a point."""
    target = root.child(step_name(step))
    save_id = new_save_id()
    working = working_folder(target, save_id)
    name = shard_file_name(0, save_id=None if root.backend.renames_folders else save_id)
    working.backend.make_folder(working.path)
    write_file(working.child(name), content)
    manifest = Manifest(
        save_id=save_id,
        created="now",
        torch="2",
        world_size=1,
        run={"step": step},
        files={name: ShardFile(name=name, bytes=len(content), header_bytes=0, header_checksum="")},
        leaves={},
        shared=(),
    )

    def reached(point: str) -> None:
        if point == killed_at:
            raise Killed

    if killed_at:
        with pytest.raises(Killed):
            commit(target, manifest, reached=reached)
    else:
        commit(target, manifest, reached=reached)
    return manifest


def content_of(root: Location, step: int) -> bytes:
    target = root.child(step_name(step))
    (file,) = read_manifest(target).files.values()
    return read_file(target.child(file.name), file.bytes)


def names(root: Location, *below: str) -> list[str]:
    for name in below:
        root = root.child(name)
    return root.backend.list_names(root.path)


def test_committed_steps_are_listed_in_order(root: Location) -> None:
    for step in (30, 4, 100_000_000):
        save(root, step)
    assert list_committed(root) == [4, 30, 100_000_000]
    assert list_leftovers(root) == []


def test_a_root_that_does_not_exist_has_no_checkpoints(root: Location) -> None:
    assert list_committed(root) == []
    assert list_leftovers(root) == []
    assert remove_leftovers(root) == []


@pytest.mark.parametrize("point", ["before_manifest", "before_commit"])
def test_a_save_killed_before_its_commit_is_a_leftover(local_root: Location, point: str) -> None:
    save(local_root, 1)
    manifest = save(local_root, 2, killed_at=point)
    assert list_committed(local_root) == [1]
    leftover = f"step_00000002.tmp-{manifest.save_id}"
    assert list_leftovers(local_root) == [leftover]
    assert remove_leftovers(local_root) == [leftover]
    assert names(local_root) == ["step_00000001"]


def test_on_an_object_store_files_without_a_manifest_are_a_leftover(tmp_path: Path) -> None:
    root = locate(f"memory://{tmp_path.name}/run")
    save(root, 1)
    manifest = save(root, 2, killed_at="before_manifest")
    leftover = f"step_00000002/{next(iter(manifest.files))}"
    assert list_committed(root) == [1]
    assert list_leftovers(root) == [leftover]
    assert remove_leftovers(root) == [leftover]
    assert names(root, "step_00000002") == []
    assert list_committed(root) == [1]


def test_a_save_in_flight_is_no_leftover_until_its_owner_lets_go(root: Location) -> None:
    target = root.child(step_name(2))
    save_id = new_save_id()
    release = hold_save(target, save_id)
    name = shard_file_name(0, save_id=None if root.backend.renames_folders else save_id)
    working = working_folder(target, save_id)
    working.backend.make_folder(working.path)
    write_file(working.child(name), b"half")
    in_flight = list_in_flight(root)
    assert all(save_id in name for name in in_flight)
    assert [f"process {os.getpid()}," in owner for owner in set(in_flight.values())] == [True]
    assert (list_leftovers(root), remove_leftovers(root)) == ([], [])
    assert working.child(name).name in working.backend.list_names(working.path)
    release()
    assert len(remove_leftovers(root)) == 1
    assert (list_leftovers(root), list_in_flight(root)) == ([], {})


def test_a_lock_is_released_by_the_death_of_its_owner(local_root: Location, tmp_path: Path) -> None:
    code = "import sys; from ckptrun.engine.locate import locate; from ckptrun.engine.commit import hold_save;"
    code += "hold_save(locate(sys.argv[1]), '0' * 32); print('held', flush=True); sys.stdin.read()"
    target = local_root.child(step_name(2))
    owner = subprocess.Popen(
        [sys.executable, "-c", code, target.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner:
        assert owner.stdout.readline() == "held\n"
        assert remove_leftovers(local_root) == []
        assert f"process {owner.pid}," in next(iter(list_in_flight(local_root).values()))
        owner.kill()
    assert [parse_leftover(name).kind for name in list_leftovers(local_root)] == [LeftoverKind.lock]
    assert len(remove_leftovers(local_root)) == 1
    assert names(local_root) == []


def test_a_committed_checkpoint_is_not_written_over_unless_asked(root: Location) -> None:
    save(root, 1)
    target = root.child(step_name(1))
    with pytest.raises(CheckpointExistsError, match=r"step_00000001 is committed.*overwrite=True"):
        require_free(target, overwrite=False)
    require_free(target, overwrite=True)
    require_free(root.child(step_name(2)), overwrite=False)


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_checkpoint_is_never_written_over(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"is not a checkpoint .* 'thesis.tex'"):
        require_free(locate(tmp_path), overwrite=overwrite)


def test_an_empty_folder_may_become_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step_00000001").mkdir()
    require_free(locate(tmp_path / "step_00000001"), overwrite=False)
    save(locate(tmp_path), 1)
    assert list_committed(tmp_path) == [1]


def test_overwriting_leaves_the_new_checkpoint_alone(root: Location) -> None:
    save(root, 1, content=b"old")
    manifest = save(root, 1, content=b"newer")
    assert content_of(root, 1) == b"newer"
    assert names(root) == ["step_00000001"]
    assert names(root, "step_00000001") == sorted([MANIFEST, *manifest.files])


def put_beside(root: Location, step: int) -> None:
    """Put into a checkpoint what users do, and what a save of more ranks left there."""
    target = root.child(step_name(step))
    for name in ("config.json", "tokenizer/vocab.txt", shard_file_name(7)):
        place = target.child(name)
        place.backend.make_folder(place.parent.path)
        write_file(place, name.encode())


def test_an_overwrite_keeps_what_no_save_has_written(root: Location) -> None:
    save(root, 1, content=b"old")
    put_beside(root, 1)
    save(root, 1, content=b"newer")
    assert content_of(root, 1) == b"newer"
    assert {"config.json", "tokenizer"} <= set(names(root, "step_00000001"))
    assert names(root, "step_00000001", "tokenizer") == ["vocab.txt"]
    assert list_leftovers(root) == []


@pytest.mark.parametrize("call", ["rename_folder", "remove"])
@pytest.mark.parametrize("ends", [Killed, OSError])
def test_what_no_save_has_written_outlives_a_swap_that_is_cut_off(
    local_root: Location, call: str, ends: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(local_root, 1, content=b"old")
    put_beside(local_root, 1)
    original = getattr(CountingBackend, call)

    def cut_off(backend: CountingBackend, path: str, *more: str) -> None:
        if "step_00000001.old-" in path and not path.endswith("config.json"):
            raise ends
        original(backend, path, *more)

    monkeypatch.setattr(CountingBackend, call, cut_off)
    with pytest.raises(Killed) if ends is Killed else contextlib.nullcontext():
        save(local_root, 1, content=b"newer")
    monkeypatch.undo()
    assert content_of(local_root, 1) == b"newer"
    assert len(remove_leftovers(local_root)) == 1
    assert names(local_root) == ["step_00000001"]
    assert names(local_root, "step_00000001") == ["config.json", MANIFEST, shard_file_name(0), "tokenizer"]
    assert names(local_root, "step_00000001", "tokenizer") == ["vocab.txt"]


@pytest.mark.parametrize("point", ["before_manifest", "before_commit", "during_swap"])
def test_an_overwrite_killed_at_any_point_leaves_the_old_checkpoint(local_root: Location, point: str) -> None:
    save(local_root, 1, content=b"old")
    save(local_root, 1, content=b"newer", killed_at=point)
    remove_leftovers(local_root)
    assert list_committed(local_root) == [1]
    assert content_of(local_root, 1) == b"old"
    assert names(local_root) == ["step_00000001"]


@pytest.mark.parametrize(
    ("point", "content"), [("before_manifest", b"old"), ("before_commit", b"old"), ("during_swap", b"newer")]
)
def test_an_overwrite_killed_on_an_object_store_leaves_one_whole_checkpoint(
    tmp_path: Path, point: str, content: bytes
) -> None:
    root = locate(f"memory://{tmp_path.name}/run")
    save(root, 1, content=b"old")
    save(root, 1, content=b"newer", killed_at=point)
    assert content_of(root, 1) == content
    assert len(remove_leftovers(root)) == 1
    assert content_of(root, 1) == content
    assert len(names(root, "step_00000001")) == 2


def test_the_old_checkpoint_is_away_for_one_rename_only(local_root: Location) -> None:
    save(local_root, 1, content=b"old")
    local_root.backend.calls_made.clear()
    manifest = save(local_root, 1, content=b"newer")
    tmp, old = (f"step_00000001.{kind}-{manifest.save_id}" for kind in ("tmp", "old"))
    assert local_root.backend.calls_made == [
        "write rank_00000.safetensors",
        f"write {MANIFEST}",
        f"rename step_00000001 to {old}",
        f"rename {tmp} to step_00000001",
        f"remove {old}",
    ]


def test_a_removed_checkpoint_stops_being_one_before_its_files_go(
    local_root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(local_root, 1)
    monkeypatch.setattr(CountingBackend, "remove", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        remove_checkpoint(local_root, 1)
    monkeypatch.undo()
    assert list_committed(local_root) == []
    (leftover,) = list_leftovers(local_root)
    assert remove_leftovers(local_root) == [leftover]
    assert names(local_root) == []


def test_a_checkpoint_is_removed_and_the_others_stay(root: Location) -> None:
    save(root, 1)
    save(root, 2)
    remove_checkpoint(root, 1)
    assert list_committed(root) == [2]
    assert names(root) == ["step_00000002"]


def test_removing_what_is_not_there_names_what_is(root: Location) -> None:
    save(root, 1)
    with pytest.raises(CheckpointNotFoundError, match=r"step 7 .*\(committed steps: 1\)"):
        remove_checkpoint(root, 7)


def test_a_manifest_that_no_reader_would_accept_is_never_committed(tmp_path: Path) -> None:
    target = locate(tmp_path).child(step_name(1))
    leaf = Leaf(name="w", path=("a", 2**20), dtype=None, shape=None, value=1, digest=None, chunks=())
    manifest = Manifest(
        save_id=new_save_id(), created="now", torch="2", world_size=1, run={}, files={}, leaves={"w": leaf}, shared=()
    )
    with pytest.raises(ManifestError, match="path"):
        commit(target, manifest)
    assert not is_committed(target)


def test_a_file_that_only_another_machine_sees_stops_the_commit(tmp_path: Path) -> None:
    root = locate(tmp_path)
    target = root.child(step_name(1))
    manifest = Manifest(
        save_id=new_save_id(),
        created="now",
        torch="2",
        world_size=2,
        run={},
        files={
            "rank_00001.safetensors": ShardFile(
                name="rank_00001.safetensors", bytes=9, header_bytes=0, header_checksum=""
            )
        },
        leaves={},
        shared=(),
    )
    with pytest.raises(CheckpointError, match=r"rank_00001.safetensors is not there.*same storage"):
        commit(target, manifest)
    assert not is_committed(target)
