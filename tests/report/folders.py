"""Folders of runs, proofs and sweeps, made by the writers of the package, so that there can be five hundred of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.verdict import Check, Status, Verdict, write_verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.files import append_line, write_json
from ckptrun.sweep.cell import Cell, CellVerdict, SaveFigures
from ckptrun.sweep.record import SweepRecord

__all__ = ["LOST", "make_proof", "make_sweep", "verdict_with"]

LOST = Difference(
    step=6,
    rank=1,
    component="optimizer",
    leaf="optimizer.state.layers.0.weight.exp_avg",
    index=[3, 1],
    expected="-0.010136098",
    got="0.0",
    ulp=1009127904,
    details={"expected_bits": "0xbc2611e0", "got_bits": "0x00000000"},
)
ADVICE = "Moments or options were not taken, were cast, or went to another parameter."
STEPS, KILLED, SAVES = 12, 6, (4, 8, 12)


def verdict_with(first: Difference | None = None, **more: Any) -> Verdict:
    """One that is equal, or different by what a load did not give back."""
    is_equal = first is None
    loaded = Check(
        name="loaded_equals_saved",
        status=Status.equal if is_equal else Status.different,
        detail="12 leaves on 2 ranks" if is_equal else f"step 4: '{first.leaf}' came back with other bits",
        first_difference=first,
        covered={"leaves": 12, "ranks": 2},
    )
    other = Check(name="trajectory", status=Status.equal, detail="12 steps on 2 ranks repeat the reference")
    return Verdict(
        status=loaded.status,
        checks=[loaded, other],
        first_difference=first,
        blame=None if is_equal else first.component,
        reason="" if is_equal else f"loaded_equals_saved: {loaded.detail}",
        advice="" if is_equal else ADVICE,
        **{"not_exercised": ("epoch end: an epoch has 64 samples, and 24 were taken",), **more},
    )


def make_proof(folder: Path, verdict: Verdict | None, *, ranks: int = 2, log: str = "a last line\n") -> Path:
    """Make what a proof leaves that was killed at step 6 of 12 and resumed from step 4; without a verdict, so far."""
    folder.mkdir(parents=True)
    write_json(folder / "proof.json", {"ckptrun": "0.1.0", "command": ["ckptrun", "fault=sigkill"]})
    write_json(folder / "environment.json", {"python": "3.11.7", "torch": "2.13.0", "command": ["ckptrun", "x"]})
    events = folder / "events.jsonl"
    for start, (first, last) in enumerate([(0, KILLED - 1), (4, STEPS)]):
        append_line(events, {"event": "launch", "start": start})
        append_line(events, {"event": "start", "step": first, "world_size": ranks, "resumed_from": None})
        for step in range(first + 1, last + 1):
            append_line(events, {"event": "step", "step": step, "loss": 1 / step, "seconds": 0.25})
            # A commit is seen a step after it was asked for.
            for saved in (save for save in SAVES if save == step - 1 or save == step == STEPS):
                save = {"blocked_seconds": 0.02 * (start + 1), "background_seconds": 0.5, "bytes": 1000}
                append_line(events, {"event": "commit", "step": saved, "folder": f"x/step_{saved:08d}", **save})
    append_line(events, {"event": "check", **verdict_with().checks[0].as_json()})
    append_line(events, {"event": "end", "step": STEPS})
    for place in (folder, folder / "proof/reference"):
        (place / "ledger").mkdir(parents=True)
        for rank in range(ranks):
            spans = [(0, 0, STEPS)] if place != folder else [(0, 0, KILLED - 1), (1, 4, STEPS)]
            for start, first, last in spans:
                for step in range(first + 1, last + 1):
                    line = {"step": step, "start": start, "loss": (1 / step).hex()}
                    append_line(place / "ledger" / f"rank_{rank:05d}.jsonl", line)
    (folder / "faults").mkdir()
    write_json(folder / "faults/00000.rank_00001.json", {"kind": "sigkill", "point": "after_optimizer", "step": KILLED})
    (folder / "logs").mkdir()
    (folder / "logs/start_00001.rank_00001.log").write_text(log)
    if verdict is not None:
        more = {"exit_code": verdict.exit_code, "seconds": 7.5, "legs": [{"name": "run", "start": 0, "seconds": 3.1}]}
        write_verdict(verdict, folder, faults=["sigkill at after_optimizer of step 6 on rank 1"], **more)
    return folder


def make_sweep(
    folder: Path, cells: Sequence[tuple[Mapping[str, str], Verdict | str]], *, is_finished: bool = True
) -> Path:
    """Make what a sweep leaves, of cells with these overrides, each with a verdict, or else a reason to be skipped."""
    folder.mkdir(parents=True)
    record = SweepRecord(folder, command=["ckptrun", "x=1,2", "-m"], is_silent=True)
    for place, (values, verdict) in enumerate(cells):
        overrides = tuple(f"{key}={value}" for key, value in values.items())
        name = ",".join(overrides).replace("/", "_")
        if isinstance(verdict, str):
            code = ExitCode.config
            skipped = Cell(name=name, overrides=overrides, verdict=CellVerdict.skipped, exit_code=code, reason=verdict)
            record.put(place, skipped)
            continue
        make_proof(folder / name, verdict)
        record.begin(place, name, overrides, identity="")
        figures = SaveFigures(blocked_seconds=0.06, background_seconds=1.5, bytes=3000)
        kind = CellVerdict(verdict.status.value)
        reason = f"{verdict.reason} (blame: {verdict.blame})" if verdict.blame else verdict.reason
        record.end(place, seconds=7.5, exit_code=verdict.exit_code, verdict=kind, reason=reason, save=figures)
    made: list[Cell] = record.cells
    code = 3 if any(cell.verdict is CellVerdict.different for cell in made) else 0
    whole = {"ckptrun": "0.1.0", "command": ["ckptrun", "x=1,2", "-m"], "is_finished": is_finished, "seconds": 15.0}
    write_json(
        folder / "summary.json",
        {**whole, "exit_code": code if is_finished else None, "cells": [cell.as_json() for cell in made]},
    )
    return folder
