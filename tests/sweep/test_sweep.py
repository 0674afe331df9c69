"""A sweep: many cells, one table, one summary, one exit code; as users type it, in processes of their own."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ckptrun.config.fault import FaultKind
from ckptrun.config.sweep import SweepNames
from ckptrun.errors import ConfigError
from ckptrun.files import append_line, write_json
from ckptrun.run.lock import RunLock
from ckptrun.sweep.cell import Cell, CellVerdict, LeftByStart, SaveFigures, cell_verdict, save_figures, sweep_exit_code
from ckptrun.sweep.junit import junit_xml
from ckptrun.sweep.sweep import put_cell
from tests.support.configs import config_of
from tests.support.jobs import TINY, events, start, stop, verdict, wait_for_event

MINE = f"{Path(__file__).parents[1] / 'jobs/user code/mine.py'}"
USER_CODE = ("model=custom", "model.loss=mse", "data=custom", f"data._target_='{MINE}:Pairs'", "train.micro_batch=4")
SHORT = ("train.steps=4", "checkpoint.interval_steps=2", "launch.nproc=2")


def sweep(folder, *overrides, launcher=(), cwd=None):
    """Run a sweep to its end; return the exit code, what it printed, its cells and its JUnit test cases."""
    where = {} if cwd is None else {"cwd": cwd}
    process = start(folder, *overrides, "-m", launcher=launcher, **where)
    output, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors or "the user's own mistake" in errors, errors
    return process.returncode, output + errors, *left_by(folder)


def left_by(folder):
    if not (folder / "summary.json").is_file():
        return [], []
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    return cells, ElementTree.parse(folder / "junit.xml").getroot().findall("testsuite/testcase")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A sweep of two cells, done; and the empty folder it was started in."""
    folder, cwd = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("cwd")
    return folder, cwd, sweep(folder, *TINY, *SHORT, "parallelism=ddp,fsdp", "checkpoint=async", cwd=cwd)


@pytest.mark.distributed
def test_a_sweep_leaves_a_folder_per_cell_a_summary_and_junit(two) -> None:
    folder, cwd, (code, printed, cells, cases) = two
    assert code == 0, printed
    assert [cell["path"] for cell in cells] == ["parallelism=ddp", "parallelism=fsdp"]
    for cell in cells:
        assert set(cell) == {"overrides", "verdict", "exit_code", "reason", "seconds", "save", "path", "identity"}
        assert (cell["verdict"], cell["exit_code"], cell["reason"]) == ("equal", 0, "")
        assert cell["path"] in cell["overrides"]
        assert "checkpoint=async" in cell["overrides"]
        assert 0 < cell["seconds"] < 60
        assert verdict(folder / cell["path"])["verdict"] == "equal"
        commits = [event for event in events(folder / cell["path"]) if event["event"] == "commit"]
        assert len(commits) == 2
        save = cell["save"]
        assert save["bytes"] == sum(commit["bytes"] for commit in commits) > 0
        assert save["background_seconds"] > 0
        seconds = save["blocked_seconds"] + save["background_seconds"]
        assert save["bytes_per_second"] == pytest.approx(save["bytes"] / seconds, rel=1e-3)
    assert [case.get("name") for case in cases] == ["parallelism=ddp", "parallelism=fsdp"]
    assert [list(case) for case in cases] == [[], []]
    suite = ElementTree.parse(folder / "junit.xml").getroot().find("testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2", "failures": "0", "errors": "0", "skipped": "0",
    }  # fmt: skip
    whole = json.loads((folder / "summary.json").read_text())
    assert (whole["is_finished"], whole["exit_code"]) == (True, 0)
    assert whole["command"][-1] == "--multirun"
    assert "All 2 cells are equal." in (folder / "report.html").read_text()
    assert list(cwd.iterdir()) == []


@pytest.mark.distributed
def test_a_sweep_says_how_each_cell_ended_and_ends_with_a_table(two) -> None:
    _, _, (_, printed, _, _) = two
    lines = printed.splitlines()
    for number, name in ((1, "parallelism=ddp"), (2, "parallelism=fsdp")):
        assert f"cell {number}: {name}" in lines
        assert any(line.startswith(f"cell {number}: {name}: EQUAL in ") for line in lines)
    table = [line.split() for line in lines[-5:-2]]
    assert table[0] == ["cell", "verdict", "seconds", "reason"]
    assert [row[:2] for row in table[1:]] == [["parallelism=ddp", "equal"], ["parallelism=fsdp", "equal"]]


