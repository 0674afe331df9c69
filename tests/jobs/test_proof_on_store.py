"""A proof whose checkpoints lie on an object store, done twice, with old checkpoints removed on the way."""

import json

import pytest

from tests.support.jobs import start, verdict
from tests.support.s3_server import S3Server, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

JOB = (
    "model=mlp", "data=random", "parallelism=fsdp", "launch.nproc=2", "checkpoint=async", "train.steps=8",
    "checkpoint.interval_steps=2", "fault=sigkill",
)  # fmt: skip


def test_a_proof_on_a_store_is_done_anew_and_its_controls_find_what_the_run_has_removed(tmp_path, monkeypatch) -> None:
    with S3Server() as server:
        for name, value in environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        server.client.create_bucket(Bucket="proofs")
        job = (*JOB, "checkpoint.path=s3://proofs/one", "checkpoint.keep_last=1", "proof.controls=[optimizer]")
        for seed in (1, 2):
            # Another seed: what the first reference has left would be another end.
            output, errors = start(tmp_path, *job, f"train.seed={seed}").communicate(timeout=300)
            found = verdict(tmp_path)
            assert found["verdict"] == "equal", output + errors
            (controls,) = [check for check in found["checks"] if check["name"] == "controls"]
            assert controls["status"] == "equal"
            ledger = (tmp_path / "proof/reference/ledger/rank_00000.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in ledger] == list(range(1, 9))
        steps = {key.split("/")[1] for key in server.objects("proofs") if key.startswith("one/step_")}
        assert steps == {"step_00000008"}
