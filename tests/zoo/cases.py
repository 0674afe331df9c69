"""The zoo: every bug that can be planted in a run on CPUs, and how the proof must end."""

from tests.zoo.case import ALONE, CNN, DDP, FSDP, GPT, NUMBERS, Case, custom

__all__ = ["CASES"]

LOADED, SAVED, STEPS, END, LOST, RESUME = (
    "loaded_equals_saved", "saved_equals_live", "trajectory", "final_state", "nothing_lost", "resume",
)  # fmt: skip
# An epoch ends with step 3, which is saved; or the second one is half done when the run is killed.
EPOCH_ENDS = (*NUMBERS, *ALONE, "data.samples=12")
SECOND_EPOCH = (*NUMBERS, *ALONE, "data.samples=16", "train.steps=9", "fault.step=7")
NET = (*NUMBERS[2:], "model.loss=mse", *ALONE)
FP16 = ("precision=fp16", "precision.initial_scale=4e5")
ASYNC = (*NUMBERS, *ALONE, "checkpoint=async")

RNG = [
    Case(
        ids="A1", bug="Random streams are restored in the middle of an epoch only", plant="rng.SkippedAtEpochEnd",
        job=EPOCH_ENDS, check=LOADED, blame="rng", words=("rng.ranks.rank_00000",),
    ),
    Case(
        ids="A2", bug="One rank's streams cannot be read, and nobody is told", plant="rng.SwallowedOnOneRank",
        job=(*NUMBERS, *DDP), check=LOADED, blame="rng", words=("rank_00001", "on rank 1"), is_quick=True,
    ),
    Case(
        ids="A3", bug="Streams of all ranks are declared replicas; one copy is stored", plant="rng.SavedWithoutRank",
        job=(*NUMBERS, *DDP), check=SAVED, blame="rng", words=("rng.streams",),
    ),
    Case(
        ids="A4", bug="Tensor-parallel peers get one another's streams", plant="rng.KeyedByDataRank",
        job=(*NUMBERS, "parallelism=tp", "launch.nproc=2"), check=SAVED, blame="rng",
    ),
    Case(
        ids="A5", bug="Rank 0's streams are restored on all ranks", plant="rng.RankZeroEverywhere",
        job=(*NUMBERS, *DDP), check=LOADED, blame="rng", words=("on rank 1",),
    ),
    Case(
        ids="A6", bug="The loader's iterator draws from the global stream after it was restored",
        plant="rng.LoaderDrawsAfterwards", job=(*GPT, *ALONE), check=STEPS, blame="data",
        words=("torch_cpu", "first", "after resume"), is_quick=True,
    ),
    Case(ids="A7", bug="Loading ends with a call that seeds everything", plant="rng.ReseededAtLoad", check=LOADED, blame="rng"),
    Case(
        ids="A7", bug="Everything is seeded when all was loaded and checked", plant="rng.ReseededBeforeTraining",
        job=(*GPT, *ALONE), check=STEPS, blame="rng",
    ),
    Case(
        ids="A9", bug="NumPy's stream cannot be unpickled, and all four are skipped", plant="rng.NumpyBreaksAllFour",
        check=LOADED, blame="rng",
    ),
    Case(
        ids="A11", bug="Two parts of the state have one name", plant="keys.OneNameTwice", verdict="not_verified",
        exit_code=2, check="", blame=None, words=("rng_state.cpu", "both called"),
    ),
    Case(
        ids="A13", bug="A save leaves an older file of random streams in its folder", plant="rng.StaleStreams",
        job=(*GPT, *ALONE, "checkpoint.interval_steps=2", "fault.step=5"), check=STEPS, blame="rng",
    ),
    Case(
        ids="E24", bug="The checkpoint lacks a stream that the run has", plant="rng.StreamLostAtSave", check=RESUME,
        blame="rng", words=("rng.ranks.rank_00000.python",),
    ),
]  # fmt: skip

