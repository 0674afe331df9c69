"""What the probe has heard in the processes of one start, put together by rank. Torch-free."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Batch", "Heard", "HeardRank", "HeardStep", "Load", "Operation", "Save", "read_heard"]

_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a loader handed out."""

    label: str
    """Of the loader: type and length of its dataset."""
    digest: str
    drawn: frozenset[str]
    """The random streams that the loader had drawn from since it began, for this batch or one before it."""


@dataclass(slots=True, kw_only=True)
class HeardStep:
    """One step of a rank: an update of its first optimizer, and those of others until the next one."""

    number: int
    """Counted from 1 in this process."""
    updates: list[int] = field(default_factory=list)
    """Which optimizers were stepped, in order."""
    losses: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    plain: dict[str, str] = field(default_factory=dict)
    """Options of groups and learning rates, by name."""
    before: dict[str, str] = field(default_factory=dict)
    """Digests of parameters and buffers right before the first update."""
    moments_before: dict[str, str] | None = None
    """Of moments; only before the first update of a process, or of an optimizer that is new."""
    begun: list[int] = field(default_factory=list)
    """Those of ``updates`` that were the first of an optimizer; of its place another one may have been stepped."""
    gradients: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    """Of parameters, after the last update of each."""
    moments: dict[str, str] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    iterators: list[dict[str, str]] = field(default_factory=list)
    """Where the streams stood each time a loader began since the step before."""
    skipped: bool = False


