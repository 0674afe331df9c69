"""Which dataclass types the choices of each group: ``conf/<group>/<choice>.yaml`` builds on one of them. Torch-free."""

from ckptrun.config import (
    checkpoint,
    crash,
    data,
    fault,
    job,
    launch,
    model,
    optimizer,
    parallelism,
    precision,
    proof,
    schedule,
)

__all__ = ["SCHEMAS"]

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {
        "gpt": model.GPTConfig,
        "mlp": model.MLPConfig,
        "cnn": model.CNNConfig,
        "moe": model.MoEConfig,
        "custom": model.CustomModelConfig,
    },
    "parallelism": {"mesh": parallelism.ParallelismConfig},
    "optimizer": {
        "sgd": optimizer.SGDConfig,
        "adam": optimizer.AdamConfig,
        "adamw": optimizer.AdamWConfig,
        "adafactor": optimizer.AdafactorConfig,
        "muon": optimizer.MuonConfig,
        "custom": optimizer.CustomOptimizerConfig,
    },
    "schedule": {
        "constant": schedule.ConstantConfig,
        "cosine": schedule.CosineConfig,
        "multistep": schedule.MultiStepConfig,
        "wsd": schedule.WSDConfig,
        "custom": schedule.CustomScheduleConfig,
    },
    "data": {
        "python_source": data.PythonSourceConfig,
        "text": data.TextConfig,
        "random": data.RandomConfig,
        "shapes": data.ShapesConfig,
        "custom": data.CustomDataConfig,
    },
    "precision": {"precision": precision.PrecisionConfig},
    "checkpoint": {"checkpoint": checkpoint.CheckpointConfig},
    "fault": {"fault": fault.FaultConfig},
    "proof": {"proof": proof.ProofConfig},
    "launch": {"launch": launch.LaunchConfig},
    "job": {"job": job.JobConfig},
    "crash": {"crash": crash.CrashConfig},
}
"""Group -> name of the schema -> its dataclass."""
