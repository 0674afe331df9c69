"""Which states a save can leave, told one by one for saves of a few calls; and which save is judged."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptrun.crash.content import EMPTY, Content
from ckptrun.crash.files import Entry, Files, Tree
from ckptrun.crash.judging import chosen_of
from ckptrun.crash.operations import Deed, Operation
from ckptrun.crash.recording import Recording, Window, choose_window
from ckptrun.crash.resumes import newest_in
from ckptrun.crash.states import CrashState, How, crash_states
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.records import Heard, HeardRank


def do(deed: Deed, path: str, **more) -> Operation:
    facts = {"call": deed.value, "process": 1, "time": 0.0, "is_new": deed is Deed.open, "is_cut": deed is Deed.open}
    return Operation(deed=deed, path=path, **{**facts, **more})


def open_(path: str, **more) -> Operation:
    return do(Deed.open, path, **more)


def write(path: str, data: bytes, offset: int = 0, **more) -> Operation:
    return do(Deed.write, path, data=data, offset=offset, **more)


def text(tree: Tree) -> str:
    """Everything in it in one line; folders end in a slash."""
    return " ".join(
        f"{path}/" if entry.content is None else f"{path}={entry.content.part(0, entry.content.size).decode()}"
        for path, entry in sorted(tree.entries.items())
    )


def found(states: list[CrashState], how: How) -> list[str]:
    return [text(state.tree) for state in states if any(ending.how is how for ending in state.endings)]


def states_of(operations: list[Operation], *, before: list[Operation] = (), block: int = 4, power: bool = True):
    files = Files()
    for operation in before:
        files.apply(operation)
    return crash_states(files, operations, block_bytes=block, with_power_cuts=power)


OLD = [open_("new"), write("new", b"old")]
DRAFT = [open_("d"), write("d", b"0123456789")]
RENAME = do(Deed.rename, "d", other="new")
SYNC, SYNC_FOLDER = do(Deed.sync, "d"), do(Deed.sync, "")


def test_a_kill_leaves_a_prefix_of_the_calls_and_of_each_write() -> None:
    states = states_of([*DRAFT, RENAME], before=OLD, power=False)
    assert found(states, How.killed) == ["new=old", "d= new=old", "d=0123456789 new=old", "new=0123456789"]
    assert found(states, How.torn) == ["d=0123 new=old", "d=01234567 new=old"]
    assert len(states) == 6


def test_borders_of_blocks_are_those_of_the_file() -> None:
    states = states_of([write("a", b"456789", offset=3)], before=[open_("a"), write("a", b"abc")], power=False)
    assert found(states, How.torn) == ["a=abc4", "a=abc45678"]


def test_equal_states_are_one_and_know_all_that_leaves_them() -> None:
    states = states_of([open_("a"), write("a", b"x"), do(Deed.remove, "a", call="unlink")], power=False)
    assert [text(state.tree) for state in states] == ["", "a=", "a=x"]
    assert [str(ending) for ending in states[0].endings] == ["killed before the save", "killed after unlink of a"]


def test_a_power_cut_loses_what_was_not_synced() -> None:
    states = states_of([*DRAFT, RENAME], before=OLD)
    only = set(found(states, How.power_cut)) - set(found(states, How.killed)) - set(found(states, How.torn))
    zeros = "\0" * 10
    # The name is there, and its bytes are not, are half there, or are zeros; or of the rename only nothing.
    assert only == {"new=", "new=01234", f"new={zeros}"}
    assert "new=old" in found(states, How.power_cut)


@pytest.mark.parametrize(
    ("operations", "at_end"),
    [
        # Bytes and names are safe, the rename may be undone: the old file is there.
        ([*DRAFT, SYNC, RENAME], {"new=old", "d=0123456789 new=old", "new=0123456789"}),
        # All is safe once the folder is synced: nothing is left that could be lost.
        ([*DRAFT, SYNC, RENAME, SYNC_FOLDER], set()),
        ([*DRAFT, RENAME, do(Deed.sync_all, "")], set()),
    ],
)
def test_what_was_synced_stays(operations, at_end) -> None:
    states = states_of(operations, before=OLD)
    last = str(operations[-1])
    endings = {(text(state.tree), str(ending)) for state in states for ending in state.endings}
    assert {tree for tree, ending in endings if ending.endswith(f"after {last}")} == at_end


def test_a_removal_that_reaches_the_disk_before_what_replaces_it() -> None:
    operations = [open_("b"), write("b", b"new"), do(Deed.remove, "new", call="unlink")]
    states = states_of(operations, before=OLD)
    assert {"b=", ""} <= set(found(states, How.power_cut))
    synced = [*operations[:2], do(Deed.sync, "b"), do(Deed.sync, ""), operations[2]]
    assert set(found(states_of(synced, before=OLD), How.power_cut)) <= {
        "new=old",
        "b= new=old",
        "b=new new=old",
        "b=new",
    }


def test_others_go_on_until_they_meet_the_rank_that_is_gone() -> None:
    zero = [open_("a", rank=0), write("a", b"A", rank=0, meetings=0), open_("done", rank=0, meetings=1)]
    one = [open_("b", rank=1), write("b", b"B", rank=1)]
    states = states_of([zero[0], one[0], zero[1], one[1], zero[2]], power=False)
    alone = set(found(states, How.one_rank))
    # Rank 1 dies first: rank 0 writes its file, and never says that it is done.
    assert alone == {"a=A", "a=A b=", "b=B", "a= b=B", "a=A b=B"}
    assert not any("done" in tree for tree in alone)


def test_a_folder_that_is_not_on_the_disk_has_nothing_in_it() -> None:
    operations = [do(Deed.make_folder, "c"), open_("c/f"), write("c/f", b"x"), do(Deed.sync, "c/f")]
    assert "" in found(states_of(operations), How.power_cut)


def test_a_rename_from_folder_to_folder_never_happens_by_halves() -> None:
    before = [do(Deed.make_folder, "x"), do(Deed.make_folder, "y"), open_("x/f"), write("x/f", b"1")]
    trees = found(states_of([do(Deed.rename, "x/f", other="y/f")], before=before), How.power_cut)
    assert set(trees) == {"x/ x/f=1 y/"}


def test_of_many_states_some_are_chosen_and_the_whole_one_comes_first() -> None:
    states = states_of([open_("a"), *(write("a", b"x", offset=i) for i in range(9))], power=False)
    whole = states[-1].tree.key
    assert chosen_of(states, whole, None)[0].tree.key == whole
    assert len(chosen_of(states, whole, None)) == len(states) == 11
    chosen = chosen_of(states, whole, 4)
    assert [text(state.tree) for state in chosen] == ["a=xxxxxxxxx", "a=", "a=xxxx", "a=xxxxxxx"]
    assert [text(state.tree) for state in chosen_of(states, whole, 1)] == ["a=xxxxxxxxx"]


def test_contents_are_the_bytes_that_a_file_would_have() -> None:
    content = EMPTY.written(0, b"0123456789").written(3, b"abc").written(14, b"end").resized(16)
    assert content.part(0, 100) == b"012abc6789\0\0\0\0en"
    assert content.size == 16
    assert content.key == Content().written(0, b"012abc6789\0\0\0\0en").key
    assert content.key != content.resized(15).key
    assert EMPTY.resized(3).part(0, 3) == b"\0\0\0"


def test_a_tree_is_built_as_it_is_told(tmp_path) -> None:
    files = Files()
    for operation in [
        do(Deed.make_folder, "c", time=10.0), open_("c/f"), write("c/f", b"x", time=20.0),
        do(Deed.symlink, "last", other="c"), do(Deed.link, "c/f", other="g"),
    ]:  # fmt: skip
        files.apply(operation)
    files.tree().build(tmp_path / "out")
    assert (tmp_path / "out/last/f").read_bytes() == b"x"
    assert (tmp_path / "out/g").read_bytes() == b"x"
    assert (tmp_path / "out/c/f").stat().st_mtime == 20.0
    assert (tmp_path / "out/last").is_symlink()


def recorded(*, steps: int, saves: list[int], removes: list[int]) -> Recording:
    """A run that saves after some steps, and removes the save before after some of them."""
    heard = Heard(ranks=(HeardRank(rank=0, ranks=1, steps=[None] * steps),), processes=1, exceptions=(), errors=())
    operations: list[Operation] = []
    for before, step in zip([None, *saves], saves, strict=False):
        operations.append(open_(f"{step}.pt", step=step))
        operations += [do(Deed.remove, f"{before}.pt", step=step)] if step in removes else []
    saved = [SavedStep(step=step, place=Path(f"/{step}.pt"), is_complete=True, sizes={}) for step in saves]
    return Recording(heard=heard, saved=saved, operations=operations, unknown=[], notes=[])


@pytest.mark.parametrize(
    ("steps", "saves", "removes", "chosen", "note"),
    [
        # An older checkpoint lies beside it; is removed.
        (9, [2, 4, 6], [], 4, ""),
        (9, [2, 4, 6], [6], 6, ""),
        (9, [2, 4, 6, 7], [6, 7], 6, ""),
        (9, [2], [], 2, ""),
        # What a resume computes is seen only where steps follow.
        (8, [2, 4, 6, 8], [8], 4, "step 8, after which the job takes 0 steps (crash.step=8,"),
        (7, [2, 4, 6], [6], 4, "step 6, after which the job takes 1 step (crash.step=6,"),
        (7, [2, 6], [6], 6, ""),
        (6, [2, 6], [6], 6, ""),
    ],
)
def test_the_save_that_is_judged_shows_most(steps, saves, removes, chosen, note) -> None:
    recording = recorded(steps=steps, saves=saves, removes=removes)
    assert choose_window(recording, None, resume_steps=2).step == chosen
    assert [note in said for said in recording.notes] == ([True] if note else [])
    for step in saves:
        assert choose_window(recording, step, resume_steps=2).step == step


def folder_of(**files: str) -> Tree:
    content = {name.replace("__", "."): Entry(EMPTY.written(0, text.encode())) for name, text in files.items()}
    return Tree({"all": Entry(), **{f"all/{name}": entry for name, entry in content.items()}})


def newest_step(tree: Tree, whole: dict[int, Tree], *, copies: bool) -> int | None:
    """Which step is found complete where each step saves two files to a folder that all steps share."""
    saved = []
    for step in (2, 4):
        files = (Path(f"/output/all/{step}.pt"), Path("/output/all/last.pt" if copies else f"/output/all/{step}.opt"))
        saved.append(
            SavedStep(
                step=step, place=Path("/output/all"), is_complete=True, sizes={}, files=files,
                copies=files if copies else (),
            )
        )  # fmt: skip
    before = SimpleNamespace(tree=lambda: whole[2])
    window = Window(step=4, before=before, operations=[], whole={0: Tree({}), **whole})
    newest = newest_in(tree, window, saved, Path("/output"))
    return None if newest is None else newest.step


def test_one_copy_of_a_checkpoint_is_enough() -> None:
    whole = {
        2: folder_of(**{"2__pt": "two", "last__pt": "two"}),
        4: folder_of(**{"2__pt": "two", "4__pt": "four", "last__pt": "four"}),
    }
    between = folder_of(**{"2__pt": "two", "4__pt": "four", "last__pt": "two"})
    assert newest_step(between, whole, copies=True) == 4
    torn = folder_of(**{"2__pt": "two", "4__pt": "fo", "last__pt": "two"})
    assert newest_step(torn, whole, copies=True) == 2


def test_checkpoints_that_share_a_folder_are_complete_on_their_own() -> None:
    whole = {2: folder_of(**{"2__pt": "m", "2__opt": "o"})}
    whole[4] = folder_of(**{"2__pt": "m", "2__opt": "o", "4__pt": "M", "4__opt": "O", "4__json": "{}"})
    assert newest_step(whole[4], whole, copies=False) == 4
    for left_out in ("4__pt", "4__opt", "4__json"):
        files = {"2__pt": "m", "2__opt": "o", "4__pt": "M", "4__opt": "O", "4__json": "{}"}
        del files[left_out]
        assert newest_step(folder_of(**files), whole, copies=False) == 2
    assert newest_step(folder_of(**{"2__pt": "m", "4__pt": "M"}), whole, copies=False) is None
