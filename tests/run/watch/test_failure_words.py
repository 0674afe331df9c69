"""What is said of ranks that fail: the user's line of an assertion, gloo's own errors and no others, signals and logs."""

import json
import signal
import traceback
from pathlib import Path

import pytest
import torch.distributed as dist

from ckptrun.checks.whole_runs import check_second_resume
from ckptrun.evidence.starts import Failure, Start, read_failures
from ckptrun.evidence.verdict import Status
from ckptrun.launch.local import Outcome
from ckptrun.launch.silent_end import last_line, spoken_or_seen
from ckptrun.proof.failed import judge_failed
from ckptrun.run.watch.broken_connection import is_broken_connection, is_secondary
from ckptrun.run.watch.failure import record_once, report_once, words_of

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:24001"


def raised(error: BaseException, *, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def raised_by(file: Path, code: str) -> BaseException:
    """What ``code``, in ``file``, raises."""
    file.write_text(code)
    try:
        exec(compile(code, str(file), "exec"), {})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_assertion_without_words_is_told_with_the_innermost_line_of_the_user(tmp_path) -> None:
    code = "import json\ndef forward(x):\n    assert x > 3\ndef outer():\n    forward(1)\nouter()\n"
    assert (
        words_of(raised_by(tmp_path / "mine.py", code))
        == f"AssertionError, at {tmp_path}/mine.py:3 in forward: assert x > 3"
    )
    # The library's frame below it is passed over.
    code = "import json\ndef read():\n    return json.loads('{')\nread()\n"
    words = words_of(raised_by(tmp_path / "reads.py", code))
    assert words.startswith("JSONDecodeError: Expecting")
    assert words.endswith(f", at {tmp_path}/reads.py:3 in read: return json.loads('{{')")


def test_the_stack_of_a_loader_worker_is_read_from_its_message(tmp_path) -> None:
    stack = "".join(
        traceback.format_exception(raised_by(tmp_path / "data.py", "def item():\n    assert False\nitem()\n"))
    )
    error = AssertionError(f"Caught AssertionError in DataLoader worker process 0.\nOriginal Traceback:\n{stack}")
    assert words_of(error).endswith(f", at {tmp_path}/data.py:2 in item: assert False")


def test_an_error_that_passed_no_code_of_the_user_has_no_place() -> None:
    assert words_of(RuntimeError("stopped")) == "RuntimeError: stopped"


@pytest.mark.parametrize(
    ("error", "is_broken", "knows_less"),
    [
        (raised(RuntimeError(CLOSED)), True, True),
        (raised(RuntimeError("Gloo connectFullMesh failed with [/x.cc:1]")), True, True),
        (raised(dist.DistBackendError("NCCL timed out")), True, True),
        (raised(RuntimeError("gloomy: the loss of backend gloo is wrong")), False, False),
        (raised(RuntimeError("no backend but gloo is supported")), False, False),
        (raised(ValueError(CLOSED)), False, False),
        (raised(ValueError("step failed"), cause=RuntimeError(CLOSED)), False, True),
    ],
)  # fmt: skip
def test_only_gloo_s_own_errors_are_a_lost_connection(error, is_broken, knows_less) -> None:
    assert (is_broken_connection(error), is_secondary(error)) == (is_broken, knows_less)


def test_torch_distributed_is_believed_where_it_raised(tmp_path) -> None:
    code = "import torch.distributed as dist\nraise RuntimeError('backend gloo: too few')\n"
    assert not is_broken_connection(raised_by(tmp_path / "mine.py", code))
    with pytest.raises(RuntimeError) as inside:
        exec(compile(code, dist.distributed_c10d.__file__, "exec"), {})
    assert is_broken_connection(inside.value)


def test_a_user_s_error_that_names_gloo_keeps_its_stack(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    error = raised_by(tmp_path / "mine.py", "def check():\n    raise RuntimeError('needs gloo here')\ncheck()\n")
    report_once(
        error, rank=0, store=None, interrupted=False, run_dir=tmp_path, was_ended=False, about_to_speak=lambda: None
    )
    printed = capsys.readouterr().err
    assert "lost contact" not in printed
    assert 'mine.py", line 2, in check' in printed
    (failure,) = read_failures(tmp_path)
    assert (
        failure.text
        == f"RuntimeError: needs gloo here, at {tmp_path}/mine.py:2 in check: raise RuntimeError('needs gloo here')"
    )
    assert not failure.is_secondary
    assert json.loads((tmp_path / "events.jsonl").read_text())["secondary"] is False


LOG = "start_00002.rank_00001.log"


def test_a_signal_is_named_with_the_last_line_of_the_log(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / LOG).write_text("step 4\nFatal Python error: Segmentation fault\n\n")
    lost = Failure(rank=0, text="RuntimeError: closed by peer", is_secondary=True)
    outcome = Outcome(exit_code=1, killed={1: int(signal.SIGSEGV)})
    failure = spoken_or_seen([lost], outcome, run_dir=tmp_path, start=2)
    assert failure is not None
    assert failure.rank == 1
    assert failure.text == (
        "was ended by SIGSEGV (native code has touched memory that is not its own) without a word of its own; the last "
        f"line of its log: 'Fatal Python error: Segmentation fault' ({tmp_path / 'logs' / LOG})"
    )
    spoken = Failure(rank=0, text="ValueError: mine")
    assert spoken_or_seen([lost, spoken], outcome, run_dir=tmp_path, start=2) is spoken
    assert spoken_or_seen([], Outcome(exit_code=0), run_dir=tmp_path) is None
    assert spoken_or_seen([lost], Outcome(exit_code=0), run_dir=tmp_path) is lost


def test_a_signal_before_anything_was_printed_is_told_without_a_log(tmp_path) -> None:
    failure = spoken_or_seen([], Outcome(exit_code=1, killed={0: int(signal.SIGTERM)}), run_dir=tmp_path)
    assert failure is not None
    assert failure.text == "was ended by SIGTERM without a word of its own; it has left no log"


def test_what_the_launcher_has_seen_is_recorded_in_its_words(tmp_path) -> None:
    store = dist.HashStore()
    assert record_once("rank 1 stands still.", rank=1, store=store, run_dir=tmp_path) is True
    (failure,) = read_failures(tmp_path)
    assert (failure.rank, failure.text) == (1, "stands still.")


def test_an_exit_code_comes_with_what_was_printed_last(tmp_path) -> None:
    assert spoken_or_seen([], Outcome(exit_code=7), run_dir=tmp_path).text == "ended with exit code 7 without a word"
    log = tmp_path / "logs" / "start_00000.rank_00000.log"
    log.parent.mkdir()
    log.write_text("")
    assert last_line(log) is None
    log.write_text("x" * 300)
    text = spoken_or_seen([], Outcome(exit_code=7), run_dir=tmp_path).text
    assert text == f"ended with exit code 7 without a word; rank 0: the last line of its log: '{'x' * 200}...' ({log})"


def test_a_second_resume_that_could_not_go_on_is_not_equal() -> None:
    starts = [
        Start(index=0, committed=["a"]),
        Start(index=1, step=3, resumed_from="a", committed=["b"]),
        Start(index=2, step=4, resumed_from="b"),
    ]
    assert check_second_resume(starts, []).status is Status.equal
    starts[2].failure = Failure(rank=0, text="AssertionError", component="bug")
    check = check_second_resume(starts, [], failed=starts[2])
    assert (check.status, check.blame) == (Status.different, "bug")
    assert check.detail == "resumed again at step 4, and start 3 could not go on"


@pytest.mark.parametrize(("knows_less", "reason"), [(True, "x failed: SIGSEGV"), (False, "x failed: ValueError: mine")])
def test_a_job_that_does_not_run_is_told_by_who_knows_most(knows_less, reason) -> None:
    failure = Failure(rank=0, text="ValueError: mine", is_secondary=knows_less)
    assert judge_failed([Start(index=0, failure=failure)], "x", why="SIGSEGV").reason == reason
