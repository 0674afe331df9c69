"""One run on one rank: build, resume, train, check, report."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ckptrun.build import Builder, Built
from ckptrun.checkpoint.load import Loaded, load
from ckptrun.checkpoint.manager import CheckpointManager, Commit
from ckptrun.checkpoint.manifest import read_manifest
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.checkpoint.staging import HostStager
from ckptrun.checkpoint.state import TrainingState
from ckptrun.config.checkpoint import LoadSelection, SaveMode
from ckptrun.config.parallelism import MeshShape
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.console import ProgressView, say, say_error
from ckptrun.digest import digest, digest_leaves
from ckptrun.errors import CheckpointDamagedError, InternalError
from ckptrun.launch.groups import Groups
from ckptrun.launch.lock import RunLock
from ckptrun.launch.preflight import (
    abandoned_steps,
    changed_keys,
    checkpoint_in,
    checkpoint_of,
    folders_to_resume,
    none_is_whole,
)
from ckptrun.launch.report import Report
from ckptrun.proof import (
    Check,
    Ledger,
    Status,
    check_final_state,
    check_loaded,
    check_reload,
    check_repeats,
    check_replicas,
    check_trajectory,
    verdict_of,
)
from ckptrun.ranks import Ranks
from ckptrun.schedule import StepSchedule
from ckptrun.state import preserved, seed_streams, stream_digests
from ckptrun.trainer import StepFacts, Trainer

__all__ = ["Job"]

_EVERYTHING = LoadSelection()


@dataclass(slots=True)
class _Timing:
    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    commits: list[Commit] = field(default_factory=list)


class Job:
    """A run from its first line to its verdict. Every method is called on all ranks.

    Args:
        config: The checked config.
        mesh_shape: Degrees of the mesh axes on these ranks.
        device: Where this rank computes.
        groups: Open process groups.
        command: The command line, for the record.
    """

    def __init__(
        self, config: RunConfig, *, mesh_shape: MeshShape, device: torch.device, groups: Groups, command: Sequence[str]
    ) -> None:
        self._config = config
        self._device = device
        self._groups = groups
        self._ranks = Ranks(groups.control)
        self._timing = _Timing()
        self._checks: list[Check] = []
        self._ledger: Ledger | None = None
        self._batches: list[dict[str, str]] = []
        self._damaged: dict[str, str] = {}
        self._report = Report(config, mesh_shape=mesh_shape, device=device, command=command, ranks=self._ranks)
        self._lock: RunLock | None = None
        self._ranks.decide(self._take_lock)
        self._builder = Builder(config, mesh_shape=mesh_shape, device=device, rank=self._ranks.rank)
        self._built = self._builder.build()
        self._manager = self._make_manager(mesh_shape)
        self._view: ProgressView | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._report.close()
        if self._ledger is not None:
            self._ledger.close()
        self._built.close()
        if error is None:
            self._manager.close()
        if self._lock is not None:
            self._lock.close()

    def run(self) -> int:
        """Resume, train, check; return the exit code."""
        loaded = self._resume()
        progress = self._built.training.progress
        self._report.begin(first_step=progress.step, damaged=self._damaged)
        self._ledger = Ledger(self._config.run_dir, self._ranks.rank, first_step=progress.step)
        self._start_streams(loaded)
        if loaded is not None and not self._verify_resume(loaded):
            return self._finish()
        if isinstance(self._built.training.schedule, StepSchedule):
            # train.steps may have changed, and the curve with it; otherwise this changes no bit.
            self._built.training.schedule.apply()
        if self._config.checkpoint.mode is not SaveMode.none:
            self._remove_later()
            self._manager.prepare(self._built.training.state)
        if progress.step >= self._config.train.steps:
            say_once(self._ranks, f"The run is complete: {progress.step} of {self._config.train.steps} steps are done.")
        with ProgressView(
            self._config.train.steps,
            done=progress.step,
            every=self._config.train.log_interval_steps,
            visible=self._ranks.rank == 0,
        ) as self._view:
            self._trainer().run()
        self._check_last(loaded)
        self._check_steps(loaded)
        return self._finish()

    def _take_lock(self) -> None:
        self._lock = RunLock(self._config.run_dir)

    def on_batch(self, inputs: Tensor, targets: Tensor) -> None:
        """Note what the rank is going to compute with: the bits, not their place in an epoch."""
        self._batches.append(digest_leaves({"inputs": inputs, "targets": targets}))

    def on_step(self, facts: StepFacts) -> None:
        """Note what a step came to."""
        timing = self._timing
        self._write_ledger(facts)
        if not math.isfinite(facts.loss) and (timing.last_loss is None or math.isfinite(timing.last_loss)):
            say_once(self._ranks, f"The loss is not finite at step {facts.step}: {facts.loss}.")
        if timing.first_loss is None:
            timing.first_loss = facts.loss
        timing.last_loss = facts.loss
        # The first step also warms caches up and compiles: it says nothing about speed.
        if timing.steps > 0 or self._config.train.steps == 1:
            timing.seconds += facts.seconds
            timing.samples += facts.samples
        timing.steps += 1
        self._report.step(facts)
        if self._view is not None:
            self._view.step(facts.step, f"loss {facts.loss:.4f}  norm {facts.gradient_norm:.3f}")

    def _write_ledger(self, facts: StepFacts) -> None:
        batches, self._batches = self._batches, []
        if self._ledger is not None:
            self._ledger.append(
                {
                    "step": facts.step,
                    "loss": facts.loss.hex(),
                    "gradient_norm": facts.gradient_norm.hex(),
                    "learning_rate": facts.learning_rate.hex(),
                    "skipped": facts.skipped,
                    "batch": digest(batches),
                    "rng": stream_digests(),
                }
            )

    def _trainer(self) -> Trainer:
        every_save = self._config.proof.reload is ReloadCheck.every_save
        return Trainer(
            self._built.training,
            self._builder.plan,
            manager=self._manager,
            observer=self,
            after_save=self._check_save if every_save else lambda _: None,
        )

    def _make_manager(self, mesh_shape: MeshShape) -> CheckpointManager:
        checkpoint = self._config.checkpoint
        stager = None
        if checkpoint.mode in (SaveMode.async_thread, SaveMode.async_process):
            stager = HostStager(
                cached=checkpoint.cached_staging,
                overlapped=checkpoint.overlapped_staging,
                shared=checkpoint.mode is SaveMode.async_process,
            )
        return CheckpointManager(
            self._config.checkpoint_root,
            mode=checkpoint.mode,
            keep=KeepLast(count=checkpoint.keep_last),
            ranks=self._ranks,
            saving_group=self._groups.saving,
            stager=stager,
            facts={
                "mesh": mesh_shape.degrees,
                "config": to_plain(self._config),
                "torch": str(torch.__version__),
                "threads": torch.get_num_threads(),
            },
            on_commit=self._on_commit,
        )

    def _on_commit(self, commit: Commit) -> None:
        self._timing.commits.append(commit)
        self._report.commit(commit)
        if commit.not_removed is not None:
            say_error_once(self._ranks, f"Older checkpoints could not be removed: {commit.not_removed}")

    def _resume(self) -> Loaded | None:
        """Load the checkpoint to resume from, or the weights to start from; None when the run starts anew.

        Nothing committed is removed here: the start may still fail.
        """
        config = self._config
        if config.checkpoint.mode is not SaveMode.none:
            # Before looking for checkpoints: an overwrite that was cut gets its old version back.
            for name in self._manager.remove_leftovers():
                say_once(self._ranks, f"Removed {name}: what a save that was ended left behind.")
        folders = self._ranks.decide(lambda: folders_to_resume(config))
        selection = config.checkpoint.selection
        if config.checkpoint.mode is SaveMode.none and not folders and self._manager.committed_steps():
            say_once(
                self._ranks, "Not resuming: with checkpoint=none a run starts anew; checkpoint.resume=<step> resumes."
            )
        if folders:
            return self._load_whole(folders, _EVERYTHING if selection.source is not None else selection)
        if selection.source is not None:
            self._start_from(selection)
        return None

    def _load_whole(self, folders: Sequence[str], selection: LoadSelection) -> Loaded:
        """Load the first of ``folders`` that is whole."""
        for folder in folders:
            try:
                self._say_changes(folder)
                loaded = self._load(self._built, folder, selection)
            except CheckpointDamagedError as error:
                self._damaged[folder] = str(error)
                continue
            for damaged, reason in self._damaged.items():
                say_error_once(self._ranks, f"DAMAGED, skipped: {damaged}. {reason}")
            self._manager.may_replace(self._damaged)
            return loaded
        raise self._ranks.decide(lambda: none_is_whole(self._config, self._damaged))

    def _say_changes(self, folder: str) -> None:
        saved_run = self._ranks.decide(lambda: dict(read_manifest(folder).run))
        for key, before, now in changed_keys(self._config, saved_run):
            say_once(self._ranks, f"Changed since that checkpoint: {key} was {before!r}, now {now!r}.")

    def _start_from(self, selection: LoadSelection) -> None:
        source = self._ranks.decide(lambda: checkpoint_in(str(selection.source), key="checkpoint.load.from"))
        only = selection.only or ("model",)
        loaded = self._load(
            self._built,
            source,
            LoadSelection(
                only=only,
                exclude=selection.exclude,
                source=source,
                allow_missing=selection.allow_missing,
                allow_extra=selection.allow_extra,
            ),
        )
        self._built.restart_average()
        say_once(self._ranks, f"Started from {loaded.loaded_leaves} leaves of {source} ({', '.join(only)}).")
        if loaded.digests:
            self._checks.append(check_loaded(self._built.training.state, loaded, ranks=self._ranks))
        else:
            say_once(
                self._ranks, "They have no digests to compare with: no run has saved them. Every byte was checked."
            )

    def _remove_later(self) -> None:
        """Going back with checkpoint.overwrite=true abandons later checkpoints: they must not be resumed from again."""
        later = self._ranks.decide(lambda: abandoned_steps(self._config))
        if later:
            say_once(self._ranks, f"Removed the checkpoints of steps {', '.join(map(str, later))} (overwrite=true).")
            self._manager.remove(later)

    def _load(self, built: Built, folder: str, selection: LoadSelection) -> Loaded:
        return load(built.training.state, folder, ranks=self._ranks, group=self._groups.saving, selection=selection)

    def _start_streams(self, loaded: Loaded | None) -> None:
        """Give every rank its streams, unless the checkpoint has. Nothing may reseed after this."""
        if loaded is not None and "rng" not in loaded.left_out:
            return
        step = self._built.training.progress.step
        seed_streams(self._config.train.seed, step, self._builder.data_rank)
        if loaded is not None:
            say_once(
                self._ranks,
                f"Random streams were drawn anew from train.seed and step {step}: the checkpoint's were left out "
                f"(it was saved on {loaded.world_size} ranks).",
            )

    def _verify_resume(self, loaded: Loaded) -> bool:
        """Compare what was just loaded with the manifest; report what else changed. False: do not train on."""
        step = self._built.training.progress.step
        say_once(self._ranks, f"Resumed from {loaded.folder} (step {step}).")
        if self._config.proof.reload is ReloadCheck.none:
            return True
        check = check_loaded(self._built.training.state, loaded, ranks=self._ranks)
        self._checks.append(check)
        return check.status is not Status.different

    def _check_save(self, step: int) -> None:
        """proof.reload=every_save: wait for the commit and check it while training waits."""
        self._manager.wait()
        commit = self._manager.last_commit
        if commit is None or commit.request.step != step:
            raise InternalError(f"The save of step {step} was requested but not committed.")
        self._checks += [check_replicas(commit.request), self._check_folder(commit.request.folder, commit)]

    def _check_last(self, loaded: Loaded | None) -> None:
        proof, commit = self._config.proof.reload, self._manager.last_commit
        if proof is ReloadCheck.none or self._config.checkpoint.mode is SaveMode.none:
            return
        if commit is not None:
            if proof is ReloadCheck.final:
                self._checks += [check_replicas(commit.request), self._check_folder(commit.request.folder, commit)]
        elif loaded is not None:
            # Nothing was saved: the run was complete. What it was told to leave out stays out.
            self._checks.append(self._check_folder(loaded.folder, None))

    def _check_steps(self, loaded: Loaded | None) -> None:
        """Compare the ledger with itself, where steps were done twice, and with the run that is the reference."""
        if self._ledger is not None:
            repeats = check_repeats(self._ledger, ranks=self._ranks)
            self._checks += [] if repeats is None else [repeats]
        if self._config.proof.reference is None:
            return
        reference, step = Path(self._config.proof.reference).expanduser().resolve(), self._config.train.steps
        self._checks.append(check_trajectory(reference, self._config.run_dir, last_step=step, ranks=self._ranks))
        commit = self._manager.last_commit
        digests = commit.request.digests if commit is not None else loaded.digests if loaded is not None else None
        if digests is not None:
            folder = self._ranks.decide(lambda: checkpoint_of(reference, step))
            self._checks.append(check_final_state(folder, digests, step=step, ranks=self._ranks))

    def _check_folder(self, folder: str, commit: Commit | None) -> Check:
        """Load ``folder`` into new objects; compare with the request, or with the manifest when no request was seen."""
        with preserved():
            fresh = self._builder.build()
            try:
                selection = self._config.checkpoint.selection
                part = selection if commit is None and selection.source is None else _EVERYTHING
                loaded = self._load(fresh, folder, part)
                if commit is None:
                    return check_loaded(fresh.training.state, loaded, ranks=self._ranks)
                return check_reload(
                    commit.request.digests, lambda: self._state_of(fresh), step=commit.request.step, ranks=self._ranks
                )
            finally:
                fresh.close()

    @staticmethod
    def _state_of(built: Built) -> TrainingState:
        return built.training.state

    def _finish(self) -> int:
        """Write the verdict and the summary; return the exit code."""
        verdict = verdict_of(self._checks)
        reload = self._config.proof.reload is not ReloadCheck.none and self._config.checkpoint.mode is not SaveMode.none
        asked = reload or self._config.proof.reference is not None
        if self._ranks.rank == 0:
            self._report.finish(verdict, self._summary(), asked=asked)
        self._ranks.barrier()
        return verdict.exit_code if asked or verdict.status is Status.different else 0

    def _summary(self) -> dict[str, Any]:
        timing = self._timing
        return {
            "step": self._built.training.progress.step,
            "skipped_steps": self._built.training.progress.skipped_steps,
            "first_loss": timing.first_loss,
            "last_loss": timing.last_loss,
            "samples_per_second": timing.samples / timing.seconds if timing.seconds else None,
            "checkpoints": len(timing.commits),
            "blocked_seconds": sum(commit.blocked_seconds for commit in timing.commits),
            "finished_at": time.time(),
        }


def say_once(ranks: Ranks, text: str) -> None:
    """Print ``text`` on rank 0."""
    if ranks.rank == 0:
        say(text)


def say_error_once(ranks: Ranks, text: str) -> None:
    """Print what must not be overlooked on rank 0."""
    if ranks.rank == 0:
        say_error(f"ckptrun: {text}")