@pytest.mark.slow
@pytest.mark.distributed
def test_an_old_verdict_is_not_taken_for_that_of_a_cell_that_was_not_proved(two) -> None:
    """The sweep run again resumes complete runs; told to prove nothing, it must not find the verdicts of before."""
    folder, *_ = two
    code, printed, cells, cases = sweep(
        folder, *TINY, *SHORT, "parallelism=ddp,fsdp", "checkpoint=async", "proof.reload=none"
    )
    assert code == 0, printed
    for name in ("parallelism=ddp", "parallelism=fsdp"):
        assert "The run is complete" in (folder / "logs" / f"{name}.log").read_text()
    assert [(cell["verdict"], cell["save"]["bytes"] > 0) for cell in cells] == [("done", True)] * 2
    assert verdict(folder / "parallelism=ddp")["verdict"] == "equal"
    assert [list(case) for case in cases] == [[], []]


@pytest.mark.distributed
def test_a_cell_that_fails_does_not_stop_the_others_and_one_without_sense_is_skipped(tmp_path) -> None:
    code, printed, cells, cases = sweep(
        tmp_path, *USER_CODE, *SHORT, f"model._target_='{MINE}:FailsOnRank1','{MINE}:Net'", "parallelism=ddp,none",
        f"components.memory._target_='{MINE}:Forgetful'",
    )  # fmt: skip
    assert code == 3, printed
    assert [cell["verdict"] for cell in cells] == ["failed", "skipped", "different", "skipped"]
    assert [cell["exit_code"] for cell in cells] == [1, 2, 3, 2]
    failed, skipped, different = cells[:3]
    assert "(blame: memory)" in different["reason"]
    assert failed["reason"].startswith("exit code 1: ValueError: the user's own mistake, at ")
    assert "user code/mine.py:" in failed["reason"]
    assert failed["save"] is None
    assert (tmp_path / failed["path"] / "events.jsonl").is_file()
    assert "launch.nproc=2 makes no sense with parallelism=none" in skipped["reason"]
    assert skipped["path"] is None
    assert len({case.get("name") for case in cases}) == 4
    assert [[child.tag for child in case] for case in cases] == [["error"], ["skipped"], ["failure"], ["skipped"]]
    assert cases[2].find("failure").get("message").startswith("different: ")
    assert "Forgetful" in cases[2].find("failure").text
    assert cases[1].find("skipped").get("message") == skipped["reason"]
    assert "the user's own mistake" in cases[0].find("error").get("message")


@pytest.mark.slow
@pytest.mark.distributed
def test_under_torchrun_all_ranks_run_the_same_cells_in_the_same_folders(tmp_path) -> None:
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "-m")
    code, printed, cells, cases = sweep(
        tmp_path, *TINY, "train.steps=2", "parallelism=ddp,tp,none", launcher=launcher
    )  # fmt: skip
    assert code == 0, printed
    assert [(cell["path"], cell["verdict"]) for cell in cells] == [
        ("parallelism=ddp", "equal"), ("parallelism=tp", "equal"), (None, "skipped"),
    ]  # fmt: skip
    assert "2 were started" in cells[2]["reason"]
    assert len(cases) == 3
    for cell in cells[:2]:
        assert len(list((tmp_path / cell["path"] / "ledger").iterdir())) == 2
        assert printed.count(f"{cell['path']}: EQUAL") == 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.crash
