"""``ckptrun.prove``: a run or a proof from Python, for a user's tests."""

from collections.abc import Sequence

from ckptrun.carry_out import carry_out
from ckptrun.config.compose import config_from
from ckptrun.errors import RankFailedError
from ckptrun.evidence.run_folder import PROOF, VERDICT
from ckptrun.evidence.starts import read_starts
from ckptrun.evidence.verdict import Verdict, read_verdict
from ckptrun.exit_codes import ExitCode

__all__ = ["PROVED", "prove"]

PROVED: list[Verdict] = []
"""What this process has proved, in order; for reports."""


def prove(overrides: Sequence[str]) -> Verdict:
    """Do what ``ckptrun <overrides>`` does, on ranks that are started here, and return the verdict.

    Leaves the run folder, with ``verdict.json``, where the command would: under ``outputs/`` of the working folder, or
    in ``run.dir``. A proof that was there before is done anew. Called in the main thread, outside of any process group.

    Args:
        overrides: As typed on the command line, e.g. ``["parallelism=fsdp", "fault=sigkill", "run.dir=/tmp/proof"]``.

    Raises:
        ConfigError: A key, a value or a choice is wrong; nothing was started.
        RankFailedError: The job itself does not run, fault or not; the message has the error of its rank.
    """
    config = config_from(overrides)
    verdict_file = config.run_dir / VERDICT
    verdict_file.unlink(missing_ok=True)
    code = carry_out(config, command=["ckptrun", *overrides])
    if code in (ExitCode.failed, ExitCode.config) or not verdict_file.is_file():
        starts = read_starts(config.run_dir) or read_starts(config.run_dir / PROOF / "reference")
        failure = starts[-1].failure if starts else None
        what = f"rank {failure.rank}: {failure.text}" if failure is not None else f"exit code {code}"
        raise RankFailedError(f"The run in {config.run_dir} came to nothing: {what}")
    verdict = read_verdict(config.run_dir)
    PROVED.append(verdict)
    return verdict
