"""Overrides as the user types them, made into what Hydra takes. Torch-free."""

import re
from collections.abc import Collection, Sequence

__all__ = ["plain_overrides"]

_OPEN_DICT = re.compile(r"(model|optimizer|schedule|data)\.args[.=]|model\.tensor_plan[.=]|components[.=]")


def plain_overrides(overrides: Sequence[str], *, added_groups: Collection[str] = ()) -> list[str]:
    """Take Hydra's ``+`` from keys, and give it to those that need it.

    ``model.args.width=64`` adds a key to a dict of the user's own, which has no schema. Everywhere else a ``+`` would
    only put a misspelled key past the check.

    Args:
        overrides: As typed.
        added_groups: Groups that a folder of the user's own brings; they are added to the defaults with ``+``.
    """
    return [_plain(text, added_groups) for text in overrides]


def _plain(text: str, added_groups: Collection[str]) -> str:
    bare = text.lstrip("+")
    key = bare.partition("=")[0]
    if _OPEN_DICT.match(bare):
        return f"++{bare}"
    return text if "@" in key or key in added_groups or key.startswith(("hydra.", "hydra/")) else bare
