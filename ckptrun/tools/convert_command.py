"""Turn a checkpoint into another format, and check the result bit by bit.

SRC is a checkpoint of ckptrun or DCP (folders), a .safetensors file or a folder of such files, or a file of torch.save:
a local path or any fsspec URL. DST is a folder for ckptrun and dcp, a file for torch and safetensors, and a folder for
safetensors with --max-shard-size. It is written beside DST, read back, compared, and then renamed: a kill leaves no
half DST. Only ckptrun can be written to a URL that is not local.

ckptrun, dcp and safetensors are written leaf by leaf: ckptrun and safetensors with less than 256 MiB of memory, or a
few rows of a tensor along dim 0 where these are larger; dcp with the largest leaf beside that. torch.save takes a whole
state at once, so --to torch needs memory for all of it. safetensors files hold no plain values: these are left out, and
listed.

No code of a file is run: what is neither tensor nor plain value is refused, by name.

Exit codes: 0 written and equal; 1 the storage failed; 2 the command line is wrong, something is missing or cannot be
stored in that format; 3 SRC is damaged, or DST was read back differently.
"""

import argparse
import re
import time
import warnings
from typing import TYPE_CHECKING, Any

from ckptrun.engine.locate import place_of
from ckptrun.errors import ConfigError, UnsupportedLeafError
from ckptrun.exit_codes import ExitCode
from ckptrun.formats.common.convert_options import DTYPES, FORMATS, Options
from ckptrun.text import bytes_text, joined
from ckptrun.tools.incomplete import add_incomplete, require_whole
from ckptrun.tools.output import Output, add_output_arguments

if TYPE_CHECKING:
    from ckptrun.tools.convert import Conversion

__all__ = ["add_arguments", "run"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows ``ckptrun convert``."""
    parser.add_argument("source", metavar="SRC", help="what is read")
    parser.add_argument("target", metavar="DST", help="what is written")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format of DST")
    parser.add_argument("--only", metavar="NAME", help="only this component, such as model, or what is under this name")
    parser.add_argument(
        "--keep-prefix", action="store_true", help="keep NAME in the names: it is taken off for torch and safetensors"
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="convert tensors of 16, 32 and 64 bit floats; packed floats of 8 bits and less stay as they are",
    )
    parser.add_argument(
        "--max-shard-size",
        type=_parse_size,
        metavar="SIZE",
        help="safetensors only: a folder of files of at most this size, such as 5GB or 500MiB, with an index",
    )
    add_incomplete(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is at DST")
    parser.add_argument("--no-check", action="store_true", help="do not read DST back and compare it")
    add_output_arguments(parser)


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = 0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 5GB, 500MiB or a number of bytes")
    return size


def run(args: argparse.Namespace) -> int:
    """Convert what was asked for."""
    if args.max_shard_size is not None and args.to != "safetensors":
        raise ConfigError(f"--max-shard-size is for --to safetensors, not for --to {args.to}.")
    if args.keep_prefix and args.only is None:
        raise ConfigError("--keep-prefix says what becomes of the NAME of --only, which is missing.")
    # Imported here: torch takes seconds, and --help and wrong options should not.
    from ckptrun.formats.open_source import open_source
    from ckptrun.tools.convert import convert

    output = Output(plain=args.no_color)
    place, target = place_of(args.source), place_of(args.target)
    require_whole(place, incomplete=args.incomplete)
    options = Options(
        to=args.to,
        only=args.only,
        keeps_prefix=args.keep_prefix or args.to in ("ckptrun", "dcp"),
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
        is_checked=not args.no_check,
    )
    began = time.monotonic()
    try:
        with (
            warnings.catch_warnings(),
            open_source(place, incomplete=args.incomplete) as source,
            output.progress(target.name) as started,
        ):
            # torch remarks that few of its operators know complex32; copying is one of them.
            warnings.simplefilter("ignore", UserWarning)
            conversion = convert(source, place, target, options, started=started)
    except UnsupportedLeafError as error:
        # Another format, or a part of the checkpoint, would do.
        raise ConfigError(str(error)) from error
    document = _to_json(conversion, options, seconds=time.monotonic() - began)
    if args.json:
        output.json(document)
    else:
        _show(document, output)
    return ExitCode.done


def _to_json(conversion: "Conversion", options: Options, *, seconds: float) -> dict[str, Any]:
    selection, written = conversion.selection, conversion.written
    return {
        "from": {"path": selection.source.address, "format": selection.source.format},
        "to": {"path": conversion.target, "format": options.to},
        "tensors": len(selection.tensors),
        "values": len(selection.values) - len(written.left_out),
        "left_out": [item.name for item in written.left_out],
        "files": written.files,
        "bytes": written.bytes,
        "dtype": options.dtype,
        "converted": sum(item.is_converted for item in selection.tensors),
        "became_infinite": selection.rounding.infinite,
        "became_zero": selection.rounding.zero,
        "checked": options.is_checked,
        "seconds": round(seconds, 6),
        "notes": [*selection.source.remarks, *written.notes],
    }


def _show(document: dict[str, Any], output: Output) -> None:
    source, target = document["from"], document["to"]
    output.line(f"{target['path']}: written as {target['format']} from {source['path']} ({source['format']})", "green")
    tensors, values = document["tensors"], document["values"]
    rows = {
        "leaves": f"{tensors + values:,}: {tensors:,} tensors and {values:,} plain values",
        "files": f"{document['files']:,}, {bytes_text(document['bytes'])}, in {document['seconds']:.2f} s",
        "check": "read back, equal bit by bit" if document["checked"] else "none (--no-check)",
    }
    if document["dtype"] is not None:
        rows["dtype"] = f"{document['converted']:,} tensors converted to {DTYPES[document['dtype']]}{_lost(document)}"
    if document["left_out"]:
        left_out = document["left_out"]
        rows["left out"] = f"{len(left_out):,} plain values, which safetensors cannot hold: {joined(left_out)}"
    output.facts(rows)
    for note in document["notes"]:
        output.note(f"  note: {note}")


def _lost(document: dict[str, Any]) -> str:
    lost = [
        f"{document[key]:,} numbers became {word}"
        for key, word in (("became_infinite", "infinite"), ("became_zero", "0"))
        if document[key]
    ]
    return f"; {' and '.join(lost)}" if lost else ""
