"""Groups G and H: saves beside training, storage, retention, what counts as a checkpoint."""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from ckptrun.checkpoint import manager as manager_module
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.fault import FaultPoint
from ckptrun.engine import plan_cache
from ckptrun.engine import staging as staging_module
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.commit import list_committed, remove_checkpoint
from ckptrun.engine.read_files import ShardFiles
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardWriter
from ckptrun.parallelism.parallel_model import ParallelModel
from ckptrun.run.observer import StepObserver
from ckptrun.state import ExponentialMovingAverage
from ckptrun.state.components import TrainingState
from ckptrun.trainer import Trainer
from tests.zoo.planted.seam import Bug, during, local, rank, training_of, wrap

_SLOWLY_S = 0.25


def _write_slowly() -> None:
    @wrap(ShardWriter, "write_data")
    def write(original, writer, plan, planner):
        time.sleep(_SLOWLY_S)
        return original(writer, plan, planner)


class StagedByReference(Bug):
    """What is staged is the live state; the writer is slow enough for training to go on."""

    def plant(self) -> None:
        _write_slowly()

        @wrap(HostStager, "stage")
        def stage(original, stager, state):
            return state


class HostTensorsShared(Bug):
    """Only what is on a device is copied; the optimizer's step counters are on the CPU, and stay live."""

    def plant(self) -> None:
        _write_slowly()

        @wrap(HostStager, "stage")
        def stage(original, stager, state):
            copied = original(stager, state)
            return {name: state[name] if name.endswith(".step") else value for name, value in copied.items()}


class BufferUsedTooEarly(Bug):
    """The staging buffer is filled again while the writer still reads it."""

    def plant(self) -> None:
        _write_slowly()
        staged, live = {}, {}

        @wrap(HostStager, "stage")
        def stage(original, stager, state):
            copied = original(stager, state)
            staged.update(copied)
            live.update(state)
            return copied

        @wrap(Trainer, "_update")
        def update(original, trainer):
            result = original(trainer)
            for name, value in staged.items():
                if isinstance(value, Tensor):
                    local(value).copy_(local(live[name]))
            return result


class StagingNotAwaited(Bug):
    """Nobody waits for the copy before weights change."""

    def plant(self) -> None:
        @wrap(staging_module, "_copy")
        def copy(original, survey, lease, before):
            time.sleep(_SLOWLY_S)
            return original(survey, lease, before)

        @wrap(CheckpointManager, "wait_staged")
        def wait_staged(original, manager):
            if waiting:
                original(manager)

        waiting = during(CheckpointManager, "wait")


class SameTensorsForEver(Bug):
    """The writer is given what it was given for the first save."""

    def plant(self) -> None:
        first = {}

        @wrap(CheckpointManager, "_write")
        def write(original, manager, named, writer):
            if not first:
                first.update({n: local(v).clone() for n, v in named.items() if isinstance(v, Tensor)})
            return original(manager, {n: first.get(n, v) for n, v in named.items()}, writer)


class StateOfTheFirstSave(Bug):
    """The state dict is made once and kept: digests, tensors and all."""

    def plant(self) -> None:
        saving, first = during(CheckpointManager, "save"), {}

        @wrap(TrainingState, "collect")
        def collect(original, state):
            leaves, kinds = original(state)
            if not saving:
                return leaves, kinds
            if not first:
                first.update({p: v.clone() if isinstance(v, Tensor) else v for p, v in leaves.items()})
            return dict(first), kinds


class LastNotAwaited(Bug):
    """The future of the last save is dropped, and the process ends before it is written."""

    def plant(self) -> None:
        _write_slowly()

        @wrap(CheckpointManager, "wait")
        def wait(original, manager):
            if manager._in_flight is not None and manager._in_flight.request.step >= 8:
                manager._in_flight = None
                return
            original(manager)

        @wrap(ShardWriter, "finish")
        def finish(original, writer, metadata, results):
            if "step_00000008" not in str(writer.checkpoint_id):
                original(writer, metadata, results)


class FailureSwallowed(Bug):
    """A save fails at its first write, and nobody asks the thread: it counts as done."""

    def plant(self, step: int) -> None:
        @wrap(manager_module, "_translated")
        def translated(original, function, request):
            return None if request.step == step else original(function, request)


class BytesLostSilently(Bug):
    """A writer thread that meets ENOSPC says so to nobody; the file is as long as it should be."""

    def plant(self, step: int) -> None:
        @wrap(LocalBackend, "create")
        def create(original, backend, path, length):
            writer = original(backend, path, length)
            if f"step_{step:08d}" in path and path.endswith(".safetensors"):
                write = writer.write
                writer.write = lambda offset, block: write(offset, memoryview(bytes(block.nbytes)))
            return writer


class SlowerThanTheTimeout(Bug):
    """One rank writes for longer than the others wait in a collective."""

    def plant(self, seconds: float) -> None:
        @wrap(ShardWriter, "write_data")
        def write(original, writer, plan, planner):
            if rank() == 0:
                time.sleep(seconds)
            return original(writer, plan, planner)


class RetentionBeforeCommit(Bug):
    """Old checkpoints are removed when a save is requested, not when it is done."""

    def plant(self) -> None:
        @wrap(CheckpointManager, "save")
        def save(original, manager, state, step):
            manager.wait()
            if rank() == 0:
                for old in list_committed(manager._root):
                    remove_checkpoint(manager._root, old)
            original(manager, state, step)


class RetentionTakesAll(Bug):
    """With a limit of one, the one that was just saved goes too."""

    def plant(self) -> None:
        @wrap(KeepLast, "to_remove")
        def to_remove(original, policy, steps, *, newest):
            return list(steps)


