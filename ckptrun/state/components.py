"""The whole state of a run as named leaves, and back. Knows nothing of files.

Each component is there because leaving it out changes what the next step computes:

==============  ==============================================================================================
``model``       parameters, and buffers that forward may change (BatchNorm's averages)
``optimizer``   moments, step counts and group options; a fresh one starts from zero moments
``schedule``    where the learning rate stands
``data``        which samples come next
``scaler``      the fp16 loss scale; a fresh one overflows
``ema``         the averaged weights; the loss does not show them
``progress``    how many steps are done
``rng``         the random streams of this rank; loaded last, because loading anything else may draw
==============  ==============================================================================================
"""

import ast
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from ckptrun.embedded import holds_tensor
from ckptrun.errors import StateMismatchError, UnsupportedLeafError
from ckptrun.rank_names import rank_of
from ckptrun.values import dict_kind, kind_name, make_dict, require_key

__all__ = [
    "AnyObject",
    "Component",
    "SavedLeaf",
    "TemplateComponent",
    "TrainingState",
    "as_template",
    "flatten",
    "is_per_rank",
    "name_of",
    "unflatten",
]

Path = tuple[str | int, ...]

_RNG = "rng"


@runtime_checkable
class Component(Protocol):
    """One named part of the state.

    ``state_dict()`` may return live tensors. ``load_state_dict`` is called once per load, on every rank, in the same
    order of components on all ranks, so it may use collectives.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Return nested dicts of tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take over what a ``state_dict()`` has once returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLeaf:
    """What a checkpoint says of one leaf."""

    path: Path
    dtype: torch.dtype | None = None
    """None for a plain value."""
    shape: tuple[int, ...] = ()
    value: Any = None
    """The plain value, where ``dtype`` is None."""


@runtime_checkable
class TemplateComponent(Component, Protocol):
    """A component whose fresh ``state_dict()`` is not complete (an optimizer before its first step).

    ``template`` gets what was saved (paths relative to the component) and returns a state of exactly these leaves, with
    tensors that the loader may fill in place.
    """

    def template(self, saved: Sequence[SavedLeaf]) -> Mapping[str, Any]:
        """Return a state with just the leaves of ``saved``."""


class TrainingState:
    """All components by name, seen as one flat dict of leaves.

    A leaf is named by its path joined with dots, the component first. A path element that ends in ``rank_00003``
    makes a leaf one of that rank only: never a replica of another rank's, and not missed by other ranks.

    Args:
        components: Name -> component. They are loaded in the order of their names on every rank, so that a component
            may use collectives while it loads, and ``rng`` last.
    """

    def __init__(self, components: Mapping[str, Component]) -> None:
        self.components = {name: components[name] for name in sorted(components, key=lambda name: (name == _RNG, name))}

    def leaves(self) -> dict[Path, Any]:
        """Path -> live tensor or plain value, of every component, on this rank.

        Raises:
            StateMismatchError: Two leaves have one name; names it.
        """
        return self.collect()[0]

    def collect(self) -> tuple[dict[Path, Any], dict[Path, str]]:
        """The leaves, in the order of the state, and path -> kind of what holds them: see ``flatten``.

        Raises:
            StateMismatchError: Two leaves have one name; names it.
        """
        found: dict[Path, Any] = {}
        containers: dict[Path, str] = {}
        for name, component in self.components.items():
            found.update(flatten(component.state_dict(), (name,), containers))
        check_names(found)
        return found, containers

    def templates(self, saved: Mapping[str, Sequence[SavedLeaf]]) -> dict[Path, Any]:
        """Path -> what to fill, for the components in ``saved`` (component name -> its saved leaves, whole paths)."""
        found: dict[Path, Any] = {}
        for name, leaves in saved.items():
            component = self.components[name]
            if isinstance(component, TemplateComponent):
                relative = [_below(leaf) for leaf in leaves]
                found.update(flatten(component.template(relative), (name,)))
            else:
                found.update(flatten(component.state_dict(), (name,)))
        check_names(found)
        return found

    def load(self, leaves: Mapping[Path, Any], containers: Mapping[Path, str] | None = None) -> None:
        """Hand each component its part of ``leaves``; components without any are left alone.

        ``containers`` is what :meth:`collect` gave when they were saved.
        """
        for name, component in self.components.items():
            part = {path[1:]: value for path, value in leaves.items() if path[0] == name}
            if part:
                try:
                    kinds = {path[1:]: kind for path, kind in (containers or {}).items() if path[0] == name}
                    component.load_state_dict(unflatten(part, kinds))
                except Exception as error:
                    # Whatever it is: who reads it wants to know whose it is.
                    error.component = name  # type: ignore[attr-defined]
                    error.add_note(f"Raised while the component '{name}' took its state back.")
                    raise


def _below(leaf: SavedLeaf) -> SavedLeaf:
    return SavedLeaf(path=leaf.path[1:], dtype=leaf.dtype, shape=leaf.shape, value=leaf.value)


def name_of(path: Path) -> str:
    """The leaf's full name."""
    return ".".join(map(str, path))


def is_per_rank(path: Path) -> bool:
    """Whether the leaf belongs to one rank: an element of its path is ``rank_00003`` or ends so."""
    return rank_of(path) is not None


def check_names(paths: Iterable[Path]) -> None:
    """Raise StateMismatchError when two paths give one name."""
    seen: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if name in seen and seen[name] != path:
            raise StateMismatchError(
                f"Two leaves are both called '{name}': {seen[name]} and {path}. Rename one in its state_dict().",
                leaves=[name],
            )
        seen[name] = path


