"""Group A: random streams."""

import torch
import torch.distributed as dist

from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.data.stream import DataStream
from ckptrun.run.resume import Restorer
from ckptrun.state import rng as rng_module
from ckptrun.state import seed_streams
from ckptrun.state.rng import RNG
from tests.zoo.planted.seam import Bug, during, is_resumed, rank, wrap


class SkippedAtEpochEnd(Bug):
    """Streams are left alone when the position is the end of an epoch."""

    def plant(self) -> None:
        at_end = []

        @wrap(DataStream, "load_state_dict")
        def load_data(original, stream, state):
            original(stream, state)
            at_end.append(stream._samples % state["length"] == 0)

        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            if not at_end[-1]:
                original(rng, state)


class SwallowedOnOneRank(Bug):
    """One rank cannot read its streams, and an ``except Exception`` hides it."""

    def plant(self) -> None:
        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            try:
                if rank() == 1:
                    raise OSError("the file of this rank is cut")
                original(rng, state)
            except Exception:
                pass


class NumpyBreaksAllFour(Bug):
    """Unpickling NumPy's stream is refused, and the ``except`` around all streams skips every one of them."""

    def plant(self) -> None:
        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            try:
                for streams in state["ranks"].values():
                    for name in ("numpy", "python", "torch_cpu"):
                        if name == "numpy":
                            raise TypeError("Unsupported global: numpy.core.multiarray._reconstruct")
                        torch.set_rng_state(streams[name])
            except Exception:
                pass


class SavedWithoutRank(Bug):
    """The streams of all ranks stand under one key, so one copy is written and everybody gets it."""

    def plant(self) -> None:
        @wrap(RNG, "state_dict")
        def state_dict(original, rng):
            return {"streams": rng_module._capture()}

        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            rng_module._restore(state["streams"], key="this rank")


class KeyedByDataRank(Bug):
    """The ranks of a tensor-parallel group share the key of their streams, which have gone apart."""

    def plant(self) -> None:
        @wrap(RNG, "__init__")
        def make(original, rng, *, rank):
            original(rng, rank=0)

    def on_step(self, *, step, loss) -> None:
        torch.rand(1 + rank())


class RankZeroEverywhere(Bug):
    """Rank 0 broadcasts its streams, and every rank takes them."""

    def plant(self) -> None:
        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            original(rng, state)
            streams = [rng_module._capture()]
            dist.broadcast_object_list(streams, src=0)
            rng_module._restore(streams[0], key="this rank")


class LoaderDrawsAfterwards(Bug):
    """Building the iterator draws a seed from the global stream, after that was put back."""

    def plant(self) -> None:
        @wrap(DataStream, "_loader_at_position")
        def loader(original, stream):
            torch.empty((), dtype=torch.int64).random_()
            return original(stream)


class ReseededAtLoad(Bug):
    """``load_state_dict`` of the streams ends with seeding all of them."""

    def plant(self) -> None:
        @wrap(RNG, "load_state_dict")
        def load(original, rng, state):
            original(rng, state)
            seed_streams(0)


class ReseededBeforeTraining(Bug):
    """Somebody calls ``seed_everything(seed)`` when all is loaded and checked."""

    def plant(self) -> None:
        @wrap(Restorer, "settle")
        def settle(original, built):
            original(built)
            if is_resumed(built.training):
                seed_streams(0, rank())


class StaleStreams(Bug):
    """Saves after the first find the file of the streams there, and leave it as it is."""

    def plant(self) -> None:
        saving, first = during(CheckpointManager, "save"), []

        @wrap(RNG, "state_dict")
        def state_dict(original, rng):
            if not saving:
                return original(rng)
            if not first:
                first.append(original(rng))
            return first[0]


class StreamLostAtSave(Bug):
    """The checkpoint is of older code, which did not save one of the streams."""

    def plant(self) -> None:
        saving = during(CheckpointManager, "save")

        @wrap(RNG, "state_dict")
        def state_dict(original, rng):
            state = original(rng)
            if saving:
                for streams in state["ranks"].values():
                    del streams["python"]
            return state