def test_ctrl_c_ends_the_sweep_and_the_summary_holds_what_was_done(tmp_path) -> None:
    process = start(
        tmp_path, *TINY, "parallelism=none", "train.steps=0,100000,99999", "checkpoint.interval_steps=1",
        "launch.cells_in_parallel=1", "-m",
    )  # fmt: skip
    try:
        wait_for_event(tmp_path / "train.steps=100000", "commit", 2)
    finally:
        output, errors = stop(process, signal.SIGINT)
    assert process.returncode == 1, errors
    assert "ckptrun: interrupted. What is missing" in errors, errors
    assert "was interrupted" in output
    assert "Traceback" not in errors
    cells, cases = left_by(tmp_path)
    assert [(cell["verdict"], cell["reason"]) for cell in cells[1:]] == [("failed", "was interrupted")]
    assert cells[0]["verdict"] == "skipped"
    assert cells[1]["save"]["bytes"] > 0
    assert [[child.tag for child in case] for case in cases] == [["skipped"], ["error"]]
    report = (tmp_path / "report.html").read_text()
    assert "none: it has not ended, or was ended" in report
    assert "1 further cell never began." in report
    assert "Steps of each rank" in report
    assert_nothing_is_left(process.pid)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parallelism=ddp,fsd"], ["parallelism=fsd", "did you mean fsdp?"]),
        (["train.stepz=1,2"], ["train.stepz"]),
        (["train.steps=1,many"], ["train.steps", "many"]),
        (["run.name=a,b"], ["run.name", "cannot be swept over"]),
    ],
)
def test_what_cannot_be_composed_is_wrong_for_the_whole_sweep(overrides, words, tmp_path) -> None:
    process = start(tmp_path / "new/sweep", "parallelism=none", *overrides, "-m")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    for word in words:
        assert word in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("summary.json"))


def test_two_sweeps_do_not_share_a_folder_at_a_time(tmp_path) -> None:
    lock = RunLock(tmp_path)
    code, printed, cells, _ = sweep(tmp_path, *TINY, "train.steps=1,2")
    lock.close()
    assert (code, cells) == (2, [])
    assert str(os.getpid()) in printed


E, D, N, O, F, S = (CellVerdict(name) for name in ("equal", "different", "not_verified", "done", "failed", "skipped"))  # noqa: E741


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([E, E], 0), ([E, S], 0), ([E, O], 0), ([S, S], 2), ([E, N], 4), ([N, F], 1), ([F, E, S], 1), ([F, N, D, E, S], 3),
    ],
)  # fmt: skip
def test_the_worst_cell_decides_the_exit_code(found, code) -> None:
    for order in itertools.permutations(found):
        assert sweep_exit_code(order) == code


@pytest.mark.parametrize(
    ("code", "found", "expected"),
    [
        (0, {"verdict": "equal", "reason": "", "blame": None}, "equal"),
        (3, {"verdict": "different", "reason": "x: y", "blame": "rng"}, "different"),
        (4, {"verdict": "not_verified", "reason": "z", "blame": None}, "not_verified"),
        (0, None, "done"), (3, None, "different"), (4, None, "not_verified"), (1, None, "failed"), (2, None, "failed"),
        (1, {"verdict": "equal", "reason": "", "blame": None}, "failed"), (137, None, "failed"),
    ],
)  # fmt: skip
def test_a_verdict_counts_unless_the_run_failed(code, found, expected, tmp_path) -> None:
    left = LeftByStart(tmp_path)
    if found is not None:
        write_json(tmp_path / "verdict.json", found)
    assert cell_verdict(code, left)[0] == expected


def test_only_what_this_start_has_left_counts(tmp_path) -> None:
    for count in range(2):
        left = LeftByStart(tmp_path)
        assert cell_verdict(0, left) == ("done", "")
        assert cell_verdict(1, left) == ("failed", "exit code 1: it stands in the output of the sweep")
        append_line(tmp_path / "events.jsonl", {"event": "failure", "rank": 0, "text": f"no {count}"})
        assert cell_verdict(1, left) == ("failed", f"exit code 1: no {count}")
        write_json(tmp_path / "verdict.json", {"verdict": "not_verified", "reason": "nothing fired"})
        assert cell_verdict(4, left) == ("not_verified", "nothing fired")
        assert cell_verdict(2, left) == ("failed", "exit code 2: nothing fired")


