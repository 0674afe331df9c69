"""What a report reads of folders: done, half done, cut, of earlier versions, and of things that are none."""

import json

import pytest

from ckptrun.errors import ConfigError
from ckptrun.evidence.difference import Difference
from ckptrun.files import write_json
from ckptrun.report.axes import matrix_of
from ckptrun.report.causes import causes_of, difference_rows
from ckptrun.report.changes import changes_of
from ckptrun.report.history import costs_of, read_history
from ckptrun.report.run_facts import read_run, typed
from ckptrun.report.state import State, sentence_of
from ckptrun.report.sweep_facts import read_sweep, single
from ckptrun.report.uncovered import uncovered_of
from ckptrun.report.write import write_report
from tests.report.folders import LOST, make_proof, make_sweep, verdict_with

GRID = [{"parallelism": kind, "checkpoint": mode} for kind in ("none", "ddp", "fsdp") for mode in ("sync", "async")]


def test_a_proof_is_read_whole(tmp_path) -> None:
    run = read_run(make_proof(tmp_path / "p", verdict_with(LOST)))
    assert (run.kind, run.state, run.exit_code, run.seconds, run.unread) == ("proof", State.different, 3, 7.5, [])
    kinds = [event["event"] for event in run.events]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "launch": 2, "start": 2, "step": 13, "commit": 4, "check": 1, "end": 1,
    }  # fmt: skip
    assert run.first == LOST
    assert run.deciding == "loaded_equals_saved"
    assert run.versions == {"ckptrun": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}
    assert run.command == "ckptrun fault=sigkill"


def test_the_history_has_every_step_save_kill_and_loss(tmp_path) -> None:
    run = read_run(make_proof(tmp_path / "p", verdict_with(), ranks=2))
    history = read_history(run)
    lanes = {(lane.rank, lane.start): (lane.first, lane.last) for lane in history.lanes}
    assert lanes == {(0, 0): (1, 5), (0, 1): (5, 12), (1, 0): (1, 5), (1, 1): (5, 12)}
    assert [(s.start, s.step, s.noted_after) for s in history.saves] == [(0, 4, 5), (1, 4, 5), (1, 8, 9), (1, 12, 12)]
    assert [(strike.start, strike.rank, strike.step) for strike in history.strikes] == [(0, 1, 6)]
    assert history.resumes == [(0, 0), (1, 4)]
    points = {line.label: [step for step, _ in line.points] for line in history.losses}
    assert points == {
        "reference": list(range(1, 13)),
        "start 1": list(range(1, 6)),
        "start 2": list(range(5, 13)),
    }
    # Step 5 was done twice, and took a quarter of a second the first time.
    costs = costs_of(run)
    assert (costs.lost_steps, costs.lost_seconds, costs.saves, costs.bytes) == (1, 0.25, 4, 4000)
    assert costs.blocked_seconds == pytest.approx(0.14)


def test_losses_that_are_no_number_are_counted_and_not_drawn(tmp_path) -> None:
    folder = make_proof(tmp_path / "p", verdict_with())
    with (folder / "ledger/rank_00000.jsonl").open("a") as file:
        file.write('{"step": 13, "start": 1, "loss": "nan"}\n{"step": 14, "start": 1, "loss": "inf"}\n')
    history = read_history(read_run(folder))
    assert history.infinite == 2
    assert max(step for line in history.losses for step, _ in line.points) == 12


def test_a_proof_without_a_verdict_is_not_finished_whatever_its_events_say(tmp_path) -> None:
    run = read_run(make_proof(tmp_path / "p", None))
    assert (run.state, run.verdict, run.exit_code) == (State.unfinished, None, None)
    assert "did not come to a verdict" in run.reason
    assert [one.kind for one in uncovered_of([single(run)], None)] == ["not read"]


@pytest.mark.parametrize(
    ("event", "state"),
    [
        ({"event": "end"}, State.done),
        ({"event": "failure", "rank": 0, "text": "no memory"}, State.failed),
        ({"event": "preempted"}, State.unfinished),
        ({"event": "step", "step": 3}, State.unfinished),
    ],
)
def test_a_run_without_a_verdict_is_what_its_last_event_says(event, state, tmp_path) -> None:
    (tmp_path / "events.jsonl").write_text(
        json.dumps({"event": "launch", "start": 0}) + "\n" + json.dumps(event) + "\n"
    )
    run = read_run(tmp_path)
    assert run.state is state
    assert run.reason == ("no memory" if state is State.failed else run.reason)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"verdict": "equal"}', '{"verdict": "perhaps", "checks": []}', "\x00"]
)
@pytest.mark.parametrize("name", ["verdict.json", "proof.json", "environment.json", "faults/00000.rank_00000.json"])
def test_a_file_that_cannot_be_read_is_told_and_stops_nothing(name, content, tmp_path) -> None:
    folder = make_proof(tmp_path / "p", verdict_with(LOST))
    (folder / name).write_text(content)
    run = read_run(folder)
    told = " ".join(one.text for one in uncovered_of([single(run)], None))
    if name == "verdict.json":
        assert "verdict.json" in told
        assert run.state is not State.equal
    assert write_report(folder).stat().st_size > 1000