DATA = [
    Case(
        ids="B1 B19", bug="A resume in a later epoch takes the order of the first", plant="data.FirstEpochAgain",
        job=SECOND_EPOCH, check=STEPS, blame="data", words=("batch", "first batch after resume"),
    ),
    Case(ids="B1", bug="The epoch is not restored", plant="data.EpochForgotten", job=SECOND_EPOCH, check=LOADED, blame="data", words=("data.epoch",)),
    Case(
        ids="B4", bug="Resumed at the end of an epoch, the run takes no step and says that it is done",
        plant="data.NothingLeftOfTheEpoch", job=EPOCH_ENDS, check=STEPS, blame="progress",
    ),
    Case(ids="B5", bug="The state right after the load is not what was loaded", plant="data.EpochDroppedAtItsEnd", job=EPOCH_ENDS, check=LOADED, blame="data"),
    Case(
        ids="B6", bug="A save soon after a resume lacks the state of a worker", plant="data.WorkersStateIncomplete",
        job=(*NUMBERS[:2], "train.micro_batch=4", *ALONE, *custom("data", "hidden.Stream"), "data.num_workers=2"),
        check="second_resume", blame="data",
    ),
    Case(ids="B7", bug="The iterator exists before the state is loaded: every resume starts at row 0", plant="data.StartsAtRowZero", check=STEPS, blame="data", words=("batch",)),
    Case(
        ids="B8", bug="What was yielded is counted from the resume on: the second one is off",
        plant="data.CountsFromTheResume", check="second_resume", blame="data",
    ),
    Case(ids="B11", bug="Model and loader come from checkpoints of two steps", plant="data.OneStepAhead", check=LOADED, blame="data", words=("data.samples",)),
    Case(ids="B12", bug="The loader's key of one rank is missing; only a warning", plant="data.KeyOfOneRankMissing", job=(*NUMBERS, *DDP), check=LOADED, blame="data", words=("on rank 1",)),
    Case(
        ids="B14", bug="Batches are skipped by steps, not by accumulated micro-batches", plant="data.AccumulationIgnored",
        args={"passes": 2}, job=(*NUMBERS, *ALONE, "train.accumulate=2"), check=STEPS, blame="data",
    ),
    Case(ids="B15", bug="The loader starts anew", plant="data.NeverLoaded", check=LOADED, blame="data"),
    Case(ids="B16", bug="One rank's loader is a batch behind", plant="data.OneRankBehind", job=(*NUMBERS, *DDP), check=STEPS, blame="data", words=("rank 1",)),
    Case(
        ids="B17", bug="The order of samples depends on the number of ranks", plant="data.OrderOfTheWorldSize",
        job=(*NUMBERS, *DDP, "proof.resume_parallelism=none"), check="data_order", blame="data",
    ),
]  # fmt: skip

