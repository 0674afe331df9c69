"""The job, resumed from a crash state: what it looked at, where it went on, what its next steps came to. Torch-free."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ckptrun.checks.whole_runs import check_steps
from ckptrun.config.job import JobConfig
from ckptrun.crash.files import Tree
from ckptrun.crash.looks import Looked, read_looks
from ckptrun.crash.recording import Recording, Window
from ckptrun.crash.trace import LOOKS, strace
from ckptrun.crash.warm import WarmServers
from ckptrun.evidence.ledger_comparison import compare_ledgers
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.verdict import Check, Status
from ckptrun.files import append_line, read_lines
from ckptrun.foreign.alignment import Aligned, Source, align
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.judge import explained
from ckptrun.foreign.process import CommandEnd, last_lines
from ckptrun.foreign.records import Heard
from ckptrun.foreign.starter import Starter
from ckptrun.foreign.translation import check_loaded, write_ledgers

__all__ = ["Came", "Outcome", "Resumed", "Resumes", "newest_in"]

_PATIENCE = 5.0
_LEAST_SECONDS = 60.0


class Came(StrEnum):
    """What a resume came to."""

    equal = "equal"
    """It went on from the newest complete checkpoint, with the bits of the run that nothing happened to."""
    lost_work = "lost_work"
    """A newer complete checkpoint was there."""
    failed = "failed"
    """It came to nothing: so will every resume until somebody cleans up."""
    different = "different"
    """It went on, and its steps have other bits; nobody is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a state comes to."""

    came: Came
    text: str
    component: str | None = None
    step: int = 0
    """What was gone on from."""


@dataclass(slots=True, kw_only=True)
class Resumed:
    """One resume."""

    looked: Looked
    argv: Sequence[str]
    seen: tuple[object, ...]
    """What it saw of the files."""
    heard: Heard
    end: CommandEnd
    aligned: Aligned
    steps: Check
    """Its steps, compared with those of the run that nothing happened to."""
    loaded: Check | None
    failure: str
    """Why it came to nothing; empty: it took its steps."""


def newest_in(tree: Tree, window: Window, saved: Sequence[SavedStep], output: Path) -> SavedStep | None:
    """The newest checkpoint that is complete in a state: all of it, or a copy, is as it was when its save was over."""
    intact = window.before.tree()
    for one in sorted(saved, key=lambda one: -one.step):
        if one.step not in window.whole:
            continue
        whole = window.whole[one.step]
        for known in (whole, intact) if one.step < window.step else (whole,):
            for paths in _alternatives(one, window, output):
                parts = [(tree.below(path), known.below(path)) for path in paths]
                if parts and all(mine and mine == theirs for mine, theirs in parts):
                    return one
    return None


def _alternatives(one: SavedStep, window: Window, output: Path) -> list[list[str]]:
    """What must be there: all that a save has left in its place, which others may share; or one of its copies."""
    files, copies, places = (
        [str(path.relative_to(output)) for path in paths if output in path.parents]
        for paths in (one.files, one.copies, [one.place])
    )
    earlier = window.whole.get(max((step for step in window.whole if step < one.step), default=-1))
    whole = window.whole[one.step]
    left = {
        path
        for place in places
        for path, key in whole.below(place).items()
        if whole.entries[path].content is not None and (earlier is None or earlier.below(path).get(path) != key)
    }
    return [sorted({*files, *left}), *([path] for path in copies)]


class Resumes:
    """Resumes the job from states, each of which is built in its folder.

    Args:
        job: What is started.
        recording: Of the run that nothing happened to.
        window: The save.
        folder: Of the crash proof; ``reference`` in it has the ledger of that run.
        output: The folder that the job writes to, the same each time: checkpoints may hold its path.
        steps: How many steps a resume takes.
    """

    def __init__(
        self,
        job: JobConfig,
        recording: Recording,
        window: Window,
        *,
        folder: Path,
        output: Path,
        steps: int,
    ) -> None:
        limit = min(job.timeout_seconds, max(_LEAST_SECONDS, _PATIENCE * recording.seconds))
        self._job = dataclasses.replace(job, timeout_seconds=limit)
        self._recording = recording
        self._window = window
        self._folder = folder / "resume"
        self.output = output
        self.whole = window.whole[window.step]
        """What lies there when the save is over."""
        self.cwd = Path((job.cwd or "").replace("{run}", str(output))).absolute()
        self._reference = folder / "reference"
        self._steps = steps
        self._total = recording.heard.steps
        self.starter = Starter(self._job, output, digest_every_steps=1)

    def newest(self, tree: Tree) -> SavedStep | None:
        """See :func:`newest_in`."""
        return newest_in(tree, self._window, self._recording.saved, self.output)

    def resume(self, tree: Tree, *, warm: WarmServers | None = None, is_watched: bool = True) -> Resumed:
        """Resume from a state, and end after some steps.

        Args:
            tree: The state.
            warm: What the job's processes are forked from; None: they are started as ever.
            is_watched: Whether is to be known what it looks at.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        tree.build(self.output)
        newest = self.newest(tree)
        cold = self._folder / "looks"
        traces = {cold: 0} if is_watched else {}
        traces |= {} if warm is None else {trace: trace.stat().st_size for trace in warm.traces}
        heard, end = self.starter.start(
            self._folder / "probe" / "start_00001",
            log=self._folder / "log",
            newest=newest,
            # One more than is judged: a rank that ends breaks off what others still do in that step.
            plan={
                "first_step": newest.step if newest is not None else 0,
                "most_steps": self._steps + 1,
                **self._recording.heard.counting,
                "warm": {} if warm is None else warm.places,
            },
            before=strace(cold, LOOKS) if is_watched else (),
        )
        looked = read_looks(traces, root=self.output, cwd=self.cwd)
        source = Source(heard=self._recording.heard, first_step=0)
        has_loaded = any(rank.loads for rank in heard.ranks)
        aligned = align(heard, [source], newest=newest.step if newest is not None and has_loaded else 0)
        self._write_before(aligned.step)
        write_ledgers(self._folder, heard, start=1, first_step=aligned.step, reference=self._recording.heard)
        found = compare_ledgers(
            self._reference, self._folder, ranks=len(self._recording.heard.ranks), last_step=aligned.step + self._steps
        )
        steps = check_steps(found, wanted=0, after=0, is_complete=False)
        return Resumed(
            looked=looked,
            argv=self.starter.argv(newest),
            seen=looked.seen_in(tree, self.whole),
            heard=heard,
            end=end,
            aligned=aligned,
            steps=explained(steps, found, self._reference, self._folder),
            loaded=check_loaded(heard, [source], aligned) if aligned.step and heard.steps else None,
            failure=self._failure(heard, end, aligned),
        )

    def _write_before(self, step: int) -> None:
        """Let the ledger begin with the step that was gone on from, as the killed run had taken it."""
        for rank in range(len(self._recording.heard.ranks)):
            file = ledger_file(self._folder, rank)
            file.parent.mkdir(parents=True, exist_ok=True)
            for line in read_lines(ledger_file(self._reference, rank)):
                if line["step"] == step:
                    append_line(file, line)

    def _failure(self, heard: Heard, end: CommandEnd, aligned: Aligned) -> str:
        wanted = min(self._steps, self._total - aligned.step)
        is_whole = len(heard.ranks) == len(self._recording.heard.ranks)
        if heard.steps >= wanted and (is_whole or not wanted):
            return "" if wanted or end.exit_code == 0 else self._words(heard, end)
        return self._words(heard, end)

    def _words(self, heard: Heard, end: CommandEnd) -> str:
        if end.timed_out:
            return f"it had taken {heard.steps} steps after {self._job.timeout_seconds:.0f} s and was killed"
        if heard.exceptions:
            return heard.exceptions[0].strip().removesuffix(":")
        if end.exit_code == 0:
            return f"it ended with exit code 0 after {heard.steps} steps"
        lines = last_lines(self._folder / "log").splitlines()
        return f"exit code {end.exit_code}: {lines[-1] if lines else 'it printed nothing'}"


def outcome_of(resumed: Resumed, newest: SavedStep | None) -> Outcome:
    """Say what a resume came to, where ``newest`` is the newest complete checkpoint that it could have taken."""
    step = resumed.aligned.step
    if resumed.failure:
        return Outcome(came=Came.failed, text=resumed.failure, step=step)
    if newest is not None and step < newest.step:
        where = f"from step {step}" if step else "from the beginning"
        text = f"it goes on {where}, although the checkpoint of step {newest.step} is complete"
        return Outcome(came=Came.lost_work, text=text, component="progress", step=step)
    if resumed.loaded is not None and resumed.loaded.status is Status.different:
        first = resumed.loaded.first_difference
        return Outcome(
            came=Came.different,
            text=resumed.loaded.detail,
            component=None if first is None else first.component,
            step=step,
        )
    if resumed.steps.status is Status.different:
        return Outcome(came=Came.different, text=resumed.steps.detail, component=resumed.steps.blame, step=step)
    return Outcome(came=Came.equal, text=f"it goes on from step {step}", step=step)
