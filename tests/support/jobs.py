"""Runs whole jobs the way users do, and reads what they leave without the help of the package.

``run_here`` launches real ranks through the package's own launcher from this process, so that its fork server is shared by
all tests; ``start`` is a command line of its own, to be interrupted or killed.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ckptrun.carry_out import carry_out
from ckptrun.errors import CkptrunError
from ckptrun.exit_codes import exit_code_of
from tests.support.configs import config_of
from tests.support.fork_server import Printed

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.context=16",
    "train.micro_batch=2",
    "data.max_bytes=20000",
)


class Done(int):
    """The exit code of a job, with what its ranks and then its launcher printed."""

    output: str
    errors: str

    def __repr__(self) -> str:
        return f"exit code {int(self)}: {self.errors[-3000:]}"


def run_here(folder: Path, *overrides: str) -> Done:
    """Run one job in ``folder``."""
    printed = Printed()
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            # The folder is put in afterwards: what is composed for one start serves for the next.
            config = config_of("run.dir=here", "run.name=test", *overrides)
            config.run.dir = str(folder)
            code = carry_out(config, command=["ckptrun", *overrides])
        except CkptrunError as error:
            # What app.py does with it.
            errors.write(f"ckptrun: {error}\n")
            code = exit_code_of(error)
    done = Done(code)
    of_ranks = printed.read()
    done.output, done.errors = of_ranks[0] + output.getvalue(), of_ranks[1] + errors.getvalue()
    return done


def start(folder: Path, *overrides: str, launcher: tuple[str, ...] = (), cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start ``[torchrun] -m ckptrun`` as a process group of its own."""
    command = [sys.executable, "-m", *launcher, "ckptrun", f"run.dir='{folder}'", "run.name=test", *overrides]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answers(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def wait_for_event(folder: Path, kind: str, step: int, timeout_s: float = 60) -> None:
    """Return once the run in ``folder`` has written an event of ``kind`` for ``step`` or later."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if any(event["event"] == kind and event["step"] >= step for event in events(folder)):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {kind} event of step {step} within {timeout_s} s; events: {events(folder)[-3:]}")


def stop(process: subprocess.Popen[str], signal_number: int = signal.SIGKILL) -> tuple[str, str]:
    """Send a signal to the whole process group; return what it printed."""
    os.killpg(process.pid, signal_number)
    return process.communicate(timeout=60)


def events(folder: Path) -> list[dict[str, Any]]:
    """What ``events.jsonl`` holds so far; a last line that is cut is left out."""
    path = folder / "events.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def trajectory(folder: Path) -> dict[int, tuple[str, str, str]]:
    """Step -> bits of loss, gradient norm and learning rate; a step that was done twice must have repeated itself."""
    found: dict[int, tuple[str, str, str]] = {}
    for event in events(folder):
        if event["event"] == "step":
            bits = (event["loss_bits"], event["gradient_norm_bits"], event["learning_rate_bits"])
            assert found.setdefault(event["step"], bits) == bits, f"step {event['step']} did not repeat itself"
    return found


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """Leaf name, chunk and file -> bytes, read with safetensors alone."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # not a dict
                tensor = shard.get_tensor(name)
                found[f"{file.name}:{name}"] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert found, f"{checkpoint} holds no tensor"
    return found


def values(checkpoint: Path) -> dict[str, Any]:
    """Leaf name -> plain value, read from the manifest's JSON alone."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    return {leaf["name"]: leaf["value"] for leaf in manifest["manifest"]["leaves"] if "value" in leaf}


def assert_resumes_exactly(folder: Path, *overrides: str, steps: int = 6, interval_steps: int = 3) -> Path:
    """Run a job whole, and again from its own first checkpoint in another folder; every bit must repeat.

    Returns the folder of the uninterrupted run.
    """
    whole, resumed = folder / "whole", folder / "resumed"
    every = (f"train.steps={steps}", f"checkpoint.interval_steps={interval_steps}", *overrides)
    assert run_here(whole, *every) == 0
    first, last = f"checkpoints/step_{interval_steps:08d}", f"checkpoints/step_{steps:08d}"
    shutil.copytree(whole / first, resumed / first)
    assert run_here(resumed, *every) == 0
    expected = {step: bits for step, bits in trajectory(whole).items() if step > interval_steps}
    assert trajectory(resumed) == expected
    assert len(expected) == steps - interval_steps
    assert_same_state(whole / last, resumed / last)
    for run in (whole, resumed):
        assert verdict(run)["verdict"] == "equal"
    return whole


def verdict(folder: Path) -> dict[str, Any]:
    """What ``verdict.json`` holds."""
    return json.loads((folder / "verdict.json").read_text())


def assert_same_state(one: Path, other: Path) -> None:
    """Compare two checkpoints bit by bit with a reader that knows nothing of ckptrun."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []
    assert values(one) == values(other)


def processes_of(folder) -> list[str]:
    """Processes that were started for ``folder``: by their command line, or, as ranks and workers, by what they have open."""
    named = subprocess.run(["pgrep", "-f", f"run.dir='?{folder}"], capture_output=True, text=True, check=False)
    return [
        *named.stdout.split(),
        *(path.parts[2] for path in Path("/proc").glob("[0-9]*/fd/*") if _is_in(path, folder)),
    ]


def _is_in(descriptor: Path, folder) -> bool:
    try:
        return str(descriptor.readlink()).startswith(str(folder))
    except OSError:
        return False