COUNTERS = [
    Case(
        ids="C1", bug="The checkpoint is written before the schedule's step", plant="counters.SavedBeforeItsStep",
        job=(*NUMBERS, *ALONE, "schedule=multistep", "schedule.milestones=[6]"), check=STEPS, blame="schedule",
        words=("learning rate", "step 7"),
    ),
    Case(
        ids="C2", bug="A schedule of schedules forwards only its own counter", plant="counters.Sequence", seam="schedule",
        check=STEPS, blame="schedule", words=("learning rate",),
    ),
    Case(ids="C3", bug="Loading a schedule takes a step", plant="counters.SteppedAtLoad", check=LOADED, blame="schedule"),
    Case(ids="C3", bug="A schedule that has its state is stepped once more for each step done", plant="counters.SteppedAfterLoad", check=STEPS, blame="schedule", words=("learning rate",)),
    Case(ids="C5", bug="The schedule is saved always, and restored only with a flag", plant="counters.RestoredOnlyIfAsked", check=LOADED, blame="schedule"),
    Case(ids="C25", bug="The state is read, and load_state_dict is never called", plant="counters.LoadedAndNotApplied", check=LOADED, blame="progress"),
    Case(ids="C6", bug="The loss scale is not restored", plant="counters.ScaleNotLoaded", job=(*NUMBERS, *ALONE, *FP16), check=LOADED, blame="scaler", words=("scaler.scale",)),
    Case(
        ids="C6", bug="The loss scale is not saved", plant="counters.NotInTheState", args={"component": "scaler"},
        job=(*NUMBERS, *ALONE, *FP16), check=STEPS, blame="scaler", words=("skipped",),
    ),
    Case(ids="C9", bug="The moving average is not restored", plant="counters.AverageNotLoaded", job=(*NUMBERS, *ALONE, "train.ema_decay=0.9"), check=LOADED, blame="ema"),
    Case(
        ids="C9", bug="The moving average is made anew after it was restored", plant="counters.AverageBegunAnew",
        job=(*NUMBERS, *ALONE, "train.ema_decay=0.9"), check=END, blame="ema",
    ),
    Case(ids="C13", bug="Saved before the batch is counted: it comes again", plant="data.LastBatchAgain", check=STEPS, blame="data", words=("batch",)),
    Case(ids="C13", bug="Saved before the step is counted", plant="counters.StepCountedLate", check=SAVED, blame="progress"),
    Case(ids="C14", bug="A resumed run takes one step too many", plant="counters.OneStepMore", check=STEPS, blame="progress"),
    Case(ids="C14", bug="A resumed run takes one step too few", plant="counters.OneStepFewer", check=STEPS, blame="progress"),
    Case(ids="C15", bug="The end of an epoch is stored as its number, not the next", plant="data.SameEpochAgain", job=EPOCH_ENDS, check=STEPS, blame="data"),
    Case(ids="C16", bug="Early stopping is reset when training starts", plant="counters.ResetAtStart", seam="components.stopping", check=END, blame="stopping"),
    Case(ids="C17", bug="The best score is not restored", plant="counters.BestForgotten", seam="components.stopping", check=LOADED, blame="stopping", words=("stopping.best",)),
    Case(
        ids="C19", bug="A metric that matters is not persistent", plant="hidden.Metric", seam="components.metric",
        job=(*NET, *custom("model", "hidden.MetricScale")), check=STEPS, blame="model",
    ),
    Case(
        ids="C20", bug="After a load the loop and the checkpoints have two copies of the schedule",
        plant="counters.CopyInTheState", args={"component": "schedule"}, check="second_resume", blame="schedule",
    ),
    Case(
        ids="C20", bug="After a load the loop and the checkpoints count steps apart", plant="counters.CopyInTheState",
        args={"component": "progress"}, check=SAVED, blame="progress",
    ),
    Case(
        ids="C21", bug="A step counted in parameter groups is not restored", plant="counters.GroupStepForgotten",
        job=(*NUMBERS, *ALONE, *custom("optimizer", "optimizers.CountsInGroups")), check=LOADED, blame="optimizer",
        words=("optimizer.param_groups",),
    ),
    Case(ids="C24", bug="The schedule counts the steps of all ranks", plant="counters.StepsOfAllRanks", job=(*NUMBERS, *DDP), check=STEPS, blame="schedule"),
    Case(ids="C26", bug="Every resume counts a step that it does not take", plant="counters.CountedBeforeTheEnd", check=STEPS, blame="progress"),
    Case(ids="C26", bug="The step is counted while it is loaded", plant="counters.CountedAtLoad", check=LOADED, blame="progress"),
]  # fmt: skip

