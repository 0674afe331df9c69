"""Writes down every operation of a few steps, so that two runs can be held against each other operation by operation.

For each step in the window, on each rank, in the order in which they come: where the random streams stand before the
step, and what parameters and buffers are; the batch, and the streams once more, which loading it may have moved; each
module's input and output in forward, the gradient that arrives at it in backward; each parameter's reduced gradient,
and each parameter after the optimizer. A line of the trace is ``{"step", "pass", "what", "name", "digest"}``; digests
are of this rank's own bits.

Watching changes nothing that is computed: hooks look at what passes, and no random number is drawn.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ckptrun.files import read_lines
from ckptrun.proof.content import content_digest
from ckptrun.state import stream_digests

__all__ = ["Operation", "Tracer", "first_operation", "trace_file"]

_STREAM, _WEIGHT, _BATCH, _INPUT, _OUTPUT = "random stream", "weight", "batch", "input", "output"
_GRADIENT, _REDUCED, _UPDATE = "gradient", "reduced gradient", "update"
# What an operation belongs to when all before it were alike.
_COMPONENT_OF = {
    _STREAM: "rng",
    _WEIGHT: "model",
    _BATCH: "data",
    _INPUT: "model",
    _OUTPUT: "model",
    _GRADIENT: "model",
    _REDUCED: "model",
    _UPDATE: "optimizer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The first operation that did not come out the same, on one rank."""

    step: int
    rank: int
    what: str
    """As above: ``random stream``, ``weight``, ``batch``, ``input``, ``output`` and so on."""
    name: str
    micro_batch: int
    expected: str
    got: str
    place: int
    """How many operations of the trace came before it: ranks compute the same ones in the same order."""

    @property
    def component(self) -> str:
        """The component that has done it."""
        return _COMPONENT_OF[self.what]

    def is_found(self, *, resumed_at: int | None) -> bool:
        """Whether a run that was resumed after the step ``resumed_at`` began with it, before it did anything."""
        return self._is_first(resumed_at) and self.what in (_STREAM, _WEIGHT)

    def _is_first(self, resumed_at: int | None) -> bool:
        return resumed_at is not None and self.step == resumed_at + 1 and self.micro_batch == 0

    def text(self, *, resumed_at: int | None) -> str:
        """Say what it is, e.g. ``blocks.1.dropout output, rank 1, first forward after resume``."""
        before = {_STREAM: f"{_STREAM} {self.name}", _WEIGHT: f"{self.name} itself"}
        if self.what in before:
            when = (
                "the first forward after resume" if self._is_first(resumed_at) else f"the forward of step {self.step}"
            )
            return f"{before[self.what]}, rank {self.rank}, before {when}"
        subject = _BATCH if self.what == _BATCH else f"{self.name} {self.what}"
        passes = {_INPUT: "forward", _OUTPUT: "forward", _GRADIENT: "backward", _UPDATE: "update", _BATCH: "batch"}
        name = passes.get(self.what, "backward")
        when = f"first {name} after resume" if self._is_first(resumed_at) else f"step {self.step}"
        return f"{subject}, rank {self.rank}, {when}"


def trace_file(run_dir: Path, rank: int) -> Path:
    """Where the trace of ``rank`` lies."""
    return run_dir / "trace" / f"rank_{rank:05d}.jsonl"


class Tracer:
    """The trace of one rank. Every method does nothing outside the window.

    Args:
        run_dir: The run folder.
        rank: Whose trace.
        steps: The window.
        module: What is called for forward.
        parameters: Name -> live parameter, as the optimizer has them.
        name_of: Turns the name of a wrapped module into that of the user's.
        is_compiled: Whether parts of the model are compiled: then only the whole model's output is watched.
    """

    def __init__(  # noqa: PLR0913  # one call passes all of them by name
        self,
        run_dir: Path,
        rank: int,
        *,
        steps: range,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        name_of: Callable[[str], str],
        is_compiled: bool,
    ) -> None:
        file = trace_file(run_dir, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = file.open("w", buffering=1)
        self._steps = steps
        self._parameters = parameters
        self._buffers = {name_of(name): buffer for name, buffer in module.named_buffers()}
        self._step = 0
        self._passes = 0
        for name, part in module.named_modules():
            if not (is_compiled and name):
                part.register_forward_pre_hook(partial(self._watch_inputs, name_of(name) or "model"))
                part.register_forward_hook(self._watcher(name_of(name) or "model"))

    def begin(self, step: int) -> None:
        """A step begins."""
        self._step = step if step in self._steps else 0
        self._passes = 0
        self._write_streams()
        for name, value in (*self._parameters.items(), *self._buffers.items()):
            self._write(_WEIGHT, name, value)

    def batch(self, inputs: Tensor, targets: Tensor) -> None:
        """A micro-batch is going to be used."""
        self._write(_BATCH, "inputs", inputs)
        self._write(_BATCH, "targets", targets)
        self._write_streams()

    def _write_streams(self) -> None:
        for name, digest in stream_digests().items() if self._step else ():
            self._write_line(_STREAM, name, digest)

    def micro_batch_done(self) -> None:
        """The backward of a micro-batch is over, and another follows."""
        self._passes += 1

    def backward_done(self) -> None:
        """All gradients are there."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._write(_REDUCED, name, parameter.grad)

    def update_done(self) -> None:
        """The optimizer has taken its step."""
        for name, parameter in self._parameters.items():
            self._write(_UPDATE, name, parameter)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _watch_inputs(self, name: str, module: nn.Module, inputs: Any) -> None:
        # One that differs, although the output before it did not, was changed by the code in between.
        for value in tree_leaves(inputs) if self._step else ():
            if isinstance(value, Tensor):
                self._write(_INPUT, name, value)

    def _watcher(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        note = partial(self._write, _GRADIENT, name)

        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self._step:
                return
            for value in tree_leaves(output):
                if isinstance(value, Tensor):
                    self._write(_OUTPUT, name, value)
                    if value.requires_grad:
                        value.register_hook(note)  # type: ignore[no-untyped-call]

        return watch

    def _write(self, what: str, name: str, value: Tensor) -> None:
        if self._step:
            self._write_line(what, name, content_digest(value))

    def _write_line(self, what: str, name: str, digest: str) -> None:
        line = {"step": self._step, "pass": self._passes, "what": what, "name": name, "digest": digest}
        self._file.write(json.dumps(line) + "\n")


def first_operation(expected: Path, got: Path, *, ranks: int) -> Operation | None:
    """Return the first operation that two traced runs did not do alike: the earliest step, then the lowest rank."""
    found = [next(_differences(trace_file(expected, r), trace_file(got, r), rank=r), None) for r in range(ranks)]
    differing = [operation for operation in found if operation is not None]
    return min(differing, key=lambda operation: (operation.step, operation.place, operation.rank), default=None)


def _differences(expected: Path, got: Path, *, rank: int) -> Iterator[Operation]:
    left, right = read_lines(expected), read_lines(got)
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one == other:
            continue
        same = one["name"] == other["name"] and one["what"] == other["what"]
        yield Operation(
            step=other["step"],
            rank=rank,
            what=other["what"],
            name=other["name"],
            micro_batch=other["pass"],
            expected=one["digest"] if same else f"{one['name']} {one['what']}",
            got=other["digest"] if same else f"{other['name']} {other['what']}",
            place=place,
        )
