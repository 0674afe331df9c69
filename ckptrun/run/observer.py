"""What a rank notes while it trains: the ledger, the trace, the record, what a person sees. Decides nothing."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash
from torch import Tensor

from ckptrun.checkpoint.manager import CheckpointManager, Commit
from ckptrun.config.fault import FaultPoint
from ckptrun.config.run import RunConfig
from ckptrun.console import ProgressView, say
from ckptrun.data import Share
from ckptrun.evidence.content_digest import content_digest
from ckptrun.evidence.ledger import Ledger
from ckptrun.evidence.trace import Tracer
from ckptrun.fault import FaultInjector
from ckptrun.ranks import Ranks
from ckptrun.run.leg import Leg
from ckptrun.run.report import Report
from ckptrun.state import stream_digests
from ckptrun.trainer import StepFacts

__all__ = ["StepNotes", "StepObserver", "Timing"]


@dataclass(slots=True)
class Timing:
    """What the steps of this start came to."""

    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    commits: list[Commit] = field(default_factory=list)


class StepNotes:
    """Collects what the ledger says of one step.

    Args:
        start: How often the run had been started before.
        share: Which samples of a global micro-batch this rank takes; None: single samples are not noted.
        trained: Takes the fingerprints of weights and moments; None: they are not noted.
        counts_stream: Whether a random stream is compared.
    """

    def __init__(
        self,
        *,
        start: int,
        share: Share | None,
        trained: Callable[[], Mapping[str, str | None]] | None = None,
        counts_stream: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._counts_stream = counts_stream
        self._start = start
        self._share = share
        self._trained = trained
        self._began_with: Mapping[str, str | None] | None = None
        self._has_begun = False
        self._batches: list[str] = []
        self._samples: list[list[str]] = []

    def batch(self, inputs: Tensor, targets: Tensor) -> None:
        """Note what the rank is going to compute with: the bits, not their place in an epoch."""
        if self._trained is not None and not self._has_begun:
            self._began_with, self._has_begun = self._trained(), True
        self._batches.append(f"{content_digest(inputs)} {content_digest(targets)}")
        if self._share is not None:
            samples = zip(inputs, targets, strict=True)
            self._samples.append([f"{content_digest(x)} {content_digest(y)}" for x, y in samples])

    def of(self, facts: StepFacts) -> dict[str, Any]:
        """The line of a step that is done."""
        batches, self._batches = self._batches, []
        samples, self._samples = self._samples, []
        line = {
            "step": facts.step,
            "start": self._start,
            "loss": facts.loss.hex(),
            "gradient_norm": facts.gradient_norm.hex(),
            "learning_rate": facts.learning_rate.hex(),
            "skipped": facts.skipped,
            "batch": batches[0] if len(batches) == 1 else xxhash.xxh3_128_hexdigest(" ".join(batches).encode()),
            "rng": {name: digest for name, digest in stream_digests().items() if self._counts_stream(name)},
        }
        if self._trained is not None:
            line["trained"] = dict(self._trained())
        if self._began_with is not None:
            line["trained_before"], self._began_with = dict(self._began_with), None
        if self._share is not None:
            line["data"] = {
                "position": facts.samples_before,
                "rank": self._share.data_rank,
                "of": self._share.data_parallel,
                "samples": samples,
            }
        return line


class StepObserver:
    """See :class:`~ckptrun.trainer.Observer`. On every rank.

    Args:
        config: The checked config.
        leg: What this start is about.
        ranks: Who says what only one shall say.
        report: Where rank 0 notes steps.
        injector: Told of each point.
        line: Collects what the ledger is told.
        state_digests: Takes the digest of every leaf; a collective.
    """

    def __init__(  # noqa: PLR0913  # one composition root passes all of them by name
        self,
        config: RunConfig,
        leg: Leg,
        *,
        ranks: Ranks,
        report: Report,
        injector: FaultInjector,
        line: StepNotes,
        state_digests: Callable[[], Mapping[str, str]],
    ) -> None:
        self._config = config
        self._leg = leg
        self._ranks = ranks
        self._report = report
        self._injector = injector
        self._line = line
        self._state_digests = state_digests
        self.timing = Timing()
        self.ledger: Ledger | None = None
        self.tracer: Tracer | None = None
        self.view: ProgressView | None = None
        self.manager: CheckpointManager | None = None

    def reached(self, point: FaultPoint, step: int) -> None:
        """See ``Observer``."""
        if self.tracer is not None and point is FaultPoint.before_step:
            self.tracer.begin(step)
        if self.tracer is not None and point is FaultPoint.mid_accumulation:
            self.tracer.micro_batch_done()
        if point is FaultPoint.before_step and self.manager is not None and self._injector.settles_before(step):
            self.manager.wait()
        self._injector.reached(point, step)

    def on_batch(self, inputs: Tensor, targets: Tensor) -> None:
        """See ``Observer``."""
        self._line.batch(inputs, targets)
        if self.tracer is not None:
            self.tracer.batch(inputs, targets)

    def on_part(self, part: str, owner: str) -> None:
        """See ``Observer``."""
        if self.tracer is not None:
            self.tracer.part_done(part, owner)

    def on_step(self, facts: StepFacts) -> bool:
        """See ``Observer``."""
        line = self._line.of(facts)
        every = self._config.proof.digest_every_steps
        if every is not None and facts.step % every == 0:
            line["leaves"] = dict(self._state_digests())
        if self.ledger is not None:
            self.ledger.append(line)
        self._note(facts)
        self._report.step(facts)
        if self.view is not None:
            self.view.step(facts.step, f"loss {facts.loss:.4f}  norm {facts.gradient_norm:.3f}")
        return self._leg.stop_at is not None and facts.step >= self._leg.stop_at

    def on_commit(self, commit: Commit) -> None:
        """Note a committed checkpoint."""
        self.timing.commits.append(commit)
        self._report.commit(commit)

    def _note(self, facts: StepFacts) -> None:
        timing = self.timing
        finite_before = timing.last_loss is None or math.isfinite(timing.last_loss)
        if not math.isfinite(facts.loss) and finite_before and self._ranks.rank == 0:
            say(f"The loss is not finite at step {facts.step}: {facts.loss}.")
        if timing.first_loss is None:
            timing.first_loss = facts.loss
        timing.last_loss = facts.loss
        # The first step also warms caches up and compiles: it says nothing about speed.
        if timing.steps > 0 or self._config.train.steps == 1:
            timing.seconds += facts.seconds
            timing.samples += facts.samples
        timing.steps += 1

    def close(self) -> None:
        """Close the files."""
        for file in (self.ledger, self.tracer):
            if file is not None:
                file.close()
