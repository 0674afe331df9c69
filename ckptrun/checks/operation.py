"""The first operation that two traced runs did not do alike: what it is, whose it is, and which bits differ."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from ckptrun.checks.element import DifferingPart, first_element
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import trace_file, values_file
from ckptrun.evidence.trace_items import What
from ckptrun.files import read_lines

__all__ = ["Operation", "first_operation"]


_BEGIN = "begin"
_DIGEST = re.compile(r"[0-9a-f]{32}")
# What a step may find when it begins, and whose it is.
_FOUND = {
    What.stream: "rng",
    What.weight: "model",
    What.kept: "optimizer",
    What.moment: "optimizer",
    What.option: "optimizer",
    What.scale: "scaler",
}
# A schedule writes them: what they are is its business, wherever they stand.
_RATES = ("lr", "initial_lr")
_BEFORE_BACKWARD = ("batch", "forward")
_NAMES = {What.kept: "gradient", What.option: "option", What.scale: "loss scale", What.moment: "optimizer state"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The first operation that did not come out the same, on one rank."""

    step: int
    rank: int
    part: str
    """Of the step: ``begin``, ``batch``, ``forward``, ``backward``, ``update``, ``schedule``, ``ema``, ``on_step``."""
    owner: str
    """Whose code runs in that part; empty at the beginning of a step."""
    what: What
    name: str
    at: str = ""
    """The module it was seen at."""
    micro_batch: int = 0
    expected: str = ""
    got: str = ""
    element: DifferingPart | None = None
    """The first element that differs, where the bits are at hand."""
    place: int = 0
    """How many operations of the trace came before it: ranks compute the same ones in the same order."""
    replaced: Sequence[str] = ()
    """Components that are not those that were loaded, and in the other run are."""

    @property
    def component(self) -> str:
        """The component that has done it."""
        if self.what is What.option and "optimizer" in self.replaced:
            # The rate is given to the one that was loaded.
            return "optimizer"
        if self.owner:
            return self.owner
        if self.what is What.option and self.name.rpartition(".")[2] in _RATES:
            return "schedule"
        return _FOUND.get(self.what, "model")

    @property
    def values(self) -> str:
        """The two values, as numbers where there are some; empty where digests are all there is."""
        if self.element is not None:
            place = f"[{', '.join(map(str, self.element.index))}] " if self.element.index else ""
            apart = "" if self.element.ulp is None else f", {self.element.ulp} ULP apart"
            return f"{place}{self.element.expected} in the reference, {self.element.got} here{apart}"
        if self.what in (What.option, What.scale) or "absent" in (self.expected, self.got):
            one, other = ("there" if _DIGEST.fullmatch(value) else value for value in (self.expected, self.got))
            return f"{one} in the reference, {other} here"
        return ""

    def as_difference(self) -> Difference:
        """The same, in the form that all checks have."""
        about = Difference(
            step=self.step,
            rank=self.rank,
            component=self.component,
            leaf=self.subject,
            expected=self.expected,
            got=self.got,
        )
        found = about if self.element is None else self.element.narrowed(about)
        return found.with_details(what=self.what, part=self.part)

    @property
    def comes_before_backward(self) -> bool:
        """Whether it was done before the loss of the step was known."""
        return self.part in (_BEGIN, *_BEFORE_BACKWARD)

    def is_found(self, *, resumed_at: int | None) -> bool:
        """Whether a run that was resumed after the step ``resumed_at`` began with it, before it did anything."""
        return self._is_first(resumed_at) and self.part == _BEGIN

    def _is_first(self, resumed_at: int | None) -> bool:
        return resumed_at is not None and self.step == resumed_at + 1 and self.micro_batch == 0

    def text(self, *, resumed_at: int | None) -> str:
        """Say what it is, e.g. ``blocks.1.dropout output, rank 1, first forward after resume``."""
        return f"{self.subject}, rank {self.rank}, {self._when(resumed_at)}"

    @property
    def subject(self) -> str:
        """What it is, without when, e.g. ``blocks.1.dropout output``."""
        match self.what:
            case What.stream:
                return f"{self.what} {self.name}" + (f" after {self.at}" if self.at else "")
            case What.batch:
                return self.what
            case What.weight:
                return f"{self.name} itself"
            case What.state:
                return "the state"
            case What.option if self.name.rpartition(".")[2] in _RATES:
                return f"learning rate of group {self.name.rpartition('.')[0]}"
            case What.kept | What.option | What.scale | What.moment:
                return f"{_NAMES[self.what]} {self.name}"
            case What.input | What.output | What.gradient | What.reduced | What.update:
                return f"{self.name} {self.what}"
            case _:
                assert_never(self.what)

    def _when(self, resumed_at: int | None) -> str:
        first = self._is_first(resumed_at)
        if self.part == _BEGIN:
            return f"before the {'first forward after resume' if first else f'forward of step {self.step}'}"
        if self.what in (What.batch, What.input, What.output, What.gradient, What.reduced, What.update):
            return f"first {self._pass} after resume" if first else f"step {self.step}"
        return (
            f"during the first {self._pass} after resume" if first else f"during the {self._pass} of step {self.step}"
        )

    @property
    def _pass(self) -> str:
        return f"on_step of component '{self.owner}'" if self.part == "on_step" else self.part


