"""Small files that others may read at any time: replaced at once, never half written. Torch-free."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["append_line", "json_text", "read_lines", "with_bits", "write_json", "write_text"]


def with_bits(**numbers: float | None) -> dict[str, Any]:
    """Return each number beside its bits: ``loss`` to plot, ``loss_bits`` (``float.hex()``) to compare."""
    found: dict[str, Any] = {}
    for name, number in numbers.items():
        found[name] = number
        found[f"{name}_bits"] = None if number is None else float(number).hex()
    return found


def json_text(content: Any, *, indent: int | None = None) -> str:
    """Return ``content`` as JSON that every reader takes: NaN and infinity, which JSON has not, become null."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, the way ``write_text`` does."""
    write_text(path, json_text(content, indent=2) + "\n")


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one line of JSON with a single write, so that lines of several processes do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json_text(content).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file, in order; nothing where there is no file.

    A last line that is cut, or still being written, is left out; so is one that a power cut has broken, and that a
    later start wrote on behind.
    """
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            if line.endswith(b"\n"):
                found.append(json.loads(line))
    return found
