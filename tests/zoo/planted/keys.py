"""Group F: names, prefixes, strictness."""

from torch import Tensor

from ckptrun.checkpoint import load as load_module
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.parallelism.parallel_model import ParallelModel
from ckptrun.state.components import TrainingState
from tests.zoo.planted.seam import Bug, during, wrap


class OneNameTwice(Bug):
    """Two components, or two parts of one, write the same key."""

    def state_dict(self):
        return {"rng_state.cpu": 1, "rng_state": {"cpu": 2}}

    def plant(self) -> None:
        pass


class PrefixAfterResume(Bug):
    """Once a run was resumed, its model is saved with the prefix of the compiler."""

    def plant(self) -> None:
        loaded = []
        saving = during(CheckpointManager, "save")

        @wrap(TrainingState, "load")
        def load(original, state, leaves, *containers):
            original(state, leaves, *containers)
            loaded.append(True)

        @wrap(ParallelModel, "state_dict")
        def state_dict(original, model):
            prefix = "_orig_mod." if loaded and saving else ""
            return {f"{prefix}{name}": value for name, value in original(model).items()}


class PrefixAtLoadOnly(Bug):
    """The model is wrapped when it is loaded, and was not when it was saved."""

    def plant(self) -> None:
        saving = during(CheckpointManager, "save")

        @wrap(ParallelModel, "state_dict")
        def state_dict(original, model):
            prefix = "" if saving else "module."
            return {f"{prefix}{name}": value for name, value in original(model).items()}


class OnePrefixLeft(Bug):
    """One of two wrappers' prefixes is stripped; ``strict=False`` keeps quiet about the keys that do not fit."""

    def plant(self) -> None:
        @wrap(load_module, "_match")
        def match(original, templates, saved, selection, **how):
            renamed = {p: leaf for p, leaf in saved.items() if p[0] != "model"}
            kept = {p: value for p, value in templates.items() if p[0] != "model"}
            return original(kept, renamed, selection, **how)


class SomeNamesNotReached(Bug):
    """A loader that goes over modules does not come by parameters in a list of its own."""

    def plant(self, lost: str) -> None:
        before: dict[str, Tensor] = {}

        @wrap(load_module, "_read")
        def read(original, matched, folder, **how):
            named = {".".join(map(str, p)): v for p, v in matched.items() if isinstance(v, Tensor)}
            before.update({name: value.clone() for name, value in named.items() if name.startswith(lost)})
            original(matched, folder, **how)
            for name, value in before.items():
                named[name].copy_(value)
