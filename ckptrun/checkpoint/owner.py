"""Who owns a lock file: host, process and start time, as a note in it; and whether that process may still live."""

import json
import os
import socket
import time
from pathlib import Path

__all__ = ["describe", "is_alive", "note_of_this_process"]


def note_of_this_process() -> str:
    """Return the note that says who we are."""
    owner = {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _start_ticks(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    return json.dumps(owner) + "\n"


def describe(note: str) -> str:
    """Return a note as a person reads it."""
    owner = _parse(note)
    if owner is None:
        return "unknown"
    return f"host {owner.get('host')}, process {owner.get('pid')}, since {owner.get('since')}"


def is_alive(note: str) -> bool:
    """Whether the owner may still live: for certain on this machine, as far as one can say; always on another."""
    owner = _parse(note)
    if owner is None or owner.get("host") != socket.gethostname():
        return owner is not None
    return owner.get("boot") == _boot_id() and owner.get("started") == _start_ticks(owner.get("pid"))


def _parse(note: str) -> dict[str, object] | None:
    try:
        owner = json.loads(note)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start_ticks(pid: object) -> int | None:
    """When a process was started, in clock ticks since boot; None when there is none."""
    try:
        # The second field is the name in parentheses, which may hold spaces; the start time is the 22nd.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
