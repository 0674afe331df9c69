"""A checkpoint and its leaves in words and as JSON. Must not import torch, nor print."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ckptrun.engine.consistency import contradictions, step_of
from ckptrun.engine.manifest import FORMAT, Leaf, Manifest
from ckptrun.evidence.difference import component_of
from ckptrun.text import bytes_text, counted, cut
from ckptrun.values import encode

__all__ = [
    "checkpoint_facts",
    "checkpoint_json",
    "leaf_json",
    "mesh_text",
    "remark_of",
    "sharding_text",
    "stored_bytes",
    "ties_of",
    "when_text",
]

_VALUE_WIDTH = 48
_SHOWN_APART = ("step", "world_size", "mesh", "torch", "config")


def when_text(manifest: Manifest) -> str:
    """Return when it was saved."""
    return manifest.created.replace("T", " ").replace("+00:00", " UTC")


def mesh_text(manifest: Manifest) -> str | None:
    """Return the axes of the mesh that it was saved on, where the run told."""
    mesh = manifest.run.get("mesh")
    if not isinstance(mesh, dict):
        return None
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items()) or "none"


def stored_bytes(leaf: Leaf) -> int:
    """Return the bytes of a leaf's chunks."""
    return sum(chunk.bytes for chunk in leaf.chunks)


def sharding_text(leaf: Leaf) -> str:
    """Return how a tensor is cut into chunks, and over how many files."""
    if len(leaf.chunks) == 1 and leaf.is_whole:
        return "whole"
    grid = [len({chunk.offsets[dim] for chunk in leaf.chunks}) for dim in range(len(leaf.shape or ()))]
    files = len({chunk.file for chunk in leaf.chunks})
    regular = f" ({'x'.join(map(str, grid))})" if math.prod(grid) == len(leaf.chunks) else ""
    part = "" if leaf.is_whole else ", not all of it"
    return f"{counted(len(leaf.chunks), 'chunk')}{regular} in {counted(files, 'file')}{part}"


def ties_of(manifest: Manifest) -> dict[str, list[str]]:
    """Return, for each leaf that was the same memory as others, their names."""
    return {name: [other for other in group if other != name] for group in manifest.shared for name in group}


def remark_of(leaf: Leaf, ties: Mapping[str, list[str]]) -> str:
    """Return a plain value, or what a tensor is tied with."""
    if not leaf.is_tensor:
        return cut(leaf.value, _VALUE_WIDTH)
    return f"tied with {', '.join(ties[leaf.name])}" if leaf.name in ties else ""


def checkpoint_facts(manifest: Manifest, name: str) -> dict[str, str]:
    """Return the name-value rows above the leaves."""
    tensors = [leaf for leaf in manifest.leaves.values() if leaf.is_tensor]
    values = len(manifest.leaves) - len(tensors)
    step, mesh = step_of(manifest, name), mesh_text(manifest)
    size = sum(file.bytes for file in manifest.files.values())
    wrong = "; ".join(map(str, contradictions(manifest, name)))
    facts = {
        "step": None if step is None else str(step),
        "CONTRADICTS ITSELF": wrong or None,
        "saved": when_text(manifest),
        "torch": manifest.torch,
        "ranks": str(manifest.world_size),
        "mesh": mesh,
        "save id": manifest.save_id,
        "files": f"{len(manifest.files)}, {bytes_text(size)}",
        "leaves": f"{len(manifest.leaves):,}: {counted(len(tensors), 'tensor')}, {counted(values, 'plain value')}",
    }
    # What else the run told, as far as it is short.
    facts |= {
        str(key): cut(value, _VALUE_WIDTH)
        for key, value in manifest.run.items()
        if key not in (*_SHOWN_APART, *facts) and not isinstance(value, dict | list | tuple)
    }
    return {key: text for key, text in facts.items() if text is not None}


def checkpoint_json(manifest: Manifest, path: str, name: str) -> dict[str, Any]:
    """Return everything that the manifest says."""
    ties = ties_of(manifest)
    components: dict[str, dict[str, int]] = {}
    for leaf in manifest.leaves.values():
        component = components.setdefault(component_of(str(leaf.path[0])), {"leaves": 0, "tensors": 0, "bytes": 0})
        component["leaves"] += 1
        component["tensors"] += leaf.is_tensor
        component["bytes"] += stored_bytes(leaf)
    return {
        "path": path,
        "format": FORMAT,
        "step": step_of(manifest, name),
        "contradictions": [str(wrong) for wrong in contradictions(manifest, name)],
        "created": manifest.created,
        "torch": manifest.torch,
        "world_size": manifest.world_size,
        "mesh": encode(manifest.run.get("mesh"), name="mesh"),
        "save_id": manifest.save_id,
        "run": encode(dict(manifest.run), name="run"),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "components": components,
        "files": [dataclasses.asdict(file) for file in manifest.files.values()],
        "leaves": [leaf_json(leaf, ties) for leaf in manifest.leaves.values()],
        "shared": [list(group) for group in manifest.shared],
    }


def leaf_json(leaf: Leaf, ties: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return everything that the manifest says of a leaf."""
    head: dict[str, Any] = {
        "name": leaf.name,
        "path": list(leaf.path),
        "component": component_of(str(leaf.path[0])),
        "digest": leaf.digest,
    }
    if not leaf.is_tensor:
        return head | {"kind": "value", "value": encode(leaf.value, name=leaf.name)}
    return head | {
        "kind": "tensor",
        "dtype": leaf.dtype,
        "shape": list(leaf.shape or ()),
        "bytes": stored_bytes(leaf),
        "is_whole": leaf.is_whole,
        "tied_with": ties.get(leaf.name, []),
        "chunks": [
            {
                "file": chunk.file,
                "begin": chunk.begin,
                "bytes": chunk.bytes,
                "offsets": list(chunk.offsets),
                "sizes": list(chunk.sizes),
                "block_bytes": chunk.block_bytes,
                "checksums": list(chunk.checksums),
            }
            for chunk in leaf.chunks
        ],
    }
