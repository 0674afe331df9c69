"""A run of ours as the subject of a proof: what a config describes, in a folder of its own. Torch-free."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from ckptrun.config.checkpoint import CheckpointConfig, SaveMode
from ckptrun.config.custom import Custom
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import RunConfig
from ckptrun.engine.commit import list_committed
from ckptrun.fault import PlannedFault, stop_steps
from ckptrun.launch.local import start_fork_server, start_ranks
from ckptrun.launch.own_ranks import environment_of, own_ranks
from ckptrun.proof.outside_files import OutsideFiles
from ckptrun.proof.places import clear_place, leaf_names, place_beside
from ckptrun.proof.private_files import PrivateFiles
from ckptrun.proof.subject import Run, TimedOutcome
from ckptrun.run.leg import Leg
from ckptrun.run.preflight import preflight
from ckptrun.text import counted

__all__ = ["OwnJob"]

_UNDER_PROOF = "run"


class OwnJob:
    """See :class:`~ckptrun.proof.subject.Subject`.

    Args:
        config: Of the proof, checked.
        after: The same once the run was resumed: on another mesh, if ``proof.resume_*`` says so.
        plan: What fails; empty with ``proof=full``, where starts end by themselves.
        outside: Knows which files legs have in common.
        private: Puts each leg's own copies in place.
        command: The command line, for the record.
    """

    def __init__(  # one caller passes all of them by name
        self,
        config: RunConfig,
        after: RunConfig,
        *,
        plan: tuple[PlannedFault, ...],
        outside: OutsideFiles,
        private: PrivateFiles,
        command: Sequence[str],
    ) -> None:
        self._config = config
        self._after = after
        self._plan = plan
        self._outside = outside
        self._private = private
        self._command = list(command)
        self.steps = config.train.steps
        self.reshapes = config.proof.reshapes
        self.keep_last = config.checkpoint.keep_last
        self.precision = config.precision

    @property
    def stops(self) -> Sequence[int]:
        """See ``Subject``."""
        return stop_steps(self._config)

    @property
    def title(self) -> str:
        """See ``Subject``."""
        what = "; then ".join(str(fault) for fault in self._plan) or "fresh processes go on from the middle, twice"
        return f"Proof of {self.steps} steps on {counted(self._config.ranks, 'rank')}: {what}"

    def plan(self) -> tuple[PlannedFault, ...]:
        """See ``Subject``."""
        return self._plan

    def run(self, name: str, *, is_later: bool = False, saves: bool = True, resume_from: str | None = None) -> Run:
        """See ``Subject``."""
        folder, path = self._config.run_dir, self._config.checkpoint.path
        if name != _UNDER_PROOF:
            folder = folder / "proof" / name
            path = None if path is None else place_beside(path, name)
        return Run(
            name=name,
            folder=folder,
            checkpoints=path or str(folder / "checkpoints"),
            ranks=(self._after if is_later else self._config).ranks,
            is_later=is_later,
            saves=saves,
            resume_from=resume_from,
        )

    def prepare(self) -> None:
        """See ``Subject``. The other interpreter of the proof loads torch."""
        start_fork_server(environment_of(self._config), in_proof=True, fresh=True)

    def start(self, run: Run, leg: Leg) -> TimedOutcome:
        """See ``Subject``."""
        self._private.begin(run.name, leg.start, begins_as=leg.begins_as)
        leg = replace(leg, files=self._outside.begin(run.name, leg.start, run.folder))
        config = self._config_of(run)
        if run.name != _UNDER_PROOF and run.saves:
            clear_place(run.checkpoints)
        shutil.rmtree(run.folder / "trace", ignore_errors=True)
        began = time.monotonic()
        preflight(config, world_size=config.ranks)
        outcome = start_ranks(own_ranks(config, command=self._command, leg=leg))
        return TimedOutcome(outcome=outcome, seconds=time.monotonic() - began)

    def has_checkpoint(self, run: Run) -> bool:
        """See ``Subject``."""
        return bool(list_committed(run.checkpoints))

    def leaf_names(self, run: Run) -> Sequence[str]:
        """See ``Subject``."""
        return leaf_names(run.checkpoint(self.steps))

    def code_of(self, component: str | None) -> str:
        """See ``Subject``."""
        if component in self._config.components:
            return f" It is components.{component}._target_={self._config.components[component].get('_target_')}."
        if component not in ("model", "optimizer", "schedule", "data"):
            return ""
        group = getattr(self._config, component)
        return f" It is {component}._target_={group.target}." if isinstance(group, Custom) else ""

    def _config_of(self, run: Run) -> RunConfig:
        """The config that the ranks of ``run`` are given: the same in all that is computed."""
        base = self._after if run.is_later else self._config
        is_beside = run.name != _UNDER_PROOF
        # What stands beside the run under proof is not proved itself.
        full, reload = (False, ReloadCheck.none) if is_beside else (base.proof.full, base.proof.reload)
        proof = replace(base.proof, reference=None, full=full, reload=reload)
        return replace(
            base,
            run=replace(base.run, dir=str(run.folder)),
            proof=proof,
            checkpoint=_checkpoint_of(base, run, is_beside=is_beside),
        )


def _checkpoint_of(base: RunConfig, run: Run, *, is_beside: bool) -> CheckpointConfig:
    config = base.checkpoint
    resume: int | str | None = run.resume_from
    if resume is None:
        # Somebody else's checkpoint is what every leg begins with.
        is_place = str(config.resume) not in ("auto", "none") and config.resume_step is None
        resume = config.resume if is_place else "auto" if run.saves else "none"
    return replace(
        config,
        path=run.checkpoints if is_beside and config.path is not None else config.path,
        mode=config.mode if run.saves else SaveMode.none,
        overlapped_staging=config.overlapped_staging and run.saves,
        resume=resume,
    )
