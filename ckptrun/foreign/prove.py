"""The proof of a command: its folder and its lock."""

import shutil
from contextlib import closing

from ckptrun.config.run import RunConfig
from ckptrun.evidence.run_folder import PROOF_LOCK
from ckptrun.foreign.job import CommandJob
from ckptrun.foreign.preflight import check_command_proof
from ckptrun.proof.folder import claim_folder
from ckptrun.proof.prove import prove_subject
from ckptrun.run.lock import RunLock
from ckptrun.run.preflight import check_folder, make_folder

__all__ = ["prove_command"]


def prove_command(config: RunConfig) -> int:
    """Prove the command of ``config``; write ``verdict.json``; return the exit code.

    Raises:
        ConfigError: The folder belongs to something else, and nothing has been started; or the reference has shown
            that a fault can never strike.
    """
    check_command_proof(config)
    check_folder(config.run_dir, in_proof=True)
    make_folder("run.dir", config)
    with closing(RunLock(config.run_dir, PROOF_LOCK)):
        claim_folder(config.run_dir, None)
        for name in ("output", "probe"):
            shutil.rmtree(config.run_dir / name, ignore_errors=True)
        every = config.proof.digest_every_steps or 1
        job = CommandJob(config.job, config.fault, config.run_dir, digest_every_steps=every)
        return prove_subject(job, config.proof, judge=job.judge)
