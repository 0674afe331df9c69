"""Shows checkpoints of other formats than ckptrun's: DCP, torch.save, safetensors."""

import argparse
from typing import Any

from ckptrun.elements.text import element_text
from ckptrun.engine.backends.interface import Location
from ckptrun.errors import ConfigError, UnsupportedLeafError
from ckptrun.exit_codes import ExitCode
from ckptrun.formats.open_source import Source, SourceLeaf, open_source
from ckptrun.text import bytes_text, counted, cut, cut_text, elements_text
from ckptrun.tools.near_names import near_names
from ckptrun.tools.output import Column, Output

__all__ = ["inspect_foreign"]

_COLUMNS = [Column("leaf"), Column("dtype", style="cyan"), Column("shape"), Column("bytes", right=True), Column("")]
_VALUE_WIDTH = 48
_SHOWN_ELEMENTS = 1000


def inspect_foreign(place: Location, args: argparse.Namespace, output: Output) -> int:
    """Show all leaves, or the values of one.

    Raises:
        ConfigError: There is no leaf of that name.
    """
    with open_source(place, incomplete=True) as source:
        if args.leaf is not None and args.leaf not in source.leaves:
            raise ConfigError(f"{place} has no leaf '{args.leaf}'. {near_names(args.leaf, source.leaves)}")
        names = list(source.leaves) if args.leaf is None else [args.leaf]
        if args.json:
            output.json(_to_json(source, names))
        else:
            _show(source, names, output)
            if args.leaf is not None:
                _show_values(source, source.leaves[args.leaf], output)
    return ExitCode.done


def _to_json(source: Source, names: list[str]) -> dict[str, Any]:
    return {
        "path": source.address,
        "format": source.format,
        "remarks": list(source.remarks),
        "bytes": sum(leaf.bytes for leaf in source.leaves.values()),
        "shared": [list(group) for group in source.shared],
        "leaves": [
            {"name": name, "kind": "tensor", "dtype": leaf.dtype, "shape": list(leaf.shape or ()), "bytes": leaf.bytes}
            if (leaf := source.leaves[name]).is_tensor
            else {"name": name, "kind": "value", "text": _value_text(leaf)}
            for name in names
        ],
    }


def _show(source: Source, names: list[str], output: Output) -> None:
    tensors = [leaf for leaf in source.leaves.values() if leaf.is_tensor]
    output.line(source.address, "bold")
    output.facts(
        {
            "format": source.format,
            "leaves": f"{len(source.leaves):,}: {counted(len(tensors), 'tensor')}, "
            f"{counted(len(source.leaves) - len(tensors), 'plain value')}",
            "bytes": bytes_text(sum(leaf.bytes for leaf in tensors)),
        }
    )
    for remark in source.remarks:
        output.line(f"  note: {remark}", "yellow")
    output.table(_COLUMNS, [_row(source.leaves[name]) for name in names])


def _row(leaf: SourceLeaf) -> list[str]:
    if not leaf.is_tensor:
        return [leaf.name, "", "", "", cut_text(_value_text(leaf), _VALUE_WIDTH)]
    return [leaf.name, str(leaf.dtype), elements_text(leaf.shape or ()), bytes_text(leaf.bytes), ""]


def _value_text(leaf: SourceLeaf) -> str:
    try:
        return repr(leaf.value)
    except UnsupportedLeafError as error:
        return f"not read: {cut(str(error), 200)}"


def _show_values(source: Source, leaf: SourceLeaf, output: Output) -> None:
    if not leaf.is_tensor:
        output.line(_value_text(leaf))
        return
    row = leaf.bytes // max(1, leaf.rows)
    count = min(leaf.rows, max(1, 2**23 // max(1, row)))
    rows = source.read_rows(leaf.name, 0, count).reshape(-1)
    shown = [element_text(element) for element in rows[:_SHOWN_ELEMENTS]]
    total = leaf.bytes // max(1, rows.element_size())
    output.line(", ".join(shown) + (f", ... and {total - len(shown):,} more" if total > len(shown) else ""))
