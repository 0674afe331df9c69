"""Writes down every operation of a few steps, so that two runs can be held against each other operation by operation.

A step is made of parts, and each part has an owner: whose code runs in it. ``batch`` is of the data, ``forward`` and
``backward`` are the model's, ``update`` is the optimizer's, then come ``schedule``, ``ema``, and ``on_step`` of each
component that has it. At the end of every part the tracer looks at all that decides what comes next: parameters and
buffers, gradients that are still there, the optimizer's state and options, the loss scale, and where the random streams
stand. So whatever changes is seen in the part in which it changed, whoever did it, and its owner is named.

Between these looks stand the batch, each module's inputs and outputs in forward, and the gradient that arrives at it in
backward. A line of the trace is ``{"step", "pass", "part", "owner", "at", "what", "items"}``, an item ``name -> what it
was``: digests are of this rank's own bits; small tensors lie beside the trace, so that their elements can be shown.

Of steps before the window one line stands for all of it: where that differs, the cause lies further back.

Watching changes nothing that is computed: hooks look at what passes, and no random number is drawn.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import xxhash
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ckptrun.evidence.content_digest import digest_of_part, own_part, raw_bytes
from ckptrun.evidence.run_folder import trace_file, values_file
from ckptrun.evidence.trace_items import What
from ckptrun.state import stream_digests

__all__ = ["Tracer", "Watched"]

_LARGEST_VALUE = 1 << 20
_MOST_VALUES = 1 << 27
_Items = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a tracer looks at.

    Attributes:
        module: What is called for forward.
        parameters: Name -> live parameter, as the optimizer has them.
        name_of: Turns the name of a wrapped module into that of the user's.
        is_compiled: Whether parts of the model are compiled: then only the whole model's output is watched.
        optimizer: Returns the one that trains now.
        scale: Returns what the loss scaler says of itself.
        replaced: Returns the components that are no longer the ones that were built and loaded.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    name_of: Callable[[str], str]
    is_compiled: bool
    optimizer: Callable[[], Optimizer]
    scale: Callable[[], Mapping[str, Any]] = dict
    replaced: Callable[[], Sequence[str]] = tuple


class Tracer:
    """The trace of one rank.

    Args:
        run_dir: The run folder.
        rank: Whose trace.
        steps: The window.
        watched: What is looked at.
    """

    def __init__(self, run_dir: Path, rank: int, *, steps: range, watched: Watched) -> None:
        file = trace_file(run_dir, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = file.open("w", buffering=1)
        self._values = _Values(values_file(run_dir, rank))
        self._steps = steps
        self._watched = watched
        self._names = {id(parameter): name for name, parameter in watched.parameters.items()}
        self._step = 0
        self._passes = 0
        self._pending: list[dict[str, Any]] = []
        for name, part in watched.module.named_modules():
            if not (watched.is_compiled and name):
                shown = watched.name_of(name) or "model"
                part.register_forward_pre_hook(partial(self._watch_inputs, shown))
                part.register_forward_hook(partial(self._watch_outputs, shown))

    def begin(self, step: int) -> None:
        """A step begins."""
        self._passes = 0
        self._values.keeps = step in self._steps
        if step not in self._steps:
            self._step = 0
            if step < self._steps.start:
                whole = json.dumps([_bits(self._streams()), *(_bits(items) for _, items in self._state(What.weight))])
                digest = xxhash.xxh3_128_hexdigest(whole.encode())
                self._write(step, {What.state: {"all": {"digest": digest}}}, part="begin", owner="")
            return
        self._step = step
        looked = {What.stream: self._streams(), **dict(self._state(What.weight))}
        self._write(step, looked, part="begin", owner="", replaced=list(self._watched.replaced()))

    def batch(self, inputs: Tensor, targets: Tensor) -> None:
        """A micro-batch is going to be used."""
        if self._step:
            self._note(What.batch, {"inputs": self._item(inputs), "targets": self._item(targets)})
            self.part_done("batch", "data")

    def micro_batch_done(self) -> None:
        """The backward of a micro-batch is over, and another follows."""
        self._passes += 1

    def part_done(self, part: str, owner: str) -> None:
        """A part of the step is over; what has changed since the last one was changed by code of ``owner``."""
        if not self._step:
            return
        weight = What.update if part == "update" else What.weight
        looked: dict[str, _Items] = dict(self._state(weight))
        if part == "backward":
            # The first to look at: what backward is for.
            looked = {What.reduced: looked.pop(What.kept), **looked}
            for name, parameter in self._watched.parameters.items():
                if _is_updated_in_backward(parameter, self._watched.optimizer()):
                    looked[weight][name]["owner"] = "optimizer"
        looked[What.stream] = self._streams()
        for line in self._pending:
            self._write_line({**line, "part": part, "owner": owner})
        self._pending.clear()
        self._write(self._step, looked, part=part, owner=owner)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._values.close()

    def _state(self, weight: What) -> Iterator[tuple[str, _Items]]:
        """All that decides what comes next, but the random streams."""
        watched, optimizer = self._watched, self._watched.optimizer()
        buffers = {watched.name_of(name): buffer for name, buffer in watched.module.named_buffers()}
        yield weight, {name: self._item(value) for name, value in {**watched.parameters, **buffers}.items()}
        grads = {name: value.grad for name, value in watched.parameters.items()}
        yield What.kept, {name: _NOTHING if grad is None else self._item(grad) for name, grad in grads.items()}
        yield (
            What.moment,
            {
                f"{self._names.get(id(parameter), '?')}.{key}": self._item(value)
                for parameter, values in optimizer.state.items()
                for key, value in values.items()
            },
        )
        yield (
            What.option,
            {
                f"{group.get('name', f'group_{index}')}.{key}": self._item(value)
                for index, group in enumerate(optimizer.param_groups)
                for key, value in group.items()
                if key != "params"
            },
        )
        yield What.scale, {name: self._item(value) for name, value in watched.scale().items()}

    @staticmethod
    def _streams() -> _Items:
        return {name: {"digest": digest} for name, digest in stream_digests().items()}

    def _watch_inputs(self, name: str, module: nn.Module, inputs: Any) -> None:
        # One that differs, although the output before it did not, was changed by the code in between.
        self._note_tensors(What.input, name, inputs)

    def _watch_outputs(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._step:
            return
        for value in self._note_tensors(What.output, name, output):
            if value.requires_grad:
                value.register_hook(partial(self._note_gradient, name))  # type: ignore[no-untyped-call]
        self._note(What.stream, self._streams(), at=name)

    def _note_tensors(self, what: What, name: str, values: Any) -> list[Tensor]:
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)] if self._step else []
        for value in tensors:
            self._note(what, {name: self._item(value)}, at=name)
        return tensors

    def _note_gradient(self, name: str, value: Tensor) -> None:
        if self._step:
            self._note(What.gradient, {name: self._item(value)}, at=name)

    def _note(self, what: What, items: _Items, *, at: str = "") -> None:
        """Keep a line until the part is over, and it is known whose it was."""
        self._pending.append({"step": self._step, "pass": self._passes, "at": at, "what": what, "items": items})

    def _item(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Tensor):
            return _plain(value)
        return self._values.item(value)

    def _write(self, step: int, looked: Mapping[str, _Items], *, part: str, owner: str, **more: Any) -> None:
        common = {"step": step, "pass": self._passes, "part": part, "owner": owner, "at": "", **more}
        for what, items in looked.items():
            self._write_line({**common, "what": what, "items": items})

    def _write_line(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


_NOTHING: dict[str, Any] = {"digest": "absent"}


def _is_updated_in_backward(parameter: Tensor, optimizer: Optimizer) -> bool:
    """Whether the optimizer is called by backward as soon as the gradient of ``parameter`` is there."""
    hooks: Mapping[int, Any] = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return any(getattr(hook, "__self__", None) is optimizer for hook in hooks.values())


def _bits(items: _Items) -> list[tuple[str, str]]:
    """What decides, without where its bytes are kept, and in no order of its own."""
    return sorted((name, str(item.get("digest", item.get("value")))) for name, item in items.items())


def _plain(value: Any) -> dict[str, Any]:
    if type(value) is float:
        return {"value": value.hex(), "shown": repr(value)}
    is_plain = isinstance(value, bool | int | str | bytes | tuple | list | None)
    # What another object looks like may hold its address.
    return {"value": repr(value) if is_plain else type(value).__qualname__}


class _Values:
    """The bytes of small tensors, each once."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("wb")
        self._places: dict[str, int] = {}
        self._size = 0
        self.keeps = True
        """Whether bytes that are not there yet are kept."""

    def item(self, value: Tensor) -> dict[str, Any]:
        part = own_part(value)
        raw = raw_bytes(part)
        digest = digest_of_part(part, raw)
        item: dict[str, Any] = {"digest": digest}
        has_room = len(raw) <= _LARGEST_VALUE and self._size + len(raw) <= _MOST_VALUES
        if self.keeps and has_room and digest not in self._places:
            self._places[digest] = self._size
            self._size += self._file.write(raw)
        if digest in self._places:
            item |= {"place": self._places[digest], "dtype": str(part.dtype), "shape": list(part.shape)}
            item |= {"is_part": True} if tuple(part.shape) != tuple(value.shape) else {}
        return item

    def close(self) -> None:
        self._file.close()
