"""Converts a checkpoint: selects, writes, reads back, compares, and only then gives it its name."""

from collections.abc import Callable
from dataclasses import dataclass

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.errors import ConfigError, InternalError
from ckptrun.formats.common.convert_options import Options
from ckptrun.formats.common.destination import Destination, require_apart
from ckptrun.formats.common.interface import Source
from ckptrun.formats.common.selection import Advance, Selection, Written, select
from ckptrun.formats.torch_save.optimizer_layout import number_optimizers
from ckptrun.tools.check_copy import check_copy

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was done."""

    selection: Selection
    written: Written
    target: str


def convert(
    source: Source, place: Location, target: Location, options: Options, *, started: Callable[[int], Advance]
) -> Conversion:
    """Write what ``options`` select of ``source``, which lies at ``place``, to ``target``.

    Args:
        source: Open.
        place: Where it lies.
        target: Must not exist, unless it is a checkpoint that may be overwritten.
        options: What is asked for.
        started: Called with the bytes that will be gone through.

    Raises:
        ConfigError: The options do not fit source or target.
        CheckpointExistsError: There is something at ``target``.
        UnsupportedLeafError: The format cannot hold a leaf; names it.
        CheckpointDamagedError: The source cannot be trusted; or what was written was read back differently, and
            removed.
        OSError: From the storage.
    """
    if isinstance(target.backend, LocalBackend):
        if isinstance(place.backend, LocalBackend):
            require_apart(place, target)
    elif options.to != "ckptrun":
        raise ConfigError(
            f"{target} is not local: --to {options.to} writes to local paths only. Write there, and copy."
        )
    selection = select(source, only=options.only, keeps_prefix=options.keeps_prefix, dtype=options.dtype)
    if options.to == "torch":
        selection = number_optimizers(selection)
    passes = 2 if options.is_checked else 1
    advance = started(passes * sum(item.bytes for item in selection.items))

    def check(written: Written) -> None:
        if options.is_checked:
            with written.open() as copy:
                check_copy(selection, copy, left_out=written.left_out, advance=advance)

    written = _write(selection, target, options, check, advance)
    return Conversion(selection=selection, written=written, target=str(target))


def _write(
    selection: Selection, target: Location, options: Options, check: Callable[[Written], None], advance: Advance
) -> Written:
    # Writers are imported here: each is needed for its own format only.
    if options.to == "ckptrun":
        from ckptrun.formats.ckptrun_format.writer import write_ckptrun

        return write_ckptrun(selection, target, overwrite=options.overwrite, check=check, advance=advance)
    if options.to == "safetensors":
        from ckptrun.formats.safetensors_format.writer import require_storable

        require_storable(selection)
    with Destination(target, overwrite=options.overwrite, is_folder=options.makes_folder) as destination:
        written = _write_beside(selection, destination.working, target, options, advance)
        check(written)
        destination.commit()
    return written


def _write_beside(
    selection: Selection, working: Location, target: Location, options: Options, advance: Advance
) -> Written:
    match options.to:
        case "dcp":
            from ckptrun.formats.dcp.writer import write_dcp

            return write_dcp(selection, working, final=target, advance=advance)
        case "torch":
            from ckptrun.formats.torch_save.writer import write_torch

            return write_torch(selection, working, advance=advance)
        case "safetensors":
            from ckptrun.formats.safetensors_format.writer import write_safetensors

            return write_safetensors(selection, working, max_shard_bytes=options.max_shard_bytes, advance=advance)
        case other:
            raise InternalError(f"No writer is known for the format {other}.")