def test_lines_that_a_kill_has_cut_are_left_out(tmp_path) -> None:
    folder = make_proof(tmp_path / "p", None)
    for file in ("events.jsonl", "ledger/rank_00000.jsonl", "ledger/rank_00001.jsonl"):
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes(raw[:-9] + b"\n17\n[]\n\xff\n")
    assert {lane.last for lane in read_history(read_run(folder)).lanes} == {5, 11}
    assert "Not finished" in write_report(folder).read_text()


def test_a_sweep_knows_what_never_began_and_what_it_does_not_know(tmp_path) -> None:
    folder = make_sweep(tmp_path / "s", [(values, verdict_with()) for values in GRID[:3]], is_finished=False)
    task = ["parallelism=none,ddp,fsdp", "checkpoint=sync,async"]
    write_json(folder / "multirun.yaml", {"hydra": {"overrides": {"task": task}}})
    make_proof(folder / "by_hand", verdict_with())
    sweep = read_sweep(folder)
    assert [set(one) for one in sweep.missing] == [{f"{k}={v}" for k, v in values.items()} for values in GRID[3:]]
    assert (sweep.strangers, sweep.is_finished, sweep.exit_code) == (["by_hand"], False, None)
    told = {one.kind: one.text for one in uncovered_of(sweep.cells, sweep) if not one.cells}
    assert told["not run"].startswith("3 cells of the command line never began: parallelism=ddp checkpoint=async")
    assert told["not read"].startswith("by_hand/ holds a run")
    (folder / "summary.json").unlink()
    assert len(read_sweep(folder).missing) == 6


def test_cells_are_put_together_by_cause_and_not_by_cell(tmp_path) -> None:
    other_leaf = Difference.from_json({**LOST.as_json(), "leaf": "optimizer.state.layers.7.bias.exp_avg", "step": 9})
    rng = Difference(step=4, rank=0, component="rng", leaf="rng.torch_cpu")
    verdicts = [verdict_with(), verdict_with(LOST), verdict_with(rng), verdict_with(other_leaf), verdict_with(LOST)]
    sweep = read_sweep(make_sweep(tmp_path / "s", [*zip(GRID, verdicts, strict=False), (GRID[5], "makes no sense")]))
    causes = causes_of(sweep.cells)
    found = [(cause.state.value, cause.title, [cell.number for cell in cause.cells]) for cause in causes]
    assert found == [
        ("different", "the optimizer did not come back as it was saved", [2, 4, 5]),
        ("different", "the rng did not come back as it was saved", [3]),
        ("skipped", "makes no sense", [6]),
    ]
    assert causes[0].command == "python -m ckptrun parallelism=none checkpoint=async"
    assert (causes[0].blame, causes[0].first) == ("optimizer", LOST)
    assert [(row.name, row.text) for row in difference_rows(LOST)] == [
        ("first at", "step 6, rank 1"),
        ("leaf", "optimizer.state.layers.0.weight.exp_avg"),
        ("element", "[3, 1]"),
        ("expected", "-0.010136098   bits 0xbc2611e0"),
        ("got", "0.0   bits 0x00000000"),
        ("apart", "1,009,127,904 ULP"),
    ]


def test_each_cause_of_crash_states_has_the_script_that_shows_it(tmp_path) -> None:
    folder = make_proof(tmp_path / "p", verdict_with(LOST))
    content = json.loads((folder / "verdict.json").read_text())
    groups = [("different", "other loss", 2), ("failed", "EOFError: ", 1), ("equal", "fine", 5)]
    content["crash_states"] = [{"came_to": c, "text": t, "states": n, "left_by": []} for c, t, n in groups]
    write_json(folder / "verdict.json", content)
    (folder / "repro/02").mkdir(parents=True)
    (folder / "repro/02/reproduce.sh").touch()
    first, second = causes_of([single(read_run(folder))])
    assert (first.state, first.command) == (State.different, "ckptrun fault=sigkill")
    assert (second.state, second.command) == (State.failed, str(folder / "repro/02/reproduce.sh"))
    assert second.title == "1 state that a crash within a save can leave: a resume fails: EOFError"


def test_axes_are_the_overrides_that_differ_few_and_short_values_side_by_side(tmp_path) -> None:
    values = [
        {"model": "mlp", "steps": str(steps), "mode": mode, "own._target_": target}
        for steps in range(9)
        for mode in ("sync", "async")
        for target in ("package.module.First", "package.module.Other")
    ]
    matrix = matrix_of(read_sweep(make_sweep(tmp_path / "s", [(v, "no") for v in values])).cells)
    assert (matrix.row_keys, matrix.column_keys) == (["steps"], ["mode", "own._target_"])
    assert matrix.shared == {"model": "mlp"}
    assert matrix.shown["own._target_"]["package.module.First"] == "First"
    assert matrix.spans(0) == [("sync", 2), ("async", 2)]
    assert [row for (row,) in matrix.rows] == [str(steps) for steps in range(9)]
    assert sorted(cell.number for cells in matrix.places.values() for cell in cells) == list(range(1, 37))


