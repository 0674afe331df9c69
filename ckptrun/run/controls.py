"""Controls: a run that leaves one component out when it loads must be found different, and for that component.

A proof whose comparisons would pass whatever came back is worth nothing. So the same checkpoint is loaded once more for
each control, all of it but one component, and training goes on from there, held against the reference step by step.
Two things must be seen: the state right after the load differs in that component, and something that is computed from
it differs later (losses, batches, rates; for weights, moments, averages and components of the user's own also what they
are at the end). That the random streams themselves go on differently is not enough: without dropout nobody uses them.

A component that nobody has asked for by name is excused where there was nothing to leave out: streams that nothing drew
from, an optimizer that keeps no state. If that is so of all, the model itself is left out: something must be seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ckptrun.build import Builder, Built
from ckptrun.checkpoint.load import Loaded
from ckptrun.checkpoint.manager import CheckpointManager, digest_state
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.leaf_digests import differing, saved_digests
from ckptrun.config.checkpoint import LoadSelection
from ckptrun.config.fault import FaultPoint
from ckptrun.evidence.difference import component_of
from ckptrun.evidence.mismatch import LedgerLine, compare_lines
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import EventKind
from ckptrun.files import read_lines
from ckptrun.ranks import Ranks
from ckptrun.run.leg import Controls
from ckptrun.run.observer import StepNotes
from ckptrun.run.report import Report
from ckptrun.run.resume import Restorer
from ckptrun.run.which_checkpoint import checkpoint_of
from ckptrun.trainer import StepFacts, Trainer

__all__ = ["idle_because", "run_controls"]

# What these hold is no result: it only decides what others compute.
_MEANS = ("rng", "progress", "data", "schedule", "scaler")
# Without its weights every run comes out otherwise.
_LAST_RESORT = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What leaving one component out came to."""

    component: str
    blamed: tuple[str, ...]
    """Components that were not as saved after the load."""
    effect: str | None
    """The first thing that came out otherwise, on any rank."""
    idle: str | None
    """Why there was nothing to leave out, from what the reference did after the checkpoint; None: there was."""

    @property
    def is_exercised(self) -> bool:
        return self.is_found or (self.component in self.blamed and self.idle is None)

    @property
    def is_found(self) -> bool:
        return self.component in self.blamed and self.effect is not None

    @property
    def detail(self) -> str:
        if self.component not in self.blamed:
            return f"without {self.component} the state is the same: what it starts with is what was saved"
        if self.effect is None and self.idle is not None:
            return self.idle
        if self.effect is None:
            return f"leaving {self.component} out changed nothing that was computed after it; {_why(self.component)}"
        return f"without {self.component}: {', '.join(self.blamed)} differed at load, then {self.effect}"


def idle_because(component: str, later: Sequence[LedgerLine]) -> str | None:
    """Say why ``component`` could not matter on this rank, from what the ledger shows; None where it could.

    Args:
        component: Its name.
        later: The lines of the reference from the checkpoint on, its own step the first.
    """
    if len(later) < 2:
        return None
    after = f"after step {later[0]['step']}"
    match component:
        case "rng" if all(line["rng"] == later[0]["rng"] for line in later):
            return f"nothing was drawn from the random streams {after}"
        case "schedule" if len({line["learning_rate"] for line in later}) == 1:
            return f"the learning rate did not change {after}"
        case "scaler" if not any(line["skipped"] for line in later):
            return f"no loss overflowed {after}"
        case "optimizer" if len({line.get("trained", {}).get("weights", line["step"]) for line in later}) == 1:
            return f"no weight changed {after}"
        case _:
            # Of all else, and of what users add, it cannot be told: nothing excuses it.
            return None


def _why(component: str) -> str:
    reasons = {
        "rng": "nothing drew from the random streams that matters (is dropout 0?)",
        "schedule": "the learning rate did not change (is it constant?)",
        "optimizer": "it carries nothing from step to step",
        "scaler": "no loss overflowed",
    }
    return reasons.get(component, "nothing depends on it within this run")