def flatten(value: Any, prefix: Path = (), containers: dict[Path, str] | None = None) -> dict[Path, Any]:
    """Spread nested dicts, and lists or tuples that hold tensors, into path -> leaf. Empty containers are leaves.

    Args:
        value: The state, or a part of it.
        prefix: Where that is.
        containers: Filled with path -> kind of each container that is spread and is no plain dict and no list.

    Raises:
        UnsupportedLeafError: Something would come back as something else; names it.
    """
    place = name_of(prefix) or "state"
    if isinstance(value, Mapping):
        kind = dict_kind(value, name=place)
        if not value:
            return {prefix: copy.copy(value)}
        items: Iterable[tuple[str | int, Any]] = [(_spell_key(key, place), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and holds_tensor(value):
        kind, items = _kind_of_sequence(value, place), enumerate(value)
    else:
        return {prefix: value}
    if containers is not None and kind not in ("dict", "list"):
        containers[prefix] = kind
    found: dict[Path, Any] = {}
    for key, item in items:
        found.update(flatten(item, (*prefix, key), containers))
    return found


def _kind_of_sequence(value: list[Any] | tuple[Any, ...], place: str) -> str:
    if type(value) in (list, tuple):
        return type(value).__name__
    base = "tuple" if isinstance(value, tuple) else "list"
    raise UnsupportedLeafError(
        f"Leaf '{place}' is a {kind_name(value)} that holds tensors, and would come back as a plain {base}. "
        f"Return a {base} or a dict from state_dict(), and make the {type(value).__name__} anew in load_state_dict()."
    )


def _spell_key(key: Any, place: str) -> str:
    """A key as an element of a path: text is itself, anything else is spelled as Python does it, after a ``#``."""
    spelled = key if type(key) is str else f"#{key!r}"
    if type(key) is not str:
        require_key(key, name=place)
    back = _key(spelled)
    if type(back) is not type(key) or repr(back) != repr(key):
        raise UnsupportedLeafError(f"'{place}' has the key {key!r}, which cannot be told from others; use another.")
    return spelled


def _key(element: str) -> Any:
    """Undo :func:`_spell_key`."""
    if not element.startswith("#"):
        return element
    try:
        key = ast.literal_eval(element[1:])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return element
    is_key = key is None or type(key) in (bool, int, float, str, bytes, tuple)
    return key if is_key and f"#{key!r}" == element else element


def unflatten(leaves: Mapping[Path, Any], containers: Mapping[Path, str] | None = None) -> Any:
    """Undo :func:`flatten`.

    Raises:
        StateMismatchError: A list lacks elements, or one place is a list and a dict.
    """
    if set(leaves) == {()}:
        return leaves[()]
    kinds = containers or {}
    children: dict[str | int, dict[Path, Any]] = {}
    for path, value in leaves.items():
        children.setdefault(path[0], {})[path[1:]] = value
    below: dict[str | int, dict[Path, str]] = {}
    for path, kind in kinds.items():
        if path:
            below.setdefault(path[0], {})[path[1:]] = kind
    nested = {key: unflatten(child, below.get(key)) for key, child in children.items()}
    kind = kinds.get((), "dict")
    if not any(isinstance(key, int) for key in nested):
        items = {_key(str(key)): value for key, value in nested.items()}
        return items if kind in ("dict", "tuple") else make_dict(kind, items.items())
    if sorted(map(str, nested)) != sorted(map(str, range(len(nested)))):
        names = [name_of(path) for path in leaves]
        raise StateMismatchError(f"A list has elements {sorted(map(str, nested))}; some are missing.", leaves=names)
    elements = [nested[index] for index in range(len(nested))]
    return tuple(elements) if kind == "tuple" else elements


def as_template(component: Component) -> TemplateComponent:
    """Return ``component``, wrapped if it has no ``template`` of its own."""
    return component if isinstance(component, TemplateComponent) else AnyObject(component)


class AnyObject:
    """Makes a component of any object with ``state_dict`` and ``load_state_dict``, whose leaves may come and go.

    ``load_state_dict`` is handed new tensors; what only the checkpoint has comes on the CPU. Whether the object took
    them is seen when the state is digested after the load.
    """

    def __init__(self, wrapped: Component) -> None:
        self.wrapped = wrapped

    def state_dict(self) -> Mapping[str, Any]:
        """The object's own."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The object's own."""
        self.wrapped.load_state_dict(state)

    def template(self, saved: Sequence[SavedLeaf]) -> Mapping[str, Any]:
        """The object's leaves where they fit, and room for those that only the checkpoint has.

        Without leaves of other ranks: this rank would have no place for them.
        """
        live = flatten(self.wrapped.state_dict())
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        own = [leaf for leaf in saved if rank_of(leaf.path) in (None, rank)]
        leaves = {leaf.path: _room_for(leaf, live.get(leaf.path)) for leaf in own}
        # A list or dict may be empty on one side and filled on the other; what is left over is missed by the loader.
        inner = {path[:end] for path in leaves for end in range(len(path))}
        for path, value in live.items():
            if path not in inner and not any(path[:end] in leaves for end in range(len(path))):
                leaves.setdefault(path, value)
        nested = unflatten(leaves)
        return nested if isinstance(nested, Mapping) else {}


def _room_for(leaf: SavedLeaf, live: Any) -> Any:
    """A new tensor, laid out as the live one, which changes only if the object's ``load_state_dict`` sees to it."""
    if leaf.dtype is None:
        return leaf.value
    if isinstance(live, torch.Tensor) and (tuple(live.shape) == leaf.shape or live.dtype != leaf.dtype):
        # A wrong dtype is found later.
        return torch.empty_like(live)
    return torch.empty(leaf.shape, dtype=leaf.dtype)
