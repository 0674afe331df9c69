"""Read and check every byte of a checkpoint.

PATH is a checkpoint, a run, a folder of checkpoints, or of runs: a local path or any fsspec URL. Of several checkpoints
of a run the newest is checked, or with --all each. Lengths, headers and the checksums of all blocks are compared with
the manifest. Of other formats (DCP, torch.save, safetensors) every byte is read, and said how far that shows it whole.
Damage does not end the check; all of it is listed.

Exit codes: 0 whole; 1 some of it could not be read, for reasons that say nothing about the bytes (permission, network);
2 there is no checkpoint; 3 damaged.
"""

import argparse
import time
from typing import Any

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.commit import is_committed
from ckptrun.engine.locate import place_of
from ckptrun.errors import CheckpointNotFoundError
from ckptrun.exit_codes import ExitCode
from ckptrun.text import bytes_text, counted
from ckptrun.tools.check_checkpoint import Findings, check_checkpoint
from ckptrun.tools.damage import Damage
from ckptrun.tools.output import Column, Output, add_output_arguments
from ckptrun.tools.places import checkpoints_in, is_foreign, root_at, runs_in, steps_of

__all__ = ["add_arguments", "run"]

_SHOWN = 200
_COLUMNS = [
    Column("damage", style="red"),
    Column("file"),
    Column("leaf"),
    Column("bytes"),
    Column("expected", style="green"),
    Column("found", style="red"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows ``ckptrun verify``."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint, a run, or a folder of checkpoints")
    parser.add_argument("--all", action="store_true", help="each checkpoint, not only the newest")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for."""
    output = Output(plain=args.no_color)
    if is_foreign(place_of(args.path)):
        from ckptrun.tools.verify_foreign import verify_foreign

        return verify_foreign(place_of(args.path), args, output)
    folders = _folders(args.path, every=args.all)
    documents: list[dict[str, Any]] = []
    for folder in folders:
        try:
            documents.append(_check(folder, args, output))
        except CheckpointNotFoundError as error:
            if len(folders) == 1:
                raise
            # A run that goes on keeps the newest few.
            output.note(f"{error} Left out.")
    codes = [_CODES[document["status"]] for document in documents]
    if args.json:
        output.json({"checkpoints": documents})
    elif args.all:
        output.line(f"{codes.count(ExitCode.done)} of {len(codes)} checkpoints are whole.")
    return max(codes, default=ExitCode.done)


def _check(folder: Location, args: argparse.Namespace, output: Output) -> dict[str, Any]:
    began = time.monotonic()
    with output.progress(folder.name) as started:
        findings = check_checkpoint(folder, started=started)
    seconds = time.monotonic() - began
    if not args.json:
        _show(findings, seconds, output)
    return _to_json(findings, seconds)


_CODES = {"whole": ExitCode.done, "not_checked": ExitCode.failed, "damaged": ExitCode.different}


def _folders(path: str, *, every: bool) -> list[Location]:
    place = place_of(path)
    root = root_at(place)
    if root is None and not is_committed(place):
        return [folder for run in runs_in(place) if steps_of(run) for folder in _folders(str(run), every=every)]
    if root is None:
        return [place]
    found = checkpoints_in(root)
    if not found:
        raise CheckpointNotFoundError(
            f"{root} has no committed checkpoint, only what saves left that did not end; 'ckptrun inspect' lists it.",
            folder=str(root),
        )
    return found if every else found[-1:]


def _show(findings: Findings, seconds: float, output: Output) -> None:
    manifest = findings.manifest
    if manifest is None:
        output.line(f"{findings.path}: DAMAGED, and its manifest cannot be trusted, so nothing else was read", "red")
    else:
        style, word = _WORDS[findings.status]
        rate = findings.bytes / seconds / 1e9
        output.line(
            f"{findings.path}: {word}; {bytes_text(findings.bytes)} in {counted(len(manifest.files), 'file')}, "
            f"{counted(len(manifest.leaves), 'leaf', 'leaves')}, checked in {seconds:.2f} s, {rate:.2f} GB/s",
            style,
        )
    if findings.damage:
        output.table(_COLUMNS, [_row(damage) for damage in findings.damage[:_SHOWN]])
        if len(findings.damage) > _SHOWN:
            output.line(f"  ... and {len(findings.damage) - _SHOWN:,} more damaged places; --json lists all.")
    for text in findings.unread:
        output.line(f"  not checked: {text}", "red")
    for text in findings.notes:
        output.line(f"  note: {text}")


_WORDS = {
    "whole": ("green", "whole"),
    "not_checked": ("red", "NOT CHECKED as a whole"),
    "damaged": ("red", "DAMAGED"),
}


def _row(damage: Damage) -> list[str]:
    place = "" if damage.begin is None else f"{damage.begin} to {damage.end}"
    blocks = f" ({damage.blocks} blocks; the first:)" if damage.blocks > 1 else ""
    return [damage.kind.value, damage.file, damage.leaf or "", f"{place}{blocks}", damage.expected, damage.found]


def _to_json(findings: Findings, seconds: float) -> dict[str, Any]:
    manifest = findings.manifest
    return {
        "path": findings.path,
        "status": findings.status,
        "save_id": None if manifest is None else manifest.save_id,
        "files": None if manifest is None else len(manifest.files),
        "leaves": None if manifest is None else len(manifest.leaves),
        "bytes": findings.bytes,
        "seconds": round(seconds, 6),
        "damage": [damage.to_json() for damage in findings.damage],
        "unread": findings.unread,
        "notes": findings.notes,
    }
