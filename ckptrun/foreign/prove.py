"""The proof of a command: its folder and its lock."""

import shutil
from collections.abc import Sequence
from contextlib import closing

from ckptrun.config.run import RunConfig
from ckptrun.evidence.run_folder import PROOF_LOCK
from ckptrun.foreign.job import CommandJob
from ckptrun.foreign.preflight import check_command_proof
from ckptrun.proof.folder import claim_folder
from ckptrun.proof.prove import prove_subject
from ckptrun.report.write import reported
from ckptrun.run.lock import RunLock
from ckptrun.run.preflight import check_folder, make_folder

__all__ = ["prove_command"]


def prove_command(config: RunConfig, *, command: Sequence[str] = ()) -> int:
    """Prove the command of ``config``; write ``verdict.json`` and ``report.html``; return the exit code.

    Args:
        config: Checked.
        command: The command line of ckptrun, for the record.

    Raises:
        ConfigError: The folder belongs to something else, and nothing has been started; or the reference has shown
            that a fault can never strike.
    """
    check_command_proof(config)
    check_folder(config.run_dir, in_proof=True)
    make_folder("run.dir", config)
    with closing(RunLock(config.run_dir, PROOF_LOCK)):
        claim_folder(config.run_dir, None, command)
        for name in ("output", "probe"):
            shutil.rmtree(config.run_dir / name, ignore_errors=True)
        every = config.proof.digest_every_steps or 1
        job = CommandJob(config.job, config.fault, config.run_dir, digest_every_steps=every)
        with reported(config.run_dir):
            return prove_subject(job, config.proof, judge=job.judge)