SWAP = {"one": "layers.0.weight", "other": "layers.1.weight"}
OPTIMIZER = [
    Case(ids="D1 D2 D16 F6", bug="A fresh optimizer's empty state is filled with nothing, and nobody is told", plant="optimizers.FreshTemplate", check=LOADED, blame="optimizer"),
    Case(ids="D1 D2 D16", bug="The same with a loader that is strict", plant="optimizers.EmptyTemplateIsRefused", check=RESUME, blame="optimizer", words=("optimizer.state",)),
    Case(ids="D1", bug="Moments are zero after each resume", plant="optimizers.MomentsZeroed", job=(*NUMBERS, *FSDP), check=LOADED, blame="optimizer", words=("exp_avg",)),
    Case(
        ids="D3", bug="Moments of frozen parameters are dropped", plant="optimizers.FrozenMomentsDropped",
        job=(*NET, *custom("model", "optimizers.Thawing"), "train.steps=10"), check=STEPS, blame="optimizer",
        words=("first",),
    ),
    Case(
        ids="D4", bug="Loading wants moments of parameters that never had a gradient", plant="optimizers.MadeForUnused",
        job=(*NET, *custom("model", "optimizers.Unused")), check=RESUME, blame="optimizer", words=("never",),
    ),
    Case(ids="D5", bug="State by position: two parameters change places", plant="optimizers.OtherOrder", args=SWAP, check=STEPS, blame="optimizer", words=("optimizer state layers.0.weight.exp_avg",)),
    Case(
        ids="D5", bug="The same, and the checkpoint that shows it first is gone", plant="optimizers.OtherOrder", args=SWAP,
        job=(*NUMBERS, *ALONE, "checkpoint.keep_last=1"), check=STEPS, blame="optimizer", words=("optimizer state layers.0.weight.exp_avg",),
    ),
    Case(ids="D5", bug="Moments of two parameters are swapped", plant="optimizers.MomentsSwapped", args=SWAP, check=LOADED, blame="optimizer", words=("layers.0.weight.exp_avg",)),
    Case(ids="D7", bug="The optimizer's step counter becomes bfloat16", plant="optimizers.StepCast", check=LOADED, blame="optimizer", words=(".step",)),
    Case(
        ids="D8", bug="With one combination of settings the optimizer is neither saved nor loaded",
        plant="optimizers.NeitherSavedNorLoaded", job=(*NUMBERS, *ALONE, "precision=bf16"), check=STEPS, blame="optimizer",
        words=("optimizer state",),
    ),
    Case(
        ids="D9 D14", bug="Master weights beside the model are not refreshed", plant="optimizers.MastersOfItsOwn",
        seam="optimizer", check=STEPS, blame="optimizer", words=("update",),
    ),
    Case(ids="D11", bug="The model is rounded to bfloat16 on its way", plant="optimizers.CastAtLoad", check=LOADED, blame="model"),
    Case(
        ids="D13", bug="Of two optimizers the state of one is not loaded", plant="optimizers.OneOfTwoSkipped",
        job=(*GPT, *ALONE, "optimizer=muon"), check=LOADED, blame="optimizer",
    ),
    Case(ids="D17", bug="Flat keys are looked for under nested names", plant="optimizers.OtherKeys", check=RESUME, blame="optimizer"),
    Case(ids="D18", bug="A running maximum in a plain tensor scales activations", plant="hidden.PlainTensor", seam="model", job=NET, check=STEPS, blame="model", words=("quantize output",)),
    Case(ids="D19", bug="What kind of quantization is in use is not taken back", plant="hidden.QuantKindIgnored", seam="model", job=NET, check=LOADED, blame="model", words=("_extra_state",)),
]  # fmt: skip