def first_operation(expected: Path, got: Path, *, ranks: int) -> Operation | None:
    """Return the first operation that two traced runs did not do alike: the earliest step, then the lowest rank.

    Args:
        expected: The folder of one run.
        got: That of the other.
        ranks: Of both.
    """
    found = [next(_differences(expected, got, rank=rank), None) for rank in range(ranks)]
    differing = [operation for operation in found if operation is not None]
    return min(differing, key=lambda operation: (operation.step, operation.place, operation.rank), default=None)


def _differences(expected: Path, got: Path, *, rank: int) -> Iterator[Operation]:
    traces = [read_lines(trace_file(folder, rank)) for folder in (expected, got)]
    # One of them may have begun later.
    steps = set.intersection(*({line["step"] for line in trace} for trace in traces))
    left, right = ([line for line in trace if line["step"] in steps] for trace in traces)
    replaced: list[str] = []
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        replaced = [name for name in other.get("replaced", replaced) if name not in one.get("replaced", ())]
        common: dict[str, Any] = {"rank": rank, "place": place, "replaced": tuple(replaced)}
        if any(one[key] != other[key] for key in ("what", "part", "at")):
            yield _only_one(other, one, **common)
            return
        for name in {**one["items"], **other["items"]}:
            pair = one["items"].get(name, _ABSENT), other["items"].get(name, _ABSENT)
            if _bits(pair[0]) != _bits(pair[1]):
                operation = _operation(other, name, *map(_shown, pair), **common)
                if operation.what is What.kept and operation.part == _BEGIN:
                    operation = replace(operation, owner=_who_keeps(name, left) or _who_keeps(name, right))
                yield _with_element(operation, pair, (expected, got))
                return


def _who_keeps(name: str, trace: Sequence[Mapping[str, Any]]) -> str:
    """After whose part of a step the gradient of ``name`` is there, though it has been used; empty: nobody's."""
    parts = [line for line in trace if line["what"] == What.kept and line["part"] != _BEGIN]
    kept = (line["owner"] for line in parts if _bits(line["items"].get(name, _ABSENT)) != _bits(_ABSENT))
    return next((owner for owner in kept if owner not in _COMPUTE_GRADIENTS), "")


_COMPUTE_GRADIENTS = ("data", "model")
_ABSENT: Mapping[str, Any] = {"digest": "absent"}


def _bits(item: Mapping[str, Any]) -> Any:
    return item.get("digest", item.get("value"))


def _shown(item: Mapping[str, Any]) -> str:
    return str(item.get("shown", _bits(item)))


def _only_one(got: Mapping[str, Any], expected: Mapping[str, Any], **common: Any) -> Operation:
    """Of two operations that are not the same one: what one of the two runs does, and the other does not."""
    # At the end of a part there is no more to come: then the other run has done more.
    is_more = bool(got["at"]) or not expected["at"]
    line = got if is_more else expected
    return _operation(line, next(iter(line["items"]), ""), _DONE[not is_more], _DONE[is_more], **common)


_DONE = ("left out here", "done here")


def _operation(line: Mapping[str, Any], name: str, expected: str, got: str, **common: Any) -> Operation:
    return Operation(
        step=line["step"],
        part=line["part"],
        owner=line["items"].get(name, {}).get("owner", line["owner"]),
        what=What(line["what"]),
        name=name,
        at=line["at"],
        micro_batch=line["pass"],
        expected=expected,
        got=got,
        **common,
    )


def _with_element(operation: Operation, pair: Sequence[Mapping[str, Any]], runs: Sequence[Path]) -> Operation:
    if all("shown" in item for item in pair):
        left, right = (torch.tensor(float.fromhex(item["value"]), dtype=torch.float64) for item in pair)
        return replace(operation, element=first_element(left, right))
    one, other = (_read_value(values_file(run, operation.rank), item) for run, item in zip(runs, pair, strict=True))
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return operation
    element = first_element(one, other)
    if element is not None and pair[1].get("is_part"):
        # Where it lies in the whole tensor is not known here.
        element = replace(element, index=None)
    return replace(operation, element=element)


def _read_value(file: Path, item: Mapping[str, Any]) -> Tensor | None:
    """The tensor that an item stands for; None where its bits were not kept, or the run ended before they were."""
    if "place" not in item or not file.is_file():
        return None
    dtype = getattr(torch, str(item["dtype"]).removeprefix("torch."))
    count = int(np.prod(item["shape"], dtype=np.int64)) * dtype.itemsize
    with file.open("rb") as opened:
        opened.seek(item["place"])
        raw = opened.read(count)
    if len(raw) != count or not count:
        return None
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(item["shape"])