def run_controls(
    controls: Controls,
    *,
    builder: Builder,
    restorer: Restorer,
    manager: CheckpointManager,
    ranks: Ranks,
    report: Report,
) -> None:
    """Make every control, one after the other; what comes out is noted in the record. All ranks call."""
    report.begin(first_step=0, damaged={}, resumed_from=controls.checkpoint)
    lines = {line["step"]: line for line in read_lines(ledger_file(controls.reference, ranks.rank))}
    first = builder.build()
    there = list(first.training.state.components)
    first.close()
    any_exercised = False

    def make(name: str) -> None:
        nonlocal any_exercised
        if name not in there:
            facts = {"is_found": False, "is_exercised": True, "blamed": [], "detail": f"there is no component {name}"}
        else:
            control = _Control(name, controls, builder=builder, restorer=restorer, manager=manager, ranks=ranks)
            outcome = control.run(lines)
            facts = {
                "is_found": outcome.is_found,
                "is_exercised": outcome.is_exercised or controls.are_named,
                "blamed": list(outcome.blamed),
                "detail": outcome.detail,
            }
        any_exercised = any_exercised or bool(facts["is_exercised"])
        report.event(EventKind.control, component=name, **facts)

    names = there if controls.components is None else controls.components
    for name in names:
        make(name)
    if not any_exercised and _LAST_RESORT not in names:
        make(_LAST_RESORT)
    # Without this line, what is missing has failed.
    report.event(EventKind.stopped, step=0)


class _Control:
    """One component, left out."""

    def __init__(  # all of them by name, from one place
        self,
        component: str,
        controls: Controls,
        *,
        builder: Builder,
        restorer: Restorer,
        manager: CheckpointManager,
        ranks: Ranks,
    ) -> None:
        self._component = component
        self._controls = controls
        self._builder = builder
        self._restorer = restorer
        self._manager = manager
        self._ranks = ranks
        self._ignored = Ignored(controls.ignore)

    def run(self, reference: Mapping[int, LedgerLine]) -> _Outcome:
        """Load all but the component, and train until something differs or the run is over."""
        built = self._builder.build()
        try:
            selection = LoadSelection(exclude=(self._component,))
            loaded = self._restorer.load(built, self._controls.checkpoint, selection)
            self._restorer.start_streams(built, loaded)
            blamed = self._blamed(built, loaded)
            self._restorer.settle(built)
            watcher = _Watcher(reference, component=self._component, ignored=self._ignored, ranks=self._ranks)
            plan = self._builder.plan_without_saves()
            Trainer(built.training, plan, manager=self._manager, observer=watcher).run()
            effect = watcher.effect or self._at_the_end(built, plan.steps)
            later = [line for step, line in sorted(reference.items()) if step >= loaded.step]
            reasons = self._ranks.gather(idle_because(self._component, later))
            # Where one rank has used it, it was used.
            idle = None if None in reasons else reasons[0]
            return _Outcome(component=self._component, blamed=blamed, effect=effect, idle=idle)
        finally:
            built.close()

    def _blamed(self, built: Built, loaded: Loaded) -> tuple[str, ...]:
        """Components with a leaf that is not as it was saved, on any rank."""
        saved = self._ranks.decide(lambda: saved_digests(loaded.folder))
        live = self._ignored.kept(digest_state(built.training.state.leaves()))
        own = set(map(component_of, differing(saved, live)))
        return tuple(sorted(set().union(*self._ranks.gather(own))))

    def _at_the_end(self, built: Built, step: int) -> str | None:
        """A leaf that ended otherwise than in the reference, of those that are results."""
        folder = self._ranks.decide(lambda: checkpoint_of(self._controls.reference, step))
        expected = self._ranks.decide(lambda: saved_digests(folder))
        live = self._ignored.kept(digest_state(built.training.state.leaves()))
        own = [name for name in differing(expected, live) if component_of(name) not in _MEANS]
        first = next((names[0] for names in self._ranks.gather(own) if names), None)
        return None if first is None else f"'{first}' was another one at the end"


class _Watcher:
    """Ends the loop when a step does not come out as in the reference. See :class:`~ckptrun.trainer.Observer`."""

    def __init__(self, reference: Mapping[int, LedgerLine], *, component: str, ignored: Ignored, ranks: Ranks) -> None:
        self._reference = reference
        self._component = component
        self._ranks = ranks
        self._line = StepNotes(start=0, share=None, counts_stream=partial(ignored.counts_stream, rank=ranks.rank))
        self.effect: str | None = None

    def reached(self, point: FaultPoint, step: int) -> None:
        """Nothing is planned in a control."""

    def on_batch(self, inputs: Tensor, targets: Tensor) -> None:
        """See ``Observer``."""
        self._line.batch(inputs, targets)

    def on_part(self, part: str, owner: str) -> None:
        """See ``Observer``."""

    def on_step(self, facts: StepFacts) -> bool:
        """See ``Observer``."""
        line, expected = self._line.of(facts), self._reference.get(facts.step)
        own = None
        if expected is not None:
            found = [m for m in compare_lines(expected, line, rank=self._ranks.rank) if self._counts(m.field)]
            own = found[0].field if found else None
        fields = [field for field in self._ranks.gather(own) if field is not None]
        if fields:
            self.effect = f"{fields[0]} of step {facts.step} was another one"
        return bool(fields)

    def _counts(self, field: str) -> bool:
        return not (self._component == "rng" and field.startswith("rng."))
