"""A job that is listened to computes, and saves, bit for bit what it does alone."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.listened import listen, write_plan
from tests.trainers.cases import CASES, Case

# What has the time of day, or where it runs, in it.
NOT_COMPARED = {"training_args.bin"}
SAVED = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".distcp", ".pkl"}
ALONE = ("transformers_noise", "lightning_dropout", "accelerate_shuffle", "ddp", "fsdp2", "gan")


def digests_in(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SAVED and path.name not in NOT_COMPARED]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.name in ALONE])
def test_a_job_does_not_notice_who_listens(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = [part.replace("{run}", str(output)) for part in case.command]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    alone = digests_in(output)
    # In the same place: some save where they are.
    shutil.rmtree(output)
    ended = listen(write_plan(tmp_path, output=output), *command)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert digests_in(output) == alone
    assert len(alone) >= 1
    assert any((tmp_path / "records").iterdir())
