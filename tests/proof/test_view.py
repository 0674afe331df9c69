"""What a person sees of a proof fits 80 columns, has a colour on a terminal only, and tells the step while a leg runs."""

import io
import json
from pathlib import Path

import pytest

from ckptrun.console import has_colour
from ckptrun.evidence.verdict import Status
from ckptrun.proof.leg_progress import leg_progress, newest_step
from ckptrun.proof.view import coloured, leg_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_leg_fits_80_columns_however_long_its_text() -> None:
    text = "resumed at step 20, 1 damaged skipped; sigkill on rank 3 at after_optimizer of step 31, as it was planned to be"
    lines = leg_line("resumed reference", text, 12.34).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("  12.3 s")
    assert " ".join(" ".join(lines).split()).replace(" 12.3 s", "") == f"resumed reference {text}"


@pytest.mark.parametrize(("status", "code"), [(Status.equal, 32), (Status.different, 31), (Status.not_verified, 33)])
def test_the_verdict_has_a_colour(status: Status, code: int) -> None:
    word = status.upper()
    assert coloured(f"verdict  {word}: x {word}", status) == f"verdict  \x1b[1;{code}m{word}\x1b[0m: x {word}"


def test_colour_is_for_terminals_whose_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not has_colour()
    monkeypatch.setattr("sys.stdout", Terminal())
    assert has_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour()


def test_the_step_of_a_running_leg_is_read_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.jsonl"
    assert newest_step(file) is None
    lines = [{"event": "start", "step": 0}, *({"event": "step", "step": step, "loss": 0.1} for step in range(1, 200))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    assert newest_step(file) == 199
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stdout", stream)
        with leg_progress("resumed_reference", tmp_path, steps=300):
            pass
        assert ("step 199 of 300" in stream.getvalue()) == is_shown
