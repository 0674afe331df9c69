"""The main job under every parallelism: train, save, resume exactly, prove the reload."""

import pytest

from tests.support.jobs import TINY, assert_resumes_exactly, events, verdict

KINDS = ["none", "ddp", "fsdp", "hsdp", "tp", "fsdp_tp", "hsdp_tp", "ddp_tp", "fsdp1", "hsdp1", "fsdp1_tp"]
# 4 ranks at most, and 3 for DDP: from 3 ranks on the order of its reductions matters.
SMALL_MESH = {"hsdp_tp": ["parallelism.shard=1"], "ddp": ["launch.nproc=3", "train.accumulate=2"]}

QUICK = {"none", "ddp", "fsdp", "fsdp_tp"}
"""The others are resumed in tests/parallelism/test_resume.py, without a job around."""

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_a_resumed_run_repeats_the_uninterrupted_run_bit_for_bit(kind, tmp_path) -> None:
    mode = "async" if KINDS.index(kind) % 2 else "sync"
    whole = assert_resumes_exactly(
        tmp_path, *TINY, f"parallelism={kind}", f"checkpoint={mode}", *SMALL_MESH.get(kind, [])
    )
    assert [event["step"] for event in events(whole) if event["event"] == "commit"] == [3, 6]
    names = [check["name"] for check in verdict(whole)["checks"]]
    assert names == ["replicas", "loaded_equals_saved"]
