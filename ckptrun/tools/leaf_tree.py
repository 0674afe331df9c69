"""The leaves of a checkpoint as a tree of their names, and its rows as a person reads them. Must not print."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ckptrun.engine.manifest import Leaf

__all__ = ["Node", "Row", "rows_of", "tree_of"]

# Deeper ones stay together: a hostile manifest may nest names without end.
_MAX_DEPTH = 32


@dataclass(slots=True)
class Node:
    """A name, with what is called ``name.<more>``."""

    name: str
    """In full."""
    leaf: Leaf | None = None
    children: dict[str, "Node"] = field(default_factory=dict)
    leaves: int = 0
    """How many are in it."""
    bytes: int = 0
    """Of its tensors, as stored."""


@dataclass(frozen=True, slots=True)
class Row:
    """A node where it stands in the tree."""

    guide: str
    """The lines that lead to it."""
    label: str
    node: Node
    is_folded: bool
    """Whether the rows below it are left out."""


def tree_of(leaves: Iterable[Leaf]) -> Node:
    """Return the root of the tree, which has the components as children."""
    root = Node("")
    for leaf in leaves:
        elements = [part for element in leaf.path for part in str(element).split(".")]
        elements[_MAX_DEPTH - 1 :] = [".".join(elements[_MAX_DEPTH - 1 :])] if len(elements) >= _MAX_DEPTH else []
        size = sum(chunk.bytes for chunk in leaf.chunks)
        node = root
        _add(node, size)
        for element in elements:
            name = f"{node.name}.{element}" if node is not root else element
            node = node.children.setdefault(element, Node(name))
            _add(node, size)
        node.leaf = leaf
    return root


def _add(node: Node, size: int) -> None:
    node.leaves += 1
    node.bytes += size


def rows_of(root: Node, depth: int | None) -> Iterator[Row]:
    """Yield the rows below ``root``, down to ``depth`` levels."""
    for label, node in root.children.items():
        yield from _rows(label, node, "", "", 1, depth)


def _rows(label: str, node: Node, guide: str, guide_below: str, level: int, depth: int | None) -> Iterator[Row]:
    while level > 1 and node.leaf is None and len(node.children) == 1:
        # A name alone in its place needs no line of its own.
        ((more, node),) = node.children.items()
        label = f"{label}.{more}"
    is_folded = level == depth and bool(node.children)
    yield Row(guide, label, node, is_folded)
    if is_folded:
        return
    last = len(node.children) - 1
    for index, (below, child) in enumerate(node.children.items()):
        line, space = ("└── ", "    ") if index == last else ("├── ", "│   ")
        yield from _rows(below, child, guide_below + line, guide_below + space, level + 1, depth)
