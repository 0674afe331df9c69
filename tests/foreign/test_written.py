"""What a job writes besides parameters, moments and buffers, told by hand-made digests."""

from pathlib import Path

from ckptrun.foreign.records import HeardRank, HeardStep, Save
from ckptrun.foreign.written import blame_of, not_repeated, written_by

CONTENT = {"model.w": "w2", "optimizer.0.m": "m2", "ema.w": "e2", "started": "t"}


def rank_of(content: dict[str, str], *, is_resumable: bool = True) -> HeardRank:
    steps = [
        HeardStep(
            number=i + 1,
            updates=[0],
            before={"model.w": f"w{i}"},
            after={"model.w": f"w{i + 1}"},
            moments={"optimizer.w.m": f"m{i + 1}"},
        )
        for i in range(3)
    ]
    save = Save(
        path=Path("/run/part.7"), how="torch.save", step=2, is_resumable=is_resumable, content=content, is_done=True
    )
    renames = [(Path("/run/part.7"), Path("/run/ckpt-2.pt"))]
    return HeardRank(rank=0, ranks=1, steps=steps, saves=[save], renames=renames, renamed_at=[2])


def test_all_tensors_have_a_name_by_where_they_are_in_which_file():
    leaves = written_by(rank_of(CONTENT), first_step=0)[2]
    assert leaves["written.ema.w in ckpt-#.pt"] == "e2"
    assert set(leaves) == {f"written.{key} in ckpt-#.pt" for key in CONTENT}


def test_what_is_written_in_the_background_must_say_which_step_it_is_of():
    known, unknown = rank_of(CONTENT), rank_of({"ema.w": "e2"})
    for rank in (known, unknown):
        rank.saves[0].in_background = True
    assert list(written_by(known, first_step=0)) == [2]
    assert written_by(unknown, first_step=0) == {}


def test_steps_are_those_of_all_starts():
    assert list(written_by(rank_of(CONTENT), first_step=4)) == [6]


def test_what_is_not_the_same_twice_is_told():
    other = written_by(rank_of(CONTENT | {"started": "later"}), first_step=0)
    assert not_repeated(written_by(rank_of(CONTENT), first_step=0), other) == {"written.started in ckpt-#.pt"}


def test_blame_is_what_the_job_calls_it():
    assert blame_of("written.ema.w in ckpt-#.pt") == "ema"
    assert blame_of("written.teacher in ckpt-#.pt") == "teacher"
    (leaf,) = written_by(rank_of({"w": "e"}, is_resumable=False), first_step=0)[2]
    assert blame_of(leaf) == "model"
