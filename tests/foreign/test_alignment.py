"""Which step a start went on from, told by hand-made digests."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptrun.foreign.alignment import Aligned, Source, align, used_batches
from ckptrun.foreign.checkpoints import SavedStep, committed_name, newest_of, saved_steps
from ckptrun.foreign.records import Batch, Heard, HeardRank, HeardStep, Save
from ckptrun.foreign.translation import check_loaded


def step_of(number: int, state: int, *, moments: int | None = None, first: bool = False) -> HeardStep:
    """A step on weights that have been changed ``state`` times, as its moments have."""
    held = state if moments is None else moments
    return HeardStep(
        number=number,
        updates=[0],
        before={"model.w": f"w{state}", "buffers.b": "anything"},
        after={"model.w": f"w{state + 1}"},
        moments={"optimizer.w.m": f"m{held + 1}"},
        moments_before=({"optimizer.w.m": f"m{held}"} if held else {}) if first else None,
    )


def heard_of(*ranks: Sequence[HeardStep], counters: Sequence[tuple[str, int]] = ()) -> Heard:
    found = [HeardRank(rank=i, ranks=len(ranks), steps=list(s), counters=list(counters)) for i, s in enumerate(ranks)]
    return Heard(ranks=found, processes=len(ranks), exceptions=(), errors=())


def straight(steps: int = 6, first_step: int = 0, ranks: int = 1) -> Source:
    lines = [step_of(i + 1, first_step + i, first=i == 0) for i in range(steps)]
    return Source(heard=heard_of(*[lines] * ranks), first_step=first_step)


def test_the_state_says_which_step_it_was():
    for step in range(6):
        start = heard_of([step_of(1, step, first=True)])
        assert align(start, [straight()], newest=0) == Aligned(step=step, how="state")


def test_the_end_is_a_step_too():
    start = heard_of([step_of(1, 6, first=True)])
    assert align(start, [straight()], newest=0).step == 6


def test_every_rank_must_have_it():
    torn = heard_of([step_of(1, 4, first=True)], [step_of(1, 2, first=True)])
    assert align(torn, [straight(ranks=2)], newest=4) == Aligned(step=4, how="save")


def test_steps_with_equal_weights_are_told_apart_by_their_moments():
    # A learning rate of 0 at the first two steps.
    lines = [
        step_of(1, 0, moments=0, first=True),
        step_of(2, 0, moments=1),
        step_of(3, 0, moments=2),
        step_of(4, 1, moments=3),
    ]
    source = Source(heard=heard_of(lines), first_step=0)
    start = heard_of([step_of(1, 0, moments=2, first=True)])
    assert align(start, [source], newest=1).step == 2


def test_without_moments_the_counter_decides_and_then_the_newest_save():
    lines = [step_of(i + 1, 0, moments=0, first=i == 0) for i in range(4)]
    for line in lines:
        line.moments = {}
    source = Source(heard=heard_of(lines), first_step=0)
    first = step_of(1, 0, moments=0, first=True)
    assert align(heard_of([first], counters=[("a trainer", 3)]), [source], newest=2).step == 3
    assert align(heard_of([first]), [source], newest=2).step == 2


def test_the_newest_checkpoint_with_weights_of_an_older_one_was_loaded_all_the_same():
    start = heard_of([step_of(1, 2, moments=4, first=True)])
    assert align(start, [straight()], newest=4) == Aligned(step=4, how="state")
    loaded = check_loaded(start, [straight()], Aligned(step=4, how="state"))
    assert loaded.first_difference.component == "model"
    # Moments that are of no step say nothing.
    start = heard_of([step_of(1, 2, moments=99, first=True)])
    assert align(start, [straight()], newest=4).step == 2


def test_a_counter_that_contradicts_the_state_is_told():
    start = heard_of([step_of(1, 4, first=True)], counters=[("a trainer", 3)])
    found = align(start, [straight()], newest=4)
    assert found.step == 4
    assert found.contradiction == "a trainer says step 3, and the state is that after step 4"


def test_a_state_that_nobody_had_is_placed_by_the_counter_or_the_save():
    changed = step_of(1, 99, first=True)
    assert align(heard_of([changed], counters=[("a trainer", 3)]), [straight()], newest=4) == Aligned(
        step=3, how="counter"
    )
    assert align(heard_of([changed]), [straight()], newest=4) == Aligned(step=4, how="save")
    assert align(heard_of([changed]), [straight()], newest=0) == Aligned(step=0, how="beginning")


def test_a_run_that_has_left_the_reference_is_held_against_itself():
    # After a first resume all its weights are others: what it loads next is what it has saved.
    other = Source(heard=heard_of([step_of(i + 1, 50 + i, first=i == 0) for i in range(4)]), first_step=2)
    start = heard_of([step_of(1, 52, first=True)])
    found = align(start, [other, straight()], newest=4)
    assert found == Aligned(step=4, how="state")
    assert check_loaded(start, [other, straight()], found).status == "equal"


def test_what_was_not_loaded_is_named():
    start = heard_of([step_of(1, 4, moments=0, first=True)])
    found = align(start, [straight()], newest=4)
    check = check_loaded(start, [straight()], found)
    assert (found.step, check.status) == (4, "different")
    assert check.first_difference.leaf == "optimizer.w.m"
    assert check.first_difference.component == "optimizer"
    assert (check.first_difference.expected, check.first_difference.got) == ("m4", "absent")


def test_a_loader_that_is_ahead_is_seen_at_the_first_step_of_the_reference():
    batches = [Batch(label="set", digest=str(i), drawn=frozenset()) for i in range(5)]
    first = HeardStep(number=1, losses=["a"], batches=batches[:2], iterators=[{}])
    assert used_batches(HeardStep(number=1, losses=["b"], batches=batches), [first]) == 2
    alone = HeardStep(number=1, losses=["a"], batches=batches[:1], iterators=[{}])
    assert used_batches(HeardStep(number=1, losses=["b", "c"], batches=batches), [alone]) == 2
    # An evaluation before the first step has a loader of its own.
    evaluated = HeardStep(number=1, losses=["a"], batches=batches, iterators=[{}, {}])
    later = HeardStep(number=2, losses=["a"], batches=batches[:1])
    assert used_batches(HeardStep(number=1, losses=["b"], batches=batches), [evaluated, later]) == 1
    # Two of one class side by side.
    both = HeardStep(number=1, losses=["a"], batches=batches[:2], iterators=[{}, {}])
    assert used_batches(HeardStep(number=1, losses=["b"], batches=batches), [both, both]) == 2


def test_moments_of_an_optimizer_that_is_not_stepped_yet_are_not_asked_for():
    # The second optimizer is stepped every third step.
    lines = [step_of(i + 1, i, first=i == 0) for i in range(6)]
    lines[2].updates.append(1)
    lines[2].moments_before = (lines[2].moments_before or {}) | {"optimizer.#1.v.m": "v0"}
    lines[2].moments |= {"optimizer.#1.v.m": "v1"}
    source = Source(heard=heard_of(lines), first_step=0)
    start = heard_of([step_of(1, 4, first=True), step_of(2, 5)])
    found = align(start, [source], newest=4)
    assert found.step == 4
    assert check_loaded(start, [source], found).status == "equal"
    # Once it is stepped, what it began with must be what the third step had left.
    later = start.ranks[0].steps[1]
    later.updates.append(1)
    later.moments_before = {"optimizer.#1.v.m": "v0"}
    assert check_loaded(start, [source], found).first_difference.leaf == "optimizer.#1.v.m"
    later.moments_before = {"optimizer.#1.v.m": "v1"}
    assert check_loaded(start, [source], found).status == "equal"


def test_a_first_step_that_the_loss_scaler_leaves_out_is_counted():
    skipped = HeardStep(number=1, updates=[0], skipped=True)
    start = heard_of([skipped, step_of(2, 4, first=True)])
    assert align(start, [straight()], newest=3).step == 3


def test_a_copy_of_the_model_decides_no_step():
    first = step_of(1, 4, first=True)
    first.before["model.copy of Net.w"] = "an average that was begun anew"
    assert align(heard_of([first]), [straight()], newest=4).step == 4


def saved(step: int, path: Path) -> SavedStep:
    return SavedStep(step=step, place=path, is_complete=True, sizes={}, files=(path,))


def test_the_newest_checkpoint_is_one_of_the_form_that_is_read():
    output = Path("/run/output")
    best = saved(5, output / "best.pt")
    there = [saved(2, output / "ckpt-2.pt"), saved(4, output / "ckpt-4.pt"), best]
    assert newest_of(there, [output / "ckpt-2.pt"], output).step == 4
    assert newest_of(there, [], output) is best
    assert newest_of([], [], output) is None


def test_a_file_is_called_what_renames_after_its_save_have_made_of_it():
    """``last.pt`` becomes ``last.bak``, is written anew, and ``last.bak`` is removed."""
    output = Path("/run/output")
    last, old = output / "last.pt", output / "last.bak"
    heard = heard_of([step_of(i + 1, i, first=i == 0) for i in range(4)])
    for step, renames in ((2, 0), (4, 1)):
        content = {"m": f"w{step}", "o": f"m{step}"}
        save = Save(path=last, how="torch.save", step=step, is_resumable=True, content=content, renames_before=renames)
        heard.ranks[0].saves.append(save)
    heard.ranks[0].renames, heard.ranks[0].renamed_at = [(last, old)], [4]
    assert [one.place for one in saved_steps(heard, first_step=0, output=output)] == [old, last]
    # The tensors in it are told by the name that they were saved under, which every start has given them.
    assert [committed_name(save, heard.ranks[0]) for save in heard.ranks[0].saves] == ["last.pt", "last.pt"]


def test_what_is_written_in_the_background_is_of_the_step_that_its_content_has():
    lines = [step_of(i + 1, i, first=i == 0) for i in range(6)]
    heard = heard_of(lines)
    written = Path("/run/output/ckpt.pt")
    content = {"m": "w3", "o": "m3", "e": "something else"}
    heard.ranks[0].saves.append(
        Save(path=written, how="torch.save", step=5, is_resumable=True, content=content, is_done=True, is_followed=True)
    )
    (found,) = saved_steps(heard, first_step=10, output=Path("/run/output"))
    assert (found.step, found.is_complete) == (13, True)


@pytest.mark.parametrize(
    ("content", "copies"), [({"m": "w3", "o": "m3"}, ["last.ckpt", "step-3.ckpt"]), ({"m": "w3"}, [])]
)
def test_files_of_one_content_are_copies_of_a_checkpoint(content, copies):
    lines = [step_of(i + 1, i, first=i == 0) for i in range(4)]
    heard = heard_of(lines)
    output = Path("/run/output")
    for name, holds in (("step-3.ckpt", {"m": "w3", "o": "m3"}), ("last.ckpt", content)):
        heard.ranks[0].saves.append(
            Save(path=output / name, how="torch.save", step=3, is_resumable=True, content=holds, is_done=True)
        )
    (found,) = saved_steps(heard, first_step=0, output=output)
    assert found.copies == tuple(output / name for name in copies)


def test_what_each_rank_saves_for_itself_is_no_copy_of_what_another_one_saves():
    heard = heard_of([step_of(1, 0, first=True)], [step_of(1, 0, first=True)])
    output = Path("/run/output")
    for rank in heard.ranks:
        path = output / f"rank-{rank.rank}.pt"
        rank.saves.append(
            Save(path=path, how="torch.save", step=1, is_resumable=True, content={"m": "w1", "o": "m1"}, is_done=True)
        )
    (found,) = saved_steps(heard, first_step=0, output=output)
    assert (len(found.files), found.copies) == (2, ())


def test_moments_of_an_optimizer_that_is_made_anew_begin_anew():
    """Cross validation: each fold has a model and an optimizer of its own, and a save may come at the end of one."""
    folds = [
        step_of(1, 0, first=True),
        step_of(2, 1),
        # The second fold begins as the first one did.
        step_of(3, 0, first=True),
        step_of(4, 1),
    ]
    for line in (folds[0], folds[2]):
        line.begun = [0]
    source = Source(heard=heard_of(folds), first_step=0)
    start = heard_of([step_of(1, 0, first=True), step_of(2, 1)])
    aligned = align(start, [source], newest=2)
    check = check_loaded(start, [source], aligned)
    assert aligned == Aligned(step=2, how="state")
    assert check is not None
    assert check.status == "equal"


def test_what_is_saved_at_the_end_of_a_fold_is_of_its_last_step():
    folds = [step_of(1, 0, first=True), step_of(2, 1), step_of(3, 10, moments=0, first=True)]
    folds[0].begun = folds[2].begun = [0]
    content = {"model.w": "w2", "moments": "m2"}
    save = Save(path=Path("cv.pt"), how="torch.save", step=2, is_resumable=True, content=content, is_done=True)
    source = heard_of(folds)
    source.ranks[0].saves.append(save)
    assert [one.step for one in saved_steps(source, first_step=0, output=Path())] == [2]
