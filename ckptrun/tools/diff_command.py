"""Compare two checkpoints bit by bit, whatever their sharding and format.

A and B are checkpoints: a folder of ckptrun, of torch.distributed.checkpoint (DCP) or of .safetensors files, or one
file of safetensors or torch.save; or a run, of which the newest checkpoint that both have is taken; local paths or any
fsspec URLs. Pickles are read without running what they name.

Leaves are paired by name. Tensors must agree in dtype, shape and every bit; plain values in type, content and the bits
of floats. The largest distance in ULP is the number of steps from one float to the next between two that stand at the
same place: 0 between 0.0 and -0.0, 1 from the largest number to infinity; a NaN has none, and is counted instead.

A summary of each component comes first; then the leaves that differ, the worst on top: what cannot be subtracted (other
dtypes, NaNs, texts), then by relative difference. The largest absolute and relative differences stand beside the ULP.

Memory is some slabs of 8 MiB, or two rows of each along the first dim where a row is longer.

Exit codes: 0 equal; 2 there is no checkpoint, or nothing of that name; 3 different, or damaged; 4 no difference was
found, but not every leaf could be compared.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.locate import place_of
from ckptrun.errors import CheckpointNotFoundError, ConfigError
from ckptrun.exit_codes import ExitCode
from ckptrun.text import bytes_text, counted, cut_text, elements_text, joined
from ckptrun.tools.incomplete import add_incomplete
from ckptrun.tools.near_names import near_names
from ckptrun.tools.output import Column, Output, add_output_arguments
from ckptrun.tools.pairing import hint_of_prefixes, keep_only, strip_prefix
from ckptrun.tools.places import newest_of, steps_of

if TYPE_CHECKING:
    from ckptrun.elements.apart import Apart
    from ckptrun.tools.compare import Comparison, Side
    from ckptrun.tools.leaf_difference import Elements, LeafDifference

__all__ = ["add_arguments", "run"]

_SHOWN = 200
_TEXT_WIDTH = 60
_COLUMNS = [
    Column("leaf"),
    Column("differs in", style="red"),
    Column("elements", right=True),
    Column("first at"),
    Column("A", style="green"),
    Column("B", style="red"),
    Column("largest absolute", right=True),
    Column("relative", right=True),
    Column("ULP", right=True),
]
_SUMMARY_COLUMNS = [
    Column("component", style="bold"),
    Column("equal", right=True, style="green"),
    Column("differing", right=True, style="red"),
    Column("only in A", right=True, style="red"),
    Column("only in B", right=True, style="red"),
    Column("elements", right=True),
    Column("largest absolute", right=True),
    Column("relative", right=True),
    Column("ULP", right=True),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows ``ckptrun diff``."""
    parser.add_argument("a", metavar="A", help="a checkpoint")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--step", type=int, help="of runs, the checkpoint of this step; else the newest that both have")
    parser.add_argument("--only", metavar="PREFIX", help="the leaf of this name, or those below it: 'model.blocks.0'")
    for side in ("a", "b"):
        parser.add_argument(
            f"--prefix-{side}",
            metavar="PREFIX",
            help=f"take of {side.upper()} what is below PREFIX, and compare it without it: 'model' makes "
            "'model.blocks.0.weight' 'blocks.0.weight'",
        )
    add_incomplete(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compare what was asked for."""
    # Imported here: --help and a mistyped option should not wait for torch.
    from ckptrun.formats.open_source import open_source
    from ckptrun.tools.compare import Side, compare

    output = Output(plain=args.no_color)
    opened = functools.partial(open_source, incomplete=args.incomplete)
    with opened(_of_run(args.a, args.b, args.step)) as a, opened(_of_run(args.b, args.a, args.step)) as b:
        sides = [
            Side(source, strip_prefix(source.leaves, prefix, option=option))
            for source, prefix, option in ((a, args.prefix_a, "--prefix-a"), (b, args.prefix_b, "--prefix-b"))
        ]
        sides = _only(sides, args.only)
        began = time.monotonic()
        with output.progress("diff") as started:
            found = compare(*sides, started=started)
        seconds = time.monotonic() - began
        if args.json:
            output.json(_to_json(found, sides, seconds))
        else:
            _show(found, sides, seconds, output)
    if found.is_different:
        return ExitCode.different
    return ExitCode.not_verified if found.not_compared else ExitCode.done


def _of_run(path: str, other: str, step: int | None) -> Location:
    """The checkpoint that ``path`` is or, being a run, has: of ``step``, else the newest that ``other`` has too."""
    place, there = place_of(path), place_of(other)
    mine, theirs = steps_of(place), steps_of(there)
    if step is None and mine and theirs:
        common = sorted(set(mine) & set(theirs))
        if not common:
            raise CheckpointNotFoundError(
                f"{place} and {there} have no step in common: {', '.join(map(str, mine))}; and "
                f"{', '.join(map(str, theirs))}. Name two checkpoints.",
                folder=str(place),
            )
        step = common[-1]
    return newest_of(place, step=step if mine else None) or place


def _only(sides: Sequence["Side"], prefix: str | None) -> list["Side"]:
    """Leave out of both what ``--only`` does not name."""
    if prefix is None:
        return list(sides)
    kept = [
        type(side)(side.source, {name: own for name, own in side.names.items() if keep_only(name, prefix)})
        for side in sides
    ]
    if not any(side.names for side in kept):
        names = dict.fromkeys(name for side in sides for name in side.names)
        raise ConfigError(f"--only={prefix}: neither A nor B has a leaf of that name. {near_names(prefix, names)}")
    return kept


def _show(found: "Comparison", sides: Sequence["Side"], seconds: float, output: Output) -> None:
    for letter, side in zip("AB", sides, strict=True):
        source = side.source
        left_out = len(source.leaves) - len(side.names)
        output.line(
            f"{letter}: {source.address} ({source.format}, {counted(len(source.leaves), 'leaf', 'leaves')}"
            f"{f', {left_out:,} of them left out' if left_out else ''})"
        )
        for remark in source.remarks:
            output.line(f"   note: {remark}")
    from ckptrun.tools.diff_summary import summarise, worst_first

    if found.names:
        output.table(_SUMMARY_COLUMNS, [summary.to_row() for summary in summarise(found)])
    if found.empty:
        output.line(f"   note: empty, and nothing that the other format holds: {joined(found.empty)}; not counted.")
    if found.differing:
        output.line("")
        output.table(_COLUMNS, [_row(difference) for difference in list(worst_first(found.differing))[:_SHOWN]])
        _say_more(len(found.differing), output)
    for letter, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        if names:
            output.line(f"Only in {letter}:")
            output.table([Column("")], [[name] for name in names[:_SHOWN]])
            _say_more(len(names), output)
    for name, reason in found.not_compared.items():
        output.line(f"Not compared: {name}: {reason}", "red")
    output.line(
        f"{len(found.equal):,} equal, {len(found.differing):,} differing, {len(found.only_in_a):,} only in A, "
        f"{len(found.only_in_b):,} only in B{_not_compared(found)}; {bytes_text(found.bytes)} of each compared in "
        f"{seconds:.2f} s",
        "red" if found.is_different else "green",
    )
    if _has_nothing_in_common(found):
        output.line(_hint(sides))


def _say_more(count: int, output: Output) -> None:
    if count > _SHOWN:
        output.line(f"  ... and {count - _SHOWN:,} more; --json lists all.")


def _not_compared(found: "Comparison") -> str:
    return f", {len(found.not_compared):,} not compared" if found.not_compared else ""


def _has_nothing_in_common(found: "Comparison") -> bool:
    return not (found.equal or found.differing or found.not_compared)


def _hint(sides: Sequence["Side"]) -> str:
    a, b = (side.names for side in sides)
    return f"The two have no leaf name in common. {hint_of_prefixes(a, b)}"


def _row(difference: "LeafDifference") -> list[str]:
    what = ", ".join(difference.what)
    if difference.elements is None:
        a, b = (_side_text(described) for described in (difference.a, difference.b))
        return [difference.leaf, what, "", "", a, b, *_apart_texts(difference.apart), ""]
    elements = difference.elements
    a, b = _elements_texts(elements)
    count = f"{elements.differing:,} of {elements.total:,}"
    return [
        difference.leaf,
        what,
        count,
        elements_text(elements.first_index),
        a,
        b,
        *_apart_texts(elements.apart),
        _ulp_text(elements),
    ]


def _apart_texts(found: "Apart | None") -> list[str]:
    from ckptrun.tools.diff_summary import number_text

    return ["", ""] if found is None else [number_text(found.absolute), number_text(found.relative)]


def _side_text(described: dict[str, Any]) -> str:
    if described["kind"] == "tensor":
        return f"{described['dtype']} {elements_text(described['shape'])}"
    bits = f" ({described['bits']})" if "bits" in described else ""
    return f"{described['type']} {cut_text(described['text'], _TEXT_WIDTH)}{bits}"


def _elements_texts(elements: "Elements") -> list[str]:
    from ckptrun.elements.text import element_bits, element_text

    return [f"{element_text(element)} ({element_bits(element)})" for element in (elements.a, elements.b)]


def _ulp_text(elements: "Elements") -> str:
    nans = f"{elements.nans:,} NaN" if elements.nans else ""
    ulp = "" if elements.largest_ulp is None else f"{elements.largest_ulp:,}"
    return ", ".join(text for text in (ulp, nans) if text)


def _to_json(found: "Comparison", sides: Sequence["Side"], seconds: float) -> dict[str, Any]:
    from ckptrun.tools.diff_summary import summarise

    described = {
        letter: {
            "path": side.source.address,
            "format": side.source.format,
            "leaves": len(side.source.leaves),
            "left_out": len(side.source.leaves) - len(side.names),
            "remarks": list(side.source.remarks),
        }
        for letter, side in zip("ab", sides, strict=True)
    }
    return described | {
        "is_equal": not found.is_different and not found.not_compared,
        "components": [summary.to_json() for summary in summarise(found)],
        "equal": found.equal,
        "differing": [difference.to_json() for difference in found.differing],
        "only_in_a": found.only_in_a,
        "only_in_b": found.only_in_b,
        "empty": found.empty,
        "not_compared": found.not_compared,
        "hint": _hint(sides) if _has_nothing_in_common(found) else None,
        "bytes": found.bytes,
        "seconds": round(seconds, 6),
    }
