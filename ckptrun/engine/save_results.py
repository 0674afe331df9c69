"""What the ranks of a save tell rank 0, and the manifest that it makes of that. Touches no storage.

Before a byte is written: whether they mean the same by a name. Of a tensor that several ranks hold in full, one of them
is stored for all. DCP's planner looks only at names when it drops all but one, and a load would fail, or go wrong,
where the others were of another shape or dtype.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan

from ckptrun.engine.manifest import Chunk, Leaf, Manifest, ShardFile
from ckptrun.engine.tensor_bytes import dtype_name
from ckptrun.errors import CheckpointError, UnsupportedLeafError
from ckptrun.rank_names import rank_name
from ckptrun.values import encode

__all__ = ["RankResult", "SaveFacts", "build_manifest", "kinds_in", "require_same_kinds"]


def kinds_in(plan: SavePlan) -> dict[str, str]:
    """Name -> dtype and full shape, of the tensors in the plan of one rank; goes to rank 0 with it."""
    return {
        item.index.fqn: f"{dtype_name(item.tensor_data.properties.dtype)} of shape {tuple(item.tensor_data.size)}"
        for item in plan.items
        if item.tensor_data is not None
    }


def require_same_kinds(kinds: Sequence[Mapping[str, str] | None]) -> None:
    """Check what all ranks have said, by rank; None where a rank has said nothing because nothing has changed.

    Raises:
        CheckpointError: Two ranks have tensors of different dtype or shape under one name; names it.
    """
    first: dict[str, tuple[int, str]] = {}
    for rank, of_rank in enumerate(kinds):
        for name, kind in (of_rank or {}).items():
            known_rank, known = first.setdefault(name, (rank, kind))
            if known != kind:
                raise CheckpointError(
                    f"Leaf '{name}' is {known} on rank {known_rank} but {kind} on rank {rank}, and only one of "
                    f"them would be stored. Give each rank a leaf of its own, by a name with its rank: "
                    f"'{name}.{rank_name(rank)}'."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFacts:
    """What the caller of a save knows beside the state; lands in the manifest."""

    digests: Mapping[str, str]
    paths: Mapping[str, tuple[str | int, ...]]
    run: Mapping[str, Any]
    containers: Mapping[tuple[str | int, ...], str] = field(default_factory=dict)

    def about(self, names: Iterable[str]) -> "SaveFacts":
        """Return the part that other ranks may not know: that about these leaves."""
        wanted = set(names)
        return SaveFacts(
            digests={name: digest for name, digest in self.digests.items() if name in wanted},
            paths={name: path for name, path in self.paths.items() if name in wanted},
            run={},
            containers=self.containers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What one rank wrote; goes to rank 0 through DCP."""

    files: tuple[ShardFile, ...]
    chunks: tuple[tuple[str, Chunk], ...]
    values: Mapping[str, Any]
    shared: frozenset[frozenset[str]]
    facts: SaveFacts

    @property
    def bytes(self) -> int:
        """Length of all files."""
        return sum(file.bytes for file in self.files)


def build_manifest(metadata: Metadata, results: list[RankResult], facts: SaveFacts, *, save_id: str) -> Manifest:
    """Put the results of all ranks, by rank, together. Rank 0 calls.

    Raises:
        CheckpointError: Two ranks give different digests for one leaf: it is not the same on all ranks that hold it,
            and only one of them was stored.
        UnsupportedLeafError: A planner wants something to be stored that is no plain value.
    """
    chunks: dict[str, list[Chunk]] = defaultdict(list)
    values: dict[str, Any] = {}
    digests, paths = dict(facts.digests), _planner_paths(metadata) | dict(facts.paths)
    containers = dict(facts.containers)
    for rank, result in enumerate(results):
        for name, chunk in result.chunks:
            chunks[name].append(chunk)
        values |= result.values
        paths |= result.facts.paths
        containers |= result.facts.containers
        _add_digests(digests, result.facts.digests, rank)
    # DCP lists them by the rank that writes them; the order of a dict's keys is part of the state.
    position = {name: index for index, name in enumerate(paths)}
    stored = metadata.state_dict_metadata
    leaves = [
        _leaf(name, stored[name], chunks[name], values, path=paths.get(name, (name,)), digest=digests.get(name))
        for name in sorted(stored, key=lambda name: position.get(name, len(position)))
    ]
    return Manifest(
        save_id=save_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=str(torch.__version__),
        world_size=len(results),
        run=facts.run,
        files={file.name: file for result in results for file in result.files},
        leaves={leaf.name: leaf for leaf in leaves},
        containers=containers,
        shared=tuple(sorted(tuple(sorted(group)) for group in frozenset().union(*(r.shared for r in results)))),
        planner_data=_planner_data(metadata),
    )


def _planner_data(metadata: Metadata) -> Any:
    """What a planner has put in the place of the paths, which the leaves have anyway."""
    data = metadata.planner_data
    if data is None or (isinstance(data, Mapping) and all(map(_is_path, data.values()))):
        return None
    try:
        encode(data, name="planner_data")
    except UnsupportedLeafError as error:
        raise UnsupportedLeafError(
            f"What the planner wants to find again (planner_data of DCP's metadata) cannot be stored. {error}"
        ) from error
    return data


def _planner_paths(metadata: Metadata) -> dict[str, tuple[str | int, ...]]:
    """The place of each leaf in the nested state, where the planner says it the way DefaultSavePlanner does."""
    mappings = metadata.planner_data
    if not isinstance(mappings, Mapping):
        return {}
    return {name: path for name, path in mappings.items() if _is_path(path)}


def _is_path(path: object) -> bool:
    return isinstance(path, tuple) and bool(path) and all(type(element) in (str, int) for element in path)


def _add_digests(digests: dict[str, str], more: Mapping[str, str], rank: int) -> None:
    for name, digest in more.items():
        if digests.setdefault(name, digest) != digest:
            raise CheckpointError(
                f"Leaf '{name}' is not the same on all ranks that hold it: digest {digest} on rank {rank}, "
                f"{digests[name]} elsewhere; only one of them would be stored. Make them equal, or give each rank a "
                "leaf of its own by a name with its rank."
            )


def _leaf(
    name: str,
    stored: STORAGE_TYPES,
    chunks: list[Chunk],
    values: Mapping[str, Any],
    *,
    path: tuple[str | int, ...],
    digest: str | None,
) -> Leaf:
    if not isinstance(stored, TensorStorageMetadata):
        if name not in values:
            raise CheckpointError(f"No rank wrote the plain value '{name}'.")
        return Leaf(name=name, path=path, dtype=None, shape=None, value=values[name], digest=digest, chunks=())
    if len(chunks) != len(stored.chunks):
        raise CheckpointError(f"Leaf '{name}' has {len(stored.chunks)} chunks, but the ranks wrote {len(chunks)}.")
    return Leaf(
        name=name,
        path=path,
        dtype=dtype_name(stored.properties.dtype),
        shape=tuple(stored.size),
        value=None,
        digest=digest,
        chunks=tuple(sorted(chunks, key=lambda chunk: chunk.offsets)),
    )