SHARDING = [
    Case(ids="E1", bug="Shards are put together in another order", plant="sharding.ShardsInOtherOrder", job=(*NUMBERS, *FSDP), check=LOADED, blame="model"),
    Case(ids="E2", bug="Rows are permuted within each shard", plant="sharding.RowsPermutedPerShard", job=(*NUMBERS, *FSDP), check=LOADED, blame="model"),
    Case(
        ids="E3", bug="Fused weights are interleaved on another number of ranks", plant="sharding.HalvesInterleaved",
        job=(*NUMBERS, *FSDP, "proof.resume_parallelism=none"), check=LOADED, blame="model",
    ),
    Case(ids="E6", bug="A rank that holds nothing of a tensor crashes while it loads", plant="sharding.EmptyShardsForgotten", job=(*NUMBERS, "model.features=[8,1,8]", *FSDP), check=RESUME, blame=None, words=("rank 1",)),
    Case(
        ids="E7", bug="State of single ranks cannot be loaded on another number of ranks", plant="hidden.Stream", seam="data",
        job=(*NUMBERS[:2], "train.micro_batch=4", *DDP, "proof.resume_parallelism=none"), check=RESUME, blame="data",
    ),
    Case(
        ids="E9 H12", bug="One rank waits in a collective that the others skip", plant="sharding.OneRankSkipsBroadcast",
        job=(*NUMBERS, *DDP, "launch.timeout_seconds=4"), check=RESUME, blame=None,
    ),
    Case(
        ids="H13 H14 H15", bug="Ranks load different keys, with a collective for each", plant="sharding.OtherKeysOnOneRank",
        job=(*NUMBERS, *DDP, "launch.timeout_seconds=4"), check=RESUME, blame=None,
    ),
    Case(
        ids="E10", bug="The second replica of an HSDP model is not loaded", plant="sharding.SecondReplicaNotLoaded",
        args={"first": 2}, job=(*NUMBERS, "parallelism=hsdp", "launch.nproc=4"), check=LOADED, blame="model",
        words=("on rank 2",),
    ),
    Case(ids="E11 E15", bug="Every rank's own expert bears the same name, and one is stored", plant="sharding.LocalExperts", seam="components.experts", job=(*NUMBERS, *DDP), check=SAVED, blame="experts"),
    Case(ids="E12", bug="A layer is in no checkpoint", plant="sharding.HalfOfTheLayers", args={"lost": "layers.2"}, check=STEPS, blame="model", words=("layers.2.weight itself, rank 0, before the first forward after resume",)),
    Case(ids="E13", bug="Replicas are not made alike again after the load", plant="sharding.NotGatheredAfterLoad", job=(*NUMBERS, *DDP), check=SAVED, blame="model"),
    Case(ids="E17 E19", bug="Buffers are loaded on rank 0 alone", plant="sharding.BuffersOfRankZero", job=(*CNN, *DDP), check=LOADED, blame="model", words=("running_mean", "on rank 1")),
    Case(ids="E18", bug="Only rank 0 loads the model", plant="sharding.OnlyRankZeroLoads", job=(*NUMBERS, *DDP), check=LOADED, blame="model", words=("on rank 1",)),
    Case(
        ids="E21", bug="DDP rebuilds its buckets: a perfect checkpoint, another order of sums", plant="sharding.BucketsRebuilt",
        seam="model", job=(*NET[:-1], "parallelism=ddp", "launch.nproc=3"), check=STEPS, blame="model",
        words=("reduced gradient",),
    ),
    Case(ids="E23 H3", bug="Checkpoints are there, and the run begins anew", plant="sharding.FromScratch", check=LOST, blame="progress"),
]  # fmt: skip

KEYS = [
    Case(ids="F1", bug="Saved after a resume, the model has other names", plant="keys.PrefixAfterResume", check=RESUME, blame="model", words=("step_00000004 does not hold model.",)),
    Case(ids="F3", bug="Names do not fit, and what was not found keeps its first values", plant="keys.OnePrefixLeft", check=LOADED, blame="model"),
    Case(ids="F4", bug="The model is wrapped only when it is loaded", plant="keys.PrefixAtLoadOnly", check=RESUME, blame="model", words=("module.layers",)),
    Case(ids="F5", bug="Some leaves are not reached by the load", plant="keys.SomeNamesNotReached", args={"lost": "model.layers.1"}, check=LOADED, blame="model", words=("layers.1",)),
]  # fmt: skip

