"""What a verdict says did not occur, from made-up facts."""

from dataclasses import replace
from typing import Any

import pytest

from ckptrun.checks.not_exercised import Occurred, not_exercised
from ckptrun.config.fault import FaultKind
from ckptrun.evidence.starts import Start
from ckptrun.fault import Fired
from tests.support.configs import config_of

RESUMED = (
    Start(index=0, hash_seed="32"),
    Start(index=1, step=4, resumed_from="a", hash_seed="45", fresh=True),
    Start(index=2, step=6, resumed_from="b", hash_seed="32"),
)


def occurred(*overrides: str, **facts: Any) -> Occurred:
    """A run of 12 steps, resumed at 4 and 6, in which everything occurs that can."""
    config = config_of("fault=sigkill", "train.steps=12", *overrides)
    every = {
        "lines": [line(step) for step in range(1, 13)],
        "starts": RESUMED,
        "fired": [Fired(index=0, rank=0, kind=FaultKind.sigkill, point="writing", step=4)],
        "removed": 1,
        "at_resume": {"scaler.scale": 65536.0},
        "at_end": {**data(samples=8, epoch=2, length=20), "scaler.scale": 65536.0},
    }
    own = {
        "steps": config.train.steps,
        "precision": config.precision,
        "keep_last": config.checkpoint.keep_last,
        "has_controls": config.proof.controls != [],
    }
    return Occurred(**{**own, **every, **facts})


def line(step: int, *, rate: float | None = None, norm: float = 1.0, skipped: bool = False) -> dict[str, Any]:
    rate = step / 100 if rate is None else rate
    return {"step": step, "learning_rate": rate.hex(), "gradient_norm": norm.hex(), "skipped": skipped}


def data(*, samples: int, epoch: int, length: int) -> dict[str, Any]:
    return {"data.length": length, "data.epoch": epoch, "data.samples": samples, "progress.step": 12}


def said(*overrides: str, **facts: Any) -> list[str]:
    return not_exercised(occurred(*overrides, **facts))


def test_nothing_is_said_where_everything_occurred() -> None:
    assert said("checkpoint.keep_last=2") == []


@pytest.mark.parametrize(
    ("at_end", "begins"),
    [
        (data(samples=12, epoch=0, length=64), "epoch end: an epoch has 64 samples, and 12 were taken"),
        # The epoch ended with the run: nothing came after it.
        (data(samples=0, epoch=1, length=48), "epoch end: "),
        # The one that ended did so before the resume at step 4, after 20 of 60 samples.
        (data(samples=43, epoch=1, length=17), None),
        (data(samples=20, epoch=1, length=40), None),
        ({"data.kind": "iterable", "data.samples": 48, "data.ranks.rank_00000.epoch": 0}, "epoch end: 48 samples"),
        ({}, None),
    ],
)
def test_epoch_ends_are_counted_from_what_was_taken(at_end, begins) -> None:
    found = [text for text in said(at_end=at_end) if "epoch" in text]
    assert len(found) == (begins is not None)
    assert all(text.startswith(begins) for text in found)


def test_an_epoch_end_before_the_resume_is_none_after_it() -> None:
    # 5 samples a step: the epoch of 18 ends in step 4, the next one would in step 8.
    short = {"data.length": 18, "data.epoch": 1, "data.samples": 17, "progress.step": 7}
    assert said(at_end=short)[0].startswith("epoch end after a resume: none after step 4")


def test_a_rate_that_does_not_change_is_said() -> None:
    constant = [line(step, rate=0.001) for step in range(1, 13)]
    assert said(lines=constant) == ["schedule change: the learning rate was 0.001 at every step"]
    warmed = [line(step, rate=min(step, 3) / 100) for step in range(1, 13)]
    assert said(lines=warmed) == ["schedule change after a resume: none after step 4"]


def test_a_loss_scale_that_does_not_change_is_said_in_fp16_only() -> None:
    assert said("precision=fp32") == []
    assert said("precision=fp16") == [
        "scaler backoff: no step overflowed",
        "scaler growth: none in 12 steps (precision.growth_interval=2000)",
    ]
    # Halved at step 2 and doubled back before the resume.
    early = [line(step, skipped=step == 2) for step in range(1, 13)]
    assert said("precision=fp16", lines=early) == [
        "scaler backoff after a resume: none after step 4",
        "scaler growth after a resume: none after step 4",
    ]
    late = [line(step, skipped=step in (2, 9)) for step in range(1, 13)]
    assert said("precision=fp16", lines=late) == []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"starts": RESUMED[:2]}, "second restart: the run was resumed once"),
        ({"starts": RESUMED[:1]}, "restart: the run was never resumed"),
        (
            {"starts": (*RESUMED[:2], Start(index=2, step=12, resumed_from="b"))},
            "steps after a second restart: it loaded the end (step 12) and took none",
        ),
        (
            {"starts": [replace(start, hash_seed="0") for start in RESUMED]},
            "another hash seed: PYTHONHASHSEED=0 was set for every start",
        ),
        ({"starts": [replace(start, fresh=False) for start in RESUMED]}, "steps after a resume in another interpreter"),
        ({"fired": ()}, "a kill: every start ended by itself"),
        (
            {"fired": [Fired(index=0, rank=0, kind=FaultKind.sigkill, point="after_optimizer", step=5)]},
            "a failure during a save: after_optimizer only",
        ),
        (
            {"lines": [line(step, norm=float(step < 6)) for step in range(1, 13)]},
            "gradients: all were 0 from step 6 on",
        ),
    ],
)
def test_what_a_short_proof_has_not_is_said(facts, sentence) -> None:
    assert sentence in said(**facts)


def test_checkpoints_that_were_all_kept_and_controls_switched_off_are_said() -> None:
    assert said("checkpoint.keep_last=9", removed=0) == ["removal of old checkpoints: checkpoint.keep_last=9 kept all"]
    assert said("proof.controls=none")[0].startswith("controls: ")
