"""Which step a trainer says that it goes on from, on classes that load as those of the trainers do."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from ckptrun.probe import site_folder

sys.path.insert(0, str(site_folder()))

from _ckptrun_probe.trainers import trainer_hooks


class TrainerState:
    def __init__(self, step: int) -> None:
        self.global_step = step

    @classmethod
    def load_from_json(cls, path: str) -> "TrainerState":
        return cls(int(path))


class OwnState(TrainerState):
    pass


class Trainer:
    step = 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class DeepSpeedEngine:
    global_steps = 0

    def load_checkpoint(self, folder: str, tag: str | None = None) -> tuple[str | None, dict | None]:
        if not folder:
            return None, None
        self.global_steps = 30
        return folder, {}


class _CheckpointConnector:
    def __init__(self) -> None:
        self.trainer = SimpleNamespace(global_step=0)
        self._loaded_checkpoint: dict[str, int] = {}

    def restore_training_state(self) -> None:
        self.trainer.global_step = self._loaded_checkpoint.get("global_step", 0)


@pytest.fixture
def told(monkeypatch) -> list[dict]:
    events: list[dict] = []
    record = SimpleNamespace(event=lambda kind, **facts: events.append({"event": kind, **facts}), error=pytest.fail)
    hooks = trainer_hooks(SimpleNamespace(record=record, taken=4))
    module = ModuleType("trainers")
    for kind, loading in [
        (TrainerState, "load_from_json"),
        (Trainer, "load_state_dict"),
        (DeepSpeedEngine, "load_checkpoint"),
        (_CheckpointConnector, "restore_training_state"),
    ]:
        monkeypatch.setattr(kind, loading, vars(kind)[loading])
        setattr(module, kind.__name__, kind)
    for name, hook in hooks.items():
        if not name.startswith("pytorch_lightning"):
            hook(module)
    return events


def counted(who: str, number: int) -> dict:
    return {"event": "counter", "who": who, "number": number, "step": 4}


def test_each_says_its_step_once_it_has_loaded(told) -> None:
    assert type(OwnState.load_from_json("20")) is OwnState
    Trainer().load_state_dict({"step": 25})
    assert DeepSpeedEngine().load_checkpoint("folder") == ("folder", {})
    connector = _CheckpointConnector()
    connector._loaded_checkpoint = {"global_step": 35}
    connector.restore_training_state()
    assert told == [
        counted("transformers.TrainerState.global_step", 20),
        counted("torchtitan.Trainer.step", 25),
        counted("deepspeed.DeepSpeedEngine.global_steps", 30),
        counted("lightning.Trainer.global_step", 35),
    ]


def test_nothing_is_said_where_nothing_was_loaded(told) -> None:
    assert DeepSpeedEngine().load_checkpoint("") == (None, None)
    _CheckpointConnector().restore_training_state()
    assert told == []