SAVING = [
    Case(ids="G1 G2 G7 D6", bug="A save writes what training has changed meanwhile", plant="saving.StagedByReference", job=ASYNC, check=SAVED, blame="model", is_quick=True),
    Case(ids="G2 G3", bug="Tensors that are on the CPU anyway are not copied", plant="saving.HostTensorsShared", job=ASYNC, check=SAVED, blame="optimizer", words=(".step",)),
    Case(ids="G4", bug="A staging buffer is used again too early", plant="saving.BufferUsedTooEarly", job=ASYNC, check=SAVED, blame="model"),
    Case(ids="G6", bug="Training goes on before the copy is complete", plant="saving.StagingNotAwaited", job=(*ASYNC, "checkpoint.overlapped_staging=true"), check=SAVED, blame="model"),
    Case(ids="E4", bug="The tensors of the first save are written for ever", plant="saving.SameTensorsForEver", check=SAVED, blame="model"),
    Case(bug="The whole state is that of the first save, digests and all", plant="saving.StateOfTheFirstSave", check=SAVED, blame="progress"),
    Case(ids="G8", bug="Bytes that a thread could not write are lost, and the save is done", plant="saving.BytesLostSilently", args={"step": 6}, check=SAVED, blame="model", words=("step 6",)),
    Case(ids="G9 G10", bug="The last save is not awaited, and the run says that it is done", plant="saving.LastNotAwaited", job=ASYNC, check=LOST, blame="progress", words=("step, 8",)),
    Case(ids="G11", bug="A save fails, and counts as done", plant="saving.FailureSwallowed", args={"step": 3}, check=LOST, blame="progress", words=("step_00000003",)),
    Case(
        ids="G13 H8", bug="Old checkpoints go when a save is requested, not when it is done", plant="saving.RetentionBeforeCommit",
        job=(*NUMBERS, *ALONE, "checkpoint.keep_last=1", "fault.point=writing", "fault.step=6"), check=LOST, blame="progress",
    ),
    Case(
        ids="I6", bug="A save takes longer than ranks wait for each other", plant="saving.SlowerThanTheTimeout",
        args={"seconds": 4}, job=(*NUMBERS, *DDP, "checkpoint=async", "launch.timeout_seconds=2"), verdict="not_verified", exit_code=1,
        check="", blame=None, words=("thread of rank 0 has not moved", "launch.timeout_seconds"),
    ),
    Case(
        ids="G14", bug="A cached plan is used for a state of another structure", plant="saving.PlanOfAnotherState",
        job=(*NUMBERS, *ALONE, "components.odd._target_=tests.zoo.planted.saving.ComesAndGoes"), check=RESUME, blame=None, words=("odd.odd",),
    ),
    Case(
        ids="H1 H22", bug="A checkpoint is overwritten in place, and the run is killed meanwhile", plant="saving.WrittenInPlace",
        args={"step": 6}, job=(*NUMBERS, *ALONE, "fault.point=writing", "fault.step=6"), check=LOST, blame="progress",
    ),
    Case(
        ids="H2 H4", bug="A save that was cut off is taken for the newest checkpoint", plant="saving.TmpIsACheckpoint",
        job=(*NUMBERS, *ALONE, "fault.point=writing", "fault.step=6"), check=RESUME, blame=None, words=("step_00000006.tmp",),
    ),
    Case(ids="H6", bug="Retention removes the only checkpoint", plant="saving.RetentionTakesAll", job=(*NUMBERS, *ALONE, "checkpoint.keep_last=1"), check=LOST, blame="progress"),
    Case(
        ids="H7", bug="Retention keeps the wrong one of two", plant="saving.RetentionByNumber",
        job=(*NUMBERS, *ALONE, "checkpoint.keep_last=1", "checkpoint.interval_steps=2", "fault.step=5"), check=LOST, blame="progress",
    ),
    Case(
        ids="H11", bug="A flipped bit is loaded without a word", plant="saving.NothingIsChecked",
        job=(*NUMBERS, *ALONE, "fault=bit_flip"), check="damage_noticed", blame="rng",
    ),
    Case(ids="E16", bug="Shards have other names than the manifest says", plant="saving.ShardRenamed", args={"step": 6}, check=SAVED, blame="model", words=("rank_00000.safetensors", "missing")),
    Case(ids="H18", bug="One rank writes to a disk that the others do not see", plant="saving.OtherDiskOnOneRank", args={"step": 6}, job=(*NUMBERS, *DDP), check=SAVED, blame="model", words=("rank_00001.safetensors",)),
    Case(ids="H19", bug="A signal handler saves in the middle of a step", plant="saving.SavedInsideOfAStep", args={"step": 5}, job=(*NUMBERS, *ALONE, "fault.step=5"), check=SAVED, blame="progress"),
    Case(bug="A save draws a random number", plant="saving.SaveDraws", job=(*GPT, *ALONE), check="saving_is_invisible", blame="rng"),
    Case(bug="A save leaves the model in eval mode", plant="saving.SaveLeavesEval", job=(*GPT, *ALONE), check="saving_is_invisible", blame="model", words=("dropout",)),
    Case(bug="A save spoils the moving average", plant="saving.SaveSpoilsAverage", job=(*NUMBERS, *ALONE, "train.ema_decay=0.9"), check=END, blame="ema"),
]  # fmt: skip