@dataclass(slots=True, kw_only=True)
class Save:
    """A file, or a folder, that was written by a function that saves."""

    path: Path
    how: str
    step: int
    """How many steps the process had taken."""
    is_resumable: bool
    """Whether it looks like more than weights alone."""
    content: Mapping[str, str] = field(default_factory=dict)
    """Digests of the tensors in it, by where they are."""
    in_background: bool = False
    """Whether a thread of its own wrote it, perhaps some steps later."""
    is_done: bool = False
    size: int | None = None
    renames_before: int = 0
    """How many of the renames of its process came before it."""
    is_followed: bool = False
    """Whether the process has gone on to another step, or to its end, after it was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A file, or a folder, that was read."""

    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a step that was watched."""

    name: str
    given: str
    """Digest of what went in."""
    made: str
    """Digest of what came out."""
    where: str
    """``file:line function``."""


@dataclass(slots=True, kw_only=True)
class HeardRank:
    """What a rank did in one start."""

    rank: int
    ranks: int
    steps: list[HeardStep] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    counters: list[tuple[str, int]] = field(default_factory=list)
    """Who counts, and the number that there was before the first step of this process."""
    renames: list[tuple[Path, Path]] = field(default_factory=list)
    """What was renamed, and to what, in order."""
    renamed_at: list[int] = field(default_factory=list)
    """How many steps it had taken then; as many as ``renames``."""
    removed_at: list[int] = field(default_factory=list)
    """The same of what was removed."""
    signs: dict[int, str] = field(default_factory=dict)
    """What each optimizer is, by its place."""
    is_saved_within: bool = False
    """Whether it saved between the updates of what is counted as one step: its optimizers take turns."""
    operations: list[Operation] = field(default_factory=list)
    """Of the step that was watched."""
    exception: tuple[float, str] | None = None
    """When it ended in an exception, in seconds, and which."""
    has_ended: bool = False
    """Whether its interpreter came to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the ranks of one start did."""

    ranks: Sequence[HeardRank]
    """In order; of those that took a step, saved or loaded."""
    processes: int
    """How many processes have said anything."""
    exceptions: Sequence[str]
    """What processes have ended in, the first first: others may have failed for want of that one."""
    errors: Sequence[str]
    """What went wrong in the probe itself."""
    interpreters: Sequence[str] = ()
    """What ran them, each once, in words."""
    by_update: bool = False
    """Whether every update was counted as a step."""

    @property
    def steps(self) -> int:
        """How many steps every rank has taken."""
        return min((len(rank.steps) for rank in self.ranks), default=0)

    @property
    def takes_turns(self) -> bool:
        """Whether a save came between updates that are counted as one step: then every one of them must be one."""
        return any(rank.is_saved_within for rank in self.ranks)

    @property
    def counting(self) -> Mapping[str, Any]:
        """What the probe is told of later starts: how steps are counted, and the optimizers by their first steps."""
        signs = next((rank.signs for rank in self.ranks if rank.signs), {})
        optimizers = [signs.get(index, "") for index in range(max(signs, default=-1) + 1)]
        return {"by_update": self.by_update, "optimizers": optimizers}


def read_heard(folder: Path, *, by_update: bool = False) -> list[Heard]:
    """Read what the processes of one start have said.

    Args:
        folder: A file per process.
        by_update: Every update is a step, whichever optimizer's.

    Returns:
        More than one where a launcher has started ranks anew by itself, in order.
    """
    generations: list[dict[int, HeardRank]] = []
    exceptions: list[tuple[float, str]] = []
    errors: list[str] = []
    interpreters: dict[str, None] = {}
    processes = 0
    for file in sorted(folder.glob("*.jsonl")):
        process = _Process(file, by_update=by_update)
        processes += 1
        errors += process.errors
        interpreters |= dict.fromkeys(process.interpreters)
        exceptions += [process.heard.exception] if process.heard.exception else []
        if process.heard.steps or process.heard.saves or process.heard.loads:
            _place(generations, process.heard)
    if not generations:
        generations.append({})
    return [
        Heard(
            ranks=[ranks[number] for number in sorted(ranks)],
            processes=processes,
            exceptions=[text for _, text in sorted(exceptions)],
            errors=errors,
            interpreters=tuple(interpreters),
            by_update=by_update,
        )
        for ranks in generations
    ]


def _place(generations: list[dict[int, HeardRank]], heard: HeardRank) -> None:
    """Put a process to its rank. One of a rank that there is already was started anew, or only helps to save."""
    for ranks in generations:
        known = ranks.get(heard.rank)
        if known is None:
            ranks[heard.rank] = heard
            return
        if not heard.steps or not known.steps:
            for save in heard.saves:
                # Of another process: the renames of this one may come after it.
                save.renames_before = 0
            known.saves += heard.saves
            known.loads += heard.loads
            known.steps = known.steps or heard.steps
            return
    generations.append({heard.rank: heard})


class _Process:
    """The file of one process."""

    def __init__(self, file: Path, *, by_update: bool) -> None:
        self._by_update = by_update
        self._updates = 0
        self.heard = HeardRank(rank=0, ranks=1)
        self.errors: list[str] = []
        self.interpreters: list[str] = []
        self._tables: dict[int, Sequence[str]] = {}
        self._waiting: dict[str, Save] = {}
        for event in _events(file):
            self._add(event)

    def _add(self, event: Mapping[str, Any]) -> None:
        if "rank" in event:
            self.heard.rank = event["rank"]
        hear = {
            "process": self._process,
            "names": self._names,
            "update": self._update,
            "save": self._save,
            "saved": self._saved,
            "load": self._load,
            "file": self._file,
            "counter": self._counter,
            "operations": self._operations,
            "exception": self._exception,
            "probe_error": self._error,
            "end": self._end,
        }.get(event["event"])
        if hear is not None:
            hear(event)

    def _step(self, event: Mapping[str, Any]) -> int:
        """How many steps the process had taken."""
        return self._updates if self._by_update else int(event["step"])

    def _process(self, event: Mapping[str, Any]) -> None:
        self.interpreters.append(event["python"])

    def _names(self, event: Mapping[str, Any]) -> None:
        self._tables[event["table"]] = event["names"]

    def _save(self, event: Mapping[str, Any]) -> None:
        if event["path"] in self._waiting:
            # A save within that of the same place: what is in the background calls what is not.
            return
        save = Save(
            path=Path(event["path"]),
            how=event["how"],
            step=self._step(event),
            is_resumable=event["resumable"],
            content=self._named(event, "content"),
            in_background=event.get("background", False),
            renames_before=len(self.heard.renames),
        )
        self._waiting[event["path"]] = save
        self.heard.saves.append(save)

    def _saved(self, event: Mapping[str, Any]) -> None:
        save = self._waiting.pop(event["path"], None)
        if save is not None:
            save.is_done, save.size = not event["failed"], event["size"]

    def _load(self, event: Mapping[str, Any]) -> None:
        self.heard.loads.append(Load(path=Path(event["path"]), step=self._step(event)))

    def _file(self, event: Mapping[str, Any]) -> None:
        # Whoever renames or removes has come past what was written.
        self._follow()
        if event["what"] in ("os.rename", "shutil.move"):
            before, after = map(Path, event["names"])
            self.heard.renames.append((before, after))
            self.heard.renamed_at.append(self._step(event))
        elif event["what"] != "open":
            self.heard.removed_at.append(self._step(event))

    def _counter(self, event: Mapping[str, Any]) -> None:
        self.heard.counters.append((event["who"], event["number"] - self._step(event)))

    def _operations(self, event: Mapping[str, Any]) -> None:
        self.heard.operations = [Operation(*seen) for seen in event["seen"]]

    def _exception(self, event: Mapping[str, Any]) -> None:
        self.heard.exception = event["time"], event["text"]

    def _error(self, event: Mapping[str, Any]) -> None:
        self.errors.append(f"{event['where']}: {event['text'].strip().splitlines()[-1]}")

    def _end(self, _: Mapping[str, Any]) -> None:
        self.heard.has_ended = True
        self._follow()

    def _follow(self) -> None:
        for save in self.heard.saves:
            save.is_followed = save.is_followed or save.is_done

    def _update(self, event: Mapping[str, Any]) -> None:
        self._follow()
        heard = self.heard
        heard.ranks = event["ranks"]
        self._updates += 1
        number = self._step(event)
        heard.is_saved_within = heard.is_saved_within or any(
            save.step == number and save.is_resumable and not save.in_background for save in heard.saves[-1:]
        )
        heard.signs |= {event["optimizer"]: event["sign"]} if "sign" in event else {}
        if not heard.steps or heard.steps[-1].number != number:
            heard.steps.append(HeardStep(number=number))
        step = heard.steps[-1]
        step.updates.append(event["optimizer"])
        step.losses += event["losses"]
        step.batches += [
            Batch(label=label, digest=digest, drawn=frozenset(drawn)) for label, digest, drawn in event["batches"]
        ]
        step.plain |= event["plain"] | event.get("scaler", {})
        # What stands before the first of several updates is what the step began with.
        step.before = self._named(event, "before") | step.before
        step.gradients |= self._named(event, "gradients")
        step.after |= self._named(event, "after")
        step.moments |= self._named(event, "moments")
        if "moments_before" in event:
            step.begun.append(event["optimizer"])
            step.moments_before = (step.moments_before or {}) | self._named(event, "moments_before")
            for inner in event.get("inner_before", ()):
                step.moments_before |= self._digests_of(*inner)
        step.streams = event["rng"]
        step.iterators += event["iterators"]
        step.skipped = step.skipped or event["skipped"]

    def _named(self, event: Mapping[str, Any], section: str) -> dict[str, str]:
        return self._digests_of(*event[section]) if section in event else {}

    def _digests_of(self, table: int, digests: str) -> dict[str, str]:
        names = self._tables[table]
        return {name: digests[i * _DIGITS : (i + 1) * _DIGITS] for i, name in enumerate(names)}


def _events(file: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a file; one that a kill has cut is none."""
    for line in file.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
