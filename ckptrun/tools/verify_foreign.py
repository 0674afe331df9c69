"""Reads every byte of a checkpoint of another format than ckptrun's, and says how far that shows it to be whole."""

import argparse
import time
from typing import Any

from ckptrun.engine.backends.interface import Location
from ckptrun.errors import CheckpointDamagedError, StateMismatchError, UnsupportedLeafError
from ckptrun.exit_codes import ExitCode
from ckptrun.formats.open_source import Source, SourceLeaf, open_source
from ckptrun.text import bytes_text, counted
from ckptrun.tools.output import Output

__all__ = ["verify_foreign"]

_STEP_BYTES = 8 * 2**20
_MEANING = {
    "dcp": "each record that has a CRC-32 agrees with it",
    "torch": "each record that has a CRC-32 agrees with it",
    "safetensors": "lengths and places agree; the format has no checksums, so changed bits cannot be seen",
}


def verify_foreign(place: Location, args: argparse.Namespace, output: Output) -> int:
    """Read all leaves; list those that cannot be read.

    Raises:
        CheckpointDamagedError: Already what says where leaves are cannot be trusted, or files are missing.
    """
    began = time.monotonic()
    damage: list[str] = []
    unread: list[str] = []
    size = 0
    with open_source(place) as source, output.progress(place.name) as started:
        advance = started(sum(leaf.bytes for leaf in source.leaves.values()))
        for leaf in source.leaves.values():
            try:
                for done in _read(source, leaf):
                    size += done
                    advance(done)
            except CheckpointDamagedError as error:
                damage.append(str(error))
            except (UnsupportedLeafError, StateMismatchError) as error:
                unread.append(f"{leaf.name}: {error}")
    status = "damaged" if damage else "not_checked" if unread else "readable"
    document = {
        "path": source.address,
        "format": source.format,
        "status": status,
        "meaning": _MEANING[source.format],
        "leaves": len(source.leaves),
        "bytes": size,
        "seconds": round(time.monotonic() - began, 6),
        "damage": damage,
        "unread": unread,
        "notes": list(source.remarks),
    }
    if args.json:
        output.json({"checkpoints": [document]})
    else:
        _show(document, output)
    return {"readable": ExitCode.done, "not_checked": ExitCode.failed, "damaged": ExitCode.different}[status]


def _read(source: Source, leaf: SourceLeaf) -> "list[int] | Any":
    """Yield the bytes of each slab."""
    if not leaf.is_tensor:
        # Reading it is the check.
        _ = leaf.value
        return
    step = max(1, _STEP_BYTES // max(1, leaf.bytes // max(1, leaf.rows)))
    for first in range(0, leaf.rows, step):
        yield source.read_rows(leaf.name, first, min(step, leaf.rows - first)).nbytes


def _show(document: dict[str, Any], output: Output) -> None:
    words = {
        "readable": ("green", "READABLE"),
        "not_checked": ("red", "NOT READ as a whole"),
        "damaged": ("red", "DAMAGED"),
    }
    style, word = words[document["status"]]
    output.line(
        f"{document['path']} ({document['format']}): {word}; {counted(document['leaves'], 'leaf', 'leaves')}, "
        f"{bytes_text(document['bytes'])} read: {document['meaning']}",
        style,
    )
    for text in document["damage"]:
        output.line(f"  damaged: {text}", "red")
    for text in document["unread"]:
        output.line(f"  not read: {text}", "red")
    for text in document["notes"]:
        output.line(f"  note: {text}")
