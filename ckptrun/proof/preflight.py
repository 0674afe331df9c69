"""What can be found wrong with a proof before anything is started. Torch-free."""

import copy
from typing import Any

import yaml

from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.choices import CONF_DIR
from ckptrun.config.fault import FaultKind
from ckptrun.config.parallelism import ParallelismConfig, ParallelismKind
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import RunConfig, check
from ckptrun.errors import ConfigError
from ckptrun.fault.plan import PlannedFault, plan_faults

__all__ = ["check_proof", "check_under_launcher", "is_proof", "reshaped"]

_FEWEST_STEPS = 2


def is_proof(config: RunConfig) -> bool:
    """Whether ``config`` asks for a proof where ckptrun starts the ranks; otherwise it is a plain run."""
    return config.fault.kind is not FaultKind.none or config.proof.full


def check_proof(config: RunConfig) -> tuple[PlannedFault, ...]:
    """Check what a proof needs beside a run; return what is going to fail.

    Raises:
        ConfigError: A fault can never fire, nothing outlives a kill, or the other mesh does not fit.
    """
    if config.checkpoint.mode is SaveMode.none:
        raise ConfigError("A proof resumes from checkpoints, but checkpoint=none saves none. Choose sync or async.")
    if config.checkpoint.path is not None and config.checkpoint.path.startswith("memory:"):
        raise ConfigError(
            f"checkpoint.path={config.checkpoint.path} does not outlive the process that is killed. Use a path on "
            "storage."
        )
    if config.train.steps < _FEWEST_STEPS and config.proof.control_names != ():
        raise ConfigError(
            f"train.steps={config.train.steps}: controls resume before the last step, which takes {_FEWEST_STEPS} "
            "steps or more. Raise train.steps, or do without controls: proof.controls=none."
        )
    if config.proof.reload is ReloadCheck.none:
        raise ConfigError("proof.reload=none leaves out what a proof is made of; leave the key out, or use fault=none.")
    if config.proof.reference is not None:
        raise ConfigError(
            f"proof.reference={config.proof.reference}: a proof runs a reference of its own. Leave the key out, or "
            "start the run under torchrun, where it is held against the reference you name."
        )
    _check_goes_on_whole(config)
    after = reshaped(config) if config.proof.reshapes else None
    return plan_faults(config, world_size=config.ranks, in_proof=True, after=after)


def _check_goes_on_whole(config: RunConfig) -> None:
    """Every resume of a proof takes the newest checkpoint, and all of it."""
    for key in ("only", "exclude"):
        names = list(config.checkpoint.load.get(key) or ())
        if names and config.checkpoint.selection.source is None:
            raise ConfigError(
                f"checkpoint.load.{key}={names}: a resume that leaves components out cannot come out as if nothing had "
                "happened. Leave the key out; to see that a component matters use proof.controls."
            )
    if config.checkpoint.resume == "none" or config.checkpoint.resume_step is not None:
        raise ConfigError(
            f"checkpoint.resume={config.checkpoint.resume}: a proof begins anew and resumes by itself. Leave the key "
            "out, or give the path of another run's checkpoint to begin from."
        )


def check_under_launcher(config: RunConfig) -> None:
    """Check what a run under an outside launcher (torchrun) cannot do: start ranks anew by itself.

    Raises:
        ConfigError: It is asked to.
    """
    for key, wanted in (("proof=full", config.proof.full), ("proof.resume_parallelism", config.proof.reshapes)):
        if wanted:
            raise ConfigError(
                f"{key} starts ranks several times, which torchrun does not leave to a rank. Use python -m ckptrun."
            )


def reshaped(config: RunConfig) -> RunConfig:
    """The config of the run after it was resumed: on the mesh of ``proof.resume_parallelism`` and ``resume_nproc``.

    Raises:
        ConfigError: There is no such choice, or the mesh does not fit.
    """
    changed = copy.deepcopy(config)
    choice, nproc = config.proof.resume_parallelism, config.proof.resume_nproc
    if choice is not None:
        changed.parallelism = _parallelism(choice)
        changed.launch.nproc = None
    if nproc is not None:
        changed.launch.nproc = nproc
    check(changed)
    return changed


def _parallelism(choice: str) -> ParallelismConfig:
    file = CONF_DIR / "parallelism" / f"{choice}.yaml"
    if choice not in list(ParallelismKind) or not file.is_file():
        raise ConfigError(f"proof.resume_parallelism={choice!r} is none of: {', '.join(ParallelismKind)}.")
    keys: dict[str, Any] = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "defaults"}
    return ParallelismConfig(**{**keys, "kind": ParallelismKind(keys["kind"])})
