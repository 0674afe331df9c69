"""How a start gets the state it begins with: which checkpoint, what of it, what is drawn anew. All ranks call all."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from ckptrun.build import Built
from ckptrun.checkpoint.load import Loaded, load, saved_manifest
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checks.reload import check_loaded
from ckptrun.config.checkpoint import LoadSelection, SaveMode
from ckptrun.config.fault import Reached
from ckptrun.config.run import RunConfig
from ckptrun.console import say, say_error
from ckptrun.engine.manifest import Manifest
from ckptrun.errors import CheckpointDamagedError
from ckptrun.evidence.verdict import Check
from ckptrun.ranks import Ranks
from ckptrun.run.conditions import changed_keys, surroundings
from ckptrun.run.which_checkpoint import abandoned_steps, checkpoint_in, folders_to_resume, none_is_whole
from ckptrun.schedule import StepSchedule
from ckptrun.state import seed_streams

__all__ = ["EVERYTHING", "Restorer", "Resume"]

EVERYTHING = LoadSelection()


class Restorer:
    """Fills built objects from one checkpoint, as every start does.

    Args:
        seed: Of the run; streams that no checkpoint has are drawn from it.
        data_rank: Likewise.
        ranks: All ranks of the run.
        group: What tensors are read with.
        reached: Told of the point ``loading``.
    """

    def __init__(
        self,
        *,
        seed: int,
        data_rank: int,
        ranks: Ranks,
        group: dist.ProcessGroup,
        reached: Reached,
    ) -> None:
        self._seed = seed
        self._data_rank = data_rank
        self._ranks = ranks
        self._group = group
        self._reached = reached

    def load(self, built: Built, folder: str, selection: LoadSelection, *, manifest: Manifest | None = None) -> Loaded:
        """Load ``folder``; see :func:`ckptrun.checkpoint.load.load`."""
        return load(
            built.training.state,
            folder,
            ranks=self._ranks,
            group=self._group,
            selection=selection,
            manifest=manifest,
            reached=self._reached,
        )

    def start_streams(self, built: Built, loaded: Loaded | None) -> bool:
        """Give every rank its streams, unless the checkpoint has; say whether. Nothing may reseed after this."""
        if loaded is not None and "rng" not in loaded.left_out:
            return False
        seed_streams(self._seed, built.training.progress.step, self._data_rank)
        return True

    @staticmethod
    def settle(built: Built) -> None:
        """Let the learning rate follow ``train.steps``, which may have changed; otherwise this changes no bit."""
        if isinstance(built.training.schedule, StepSchedule):
            built.training.schedule.apply()


class Resume:
    """Finds what a start begins with.

    Args:
        config: The checked config.
        built: What is filled.
        manager: Of the run's own checkpoints.
        restorer: Fills it.
        ranks: All ranks of the run.
    """

    def __init__(
        self, config: RunConfig, built: Built, *, manager: CheckpointManager, restorer: Restorer, ranks: Ranks
    ) -> None:
        self._config = config
        self._built = built
        self._manager = manager
        self._restorer = restorer
        self._ranks = ranks
        self.damaged: dict[str, str] = {}
        """Checkpoints that were passed over -> why."""
        self.started_from: Check | None = None
        """How the weights compare that another run has given."""

    def load(self) -> Loaded | None:
        """Load the checkpoint to resume from, or the weights to start from; None when the run starts anew.

        Nothing committed is removed here: the start may still fail.
        """
        config = self._config
        if config.checkpoint.mode is not SaveMode.none:
            # Before looking for checkpoints: an overwrite that was cut gets its old version back.
            for name in self._manager.remove_leftovers():
                self._say(f"Removed {name}: what a save that was ended left behind.")
        folders = self._ranks.decide(lambda: folders_to_resume(config))
        selection = config.checkpoint.selection
        if config.checkpoint.mode is SaveMode.none and not folders and self._manager.committed_steps():
            self._say("Not resuming: with checkpoint=none a run starts anew; checkpoint.resume=<step> resumes.")
        if folders:
            return self._load_whole(folders, EVERYTHING if selection.source is not None else selection)
        if selection.source is not None:
            self._start_from(selection)
        return None

    def _load_whole(self, folders: Sequence[str], selection: LoadSelection) -> Loaded:
        """Load the first of ``folders`` that is whole."""
        for folder in folders:
            try:
                manifest = saved_manifest(folder, self._ranks)
                self._say_changes(manifest.run)
                loaded = self._restorer.load(self._built, folder, selection, manifest=manifest)
            except CheckpointDamagedError as error:
                self.damaged[folder] = str(error)
                continue
            for damaged, reason in self.damaged.items():
                if self._ranks.rank == 0:
                    say_error(f"ckptrun: DAMAGED, skipped: {damaged}. {reason}")
            self._manager.may_replace(self.damaged)
            return loaded
        raise self._ranks.decide(lambda: none_is_whole(self._config, self.damaged))

    def _say_changes(self, saved_run: Mapping[str, Any]) -> None:
        for key, before, now in changed_keys(self._config, saved_run):
            self._say(f"Changed since that checkpoint: {key} was {before!r}, now {now!r}.")
        for key, here in surroundings().items():
            if saved_run.get(key, here) != here:
                self._say(
                    f"Changed since that checkpoint: {key} was {saved_run[key]!r}, now {here!r}; bits may differ."
                )

    def _start_from(self, selection: LoadSelection) -> None:
        source = self._ranks.decide(lambda: checkpoint_in(str(selection.source), key="checkpoint.load.from"))
        only = selection.only or ("model",)
        part = LoadSelection(
            only=only,
            exclude=selection.exclude,
            source=source,
            allow_missing=selection.allow_missing,
            allow_extra=selection.allow_extra,
        )
        loaded = self._restorer.load(self._built, source, part)
        self._built.restart_average()
        self._say(f"Started from {loaded.loaded_leaves} leaves of {source} ({', '.join(only)}).")
        if loaded.digests:
            self.started_from = check_loaded(self._built.training.state, loaded, ranks=self._ranks)
        else:
            self._say("They have no digests to compare with: no run has saved them. Every byte was checked.")

    def start_streams(self, loaded: Loaded | None) -> None:
        """Give every rank its streams; say when those of the checkpoint were left out."""
        if self._restorer.start_streams(self._built, loaded) and loaded is not None:
            step = self._built.training.progress.step
            self._say(
                f"Random streams were drawn anew from train.seed and step {step}: the checkpoint's were left out "
                f"(it was saved on {loaded.world_size} ranks)."
            )

    def remove_later(self) -> None:
        """Going back with checkpoint.overwrite=true abandons later checkpoints: they must not be resumed from again."""
        later = self._ranks.decide(lambda: abandoned_steps(self._config))
        if later:
            self._say(f"Removed the checkpoints of steps {', '.join(map(str, later))} (overwrite=true).")
            self._manager.remove(later)

    def _say(self, text: str) -> None:
        if self._ranks.rank == 0:
            say(text)
