"""Hands the dataclasses to Hydra: ``schema/<group>_<name>`` is what ``conf/<group>/<name>.yaml`` builds upon."""

from hydra.core.config_store import ConfigStore

from ckptrun.config import checkpoint, data, fault, launch, model, optimizer, parallelism, precision, proof, schedule
from ckptrun.config.run import RunConfig

__all__ = ["SCHEMAS", "register"]

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
}


def register() -> None:
    """Store every schema. Called once, before Hydra composes."""
    store = ConfigStore.instance()
    store.store(name="base_run", node=RunConfig)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=node)
