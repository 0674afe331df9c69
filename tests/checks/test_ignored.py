"""Leaves that are meant to differ are left out of every comparison, by name, and it is said of which."""

from pathlib import Path

import pytest

from ckptrun.checks.checkpoints import compare_checkpoints
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.saved import check_saved
from ckptrun.config.proof import ProofConfig
from ckptrun.errors import ConfigError
from ckptrun.evidence.verdict import Status
from tests.support.bits import flip
from tests.support.configs import config_of
from tests.support.saves import FILE, live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

TIMER = ("components.timer._target_=tests.jobs.timer:Timer", "components.host._target_=tests.jobs.timer:Timer")


@pytest.mark.parametrize("given", ["timer", "timer.*", "components.timer", "components.timer.*", "timer.elapsed"])
def test_a_component_is_named_with_or_without_its_group(given: str) -> None:
    ignored = Ignored(ProofConfig(ignore=[given]).ignore)
    assert ignored.covers("timer.elapsed")
    assert ignored.counts("timers.elapsed")
    assert ignored.counts("model.timer.elapsed")
    assert ignored.kept({"timer.elapsed": "a", "model.weight": "b"}) == {"model.weight": "b"}


def test_two_patterns_exempt_their_own() -> None:
    ignored = Ignored(["timer.*", "host.name"])
    leaves = ["timer.elapsed", "timer.began", "host.name", "host.port", "model.weight"]
    assert [leaf for leaf in leaves if ignored.counts(leaf)] == ["host.port", "model.weight"]
    assert ignored.sentences(leaves) == [
        "timer.began, timer.elapsed: exempt from every comparison by proof.ignore=timer.*",
        "host.name: exempt from every comparison by proof.ignore=host.name",
    ]


def test_a_random_stream_is_exempt_with_its_leaves() -> None:
    ignored = Ignored(["rng.ranks.*.python.*", "rng.ranks.rank_00001.torch_cpu"])
    assert not ignored.counts_stream("python", rank=0)
    assert ignored.counts_stream("torch_cpu", rank=0)
    assert not ignored.counts_stream("torch_cpu", rank=1)


def test_what_matches_nothing_is_an_error_that_shows_what_there_is() -> None:
    leaves = ["timer.elapsed", "model.weight"]
    Ignored(["timer.el*"]).check_matched(leaves)
    with pytest.raises(ConfigError, match=r"timer\.elapsd matches no leaf.*timer\.elapsed"):
        Ignored(["timer.elapsd"]).check_matched(leaves)


def test_all_of_what_decides_the_next_step_cannot_be_exempt() -> None:
    leaves = ["model.a", "model.b", "timer.elapsed"]
    Ignored(["model.a", "timer.*"]).check_some_left(leaves, needed=["model", "ema"])
    with pytest.raises(ConfigError, match="all 2 leaves of 'model'"):
        Ignored(["model.a", "model.?"]).check_some_left(leaves, needed=["model"])


@pytest.mark.parametrize(
    ("ignore", "word"),
    [
        ("['*']", "names no component"),
        ("['*.elapsed']", "names no component"),
        ("[tmer.*]", "names no component"),
        ("[ema.*]", "names no component"),
        ("[model.*]", "exempts all of 'model'"),
        ("[rng]", "exempts all of 'rng'"),
        ("['optimizer.*.*']", "exempts all of 'optimizer'"),
        ("['']", "empty pattern"),
    ],
)
def test_a_pattern_says_its_component_and_leaves_something(ignore: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config_of("model=mlp", "data=random", f"proof.ignore={ignore}", *TIMER)


def test_what_is_exempt_is_no_control() -> None:
    with pytest.raises(ConfigError, match=r"proof\.controls names 'timer'"):
        config_of(
            "model=mlp", "data=random", "proof.ignore=[timer.*]", "fault=sigkill", "proof.controls=[timer]", *TIMER
        )
    found = config_of("model=mlp", "data=random", "proof.ignore=[components.timer.*,host]", *TIMER)
    assert found.proof.ignore == ["timer.*", "host"]


def test_ends_are_compared_without_what_is_exempt(tmp_path: Path) -> None:
    other = live_state(2)
    other["memory"]["last"] = other["memory"]["last"] + 1
    ends = [save(tmp_path / "one", 2, live_state(2)), save(tmp_path / "other", 2, other)]
    assert compare_checkpoints(*ends, step=2).status is Status.different
    check = compare_checkpoints(*ends, step=2, counts=Ignored(["memory.*"]).counts)
    assert check.status is Status.equal
    assert check.covered["leaves"] == compare_checkpoints(ends[0], ends[0], step=2).covered["leaves"] - 1


def test_files_of_what_is_exempt_may_hold_something_else_and_must_be_whole(tmp_path: Path) -> None:
    seen = live_state(2)
    seen["memory"]["last"] = seen["memory"]["last"] + 1
    folder = save(tmp_path, 2, live_state(2), live=seen)
    counts = Ignored(["memory.*"]).counts
    assert check_saved([folder], damaged={}).status is Status.different
    assert check_saved([folder], damaged={}, counts=counts).status is Status.equal
    flip(folder / FILE)
    assert check_saved([folder], damaged={}, counts=counts).status is Status.different
