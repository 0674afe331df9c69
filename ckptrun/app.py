"""The Hydra entry: compose the config, check it, and start ranks, or be one. Torch-free until then."""

import os
import sys
import time

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ckptrun.config.compose import CONF_DIR
from ckptrun.config.overrides import open_dicts
from ckptrun.config.register import register
from ckptrun.config.run import RunConfig, check_world, from_hydra
from ckptrun.console import say_error
from ckptrun.errors import CkptrunError
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.launch.proof_check import check_proof, check_under_launcher, is_proof
from ckptrun.launch.sweep import Sweep

__all__ = ["main"]

_PATIENCE_SECONDS = 3.0


def main() -> None:
    """Run the command line; ends the process with the exit codes of the README."""
    register()
    sys.argv[1:] = open_dicts(sys.argv[1:])
    sweep = Sweep(sys.argv[1:], rank=int(os.environ["RANK"]) if _is_rank() else None)
    outcome: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
    def composed(config: DictConfig) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            sweep.run_cell(lambda: _checked(config), _start)
        else:
            outcome.append(_run(config))

    try:
        composed()
    except SystemExit as ended:
        # Hydra ends with 1 and a message of its own when it cannot compose; the job itself has not begun then.
        if ended.code not in (None, 0) and not outcome and not sweep.has_begun:
            sweep.discard()
            sys.exit(ExitCode.config)
        raise
    if sweep.has_begun:
        sys.exit(sweep.finish())
    sys.exit(outcome[0] if outcome else ExitCode.done)


def _checked(composed: DictConfig) -> RunConfig:
    hydra_config = HydraConfig.get()
    config = from_hydra(
        composed,
        overrides=list(hydra_config.overrides.task),
        experiment=hydra_config.runtime.choices.get("experiment"),
    )
    if _is_rank():
        check_world(config, int(os.environ["WORLD_SIZE"]))
        check_under_launcher(config)
    elif is_proof(config):
        check_proof(config)
    return config


def _run(composed: DictConfig) -> int:
    try:
        return _start(_checked(composed))
    except CkptrunError as error:
        # Every rank finds the same mistake; one message is enough.
        if os.environ.get("RANK", "0") == "0":
            say_error(f"ckptrun: {error}")
        else:
            # The launcher ends all ranks when the first one does: let rank 0 be heard.
            time.sleep(_PATIENCE_SECONDS)
        return exit_code_of(error)


def _is_rank() -> bool:
    """Whether an outside launcher (torchrun) has started this process as one of its ranks."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _start(config: RunConfig) -> int:
    # torch reads this when it is first imported: its remarks on how to tune it are not for the user of a run.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Imported here: torch takes seconds, and --help, --cfg and bad configs should not.
    if _is_rank():
        from ckptrun.launch.rank import run_rank

        return run_rank(config, command=sys.argv)
    from ckptrun.launch.start import launch

    return launch(config, command=sys.argv)
