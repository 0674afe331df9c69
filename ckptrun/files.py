"""Small files that others may read at any time: replaced at once, never half written. Torch-free."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EVENTS", "append_line", "read_lines", "write_json", "write_text"]

EVENTS = "events.jsonl"
"""What a run folder calls the record of what happened in the run, line by line."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, the way ``write_text`` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one line of JSON with a single write, so that lines of several processes do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(content).encode() + b"\n")


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
