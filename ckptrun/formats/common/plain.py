"""What ``torch.load(weights_only=True)`` gives: plain values and tensors, or an error that says what was refused.

And ``torch.save``, with the error of the storage where that fails.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch

from ckptrun.errors import ForeignFileError, UnsupportedLeafError
from ckptrun.text import joined

__all__ = ["PartCount", "load_plain", "save_to"]

# How torch names what it refused, where the file is not one that it can list.
_GLOBAL = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose module)")
_UNPICKLER = re.compile(r"WeightsUnpickler error:\s*([^\n]+)")
_INSIDES = re.compile(r"\[enforce fail at [^\]]*\]\s*\.?|PytorchStreamReader")
_MAX_PARTS = 20_000_000


def load_plain(file: IO[bytes] | str, *, what: str, mmap: bool = False) -> Any:
    """Load what ``torch.save`` wrote, without making any object that the file names beyond tensors and plain values.

    Raises:
        UnsupportedLeafError: It holds other objects; names their classes.
        ForeignFileError: It is damaged, or no such file.
    """
    try:
        with warnings.catch_warnings():
            # Remarks on old storages and the like are for whoever wrote the file.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever a damaged file makes it raise
        refused = _refused(file) or _GLOBAL.findall(str(error))
        if refused:
            raise UnsupportedLeafError(
                f"{what} holds objects of {joined(refused)}, which only unpickling could make, and that runs code of "
                "the file's choice. Nothing was run. Load it where you trust it, replace them by tensors and plain "
                "values, and save it again."
            ) from error
        raise ForeignFileError(
            f"{what} cannot be read, it is damaged or no file of torch.save: {_reason(error)}."
        ) from error


def save_to(stream: IO[bytes], value: Any) -> None:
    """Append what ``torch.save`` writes.

    Raises:
        OSError: From the stream. torch itself would say that the archive is not in order.
    """
    try:
        torch.save(value, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _reason(error: Exception) -> str:
    """What torch says is wrong, without its advice to run whatever the file names, and without its own insides."""
    text = str(error)
    if "weights_only" in text:
        found = _UNPICKLER.search(text)
        return f"its pickle is not in order ({found[1].strip()[:200]})" if found else "its pickle is not in order"
    lines = _INSIDES.sub("", text).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def _refused(file: IO[bytes] | str) -> list[str]:
    """Names in the file that are not loaded; nothing where nobody can tell."""
    try:
        if not isinstance(file, str):
            file.seek(0)
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001  # the file is damaged, and that was found already
        return []


class PartCount:
    """Counts the parts of the plain values of one checkpoint: a few bytes can describe lists of lists without end."""

    def __init__(self) -> None:
        self._left = _MAX_PARTS

    def add(self, value: Any, *, name: str) -> None:
        """Count a value before anybody walks through it.

        Raises:
            ForeignFileError: There are more parts than in any state; names the leaf.
        """
        waiting: list[Iterable[Any]] = [(value,)]
        while waiting:
            for item in waiting.pop():
                self._left -= 1
                if isinstance(item, Mapping):
                    waiting.append(item.values())
                elif isinstance(item, list | tuple | set | frozenset):
                    waiting.append(item)
                if self._left < 0:
                    raise ForeignFileError(
                        f"Leaf '{name}': plain values with more than {_MAX_PARTS} parts are more than is read."
                    )
