"""One start of a command, listened to. Torch-free."""

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptrun.config.job import JobConfig
from ckptrun.errors import ConfigError
from ckptrun.files import write_json
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.process import Command, CommandEnd, run_command
from ckptrun.foreign.records import Heard, read_heard
from ckptrun.probe import PLAN_VARIABLE, site_folder

__all__ = ["Starter"]


class Starter:
    """Starts the command of a job, to write to ``output``.

    Args:
        job: What is started.
        output: What ``{run}`` stands for.
        digest_every_steps: Digests are taken at every so many steps.
    """

    def __init__(self, job: JobConfig, output: Path, *, digest_every_steps: int) -> None:
        self._job = job
        self._output = output
        self._every = digest_every_steps

    def start(
        self,
        records: Path,
        *,
        log: Path,
        newest: SavedStep | None,
        plan: Mapping[str, Any],
        struck: Callable[[], str | None] = lambda: None,
        before: Sequence[str] = (),
    ) -> tuple[Heard, CommandEnd]:
        """Start it and wait for its end; no process of it is left.

        Args:
            records: What its ranks say, a file per process; made.
            log: What it prints.
            newest: The newest complete checkpoint, which is resumed from; None: there is none, and it begins.
            plan: More that the probe is told.
            struck: Which kind of fault has struck so far.
            before: What stands before the command.

        Raises:
            ConfigError: There is no such program; or several processes train as the same rank.
        """
        records.mkdir(parents=True, exist_ok=True)
        # The path is also what its processes are known by.
        path = records.parent / f"plan-{uuid.uuid4().hex[:12]}.json"
        told = {"records": str(records), "output": str(self._output), "digest_every_steps": self._every}
        told["checkpoints"] = self._job.checkpoints
        write_json(path, {"faults": [], "first_step": 0, **told, "deterministic": self._job.deterministic, **plan})
        end = run_command(
            Command(
                argv=self.argv(newest),
                before=before,
                folder=self.folder(newest),
                environment=self._environment(newest),
                mark=(PLAN_VARIABLE, str(path)),
                log=log,
                timeout_seconds=self._job.timeout_seconds,
            ),
            struck=struck,
        )
        heard, *more = read_heard(records, by_update=plan.get("by_update", False))
        if heard.takes_turns and "optimizers" not in plan and self._every == 1:
            # No reference has said how to count.
            heard, *more = read_heard(records, by_update=True)
        if more:
            raise ConfigError(
                f"{len(more) + 1} processes of the command, one after the other or at once, take optimizer steps as "
                "the same rank: which of them the proof is about is not known. Let a launcher not restart ranks by "
                "itself (torchrun --max-restarts 0), and keep other processes with an optimizer out of the command: "
                "what trains one after the other is proved by a command each."
            )
        return heard, end

    def folder(self, newest: SavedStep | None) -> Path | None:
        """Return where the command of a start runs; None: where this process does."""
        return None if self._job.cwd is None else Path(self._filled(self._job.cwd, newest))

    def argv(self, newest: SavedStep | None) -> list[str]:
        """Return the command of a start."""
        command = self._job.resume if newest is not None and self._job.resume else self._job.command
        return [self._filled(part, newest) for part in command]

    def _environment(self, newest: SavedStep | None) -> dict[str, str]:
        own = {name: self._filled(str(value), newest) for name, value in self._job.env.items()}
        environment = {**os.environ, **own}
        path = [str(site_folder()), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        if self._job.deterministic:
            environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return environment

    def _filled(self, text: str, newest: SavedStep | None) -> str:
        text = text.replace("{run}", str(self._output))
        if newest is not None:
            text = text.replace("{checkpoint}", str(newest.place)).replace("{step}", str(newest.step))
        return text
