"""Jobs that are unusual and right must come out ``equal``: no false alarm. And a proof that proves nothing must say so."""

import pytest

from tests.support.jobs import run_here, verdict
from tests.zoo.case import ALONE, CNN, DDP, FSDP, GPT, NUMBERS, PROOF, custom

pytestmark = [pytest.mark.distributed, pytest.mark.crash]

NET = (*NUMBERS[2:], "model.loss=mse")
STREAM = (*NUMBERS[:2], "train.micro_batch=4", *custom("data", "hidden.Stream"))

BY_DEFAULT = ("fp16 with skipped steps", "kill at the first step", "state of each rank")
QUICK = {
    "uneven shards": (*NUMBERS, "model.features=[8,7,5,8]", "parallelism=fsdp", "launch.nproc=3"),
    "batch norm": (*CNN, *DDP),
    "fp16 with skipped steps": (*NUMBERS, *ALONE, "precision=fp16", "precision.initial_scale=4e5"),
    "average and async": (*NUMBERS, *ALONE, "train.ema_decay=0.9", "checkpoint=async"),
    "kill at the first step": (*NUMBERS, *ALONE, "fault.step=1"),
    "state of each rank": (*NUMBERS, *DDP, "components.own._target_=tests.zoo.planted.sound.OfEachRank"),
    "buffers of all kinds": (*NET, *ALONE, *custom("model", "sound.CountsBuffers")),
    "all controls": (
        *GPT, *ALONE, "proof.controls=all", "train.ema_decay=0.9", "checkpoint.interval_steps=2",
    ),
}  # fmt: skip
SLOW = {
    "frozen layers": (*NUMBERS, *FSDP, "train.freeze=[layers.0.*]"),
    "layers that freeze and thaw": (*NET, *ALONE, *custom("model", "optimizers.Thawing"), "train.steps=10"),
    "unused parameters": (*NET, *DDP, *custom("model", "optimizers.Unused")),
    "tied weights": (*GPT, *FSDP),
    "untied": (*GPT, *DDP, "model.tied_embeddings=false"),
    "shards of nothing": (*NUMBERS, "model.features=[8,1,8]", *FSDP),
    "accumulation": (*NUMBERS, *FSDP, "train.accumulate=3"),
    "workers": (*NUMBERS, *ALONE, "data.num_workers=2"),
    "workers of a stream": (*STREAM, *ALONE, "data.num_workers=2"),
    "stateful stream": (*STREAM, *DDP),
    "kill at the end of an epoch": (*NUMBERS, *ALONE, "data.samples=16", "fault.step=4"),
    "save at the end of an epoch": (*NUMBERS, *ALONE, "data.samples=12"),
    "epochs shorter than a save": (*NUMBERS, *ALONE, "data.samples=5", "data.shuffle=false"),
    "kill at the last step": (*NUMBERS, *ALONE, "fault.step=8"),
    "kill of all ranks": (*NUMBERS, *DDP, "fault.rank=all"),
    "kill while loading": (*NUMBERS, *ALONE, "fault.point=loading"),
    "kill while writing": (*NUMBERS, *ALONE, "checkpoint=async", "fault.point=writing"),
    "kill after a commit": (*NUMBERS, *DDP, "fault.point=after_commit"),
    "kill while removing": (*NUMBERS, *ALONE, "checkpoint.keep_last=1", "fault.point=removing"),
    "two kills that differ": (*NUMBERS, *ALONE, "fault.more=[{kind: exception, step: 7}]"),
    "one save in all": (*NUMBERS, *ALONE, "checkpoint.interval_steps=100"),
    "a save every step": (*NUMBERS, *ALONE, "checkpoint.interval_steps=1"),
    "one step": (*NUMBERS, *ALONE, "train.steps=1"),
    "two steps": (*NUMBERS, *DDP, "train.steps=2", "checkpoint.interval_steps=1"),
    "no fault": (*NUMBERS, *ALONE, "fault=none", "proof=full", "proof.controls=none"),
    "async process": (*NUMBERS, *DDP, "checkpoint=async_process"),
    "overlapped staging": (*NUMBERS, *ALONE, "checkpoint=async", "checkpoint.overlapped_staging=true"),
    "keep one": (*NUMBERS, *ALONE, "checkpoint=async", "checkpoint.keep_last=1"),
    "multistep": (*NUMBERS, *ALONE, "schedule=multistep", "schedule.milestones=[2,6]"),
    "warm-up, stable, decay": (*NUMBERS, *ALONE, "schedule=wsd", "schedule.warmup_steps=2", "schedule.decay_steps=3"),
    "bf16": (*NUMBERS, *FSDP, "precision=bf16"),
    "muon": (*GPT, *DDP, "optimizer=muon"),
    "adafactor": (*NUMBERS, *FSDP, "optimizer=adafactor"),
    "sgd without momentum": (*NUMBERS, *ALONE, "optimizer=sgd", "optimizer.momentum=0"),
    "step counted in groups": (*NUMBERS, *ALONE, *custom("optimizer", "optimizers.CountsInGroups")),
    "recomputed activations": (*GPT, *FSDP, "train.activation_checkpointing=true"),
    "mixture of experts": (*GPT, *ALONE, "model=moe", "model.experts=2", "model.experts_per_token=1"),
    "nothing clipped": (*NUMBERS, *ALONE, "train.clip_norm=null"),
    "learning rate zero": (*NUMBERS, *ALONE, "optimizer.lr=0"),
    "leaves that come and go": (*NUMBERS, *ALONE, "components.odd._target_=tests.zoo.planted.saving.ComesAndGoes"),
    "generator that is saved": (*NET, *ALONE, *custom("model", "sound.OwnGeneratorSaved")),
    "modules with several outputs": (*NET, *DDP, *custom("model", "sound.SeveralOutputs")),
    "digests along the way": (*NUMBERS, *FSDP, "proof.digest_every_steps=2"),
    "every save reloaded": (*NUMBERS, *ALONE, "proof.reload=every_save"),
    "parameters of odd kinds": (*NET, *ALONE, *custom("model", "sound.OddParameters")),
    "stateful dataset": (*NUMBERS[:2], "train.micro_batch=4", *DDP, *custom("data", "sound.Remembers")),
    "nadam": (*NUMBERS, *FSDP, "optimizer=custom", "optimizer._target_=torch.optim.NAdam"),
    "asgd": (*NUMBERS, *ALONE, "optimizer=custom", "optimizer._target_=torch.optim.ASGD"),
    "rprop": (*NUMBERS, *DDP, "optimizer=custom", "optimizer._target_=torch.optim.Rprop"),
    "one cycle": (
        *NUMBERS, *ALONE, "schedule=custom", "schedule._target_=torch.optim.lr_scheduler.OneCycleLR",
        "schedule.args={max_lr: 0.01, total_steps: 8}",
    ),
    "warm restarts": (
        *NUMBERS, *ALONE, "schedule=custom", "schedule._target_=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
        "schedule.args={T_0: 3}",
    ),
    "tensor parallel": (*NUMBERS, "model.features=[8,16,16,8]", "parallelism=fsdp_tp", "launch.nproc=4"),
    "hybrid shards": (*NUMBERS, "parallelism=hsdp", "launch.nproc=4"),
    "flat parameters": (*NUMBERS, "parallelism=fsdp1", "launch.nproc=2"),
    "resumed on fewer ranks": (*NUMBERS, *FSDP, "proof.resume_parallelism=none"),
    "resumed on more ranks": (*NUMBERS, *ALONE, "proof.resume_parallelism=ddp", "proof.resume_nproc=2"),
    "disk full": (*NUMBERS, *ALONE, "fault=disk_full"),
    "flipped bit": (*NUMBERS, *ALONE, "fault=bit_flip"),
    "torn write": (*NUMBERS, *DDP, "fault=torn_write"),
    "lost file": (*NUMBERS, *ALONE, "fault=lost_file"),
    "preempted": (*NUMBERS, *DDP, "fault=sigterm"),
    "out of memory": (*NUMBERS, *DDP, "fault=oom"),
}  # fmt: skip

