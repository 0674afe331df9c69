"""Jobs that are unusual and right, by name, and proofs that prove nothing. Several switches share a job: each must be sound."""

from tests.zoo.case import ALONE, CNN, DDP, FSDP, GPT, NUMBERS, custom

__all__ = ["DEFAULT", "SOUND", "VACUOUS"]

NET = (*NUMBERS[2:], "model.loss=mse")
STREAM = (*NUMBERS[:2], "train.micro_batch=4", *custom("data", "hidden.Stream"))

DEFAULT = ("fp16 with skipped steps", "kill at the first step", "state of each rank")
"""Run by default; the others with the slow tests."""
SOUND = {
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
    "bf16 with frozen layers and accumulation": (
        *NUMBERS, *FSDP, "precision=bf16", "train.freeze=[layers.0.*]", "train.accumulate=3",
    ),
    "layers that freeze and thaw": (*NET, *ALONE, *custom("model", "optimizers.Thawing"), "train.steps=10"),
    "unused parameters": (*NET, *DDP, *custom("model", "optimizers.Unused")),
    "tied weights and recomputed activations": (*GPT, *FSDP, "train.activation_checkpointing=true"),
    "muon, untied, nothing clipped": (
        *GPT, *DDP, "optimizer=muon", "model.tied_embeddings=false", "train.clip_norm=null",
    ),
    "shards of nothing": (*NUMBERS, "model.features=[8,1,8]", *FSDP),
    "workers of a stream": (*STREAM, *ALONE, "data.num_workers=2"),
    "stateful stream": (*STREAM, *DDP),
    "workers, and a kill at the end of an epoch": (
        *NUMBERS, *ALONE, "data.samples=16", "fault.step=4", "data.num_workers=2",
    ),
    "save at the end of an epoch": (*NUMBERS, *ALONE, "data.samples=12"),
    "epochs shorter than a save": (*NUMBERS, *ALONE, "data.samples=5", "data.shuffle=false"),
    "kill at the last step": (*NUMBERS, *ALONE, "fault.step=8"),
    "one save in all": (*NUMBERS, *ALONE, "checkpoint.interval_steps=100"),
    "a save every step, each reloaded": (*NUMBERS, *ALONE, "checkpoint.interval_steps=1", "proof.reload=every_save"),
    "one step": (*NUMBERS, *ALONE, "train.steps=1"),
    "two steps": (*NUMBERS, *DDP, "train.steps=2", "checkpoint.interval_steps=1"),
    "overlapped staging, one kept": (
        *NUMBERS, *ALONE, "checkpoint=async", "checkpoint.overlapped_staging=true", "checkpoint.keep_last=1",
    ),
    "multistep without momentum": (
        *NUMBERS, *ALONE, "schedule=multistep", "schedule.milestones=[2,6]", "optimizer=sgd", "optimizer.momentum=0",
    ),
    "adafactor, digests along the way": (*NUMBERS, *FSDP, "optimizer=adafactor", "proof.digest_every_steps=2"),
    "step counted in groups": (*NUMBERS, *ALONE, *custom("optimizer", "optimizers.CountsInGroups")),
    "mixture of experts; warm-up, stable, decay": (
        *GPT, *ALONE, "model=moe", "model.experts=2", "model.experts_per_token=1", "schedule=wsd",
        "schedule.warmup_steps=2", "schedule.decay_steps=3",
    ),
    "learning rate zero": (*NUMBERS, *ALONE, "optimizer.lr=0"),
    "leaves that come and go": (*NUMBERS, *ALONE, "components.odd._target_=tests.zoo.planted.saving.ComesAndGoes"),
    "generator that is saved": (*NET, *ALONE, *custom("model", "sound.OwnGeneratorSaved")),
    "modules with several outputs": (*NET, *DDP, *custom("model", "sound.SeveralOutputs")),
    "parameters of odd kinds": (*NET, *ALONE, *custom("model", "sound.OddParameters")),
    "stateful dataset": (*NUMBERS[:2], "train.micro_batch=4", *DDP, *custom("data", "sound.Remembers")),
    "nadam in one cycle": (
        *NUMBERS, *FSDP, "optimizer=custom", "optimizer._target_=torch.optim.NAdam", "schedule=custom",
        "schedule._target_=torch.optim.lr_scheduler.OneCycleLR", "schedule.args={max_lr: 0.01, total_steps: 8}",
    ),
    "asgd with warm restarts": (
        *NUMBERS, *ALONE, "optimizer=custom", "optimizer._target_=torch.optim.ASGD", "schedule=custom",
        "schedule._target_=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", "schedule.args={T_0: 3}",
    ),
    "rprop": (*NUMBERS, *DDP, "optimizer=custom", "optimizer._target_=torch.optim.Rprop"),
    "hybrid shards": (*NUMBERS, "parallelism=hsdp", "launch.nproc=4"),
    "flat parameters": (*NUMBERS, "parallelism=fsdp1", "launch.nproc=2"),
    "tensor parallel": (*NUMBERS, "model.features=[8,16,16,8]", "parallelism=tp", "launch.nproc=2"),
    "resumed on fewer ranks": (*NUMBERS, *FSDP, "proof.resume_parallelism=none"),
    "resumed on more ranks": (*NUMBERS, *ALONE, "proof.resume_parallelism=ddp", "proof.resume_nproc=2"),
}  # fmt: skip

VACUOUS = {
    "no dropout": ((*NUMBERS, *ALONE, "proof.controls=[rng]"), "nothing was drawn from the random streams"),
    "constant rate": ((*GPT, *ALONE, "schedule=constant", "proof.controls=[schedule]"), "the learning rate did not change"),
    "no momentum": ((*NUMBERS, *ALONE, "optimizer=sgd", "optimizer.momentum=0", "proof.controls=[optimizer]"), "optimizer"),
}  # fmt: skip
