"""Writes a ``.safetensors`` file, or a folder of them with an index as Hugging Face tools expect it, block by block.

https://huggingface.co/docs/safetensors; shards are cut and named as ``huggingface_hub`` does it.
"""

import json
import struct
from collections.abc import Mapping, Sequence

from ckptrun.engine.backends.interface import Location, write_file
from ckptrun.engine.dtypes import item_bytes
from ckptrun.engine.shard_file import MAX_HEADER_BYTES, METADATA, FilePlan, require_storable_name
from ckptrun.engine.write_files import write_files
from ckptrun.errors import ConfigError, UnsupportedLeafError
from ckptrun.formats.common.leaf_bytes import LeafBytes
from ckptrun.formats.common.selection import Advance, Item, Selection, Written
from ckptrun.formats.safetensors_format.header import DTYPES
from ckptrun.formats.safetensors_format.reader import INDEX_NAME, SafetensorsSource

__all__ = ["require_storable", "write_safetensors"]

_STORED_AS = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
_ALIGNMENT = 8


def require_storable(selection: Selection) -> None:
    """Check that the format can hold the tensors.

    Raises:
        UnsupportedLeafError: It has not their dtype; names the leaf.
        ConfigError: There are none.
    """
    if not selection.tensors:
        raise ConfigError(f"{selection.source.address} holds no tensor to write; safetensors files hold nothing else.")
    for item in selection.tensors:
        require_storable_name(item.name)
        if item.dtype not in _STORED_AS or (_STORED_AS[item.dtype] == "F4" and not item.shape):
            raise UnsupportedLeafError(
                f"Leaf '{item.name}' is {item.dtype} of shape {list(item.shape)}, which safetensors files cannot hold. "
                "Convert to ckptrun, dcp or torch, or choose other leaves with --only."
            )


def write_safetensors(
    selection: Selection, working: Location, *, max_shard_bytes: int | None, advance: Advance
) -> Written:
    """Write the tensors of ``selection``; plain values are left out.

    Args:
        selection: What is written.
        working: Becomes a file; or is a folder, where there is a limit.
        max_shard_bytes: Tensors are spread over files that hold no more, unless a single one does; in a folder.
        advance: Told what is done.
    """
    tensors = {item.name: item for item in selection.tensors}
    if max_shard_bytes is None:
        folder, parts = working.parent, {working.name: list(tensors.values())}
    else:
        folder, parts = working, _split(selection.tensors, max_shard_bytes)
    plans = [_plan(name, items) for name, items in parts.items()]
    files = write_files(folder, plans, lambda _, chunk: LeafBytes(selection, tensors[chunk.leaf], advance))
    has_index = len(parts) > 1
    if has_index:
        write_file(folder.child(INDEX_NAME), _index(parts))
    return Written(
        files=len(files) + has_index,
        bytes=sum(file.file.bytes for file in files),
        left_out=selection.values,
        open=lambda: SafetensorsSource(working),
    )


def _split(items: Sequence[Item], max_bytes: int) -> dict[str, list[Item]]:
    """Fill one shard after the other, in the order of the state; what is larger than a shard gets one of its own."""
    shards: list[list[Item]] = []
    filling: list[Item] = []
    held = 0
    for item in items:
        if item.bytes > max_bytes:
            shards.append([item])
            continue
        if filling and held + item.bytes > max_bytes:
            shards.append(filling)
            filling, held = [], 0
        filling.append(item)
        held += item.bytes
    if filling:
        shards.append(filling)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{index:05d}-of-{len(shards):05d}.safetensors": shard for index, shard in enumerate(shards, start=1)}


def _index(parts: Mapping[str, Sequence[Item]]) -> bytes:
    index = {
        "metadata": {"total_size": sum(item.bytes for items in parts.values() for item in items)},
        "weight_map": {item.name: name for name, items in parts.items() for item in items},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _plan(name: str, items: Sequence[Item]) -> FilePlan:
    # Every tensor starts at a multiple of its element size, because larger elements come first.
    ordered = sorted(items, key=lambda item: (-item_bytes(str(item.dtype)), item.name))
    entries: dict[str, object] = {METADATA: {"format": "pt"}}
    position = 0
    for item in ordered:
        stored = _STORED_AS[str(item.dtype)]
        shape = [*item.shape[:-1], item.shape[-1] * 2] if stored == "F4" else list(item.shape)
        entries[item.name] = {"dtype": stored, "shape": shape, "data_offsets": [position, position + item.bytes]}
        position += item.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-len(text) // _ALIGNMENT) * _ALIGNMENT
    if padded > MAX_HEADER_BYTES:
        raise ConfigError(
            f"The header of {name} would have {padded} bytes, and safetensors takes {MAX_HEADER_BYTES}. "
            "Spread the tensors over more files with --max-shard-size."
        )
    return FilePlan(
        name=name,
        header=struct.pack("<Q", padded) + text.ljust(padded),
        chunks=tuple(item.as_chunk() for item in ordered),
    )
