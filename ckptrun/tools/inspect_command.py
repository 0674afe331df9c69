"""Show what a checkpoint holds, or which checkpoints a run has.

PATH is a checkpoint, of ckptrun, DCP, torch.save or safetensors; a run, a folder of checkpoints, or of runs: a local
path or any fsspec URL. Only manifests are read, and
with --leaf the bytes that are shown, which are checked. Leaves are a tree on a terminal, and full names in a pipe.

Exit codes: 0; 2 there is no checkpoint, or no such leaf; 3 damaged, or it says another step, mesh or number of ranks
than what was saved, or its folder.
"""

import argparse
import pprint
from collections.abc import Mapping

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.commit import is_committed
from ckptrun.engine.consistency import contradictions
from ckptrun.engine.locate import place_of
from ckptrun.engine.manifest import Leaf, Manifest, read_manifest
from ckptrun.errors import ConfigError
from ckptrun.exit_codes import ExitCode
from ckptrun.text import bytes_text, counted, elements_text
from ckptrun.tools.describe import (
    checkpoint_facts,
    checkpoint_json,
    leaf_json,
    remark_of,
    sharding_text,
    stored_bytes,
    ties_of,
)
from ckptrun.tools.leaf_tree import Row, rows_of, tree_of
from ckptrun.tools.list_run import list_run
from ckptrun.tools.near_names import near_names
from ckptrun.tools.output import Column, Output, add_output_arguments
from ckptrun.tools.places import is_foreign, root_at, runs_in

__all__ = ["add_arguments", "run"]

_LEAF_COLUMNS = [
    Column("leaf"),
    Column("dtype", style="cyan"),
    Column("shape"),
    Column("sharding"),
    Column("bytes", right=True),
    Column(""),
]
_CHUNK_COLUMNS = [Column("file"), Column("bytes in the file"), Column("offsets"), Column("sizes"), Column("checksums")]

_VALUE_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows ``ckptrun inspect``."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint, a run, or a folder of checkpoints")
    parser.add_argument("--leaf", metavar="NAME", help="print one leaf with its values; of a large tensor its edges")
    parser.add_argument("--depth", metavar="N", type=_at_least_one, help="print the tree of leaves down to N levels")
    add_output_arguments(parser)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Show what was asked for."""
    output = Output(plain=args.no_color)
    place = place_of(args.path)
    root = None if is_foreign(place) else root_at(place)
    if root is not None:
        return _show_run(root, args, output)
    if is_foreign(place):
        from ckptrun.tools.inspect_foreign import inspect_foreign

        return inspect_foreign(place, args, output)
    if not is_committed(place):
        return max(_show_run(of_run, args, output) for run in runs_in(place) if (of_run := root_at(run)) is not None)
    manifest = read_manifest(place)
    if args.leaf is not None:
        _show_leaf(place, manifest, args, output)
    elif args.json:
        output.json(checkpoint_json(manifest, str(place), place.name))
    else:
        _show_checkpoint(place, manifest, args.depth, output)
    return ExitCode.different if contradictions(manifest, place.name) else ExitCode.done


def _show_run(root: Location, args: argparse.Namespace, output: Output) -> int:
    if args.leaf is not None:
        raise ConfigError(f"--leaf needs one checkpoint; {root} is a folder of checkpoints.")
    listing = list_run(root)
    if args.json:
        output.json(listing.to_json())
    else:
        listing.show(output)
    return ExitCode.different if listing.is_damaged else ExitCode.done


def _show_checkpoint(place: Location, manifest: Manifest, depth: int | None, output: Output) -> None:
    output.line(str(place), "bold")
    output.facts(checkpoint_facts(manifest, place.name))
    ties = ties_of(manifest)
    rows = rows_of(tree_of(manifest.leaves.values()), depth)
    if not output.is_rich:
        rows = (row for row in rows if row.node.leaf is not None or row.is_folded or not row.guide)
    output.table(_LEAF_COLUMNS, [_cells(row, ties, in_full=not output.is_rich) for row in rows])


def _cells(row: Row, ties: Mapping[str, list[str]], *, in_full: bool) -> list[str]:
    node = row.node
    # A pipe goes to grep: names in full. Only what stands at the left margin has no guide.
    label = f"{'  ' if row.guide else ''}{node.name}" if in_full else f"{row.guide}{row.label}"
    if node.leaf is None or row.is_folded:
        return [label, "", counted(node.leaves, "leaf", "leaves"), "", bytes_text(node.bytes) if node.bytes else "", ""]
    leaf = node.leaf
    if not leaf.is_tensor:
        return [label, type(leaf.value).__name__, "", "", "", remark_of(leaf, ties)]
    size = bytes_text(stored_bytes(leaf))
    return [label, str(leaf.dtype), elements_text(leaf.shape or ()), sharding_text(leaf), size, remark_of(leaf, ties)]


def _show_leaf(place: Location, manifest: Manifest, args: argparse.Namespace, output: Output) -> None:
    if args.leaf not in manifest.leaves:
        raise ConfigError(f"{place} has no leaf '{args.leaf}'. {near_names(args.leaf, manifest.leaves)}")
    leaf, ties = manifest.leaves[args.leaf], ties_of(manifest)
    if not leaf.is_tensor:
        if args.json:
            output.json(leaf_json(leaf, ties))
        else:
            _show_value(leaf, output)
        return
    # Imported here: values of tensors need torch, which takes seconds.
    from ckptrun.tools.leaf_values import read_edges

    edges = read_edges(place, manifest, leaf)
    if args.json:
        output.json(leaf_json(leaf, ties) | edges.to_json(leaf.name))
        return
    _show_tensor(leaf, ties, output)
    for line in edges.lines():
        output.line(line)


def _show_value(leaf: Leaf, output: Output) -> None:
    output.line(leaf.name, "bold")
    output.facts({"type": type(leaf.value).__name__, "digest": leaf.digest or "none"})
    for line in pprint.pformat(leaf.value, width=_VALUE_WIDTH, sort_dicts=False).splitlines():
        output.line(line)


def _show_tensor(leaf: Leaf, ties: Mapping[str, list[str]], output: Output) -> None:
    output.line(leaf.name, "bold")
    facts = {
        "dtype": str(leaf.dtype),
        "shape": elements_text(leaf.shape or ()),
        "bytes": f"{stored_bytes(leaf):,}",
        "sharding": sharding_text(leaf),
        "digest": leaf.digest or "none",
    }
    if leaf.name in ties:
        facts["tied with"] = ", ".join(ties[leaf.name])
    output.facts(facts)
    rows = [
        [
            chunk.file,
            f"{chunk.begin} to {chunk.begin + chunk.bytes}",
            elements_text(chunk.offsets),
            elements_text(chunk.sizes),
            f"{len(chunk.checksums)} of {bytes_text(chunk.block_bytes)}",
        ]
        for chunk in leaf.chunks
    ]
    output.table(_CHUNK_COLUMNS, rows)
