"""What can be found wrong with the proof of a command before anything is started. Torch-free."""

import sys

from ckptrun.config.job import JobKind
from ckptrun.config.run import RunConfig
from ckptrun.errors import ConfigError
from ckptrun.foreign.plan import check_fault

__all__ = ["check_command_proof", "is_command"]


def is_command(config: RunConfig) -> bool:
    """Whether it is a command that trains."""
    match config.job.kind:
        case JobKind.ckptrun:
            return False
        case JobKind.command:
            return True


def check_command_proof(config: RunConfig) -> None:
    """See that a command can be proved as it is asked for.

    Raises:
        ConfigError: A fault cannot strike it, or something is asked that only ckptrun's own runs can do.
    """
    if sys.platform != "linux":
        raise ConfigError(f"Proofs of commands need Linux; this is {sys.platform}.")
    check_fault(config.fault)
    proof = config.proof
    for key, wanted in (
        ("proof.controls", proof.controls not in (None, [])),
        ("proof.resume_parallelism", proof.resume_parallelism is not None),
        ("proof.resume_nproc", proof.resume_nproc is not None),
        ("proof.reference", proof.reference is not None),
        ("proof.private", bool(proof.private)),
        ("proof.shared", bool(proof.shared)),
        ("proof.ignore", bool(proof.ignore)),
        ("proof=full", proof.full),
    ):
        if wanted:
            raise ConfigError(
                f"{key} is for ckptrun's own runs: it cannot look into the checkpoints of a command, nor start it on "
                "other ranks. Leave it out, or give job.resume another command."
            )