class RetentionByNumber(Bug):
    """The one with the lowest number goes, and that is the new one of a run that was set back."""

    def plant(self) -> None:
        @wrap(KeepLast, "to_remove")
        def to_remove(original, policy, steps, *, newest):
            return [newest] if len(steps) > 1 else []


class PlanOfAnotherState(Bug):
    """A cached plan is used although leaves have gone since."""

    def plant(self) -> None:
        @wrap(plan_cache, "_structure_of")
        def structure(original, *state, **how):
            return []


class ComesAndGoes:
    """A component that has one leaf more after an odd step. Sound by itself."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, *, step: int, loss: float) -> None:
        self.steps = step

    def state_dict(self):
        return {"steps": self.steps, **({"odd": torch.ones(3)} if self.steps % 2 else {})}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]


class TmpIsACheckpoint(Bug):
    """Whatever begins with ``step_`` counts, and the highest number wins."""

    def plant(self) -> None:
        from ckptrun.run import resume as resume_module

        @wrap(CheckpointManager, "remove_leftovers")
        def remove_leftovers(original, manager):
            return []

        @wrap(resume_module, "folders_to_resume")
        def folders(original, config):
            found = sorted(Path(config.checkpoint_root).glob("step_*"), reverse=True)
            return [str(folder) for folder in found if folder.is_dir()][:1]


class ShardRenamed(Bug):
    """A suffix was added to the names of shards, and the manifest not told."""

    def plant(self, step: int) -> None:
        @wrap(CheckpointManager, "_committed")
        def committed(original, manager, commit):
            folder = Path(commit.request.folder.removeprefix("file://"))
            if commit.request.step == step:
                for file in folder.glob("rank_*.safetensors"):
                    file.rename(file.with_name(f"{file.stem}_exp-1.safetensors"))
            original(manager, commit)


class NothingIsChecked(Bug):
    """A checksum that is not there, or not right, is let through."""

    def plant(self) -> None:
        @wrap(ShardFiles, "_require_whole")
        def check(original, files, blocks):
            pass


class WrittenInPlace(Bug):
    """The files of a checkpoint are written where it will stand, its manifest first."""

    def plant(self, step: int) -> None:
        @wrap(CheckpointManager, "save")
        def save(original, manager, state, at):
            if at == step:
                place = Path(str(manager._root.child(f"step_{at:08d}")).removeprefix("file://"))
                before = sorted(place.parent.glob("step_*"))[-1]
                shutil.copytree(before, place, dirs_exist_ok=True)
                for file in place.glob("rank_*.safetensors"):
                    with file.open("r+b") as opened:
                        opened.truncate(file.stat().st_size // 2)
                manager.may_replace([str(manager._root.child(f"step_{at:08d}"))])
            original(manager, state, at)


class SavedInsideOfAStep(Bug):
    """A signal handler saves where the step just is: its batch is taken, its update is not done."""

    def plant(self, step: int) -> None:
        trainers = []

        @wrap(Trainer, "__init__")
        def make(original, trainer, *args, **named):
            original(trainer, *args, **named)
            trainers.append(trainer)

        @wrap(CheckpointManager, "save")
        def save(original, manager, state, at):
            manager.may_replace([str(manager._root.child(f"step_{at:08d}"))])
            original(manager, state, at)

        @wrap(StepObserver, "reached")
        def reached(original, observer, point, at):
            trainer = trainers[-1]
            saves = trainer._plan.save is not None and trainer._plan.save.interval_steps < 8
            is_here = point is FaultPoint.after_backward and at == step
            if is_here and saves and training_of(trainer).progress.step == step - 1:
                trainer._manager.save(training_of(trainer).state, step)
            original(observer, point, at)


class OtherDiskOnOneRank(Bug):
    """The file of one rank lies on a disk that the others do not see."""

    def plant(self, step: int) -> None:
        @wrap(CheckpointManager, "_committed")
        def committed(original, manager, commit):
            folder = Path(commit.request.folder.removeprefix("file://"))
            if commit.request.step == step and rank() == 1:
                (folder / "rank_00001.safetensors").unlink()
            original(manager, commit)


class SaveDraws(Bug):
    """Naming a save draws from the random stream that dropout uses."""

    def plant(self) -> None:
        @wrap(CheckpointManager, "save")
        def save(original, manager, state, step):
            original(manager, state, step)
            torch.rand(1)


class SaveLeavesEval(Bug):
    """The model is set to ``eval`` for a save, and not set back."""

    def plant(self) -> None:
        models = []

        @wrap(Trainer, "__init__")
        def make(original, trainer, training, *args, **named):
            original(trainer, training, *args, **named)
            models.append(training.model.module)

        @wrap(CheckpointManager, "save")
        def save(original, manager, state, step):
            models[-1].eval()
            original(manager, state, step)


class SaveSpoilsAverage(Bug):
    """A save takes the average's weights by swapping them in, and swaps back only half."""

    def plant(self) -> None:
        averages = []

        @wrap(ExponentialMovingAverage, "update")
        def update(original, average):
            averages[:] = [average]
            original(average)

        @wrap(CheckpointManager, "save")
        def save(original, manager, state, step):
            original(manager, state, step)
            with torch.no_grad():
                for value in averages[-1]._average.values():
                    local(value).mul_(0.5)


class UntiedAtLoad(Bug):
    """Loading gives the second name of a tied weight a tensor of its own."""

    def plant(self, module: str) -> None:
        @wrap(ParallelModel, "load_state_dict")
        def load(original, model, state):
            original(model, state)
            part = model.inner.get_submodule(module)
            part.weight = torch.nn.Parameter(part.weight.detach().clone())
