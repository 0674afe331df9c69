"""Overrides as the user types them, made into what Hydra takes. Torch-free."""

import re
from collections.abc import Sequence

__all__ = ["open_dicts"]

_OPEN_DICT = re.compile(r"(model|optimizer|schedule|data)\.args[.=]|model\.tensor_plan[.=]|components[.=]")


def open_dicts(overrides: Sequence[str]) -> list[str]:
    """Let ``model.args.width=64`` add a key without Hydra's ``+``: these dicts are the user's own, without a schema."""
    return [f"++{text}" if _OPEN_DICT.match(text) else text for text in overrides]
