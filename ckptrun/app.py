"""The entry of a run, a proof or a sweep: compose the config, check it, and start ranks, or be one.

Torch-free until ranks start. A plain run is composed here; Hydra's own entry answers ``--cfg`` and ``--info``, takes a
folder of choices of the user's own, and expands sweeps. Whatever is wrong with a config is one line, and exit code 2.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Generator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ckptrun.command_line import CommandLine, overrides_of_prove, read_command_line
from ckptrun.config.choices import CONF_DIR, EXPERIMENT
from ckptrun.config.compose import checked, composed, register
from ckptrun.config.crash import CrashKind
from ckptrun.config.mistakes import FAULTS_OF_A_CONFIG, explained
from ckptrun.config.run import RunConfig, check_world
from ckptrun.config.target_source import check_targets
from ckptrun.console import say_error
from ckptrun.errors import CkptrunError
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.foreign.preflight import check_command_proof, is_command
from ckptrun.proof.preflight import check_proof, check_under_launcher, is_proof
from ckptrun.report.markdown import append_to_ci
from ckptrun.sweep.sweep import Sweep

__all__ = ["main"]

_RAISE = "HYDRA_FULL_ERROR"


def main() -> None:
    """Run the command line; ends the process with the exit codes of the README."""
    try:
        line = read_command_line(overrides_of_prove(sys.argv[1:]))
        code = _run(composed(line.overrides, line.hydra_overrides)) if line.is_plain else _by_hydra(line)
    except CkptrunError as error:
        code = _report(error)
    sys.exit(code)


def _by_hydra(line: CommandLine) -> int:
    """Let Hydra answer, compose or sweep."""
    register()
    sys.argv[1:] = [*line.hydra_overrides, *line.axes, *line.flags]
    sweep = Sweep(line.hydra_overrides, rank=int(os.environ["RANK"]) if _is_rank() else None)
    if line.is_sweep:
        sweep.check_place()
    outcome: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
    def run(config: DictConfig) -> None:
        with _as_before():
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                sweep.take(lambda: _checked_cell(_composed_by_hydra(config)), _start)
            else:
                outcome.append(_run(_composed_by_hydra(config)))

    try:
        with _raising():
            run()
    except FAULTS_OF_A_CONFIG as error:
        if not sweep.has_begun:
            sweep.discard()
        raise explained(error, line.overrides) from error
    except SystemExit as ended:
        # Hydra has a message of its own; the job itself has not begun then.
        if ended.code not in (None, 0) and not outcome and not sweep.has_begun:
            sweep.discard()
            return ExitCode.config
        raise
    if sweep.has_begun:
        _quieten_torch()
        from ckptrun.carry_out import carry_out

        code = sweep.finish(functools.partial(carry_out, command=list(sys.argv)))
        _tell_ci(sweep.folder)
        return code
    return outcome[0] if outcome else ExitCode.done


@contextlib.contextmanager
def _raising() -> Generator[None]:
    """Let Hydra raise what goes wrong, where it would print its own view of it and end the process."""
    before = os.environ.get(_RAISE)
    os.environ[_RAISE] = "1"
    try:
        yield
    finally:
        _put_back(before)


@contextlib.contextmanager
def _as_before() -> Generator[None]:
    """Within ``_raising``: the environment of the user, which ranks inherit."""
    os.environ.pop(_RAISE, None)
    try:
        yield
    finally:
        os.environ[_RAISE] = "1"


def _put_back(before: str | None) -> None:
    os.environ.pop(_RAISE, None)
    if before is not None:
        os.environ[_RAISE] = before


def _composed_by_hydra(composed: DictConfig) -> RunConfig:
    hydra_config = HydraConfig.get()
    return checked(
        composed,
        overrides=list(hydra_config.overrides.task),
        experiment=hydra_config.runtime.choices.get(EXPERIMENT),
    )


def _prepared(config: RunConfig) -> RunConfig:
    """``config``, once it is known to fit what starts the ranks."""
    if _is_rank() and not is_command(config):
        check_world(config, int(os.environ["WORLD_SIZE"]))
        check_under_launcher(config)
        check_targets(config)
    return config


def _checked_cell(config: RunConfig) -> RunConfig:
    """``config`` of a cell, once it is known to make sense: a proof that cannot be is not begun."""
    if is_command(config):
        check_command_proof(config)
    elif is_proof(_prepared(config)) and not _is_rank():
        check_proof(config)
    return config


def _run(config: RunConfig) -> int:
    code = _start(_prepared(config))
    if config.crash.kind is not CrashKind.none or is_command(config) or is_proof(config):
        _tell_ci(config.run_dir)
    return code


def _tell_ci(folder: Path) -> None:
    """Put what came out on the page of the CI job, if there is one; one of several ranks does not."""
    if os.environ.get("RANK", "0") == "0":
        append_to_ci(folder)


def _report(error: CkptrunError) -> int:
    if _is_rank():
        from ckptrun.run.watch.failure import say_once

        say_once(error, rank=int(os.environ["RANK"]))
    else:
        say_error(f"ckptrun: {error}")
    return exit_code_of(error)


def _is_rank() -> bool:
    """Whether an outside launcher (torchrun) has started this process as one of its ranks."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _quieten_torch() -> None:
    """Keep its remarks on how to tune it from the user of a run; it reads this when it is first imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _start(config: RunConfig) -> int:
    _quieten_torch()
    # Imported here: torch takes seconds, and --help, --cfg and bad configs should not.
    if _is_rank() and not is_command(config):
        from ckptrun.launch.rank import run_rank

        return run_rank(config, command=sys.argv)
    from ckptrun.carry_out import carry_out

    return carry_out(config, command=sys.argv)
