"""Which of several failing ranks speaks, what it prints and what it leaves on record. The clock is made of numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ckptrun.errors import ConfigError, SaveRefusedError
from ckptrun.evidence.starts import Failure, read_failures
from ckptrun.run.watch import failure
from ckptrun.run.watch.failure import has_spoken, record_once, report_once, say_once, speak_once

LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer\nmore")
MINE = ValueError("the loss is wrong")


class Clock:
    """Time that passes only where somebody waits; what happens meanwhile is planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.planned: list[tuple[float, Any]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.planned and self.planned[0][0] <= self.now:
            self.planned.pop(0)[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(failure, "time", clock)
    return clock


class Rank:
    """One that fails."""

    def __init__(self, rank: int, folder: Path, store: Any) -> None:
        self.rank, self.folder, self.store = rank, folder, store
        self.about = 0

    def fail(self, error: BaseException, *, interrupted: bool = False, was_ended: bool = False) -> None:
        report_once(
            error,
            rank=self.rank,
            store=self.store,
            interrupted=interrupted,
            run_dir=self.folder,
            was_ended=was_ended,
            about_to_speak=self._about,
        )

    def _about(self) -> None:
        self.about += 1

    @property
    def said(self) -> list[Failure]:
        return read_failures(self.folder)


@pytest.fixture
def two(tmp_path: Path, clock: Clock) -> tuple[Rank, Rank]:
    store = dist.HashStore()
    return Rank(0, tmp_path, store), Rank(1, tmp_path, store)


def test_the_first_rank_speaks_and_the_others_are_silent(two, clock, capsys) -> None:
    assert not has_spoken(two[0].store)
    two[1].fail(MINE)
    two[0].fail(KeyError("later"))
    assert has_spoken(two[0].store)
    assert [(one.rank, one.text.partition(",")[0]) for one in two[0].said] == [(1, "ValueError: the loss is wrong")]
    printed = capsys.readouterr().err
    assert "ckptrun: rank 1 failed:\n" in printed
    assert "KeyError" not in printed
    # Whoever has a word of its own waits for nobody.
    assert (clock.now, two[0].about, two[1].about) == (0.0, 1, 1)


def test_whoever_only_lost_contact_waits_for_the_word_of_the_other(two, clock, capsys) -> None:
    clock.planned = [(1.0, lambda: two[1].fail(MINE))]
    two[0].fail(LOST)
    assert [one.rank for one in two[0].said] == [1]
    assert "lost contact" not in capsys.readouterr().err
    assert 1.0 <= clock.now < 1.2
    # It may be ended from outside: it has nothing to say.
    assert two[0].about == 0


def test_a_connection_that_nobody_has_a_better_word_for_is_told_after_a_while(two, clock, capsys) -> None:
    two[0].fail(LOST)
    assert clock.now == pytest.approx(3.0, abs=0.1)
    (said,) = two[0].said
    assert (said.rank, said.is_secondary, two[0].about) == (0, True, 1)
    printed = capsys.readouterr().err
    assert printed.startswith("ckptrun: rank 0 lost contact with another rank")
    # gloo's own first line, and no stack.
    assert printed.endswith("Connection closed by peer\n")


@pytest.mark.parametrize(("error", "speaks"), [(LOST, False), (MINE, True)])
def test_a_rank_that_the_launcher_has_ended_says_nothing_of_broken_connections(error, speaks, two, clock) -> None:
    two[0].fail(error, was_ended=True)
    assert (bool(two[0].said), has_spoken(two[0].store)) == (speaks, speaks)
    assert clock.now == 0.0


class Gone:
    """The store of a host that is dead."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("connection reset")

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        raise RuntimeError("connection reset")


@pytest.mark.parametrize("error", [LOST, MINE])
def test_where_the_store_is_gone_somebody_must_speak(error, tmp_path, clock) -> None:
    rank = Rank(1, tmp_path, Gone())
    rank.fail(error)
    assert (len(rank.said), clock.now) == (1, 0.0)
    # Whoever may end it meanwhile is told once.
    assert rank.about == 1


@pytest.mark.parametrize(("rank", "waited"), [(0, 0.0), (1, 3.0)])
def test_without_a_store_rank_0_speaks_first(rank, waited, tmp_path, clock) -> None:
    failing = Rank(rank, tmp_path, None)
    failing.fail(MINE)
    assert (len(failing.said), failing.about, clock.now) == (1, 1, waited)


def test_an_own_error_is_told_without_a_stack_and_with_all_that_it_knows(two, capsys) -> None:
    error = SaveRefusedError("'w' changed while it was saved.", folder="x", leaves=("model.w", "model.b"))
    error.add_note("at step 4")
    two[1].fail(error)
    (said,) = two[0].said
    assert (said.check, said.component, list(said.leaves)) == ("saved_equals_live", "model", ["model.w", "model.b"])
    assert said.text.endswith("(at step 4)")
    assert capsys.readouterr().err == "ckptrun: 'w' changed while it was saved.\n"


@pytest.mark.parametrize(("error", "interrupted"), [(KeyboardInterrupt(), False), (MINE, True)])
def test_an_interrupt_is_no_failure_of_the_code(error, interrupted, two, capsys) -> None:
    two[0].fail(error, interrupted=interrupted)
    printed = capsys.readouterr().err
    assert printed.startswith("ckptrun: interrupted. Run the same command again")
    assert "Traceback" not in printed
    assert len(two[0].said) == 1


def test_a_folder_that_cannot_be_written_silences_nobody(tmp_path, clock, capsys) -> None:
    Rank(0, tmp_path / "nowhere", dist.HashStore()).fail(MINE)
    assert "the loss is wrong" in capsys.readouterr().err


def test_a_watchdog_speaks_in_its_own_words_once(two, tmp_path, capsys) -> None:
    speak_once("rank 1 hangs.", rank=1, store=two[0].store, run_dir=tmp_path)
    speak_once("rank 0 hangs.", rank=0, store=two[0].store, run_dir=tmp_path)
    two[0].fail(MINE)
    assert [(one.rank, one.text) for one in two[0].said] == [(1, "hangs.")]
    assert capsys.readouterr().err == "ckptrun: rank 1 hangs.\n"


def test_what_the_launcher_has_seen_counts_only_where_no_rank_has_spoken(two, tmp_path, capsys) -> None:
    two[0].fail(MINE)
    assert not record_once("rank 1 stands still.", rank=1, store=two[0].store, run_dir=tmp_path)
    assert [one.rank for one in two[0].said] == [0]


def test_after_the_launcher_no_rank_speaks(two, tmp_path, capsys) -> None:
    assert record_once("rank 1 stands still.", rank=1, store=two[0].store, run_dir=tmp_path)
    two[1].fail(MINE)
    assert [json.loads(line)["text"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [
        "stands still."
    ]
    # It prints nothing itself: the proof or the run tells it.
    assert capsys.readouterr().err == ""


def test_a_mistake_that_every_rank_finds_is_printed_once(clock, monkeypatch, capsys) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(failure, "launcher_store", lambda: store)
    say_once(ConfigError("no such key"), rank=1)
    assert clock.now == 0.0
    say_once(ConfigError("no such key"), rank=0)
    assert capsys.readouterr().err == "ckptrun: no such key\n"
    # A launcher ends all ranks when the first one ends.
    assert clock.now == 3.0
