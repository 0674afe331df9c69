"""Crash states of a small script, judged by ``crash=save`` and, where it is installed, by ckpt-chaos."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("in_place", "synced", "pointer")


def main() -> None:
    """Print what each comes to, and in which time."""
    for way in WAYS:
        job = [sys.executable, str(ROOT / "tests" / "crash" / "job.py"), "--how", way, "--output_dir"]
        with tempfile.TemporaryDirectory() as folder:
            proof = Path(folder, "proof")
            prove = [sys.executable, "-m", "ckptrun", "prove", "crash=save", "crash.power_cut=false"]
            _, seconds = _timed([*prove, f"run.dir={proof}", "--", *job, "{run}"])
            verdict = json.loads((proof / "verdict.json").read_text())
            came = {kind["came_to"]: kind["states"] for kind in verdict["crash_states"]}
            _print(way, "ckptrun", came, seconds)
            if find_spec("ckpt_chaos") is None:
                print(f"{way:<10} ckpt-chaos  is not installed")
                continue
            chaos = [sys.executable, "-m", "ckpt_chaos", "run", "--work", f"{folder}/work", "--max-points", "1000"]
            text, seconds = _timed([*chaos, "--", *job, "{out}"])
            said = re.findall(r"([A-Z_]{4,}): (\d+)", (text.strip().splitlines() or [""])[-1])
            if not said:
                sys.exit(f"ckpt-chaos has judged nothing: {text}")
            _print(way, "ckpt-chaos", {name: int(number) for name, number in said}, seconds)


def _timed(command: Sequence[str]) -> tuple[str, float]:
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr, time.perf_counter() - began


def _print(way: str, tool: str, came: dict[str, int], seconds: float) -> None:
    states = sum(came.values())
    said = ", ".join(f"{number} {name}" for name, number in came.items())
    print(
        f"{way:<10} {tool:<11} {states:4} states  {seconds:6.1f} s  {seconds / max(states, 1):5.2f} s a state  {said}"
    )


if __name__ == "__main__":
    main()