def test_figures_of_saves_survive_a_line_that_a_kill_has_cut(tmp_path) -> None:
    commit = {"event": "commit", "step": 1, "blocked_seconds": 0.5, "background_seconds": 1.5, "bytes": 100}
    cut = '{"event": "st{"event": "start", "step": 0}'
    (tmp_path / "events.jsonl").write_text("\n".join([json.dumps(commit), cut, json.dumps(commit)]) + "\n")
    assert save_figures(tmp_path) == SaveFigures(blocked_seconds=1.0, background_seconds=3.0, bytes=200)
    assert save_figures(tmp_path).bytes_per_second == 50.0
    (tmp_path / "events.jsonl").write_text(cut)
    assert save_figures(tmp_path) is None
    # Of a command only the step is known.
    (tmp_path / "events.jsonl").write_text('{"event": "commit", "folder": "last.pt", "step": 2}\n')
    assert save_figures(tmp_path) is None


def test_cells_are_named_by_what_they_differ_in_whatever_that_is() -> None:
    names = SweepNames(["-m", "model=mlp", "train.steps=5", "checkpoint.interval_steps=2,3", "run.name=x"])
    assert names.folder == "outputs/default/x"
    rest = ["model=mlp", "train.steps=5", "run.name=x"]
    assert names.cell([*rest, "checkpoint.interval_steps=2"]) == "checkpoint.interval_steps=2"
    assert names.cell([*rest, "checkpoint.interval_steps=3"]) == "checkpoint.interval_steps=3"
    assert names.cell(rest) == "cell"


def test_cells_that_look_alike_in_a_name_get_different_ones() -> None:
    names = SweepNames(["model._target_='a/b.py:N','a_b.py:N'", f"data.files=[{'x' * 90}a],[{'x' * 90}b]"])
    cells = [
        names.cell([f"model._target_='{target}'", f"data.files=[{'x' * 90}{end}]"])
        for target in ("a/b.py:N", "a_b.py:N")
        for end in "ab"
    ]
    assert len(set(cells)) == 4
    assert not [name for name in cells if "/" in name or len(name) > 100]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["--multirun", "parallelism=ddp,fsdp"], "outputs/default/parallelism=ddp,fsdp"),
        (["parallelism=ddp,fsdp", "optimizer=sgd", "-m"], "outputs/default/optimizer=sgd,parallelism=ddp,fsdp"),
        (["model.width=8,16", "train.steps=5", "hydra.verbose=true"], "outputs/default/model.width=8,16"),
        (["train.steps=5,6", "checkpoint.keep_last=2"], "outputs/default/train.steps=5,6"),
        (["+experiment=smoke", "train.seed=range(3)", "run.name='n'"], "outputs/smoke/n"),
        (["run.dir='/a b/c'", "train.seed=1,2"], "/a b/c"),
        ([], "outputs/default/default"),
    ],
)
def test_a_sweep_is_named_by_the_command_line(arguments, folder) -> None:
    names = SweepNames(arguments)
    names.check()
    assert names.folder == folder


def test_a_cell_has_its_own_place_for_checkpoints_too() -> None:
    config = config_of("checkpoint.path=s3://bucket/runs/")
    put_cell(config, Path("outputs/x"), "train.seed=1", under_torchrun=False)
    assert config.run.dir == "outputs/x/train.seed=1"
    assert config.checkpoint.path == "s3://bucket/runs/train.seed=1"


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind is not FaultKind.none])
def test_a_fault_is_no_cell_under_torchrun(kind) -> None:
    config = config_of()
    config.fault.kind = kind
    put_cell(config, Path("x"), "cell", under_torchrun=False)
    with pytest.raises(ConfigError, match=f"fault={kind}"):
        put_cell(config, Path("x"), "cell", under_torchrun=True)


def test_junit_holds_any_text() -> None:
    reason = "a \x00 \x1b[31m <&\"'> \ud800 é\nsecond line"
    cell = Cell(name="n=<1>", overrides=("n=<1>",), verdict=CellVerdict.not_verified, exit_code=4, reason=reason)
    root = ElementTree.fromstring(junit_xml("<sweep>", [cell]).encode())
    failure = root.find("testsuite/testcase/failure")
    assert failure.get("type") == "not_verified"
    assert failure.get("message") == "not_verified: a ? ?[31m <&\"'> ? é"
    assert failure.text.startswith("a ? ?[31m <&\"'> ? é\nsecond line")
    assert root.find("testsuite").get("failures") == "1"


