"""Two runs that are watched, one of them begun anew from the other's state: the first operation that differs, and whose
it is. In one process; what a new one forgets is forgotten by hand."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ckptrun.build import Builder
from ckptrun.checks.operation import Operation, first_operation
from ckptrun.config.parallelism import MeshShape, ParallelismKind
from ckptrun.config.run import RunConfig
from ckptrun.evidence.trace_items import What
from ckptrun.ranks import Ranks
from ckptrun.run.leg import Leg, TraceWindow
from ckptrun.run.observer import StepNotes, StepObserver
from ckptrun.run.tracing import Originals
from ckptrun.state import preserved, seed_streams
from ckptrun.trainer import Trainer
from tests.checks import hidden_code
from tests.support.configs import config_of

CODE = "tests.checks.hidden_code"
STEPS, SAVED = 6, 3
ALONE = MeshShape(kind=ParallelismKind.none, replicate=1, shard=1, tensor=1)
MANAGER = SimpleNamespace(poll=lambda: None, wait=lambda: None, wait_staged=lambda: None)


def custom(group: str, name: str) -> list[str]:
    return [f"{group}=custom", f"{group}._target_={CODE}.{name}"]


def job(*overrides: str) -> list[str]:
    """A tiny job; ``overrides`` choose what is wrong with it."""
    given = {text.partition("=")[0] for text in overrides}
    base = [*custom("model", "Net"), "model.loss=mse", *custom("data", "Pairs"), "optimizer=sgd", "optimizer.lr=0.01"]
    base += ["parallelism=none", "train.micro_batch=4", f"train.steps={STEPS}", "schedule=constant"]
    return [text for text in base if text.partition("=")[0] not in given] + list(overrides)


class Run:
    """A run of a job, watched in the steps of ``window``."""

    def __init__(self, config: RunConfig, folder: Path, *, window: TraceWindow, state=None, settle=None) -> None:
        hidden_code.new_process()
        config.run.dir = str(folder)
        builder = Builder(config, mesh_shape=ALONE, device=torch.device("cpu"), rank=0)
        training = builder.build().training
        originals = Originals(training)
        ranks = Ranks(None)
        self.saved = {}
        quiet = SimpleNamespace(step=lambda facts: None)
        observer = StepObserver(
            config, Leg(), ranks=ranks, report=quiet, injector=SimpleNamespace(reached=lambda *_: None),
            line=StepNotes(start=0, share=None), state_digests=dict,
        )  # fmt: skip
        if state is not None:
            training.state.load(state)
        else:
            seed_streams(0)
        if settle is not None:
            settle(training)
        observer.tracer = originals.tracer(config, window, rank=0)
        plan = builder.plan_without_saves()
        trainer = Trainer(training, plan, manager=MANAGER, observer=observer, after_save=lambda _: None)
        trainer._save_if_due = lambda step, is_last: self.keep(training, step)
        trainer.run()
        observer.close()

    def keep(self, training, step: int) -> None:
        if step == SAVED:
            leaves = training.state.leaves()
            self.saved = {p: v.clone() if isinstance(v, torch.Tensor) else v for p, v in leaves.items()}


def first(tmp_path: Path, *overrides: str, settle=None, window: TraceWindow | None = None) -> Operation | None:
    """What a run that goes on from step 3 does otherwise first."""
    window = window or TraceWindow(first_step=SAVED + 1, last_step=STEPS)
    config = config_of("run.name=test", *job(*overrides))
    with preserved():
        whole = Run(config, tmp_path / "whole", window=window)
        Run(config, tmp_path / "resumed", window=window, state=whole.saved, settle=settle)
    return first_operation(tmp_path / "whole", tmp_path / "resumed", ranks=1)


def said(operation: Operation | None) -> tuple[str, str] | None:
    return None if operation is None else (operation.component, operation.text(resumed_at=SAVED))


@pytest.mark.parametrize(
    "overrides", [["optimizer=adamw", "train.accumulate=2", "train.ema_decay=0.9"], ["precision=fp16"], ["data.num_workers=1"]]
)  # fmt: skip
def test_a_run_that_goes_on_rightly_does_everything_alike(overrides, tmp_path) -> None:
    assert first(tmp_path, *overrides) is None


IN_LOSS = "model.loss=model"
CASES = {
    "OwnNoise": (custom("data", "OwnNoise"), "data", "batch, rank 0, first batch after resume"),
    "LossOfItsOwn": ([*custom("model", "LossOfItsOwn"), IN_LOSS], "model", "model output, rank 0, first forward after resume"),
    "DrawsInLoss": (
        [*custom("model", "DrawsInLoss"), IN_LOSS], "model",
        "random stream python after model, rank 0, during the first forward after resume",
    ),
    "SecondForward": (custom("model", "SecondForward"), "model", "last input, rank 0, first forward after resume"),
    "ThreadDecays": (custom("model", "ThreadDecays"), "model", "last.bias itself, rank 0, during the first forward after resume"),
    "ThreadDraws": (
        custom("model", "ThreadDraws"), "model",
        "random stream torch_cpu after model, rank 0, during the first forward after resume",
    ),
    "HookDoubles": (custom("model", "HookDoubles"), "model", "last.weight reduced gradient, rank 0, first backward after resume"),
    "GradientsInAttribute": (
        custom("model", "GradientsInAttribute"), "model", "last.bias reduced gradient, rank 0, first backward after resume",
    ),
    "Gathers": (custom("optimizer", "Gathers"), "optimizer", "first.weight update, rank 0, first update after resume"),
    "KeepsGradients": (
        custom("optimizer", "KeepsGradients"), "optimizer", "gradient first.weight, rank 0, before the first forward after resume",
    ),
    "InBackward": (
        custom("optimizer", "InBackward"), "optimizer", "first.weight itself, rank 0, during the first backward after resume",
    ),
    "GlobalCounter": (
        custom("schedule", "GlobalCounter"), "schedule", "learning rate of group decay, rank 0, during the first schedule after resume",
    ),
    "Draws": ([f"components.bug._target_={CODE}.Draws"], "bug", "random stream torch_cpu, rank 0, during the first on_step of component 'bug' after resume"),
    "Evaluates": ([f"components.bug._target_={CODE}.Evaluates"], "bug", "model input, rank 0, first on_step of component 'bug' after resume"),
    "ShakesWeights": (
        [f"components.bug._target_={CODE}.ShakesWeights"], "bug",
        "first.weight itself, rank 0, during the first on_step of component 'bug' after resume",
    ),
    "ChangesRate": (
        [*custom("schedule", "GlobalCounter"), f"components.bug._target_={CODE}.ChangesRate"], "schedule",
        "learning rate of group decay, rank 0, during the first schedule after resume",
    ),
    "LeavesGradients": (
        [f"components.bug._target_={CODE}.LeavesGradients"], "bug",
        "gradient first.bias, rank 0, before the first forward after resume",
    ),
}  # fmt: skip


QUICK = ("Draws", "KeepsGradients", "ThreadDecays", "GlobalCounter")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES])
def test_what_differs_is_named_where_it_happens_and_whose_it_is(name, tmp_path) -> None:
    overrides, component, text = CASES[name]
    assert said(first(tmp_path, *overrides)) == (component, text)


def test_an_optimizer_that_the_state_does_not_know_is_blamed_for_the_rate_it_is_not_given(tmp_path) -> None:
    def rebuild(training) -> None:
        old = training.optimizer
        new = type(old)([dict(group) for group in old.param_groups])
        new.load_state_dict(copy.deepcopy(old.state_dict()))
        object.__setattr__(training, "optimizer", new)

    operation = first(tmp_path, "schedule=cosine", settle=rebuild)
    assert said(operation) == (
        "optimizer",
        "learning rate of group decay, rank 0, during the first schedule after resume",
    )
    assert operation.replaced == ("optimizer",)


def test_the_first_element_is_shown_with_both_values(tmp_path) -> None:
    def shake(training) -> None:
        with torch.no_grad():
            training.model.named_parameters["last.bias"][5] = 0.25

    operation = first(tmp_path, settle=shake)
    assert said(operation) == ("model", "last.bias itself, rank 0, before the first forward after resume")
    assert operation.is_found(resumed_at=SAVED)
    assert (operation.element.index, operation.element.got, operation.element.got_bits) == ((5,), "0.25", "0x3e800000")


def test_what_was_there_before_the_window_is_told_by_one_line_for_all(tmp_path) -> None:
    def shake(training) -> None:
        training.optimizer.param_groups[0]["momentum"] = 0.5

    late = TraceWindow(first_step=STEPS, last_step=STEPS)
    operation = first(tmp_path, settle=shake, window=late)
    assert (operation.what, operation.step) == (What.state, SAVED + 1)