VACUOUS = {
    "no dropout": ((*NUMBERS, *ALONE, "proof.controls=[rng]"), "nothing was drawn from the random streams"),
    "constant rate": ((*GPT, *ALONE, "schedule=constant", "proof.controls=[schedule]"), "the learning rate did not change"),
    "no momentum": ((*NUMBERS, *ALONE, "optimizer=sgd", "optimizer.momentum=0", "proof.controls=[optimizer]"), "optimizer"),
}  # fmt: skip


@pytest.mark.parametrize(
    "job",
    [pytest.param(job, id=name, marks=[] if name in BY_DEFAULT else pytest.mark.slow) for name, job in QUICK.items()]
    + [pytest.param(job, id=name, marks=pytest.mark.slow) for name, job in SLOW.items()],
)
def test_a_sound_job_is_equal(job, tmp_path) -> None:
    done = run_here(tmp_path, *PROOF, *job)
    found = verdict(tmp_path)
    assert (found["verdict"], int(done)) == ("equal", 0), found["reason"] or done
    assert found["blame"] is None


@pytest.mark.parametrize(
    ("job", "words"), [pytest.param(*found, id=name, marks=pytest.mark.slow) for name, found in VACUOUS.items()]
)
def test_a_control_that_changes_nothing_is_not_verified(job, words, tmp_path) -> None:
    done = run_here(tmp_path, *PROOF, *job)
    found = verdict(tmp_path)
    assert (found["verdict"], int(done)) == ("not_verified", 4), found["reason"] or done
    assert "vacuous" in found["reason"]
    assert words in found["reason"], found["reason"]


def test_the_default_controls_say_what_was_not_exercised_for_a_model_without_dropout(tmp_path) -> None:
    done = run_here(tmp_path, *[text for text in PROOF if "controls" not in text], *NUMBERS, *ALONE)
    assert done == 0, done
    found = verdict(tmp_path)
    assert found["verdict"] == "equal"
    (said,) = [text for text in found["not_exercised"] if text.startswith("control of ")]
    assert said.startswith("control of rng: nothing was drawn from the random streams after step ")
    (controls,) = [check for check in found["checks"] if check["name"] == "controls"]
    assert (controls["status"], controls["covered"]) == ("equal", {"controls": 1})
    assert controls["detail"].startswith("without optimizer:")
