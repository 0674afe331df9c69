"""``--incomplete``: to go on with what is there of a checkpoint, where more should be. Must not import torch."""

import argparse

from ckptrun.engine.backends.interface import Location
from ckptrun.errors import ConfigError
from ckptrun.formats.common.part_names import part_of

__all__ = ["add_incomplete", "require_whole"]

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def add_incomplete(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="go on with what is there where an index, or the names of files, say that parts are missing",
    )


def require_whole(place: Location, *, incomplete: bool) -> None:
    """Refuse a file whose name says that it is one of several parts.

    Raises:
        ConfigError: It is, and that was not allowed.
    """
    part = part_of(place.name)
    if part is not None and not incomplete and place.name.endswith(_SUFFIXES):
        raise ConfigError(
            f"{place} is one of {part[1]} parts by its name. Name the folder that they are in, {place.parent}, for all "
            "of them; or pass --incomplete to convert this one alone."
        )