# What the schema that CI systems read JUnit by allows (junit-10.xsd of Jenkins' xUnit plugin), in words of our own: the
# attributes that must be there, those that may be, and the children.
JUNIT = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "skipped": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "failure": (set(), {"type", "message"}, set()),
}


def test_junit_is_what_ci_systems_allow() -> None:
    """Of every verdict: elements, attributes and their places, times as digits, and counts that are those of the cases."""
    cells = [
        Cell(name=f"n={n}", overrides=(f"n={n}",), verdict=verdict, exit_code=None, reason="why", seconds=1234.5678)
        for n, verdict in enumerate(CellVerdict)
    ]
    root = ElementTree.fromstring(junit_xml("s", cells).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        needed, allowed, children = JUNIT[element.tag]
        assert needed <= set(element.attrib) <= needed | allowed, element.tag
        assert {child.tag for child in element} <= children, element.tag
        assert re.fullmatch(r"\d+\.\d{3}", element.get("time", "0.000")), element.get("time")
        assert children or not list(element)
    (suite,) = root
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"), ("tests", "testcase")):
        assert int(suite.get(attribute)) == len(list(root.iter(tag)))


def in_session(pid):
    """Processes of the session that ``pid`` leads."""
    found = subprocess.run(["pgrep", "-s", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


def assert_nothing_is_left(pid):
    until = time.monotonic() + 30
    while in_session(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not in_session(pid)


@pytest.mark.distributed
def test_what_came_to_its_end_with_the_same_config_and_files_is_not_run_again(tmp_path) -> None:
    model = tmp_path / "my_net.py"
    model.write_text(Path(MINE).read_text())
    overrides = (
        *USER_CODE, "train.steps=2", "launch.nproc=2", "parallelism=ddp", f"model._target_='{model}:Net','{MINE}:FailsOnRank1'",
        "train.seed=1,2", "proof.reload=none", "launch.cells_in_parallel=2",
    )  # fmt: skip
    folder = tmp_path / "sweep"
    code, printed, first, _ = sweep(folder, *overrides)
    assert code == 1, printed
    assert sorted(cell["verdict"] for cell in first) == ["done", "done", "failed", "failed"]

    def run_again(*more: str) -> tuple[set[str], int]:
        code, printed, cells, cases = sweep(folder, *overrides, *more)
        assert len(cells) == len(cases) == 4
        assert [cell["verdict"] for cell in cells].count("done") == 2, printed
        begun = {
            line.partition(": ")[2]
            for line in printed.splitlines()
            if line.startswith("cell ") and line.count(": ") == 1
        }
        return begun, code

    failed = {cell["path"] for cell in first if cell["verdict"] == "failed"}
    assert run_again("sweep.resume=true") == (failed, 1)
    # Another content of the user's own file is another cell.
    model.write_text(model.read_text() + "\n# changed\n")
    assert run_again("sweep.only=failed") == (failed, 1)
    assert run_again("sweep.resume=true") == ({cell["path"] for cell in first}, 1)


@pytest.mark.distributed
@pytest.mark.crash
def test_a_cell_that_takes_too_long_and_one_that_is_killed_from_outside_take_no_other_with_them(tmp_path) -> None:
    process = start(
        tmp_path, *TINY, "parallelism=none", "train.steps=100000,99999,4,4", "checkpoint.interval_steps=1", "proof.reload=none",
        "launch.cells_in_parallel=3", "sweep.cell_seconds=60", "-m",
    )  # fmt: skip
    wait_for_event(tmp_path / "train.steps=99999", "commit", 2)
    leaders = [pid for pid in in_session(process.pid) if os.getpgid(pid) == pid != process.pid]
    victim = next(pid for pid in leaders if "train.steps=99999" in str(Path(f"/proc/{pid}/fd/1").readlink()))
    os.kill(victim, signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output + errors
    cells, _ = left_by(tmp_path)
    late, killed, done, again = cells
    assert (again["verdict"], again["reason"]) == ("skipped", "It is the same as cell 3.")
    assert (late["verdict"], killed["verdict"], done["verdict"]) == ("failed", "failed", "done")
    assert late["reason"].startswith("took longer than sweep.cell_seconds=60; the last that it said: ")
    assert killed["reason"].startswith("the process of the cell ended by SIGKILL before it was done")
    assert_nothing_is_left(process.pid)
