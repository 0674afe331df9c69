"""What loaders hand out: the content of each batch, whatever it is made of."""

from __future__ import annotations

import functools
import hashlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from _ckptrun_probe.record import quietly
from _ckptrun_probe.streams import stream_digests

__all__ = ["batch_digest", "batch_hooks"]

_DEEPEST = 8
_MOST_PARTS = 100_000


def batch_digest(batch: Any) -> str:
    """16 hex digits for the content of a batch: tensors, arrays, texts, numbers in dicts, sequences, dataclasses."""
    from _ckptrun_probe.digest import digests_of

    tensors: list[Any] = []
    hasher = hashlib.blake2b(digest_size=8)
    for part in itertools.islice(_parts(batch, tensors, 0, set()), _MOST_PARTS):
        hasher.update(part)
    hasher.update(digests_of(tensors).encode())
    return hasher.hexdigest()


def _parts(value: Any, tensors: list[Any], depth: int, seen: set[int]) -> Iterator[bytes]:
    """What is no tensor, in order; tensors are put aside, in order too. An object that is met again is passed over."""
    import torch

    if depth > _DEEPEST:
        return
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        yield b"tensor"
    elif isinstance(value, dict) or hasattr(value, "items"):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from _parts(inner, tensors, depth + 1, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield f"{type(value).__name__} {len(value)}".encode()
        for inner in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
            yield from _parts(inner, tensors, depth + 1, seen)
    elif isinstance(value, (str, int, float, bool, bytes, type(None))):
        yield repr(value).encode()
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        yield f"{value.dtype} {getattr(value, 'shape', ())}".encode() + value.tobytes()
    elif hasattr(value, "__dict__") and not callable(value) and id(value) not in seen:
        seen.add(id(value))
        yield type(value).__name__.encode()
        yield from _parts(vars(value), tensors, depth + 1, seen)


def batch_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a module with loaders is there."""
    labels: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
    drawn: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()

    def note(iterator: Any, batch: Any, before: dict[str, str] | None) -> None:
        if iterator not in labels:
            labels[iterator] = _label(iterator)
        after = stream_digests()
        own = drawn.setdefault(iterator, set())
        own.update(name for name in after if before is None or before.get(name) != after[name])
        if getattr(iterator, "_num_workers", 0):
            # The seed of its workers, and the order of what they are sent, were drawn when it began.
            own.update(after)
        listener.on_batch(labels[iterator], batch, sorted(own))

    def hook(name: str, module: ModuleType) -> None:
        iterator_type = getattr(module, name, None)
        if iterator_type is None:
            return
        original = iterator_type.__next__

        @functools.wraps(original)
        def __next__(self: Any) -> Any:
            before = quietly(listener.record, "a batch", stream_digests)
            batch = original(self)
            quietly(listener.record, "a batch", note, self, batch, before)
            listener.reached_first("before_step")
            return batch

        iterator_type.__next__ = __next__

    def hook_loader(module: ModuleType) -> None:
        hook("_BaseDataLoaderIter", module)
        original = module.DataLoader.__iter__

        @functools.wraps(original)
        def __iter__(self: Any) -> Any:
            # Before it draws the seed of its workers, and its sampler an order.
            quietly(listener.record, "a loader", listener.on_iterator)
            return original(self)

        module.DataLoader.__iter__ = __iter__  # type: ignore[method-assign]

    return {
        "torch.utils.data.dataloader": hook_loader,
        "torchdata.stateful_dataloader.stateful_dataloader": functools.partial(hook, "_StatefulBaseDataLoaderIter"),
    }


def _label(iterator: Any) -> str:
    """Whose batches they are: the same in every start, also where a resumed one cuts off what was used before."""
    return type(getattr(iterator, "_dataset", None)).__name__
