"""What all crash states of a save cost: Hugging Face Trainer on two ranks, beside one ordinary resume of it."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = Path(__file__).resolve().parents[1] / "examples" / "jobs" / "hf_trainer.py"


def main() -> None:
    """Print the states, the resumes, and their time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(JOB), "--output_dir"]
        resume = shlex.join([*command, "{run}", "--resume"])
        prove = [
            sys.executable,
            "-m",
            "ckptrun",
            "prove",
            "crash=save",
            f"run.dir={folder}/proof",
            f"job.resume={resume}",
        ]
        began = time.perf_counter()
        subprocess.run([*prove, "--", *command, "{run}"], env=environment, stdout=subprocess.DEVNULL, check=False)
        all_seconds = time.perf_counter() - began
        verdict = json.loads(Path(folder, "proof", "verdict.json").read_text())
        check = next(check for check in verdict["checks"] if check["name"] == "crash_states")
        subprocess.run([*command, f"{folder}/plain"], env=environment, capture_output=True, check=True)
        began = time.perf_counter()
        subprocess.run([*command, f"{folder}/plain", "--resume"], env=environment, capture_output=True, check=True)
        one = time.perf_counter() - began
    states, resumes = check["covered"]["states"], check["covered"]["resumes"]
    print(f"states {states}  resumes {resumes}  all {all_seconds:.0f} s  one ordinary resume {one:.1f} s")
    print(f"per state {all_seconds / states:.2f} s, {all_seconds / states / one:.2f} of an ordinary resume")


if __name__ == "__main__":
    main()
