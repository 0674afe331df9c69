"""The ranks of a run of ours, as :mod:`~ckptrun.launch.local` starts them. Torch-free until they run."""

import os
from collections.abc import Mapping, Sequence

from ckptrun.config.run import RunConfig
from ckptrun.launch.local import RanksToStart
from ckptrun.run.leg import Leg
from ckptrun.run.watch.tether import Tether

__all__ = ["environment_of", "own_ranks"]


def own_ranks(config: RunConfig, *, command: Sequence[str], leg: Leg) -> RanksToStart:
    """Return the ranks of one start of a run.

    Args:
        config: Of the run, which has passed its preflight.
        command: The command line, for the record.
        leg: What they do beside training.
    """
    return RanksToStart(
        count=config.ranks,
        call=_be_rank,
        arguments=(config, list(command), leg),
        environment=environment_of(config),
        run_dir=config.run_dir,
        log_file=leg.log_file,
        timeout_seconds=config.launch.timeout_seconds,
        stop_seconds=config.launch.stop_seconds,
        in_proof=leg.in_proof,
        fresh=leg.fresh,
    )


def environment_of(config: RunConfig) -> dict[str, str]:
    """What ranks of this run have in their environment, beside who they are."""
    return {"OMP_NUM_THREADS": str(config.train.threads), **os.environ}


def _be_rank(
    config: RunConfig, command: Sequence[str], leg: Leg, environment: Mapping[str, str], tether: Tether
) -> None:
    from ckptrun.launch.rank import local_rank

    local_rank(config, command, leg, environment, tether)
