"""One start of a run on one rank: build, resume, train, check, report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, assert_never

import torch

from ckptrun.build import Builder, Built
from ckptrun.checkpoint.load import Loaded
from ckptrun.checkpoint.manager import CheckpointManager, Commit, digest_state
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.checks.faults import check_faults
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.reload import check_loaded, check_reload, check_replicas, check_resumed
from ckptrun.checks.trajectory import check_final_state, check_repeats, check_trajectory
from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.parallelism import MeshShape
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import COMPONENTS, RunConfig, to_plain
from ckptrun.console import ProgressView, say, say_error
from ckptrun.engine.locate import locate
from ckptrun.engine.staging import HostStager
from ckptrun.errors import InternalError
from ckptrun.evidence.ledger import Ledger
from ckptrun.evidence.lineage import Lineage
from ckptrun.evidence.starts import EventKind
from ckptrun.evidence.trained import fingerprints
from ckptrun.evidence.verdict import Check, Status, verdict_of
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import FaultInjector, FaultRecord, armed, with_faults
from ckptrun.files import with_bits
from ckptrun.process_groups import Groups
from ckptrun.ranks import Ranks
from ckptrun.run.conditions import conditions_of, surroundings
from ckptrun.run.controls import run_controls
from ckptrun.run.leg import Leg
from ckptrun.run.lock import RunLock
from ckptrun.run.observer import StepNotes, StepObserver
from ckptrun.run.reload_process import ReloadProcess
from ckptrun.run.report import Report
from ckptrun.run.resume import EVERYTHING, Restorer, Resume
from ckptrun.run.tracing import Originals
from ckptrun.run.watch.stop import StopSignal
from ckptrun.run.which_checkpoint import checkpoint_of
from ckptrun.state import preserved
from ckptrun.state.components import TrainingState, name_of
from ckptrun.trainer import Trainer

__all__ = ["Job"]


class Job:
    """A start of a run from its first line to its verdict. Every method is called on all ranks.

    Args:
        config: The checked config.
        mesh_shape: Degrees of the mesh axes on these ranks.
        device: Where this rank computes.
        groups: Open process groups.
        command: The command line, for the record.
        leg: What this start is about.
        stop: Knows whether this rank was asked to end, and who is told how far it is.
    """

    def __init__(  # noqa: PLR0913  # one composition root passes all of them by name
        self,
        config: RunConfig,
        *,
        mesh_shape: MeshShape,
        device: torch.device,
        groups: Groups,
        command: Sequence[str],
        leg: Leg,
        stop: StopSignal,
    ) -> None:
        self._config = config
        self._leg = leg
        self._stop = stop
        self._groups = groups
        self._ranks = Ranks(groups.control)
        self._checks: list[Check] = []
        self._ignored = Ignored(config.proof.ignore)
        self._report = Report(config, leg, mesh_shape=mesh_shape, device=device, command=command, ranks=self._ranks)
        self._lock: RunLock | None = None
        self._reload: ReloadProcess | None = None
        self._ranks.decide(self._take_lock)
        start = self._ranks.decide(self._report.note_launch)
        fired = self._ranks.decide(FaultRecord(config.run_dir).fired)
        faults = armed(leg.faults, {fault.index for fault in fired})
        self._checkpoints = locate(config.checkpoint_root)
        self._injector = FaultInjector(
            faults,
            run_dir=config.run_dir,
            rank=self._ranks.rank,
            checkpoints=self._checkpoints,
            passed=stop.passed,
        )
        self._builder = Builder(config, mesh_shape=mesh_shape, device=device, rank=self._ranks.rank)
        self._built = self._builder.build()
        self._originals = Originals(self._built.training)
        self._observer = StepObserver(
            config,
            leg,
            ranks=self._ranks,
            report=self._report,
            injector=self._injector,
            line=StepNotes(
                start=start,
                share=self._builder.share if leg.samples else None,
                trained=self._trained if leg.in_proof else None,
                counts_stream=partial(self._ignored.counts_stream, rank=self._ranks.rank),
            ),
            state_digests=lambda: self._ignored.kept(digest_state(self._built.training.state.leaves())),
        )
        self._lineage = Lineage()
        self._conditions = conditions_of(config, mesh_shape, device=device)
        # The history follows when the state is loaded.
        self._facts: dict[str, Any] = {
            "mesh": mesh_shape.degrees,
            # Those of rank 0 are stored.
            "config": to_plain(config) if self._ranks.rank == 0 else {},
            **(self._order() if self._ranks.rank == 0 else {}),
            **surroundings(),
        }
        self._manager = self._make_manager()
        self._observer.manager = self._manager
        self._restorer = Restorer(
            seed=config.train.seed,
            data_rank=self._builder.share.data_rank,
            ranks=self._ranks,
            group=groups.saving,
            reached=self._injector.reached,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._report.close()
        self._observer.close()
        self._built.close()
        if self._reload is not None:
            self._reload.close()
        if error is None:
            self._manager.close()
        if self._lock is not None:
            self._lock.close()

    def run(self) -> int:
        """Resume, train, check; return the exit code."""
        if self._ignored:
            self._ignored.check_some_left(self._leaf_names(), needed=COMPONENTS)
        if self._leg.controls is not None:
            run_controls(
                self._leg.controls,
                builder=self._builder,
                restorer=self._restorer,
                manager=self._manager,
                ranks=self._ranks,
                report=self._report,
            )
            return ExitCode.done
        resume = Resume(self._config, self._built, manager=self._manager, restorer=self._restorer, ranks=self._ranks)
        loaded = resume.load()
        self._begin(resume, loaded)
        if loaded is not None and not self._verify_resume(loaded):
            return self._finish()
        self._restorer.settle(self._built)
        if self._config.checkpoint.mode is not SaveMode.none:
            resume.remove_later()
            self._manager.prepare(self._built.training.state)
        if self._train():
            return self._ended_early()
        self._check_last(loaded)
        self._check_steps(loaded)
        return self._finish()

    def _take_lock(self) -> None:
        self._lock = RunLock(self._config.run_dir)

    def _begin(self, resume: Resume, loaded: Loaded | None) -> None:
        """Open the files; draw random streams where none were loaded."""
        step, rank = self._built.training.progress.step, self._ranks.rank
        resumed_from = None if loaded is None else loaded.folder
        self._report.begin(first_step=step, damaged=resume.damaged, resumed_from=resumed_from)
        self._lineage = self._lineage_from(loaded, step)
        self._facts["history"] = self._lineage.as_json()
        self._observer.ledger = Ledger(self._config.run_dir, rank, first_step=step, mark=self._lineage.mark)
        if self._leg.trace is not None:
            self._observer.tracer = self._originals.tracer(self._config, self._leg.trace, rank=rank)
        if resume.started_from is not None:
            self._note(resume.started_from)
        resume.start_streams(loaded)

    def _lineage_from(self, loaded: Loaded | None, step: int) -> Lineage:
        """That of the state which this start goes on from, and of what it computes with."""
        source = self._config.checkpoint.selection.source
        if loaded is None:
            note = "" if source is None else f"from {source}"
            return Lineage().continued(step, self._conditions, note=note)
        before = Lineage.of_checkpoint(loaded.run, step=step, folder=loaded.folder)
        note = f"without {', '.join(loaded.left_out)}" if loaded.left_out else ""
        return before.continued(step, self._conditions, note=note)

    def _train(self) -> bool:
        """Train; return whether it was ended early."""
        progress, steps = self._built.training.progress, self._config.train.steps
        if progress.step >= steps:
            self._say(f"The run is complete: {progress.step} of {steps} steps are done.")
        with ProgressView(
            steps,
            done=progress.step,
            every=self._config.train.log_interval_steps,
            visible=self._ranks.rank == 0,
        ) as self._observer.view:
            return self._trainer().run()

    def _trainer(self) -> Trainer:
        every_save = self._config.proof.reload is ReloadCheck.every_save
        if every_save and self._config.checkpoint.mode is not SaveMode.none and not self._leg.saves_at_end_only:
            log = self._leg.log_file(self._ranks.rank)
            self._reload = ReloadProcess(self._config, log=log, beside=self._groups.prefix, ranks=self._ranks)
        saves = self._leg.saves_after_resume
        further = frozenset({self._built.training.progress.step + 1} if saves else ())
        return Trainer(
            self._built.training,
            self._builder.plan_with(further_saves=further, only_last=self._leg.saves_at_end_only),
            manager=self._manager,
            observer=self._observer,
            after_save=self._check_save if self._reload is not None else lambda _: None,
            is_asked_to_end=lambda: self._stop.asked,
        )

    def _make_manager(self) -> CheckpointManager:
        checkpoint = self._config.checkpoint
        stager = None
        if checkpoint.mode in (SaveMode.async_thread, SaveMode.async_process):
            stager = HostStager(
                cached=checkpoint.cached_staging,
                overlapped=checkpoint.overlapped_staging,
                shared=checkpoint.mode is SaveMode.async_process,
            )
        return CheckpointManager(
            with_faults(self._checkpoints, self._injector) if self._leg.faults else self._checkpoints,
            mode=checkpoint.mode,
            keep=KeepLast(count=checkpoint.keep_last),
            ranks=self._ranks,
            saving_group=self._groups.saving,
            stager=stager,
            facts=self._facts,
            on_commit=self._on_commit,
            reached=self._injector.reached,
        )

    def _order(self) -> dict[str, list[str]]:
        """The order that torch numbers parameters in: the state has names only, the same on every mesh."""
        training = self._built.training
        groups = [str(group.get("name", f"group_{i}")) for i, group in enumerate(training.optimizer.param_groups)]
        return {"parameters": list(training.model.named_parameters), "parameter_groups": list(dict.fromkeys(groups))}

    def _on_commit(self, commit: Commit) -> None:
        self._observer.on_commit(commit)
        asked = self._config.proof.reload is not ReloadCheck.none and not self._leg.saves_at_end_only
        if asked and any(map(self._ignored.counts, commit.request.replica_conflicts)):
            # Noted at once: what is loaded from it differs from what some rank had, and must not be blamed.
            self._note(check_replicas(commit.request, ranks=self._ranks, ignored=self._ignored))
        if commit.not_removed is not None and self._ranks.rank == 0:
            say_error(f"ckptrun: Older checkpoints could not be removed: {commit.not_removed}")

    def _verify_resume(self, loaded: Loaded) -> bool:
        """Compare what was just loaded with the manifest; report what else changed. False: do not train on."""
        step = self._built.training.progress.step
        self._say(f"Resumed from {loaded.folder} (step {step}).")
        if self._config.proof.reload is ReloadCheck.none:
            return True
        checks = check_resumed(self._built.training.state, loaded, ranks=self._ranks, ignored=self._ignored)
        self._note(*checks)
        return all(check.status is not Status.different for check in checks)

    def _check_save(self, step: int) -> None:
        """proof.reload=every_save: wait for the commit and check it while training waits."""
        self._manager.wait()
        commit = self._manager.last_commit
        if commit is None or commit.request.step != step:
            raise InternalError(f"The save of step {step} was requested but not committed.")
        if self._reload is None:
            raise InternalError("There is no process to check saves.")
        request = commit.request
        self._note(
            check_replicas(request, ranks=self._ranks, ignored=self._ignored),
            self._reload.check(request.folder, request.digests, step=step),
        )

    def _check_last(self, loaded: Loaded | None) -> None:
        asked, commit = self._config.proof.reload, self._manager.last_commit
        if self._config.checkpoint.mode is SaveMode.none or self._leg.saves_at_end_only:
            return
        match asked:
            case ReloadCheck.none:
                return
            case ReloadCheck.final if commit is not None:
                self._note(
                    check_replicas(commit.request, ranks=self._ranks, ignored=self._ignored),
                    self._check_folder(commit.request.folder, commit),
                )
            case ReloadCheck.every_save if commit is not None:
                # It was checked when it was made.
                return
            case ReloadCheck.final | ReloadCheck.every_save:
                if loaded is not None:
                    # Nothing was saved: the run was complete. What it was told to leave out stays out.
                    self._note(self._check_folder(loaded.folder, None))
            case _:
                assert_never(asked)

    def _check_steps(self, loaded: Loaded | None) -> None:
        """Compare the ledger with itself, where steps were done twice, and with the run that is the reference."""
        if self._observer.ledger is not None:
            repeats = check_repeats(self._observer.ledger, ranks=self._ranks)
            self._note(*([] if repeats is None else [repeats]))
        if not self._leg.in_proof and self._leg.faults:
            fired = self._ranks.decide(FaultRecord(self._config.run_dir).fired)
            self._note(check_faults(self._leg.faults, fired))
        if self._config.proof.reference is None:
            return
        reference, step = Path(self._config.proof.reference).expanduser().resolve(), self._config.train.steps
        folder = self._config.run_dir
        self._note(check_trajectory(reference, folder, last_step=step, lineage=self._lineage, ranks=self._ranks))
        commit = self._manager.last_commit
        digests = commit.request.digests if commit is not None else loaded.digests if loaded is not None else None
        if digests is not None:
            end = self._ranks.decide(lambda: checkpoint_of(reference, step))
            counts = self._ignored.counts
            self._note(check_final_state(end, digests, step=step, ranks=self._ranks, counts=counts))

    def _check_folder(self, folder: str, commit: Commit | None) -> Check:
        """Load ``folder`` into new objects; compare with the request, or with the manifest when no request was seen."""
        with preserved():
            fresh = self._builder.build()
            try:
                selection = self._config.checkpoint.selection
                part = selection if commit is None and selection.source is None else EVERYTHING
                loaded = self._restorer.load(fresh, folder, part)
                if commit is None:
                    return check_loaded(fresh.training.state, loaded, ranks=self._ranks, ignored=self._ignored)
                return check_reload(
                    commit.request.digests,
                    lambda: self._state_of(fresh),
                    step=commit.request.step,
                    folder=folder,
                    ranks=self._ranks,
                    ignored=self._ignored,
                )
            finally:
                fresh.close()

    def _trained(self) -> Mapping[str, str | None]:
        """What a proof wants to know of each step: whether there was anything new to save."""
        training = self._built.training
        return fingerprints(training.model.named_parameters.values(), training.optimizer)

    @staticmethod
    def _state_of(built: Built) -> TrainingState:
        return built.training.state

    def _note(self, *checks: Check) -> None:
        """Keep what was found; a start that is killed later has it in its record."""
        self._checks += checks
        for check in checks:
            self._report.check(check)

    def _ended_early(self) -> int:
        """Say that the run is not done, and how far it is."""
        step = self._built.training.progress.step
        if not self._stop.asked and self._leg.stop_at is not None and step >= self._leg.stop_at:
            self._report.event(EventKind.stopped, step=step)
            return ExitCode.done
        self._report.event(EventKind.preempted, step=step)
        saves = self._config.checkpoint.mode is not SaveMode.none
        saved = "which is saved. Run the same command again to resume." if saves else "which is not saved."
        if self._ranks.rank == 0:
            say_error(f"ckptrun: ended by SIGTERM after step {step}, {saved}")
        self._ranks.barrier()
        return ExitCode.failed

    def _finish(self) -> int:
        """Write the verdict and the summary; return the exit code."""
        verdict = replace(verdict_of(self._checks), not_covered=self._not_covered())
        config = self._config
        reload = config.proof.reload is not ReloadCheck.none and config.checkpoint.mode is not SaveMode.none
        asked = reload or config.proof.reference is not None or bool(self._leg.faults)
        if self._ranks.rank == 0:
            self._report.finish(verdict, self._summary(), asked=asked, in_proof=self._leg.in_proof)
        self._ranks.barrier()
        return verdict.exit_code if asked or verdict.status is Status.different else ExitCode.done

    def _not_covered(self) -> list[str]:
        """What ``proof.ignore`` has exempted; all ranks call."""
        return self._ignored.sentences(self._leaf_names()) if self._ignored else []

    def _leaf_names(self) -> list[str]:
        return [name_of(path) for path in self._built.training.state.leaves()]

    def _summary(self) -> dict[str, Any]:
        timing, progress = self._observer.timing, self._built.training.progress
        return {
            "step": progress.step,
            "skipped_steps": progress.skipped_steps,
            **with_bits(first_loss=timing.first_loss, last_loss=timing.last_loss),
            "samples_per_second": timing.samples / timing.seconds if timing.seconds else None,
            "checkpoints": len(timing.commits),
            "blocked_seconds": sum(commit.blocked_seconds for commit in timing.commits),
            "finished_at": time.time(),
        }

    def _say(self, text: str) -> None:
        if self._ranks.rank == 0:
            say(text)
