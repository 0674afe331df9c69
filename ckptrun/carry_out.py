"""Carries out on this machine what a config says: a run, or a proof made of several."""

import signal
from collections.abc import Sequence

from ckptrun.config.crash import CrashKind
from ckptrun.config.run import RunConfig
from ckptrun.config.target_source import check_targets
from ckptrun.console import say_error, say_interrupted
from ckptrun.foreign.preflight import is_command
from ckptrun.launch.local import start_fork_server, start_ranks
from ckptrun.launch.own_ranks import environment_of, own_ranks
from ckptrun.proof.preflight import check_proof, is_proof
from ckptrun.run.leg import Leg
from ckptrun.run.preflight import check_folder, preflight

__all__ = ["carry_out"]


def carry_out(config: RunConfig, *, command: Sequence[str]) -> int:
    """Do what ``config`` says, on ranks that are started here: a run, or a proof; return its exit code.

    Raises:
        ConfigError: Something that needs no rank to be seen is wrong.
    """
    if config.crash.kind is not CrashKind.none:
        from ckptrun.crash.prove import prove_crash_states

        return prove_crash_states(config, command=command)
    if is_command(config):
        # Imported here: ``--help`` needs nothing of it.
        from ckptrun.foreign.prove import prove_command

        return prove_command(config, command=command)
    check_targets(config)
    plan = check_proof(config) if is_proof(config) else None
    start_fork_server(environment_of(config), in_proof=plan is not None)
    if plan is not None:
        # Imported here: it loads torch, which the fork server does meanwhile.
        from ckptrun.proof.prove import run_proof

        return run_proof(config, plan=plan, command=command)
    check_folder(config.run_dir, in_proof=False)
    preflight(config, world_size=config.ranks)
    outcome = start_ranks(own_ranks(config, command=command, leg=Leg()))
    for rank, number in sorted(outcome.killed.items()):
        say_error(f"ckptrun: rank {rank} was ended by {signal.Signals(number).name}.")
    if outcome.reason is not None:
        say_error(f"ckptrun: {outcome.reason}")
    if outcome.exit_code and outcome.interrupted_by is signal.SIGINT and outcome.is_silent:
        # Ranks speak of Ctrl-C themselves, unless they had to be killed.
        say_interrupted()
    if outcome.exit_code and outcome.interrupted_by not in (None, signal.SIGINT):
        say_error(
            f"ckptrun: ended by {signal.Signals(outcome.interrupted_by).name}. Run the same command again to resume."
        )
    return outcome.exit_code