def test_what_changed_since_an_older_sweep(tmp_path) -> None:
    before = read_sweep(
        make_sweep(tmp_path / "a", [(GRID[0], verdict_with(LOST)), (GRID[1], verdict_with()), (GRID[2], "no")])
    )
    now = read_sweep(
        make_sweep(
            tmp_path / "b", [(GRID[0], verdict_with()), (GRID[1], verdict_with(LOST)), (GRID[3], verdict_with())]
        )
    )
    now.cells[1].save = {"blocked_seconds": 1.5}
    lines = [(line.kind, line.text) for line in changes_of(now.cells, before.cells, older="a").lines]
    assert lines == [
        ("worse", "parallelism=none,checkpoint=async: different, was equal"),
        ("gone", "parallelism=ddp checkpoint=sync: was skipped"),
        ("new cell", "parallelism=ddp,checkpoint=async: equal"),
        ("better", "parallelism=none,checkpoint=sync: equal, was different"),
        ("slower", "parallelism=none,checkpoint=async: training waited 1.500 s for saves, was 0.060 s"),
    ]


@pytest.mark.parametrize(
    ("states", "worst", "sentence"),
    [
        ([], "", "No cell was run."),
        ([State.equal], "", "The only cell is equal."),
        ([State.different] * 2, "it leaked", "All 2 cells are different: it leaked."),
        ([State.equal] * 47 + [State.different], "it leaked", "47 of 48 cells are equal; 1 is different: it leaked."),
        ([State.skipped, State.equal, State.failed], "no", "1 of 3 cells is equal; 1 is skipped, 1 is failed: no."),
        ([State.done, State.failed], "no", "1 of 2 cells is done; 1 is failed: no."),
    ],
)
def test_one_sentence_says_what_came_out(states, worst, sentence) -> None:
    assert sentence_of(states, worst=worst) == sentence


def test_a_command_line_is_told_as_it_is_typed_again() -> None:
    assert typed(["/a/b/ckptrun/__main__.py", "x=[1, 2]"]) == "python -m ckptrun 'x=[1, 2]'"
    assert typed(["/usr/bin/ckptrun", "x=1"]) == "ckptrun x=1"
    assert typed([]) == ""


def test_of_something_else_there_is_no_report(tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no sweep, proof or run"):
        write_report(tmp_path)
    make_proof(tmp_path / "p", verdict_with())
    sweep = make_sweep(tmp_path / "s", [(GRID[0], verdict_with())])
    with pytest.raises(ConfigError, match="that is no sweep"):
        write_report(sweep, against=tmp_path / "p")
    with pytest.raises(ConfigError, match="compares sweeps"):
        write_report(tmp_path / "p", against=sweep)
    assert list(tmp_path.glob("*/report.html")) == []


def replaced(content, number, value):
    """``content`` with the node of that number replaced."""
    nodes = [(None, None)]
    waiting = [content]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            nodes.append((node, key))
            waiting.append(node[key])
    node, key = nodes[number % len(nodes)]
    if node is None:
        return value
    node[key] = value
    return content


OFTEN = (None, "text", [None], 10**30)
SELDOM = (-1, 2.5, [], {"x": 1}, True, "\ud800\x00\x1b[31m")


@pytest.mark.parametrize("value", [*OFTEN, *(pytest.param(value, marks=pytest.mark.slow) for value in SELDOM)])
def test_values_of_other_types_are_told_or_left_out_and_stop_nothing(value, tmp_path) -> None:
    """At each place of each file of a sweep, one at a time: of a file by hand, or of another version."""
    cells = [(GRID[0], verdict_with(LOST)), (GRID[1], verdict_with()), (GRID[2], "makes no sense")]
    folder = make_sweep(tmp_path / "s", cells)
    proof = folder / "parallelism=none,checkpoint=sync"
    names = ["verdict.json", "proof.json", "environment.json", "faults/00000.rank_00001.json"]
    lines = ["events.jsonl", "ledger/rank_00000.jsonl"]
    for file in [folder / "summary.json", *(proof / name for name in names + lines)]:
        before = file.read_text()
        for number in range(0, 60, 1 if file.name in ("verdict.json", "summary.json") else 3):
            if file.suffix == ".json":
                file.write_text(json.dumps(replaced(json.loads(before), number, value)))
            else:
                texts = before.splitlines()
                at = number % len(texts)
                texts[at] = json.dumps(replaced(json.loads(texts[at]), number, value))
                file.write_text("\n".join(texts) + "\n")
            sweep = read_sweep(folder)
            causes_of(sweep.cells)
            uncovered_of(sweep.cells, sweep)
            matrix_of(sweep.cells)
            if number % 15 == 0:
                write_report(folder)
                write_report(proof)
        file.write_text(before)


def test_colours_of_a_terminal_are_not_shown_as_signs(tmp_path) -> None:
    folder = make_proof(tmp_path / "p", verdict_with(), log="\x1b[1;31mred\x1b[0m and \x07 a bell\n")
    text = write_report(folder).read_text()
    assert "red and \ufffd a bell" in text