HIDDEN = [
    Case(bug="A module drops with a generator of its own", plant="hidden.OwnGenerator", seam="model", job=NET, check=STEPS, blame="model", words=("noise output",)),
    Case(bug="A module counts its calls in Python", plant="hidden.PythonCounter", seam="model", job=NET, check=STEPS, blame="model", words=("scale output",)),
    Case(bug="A model keeps a mean in a global of its module", plant="hidden.ModuleGlobal", seam="model", job=NET, check=STEPS, blame="model", words=("last input, rank 0, first forward after resume",)),
    Case(bug="A model normalizes by the first batch of the process", plant="hidden.FirstBatchTable", seam="model", job=NET, check=STEPS, blame="model"),
    Case(bug="Weights are tied only after some steps", plant="hidden.TiedLate", seam="model", job=NET, check=STEPS, blame="model"),
    Case(bug="A load unties two weights", plant="saving.UntiedAtLoad", args={"module": "token_embedding"}, job=(*GPT, *ALONE), check=STEPS, blame="model"),
    Case(bug="How much is drawn depends on a counter that is not saved", plant="hidden.RandomDepth", seam="model", job=NET, check=STEPS, blame="model", words=("depth output",)),
    Case(bug="A mode of the whole process is turned on after some steps", plant="hidden.ModeOfTheProcess", seam="model", job=NET, check=STEPS, blame="model"),
    Case(bug="An optimizer counts steps beside its state", plant="hidden.StepOfItsOwn", seam="optimizer", check=STEPS, blame="optimizer", words=("update",)),
    Case(bug="Slow weights are in no state", plant="hidden.Lookahead", seam="optimizer", check=STEPS, blame="optimizer", words=("update",)),
    Case(bug="Gradients carried from step to step are not saved", plant="hidden.KeepsGradients", seam="optimizer", check=STEPS, blame="optimizer", words=("gradient layers.0.weight, rank 0, before the first forward after resume",)),
    Case(
        bug="A module changes at its fourteenth call", plant="hidden.LateSwitch", seam="model", job=(*NET, "train.steps=16"),
        check=STEPS, blame="model", words=("switch output, rank 0, step 14",),
    ),
    Case(bug="A schedule has a counter that its state lacks", plant="hidden.HiddenSchedule", seam="schedule", check=STEPS, blame="schedule", words=("learning rate",)),
    Case(bug="Augmentation grows with the samples that the object has handed out", plant="hidden.GetsHarder", seam="data", job=(*NUMBERS[:2], "train.micro_batch=4", *ALONE), check=STEPS, blame="data", words=("batch",)),
    Case(bug="Augmentation draws from a generator of its own", plant="hidden.OwnNoise", seam="data", job=(*NUMBERS[:2], "train.micro_batch=4", *ALONE), check=STEPS, blame="data", words=("batch",)),
    Case(bug="The last sample of a stateful stream comes again", plant="hidden.OffByOne", seam="data", job=(*NUMBERS[:2], "train.micro_batch=4", *ALONE), check=STEPS, blame="data", words=("batch",)),
    Case(bug="The shuffle buffer of a stream is not saved", plant="hidden.ShuffleBuffer", seam="data", job=(*NUMBERS[:2], "train.micro_batch=4", *ALONE), check=STEPS, blame="data", words=("batch",)),
    Case(bug="A callback changes weights by the age of the process", plant="hidden.PerturbsOld", check=STEPS, blame="bug", words=("on_step of component 'bug'",)),
    Case(bug="An average of a user's own depends on a counter that is not saved", plant="hidden.SlowAverage", seam="components.average", check=END, blame="average", words=("average.average",)),
    Case(
        bug="A module adds the number of its process", plant="hidden.ProcessNumber", seam="model", job=NET,
        verdict="not_verified", exit_code=4, check=STEPS, blame=None, words=("not deterministic", "process output", "step 1"), is_quick=True,
    ),
    Case(
        bug="A module adds the time", plant="hidden.Clock", seam="model", job=NET, verdict="not_verified", exit_code=4,
        check=STEPS, blame=None, words=("not deterministic", "clock output"),
    ),
]  # fmt: skip

CASES: tuple[Case, ...] = (*RNG, *DATA, *COUNTERS, *OPTIMIZER, *SHARDING, *KEYS, *SAVING, *HIDDEN)
