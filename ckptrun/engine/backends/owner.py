"""Who owns a lock file: host, process and start time, as a note in it; and whether that process may still live."""

import calendar
import json
import os
import socket
import time
from pathlib import Path

__all__ = ["describe", "is_alive", "note_of_this_process"]


_SINCE = "%Y-%m-%d %H:%M:%S UTC"
_LONGEST_SECONDS = 24 * 3600


def note_of_this_process() -> str:
    """Return the note that says who we are."""
    owner = {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _start_ticks(os.getpid()),
        "since": time.strftime(_SINCE, time.gmtime()),
    }
    return json.dumps(owner) + "\n"


def describe(note: str) -> str:
    """Return a note as a person reads it."""
    owner = _parse(note)
    if owner is None:
        return "unknown"
    return f"host {owner.get('host')}, process {owner.get('pid')}, since {owner.get('since')}"


def is_alive(note: str) -> bool:
    """Whether the owner may still live: as good as certain on this machine; on another, for a day.

    No save takes so long, and somebody must clean up after a machine that never comes back.
    """
    owner = _parse(note)
    if owner is None:
        return False
    if owner.get("host") != socket.gethostname():
        return time.time() - _seconds(owner.get("since")) < _LONGEST_SECONDS
    return owner.get("boot") == _boot_id() and owner.get("started") == _start_ticks(owner.get("pid"))


def _parse(note: str) -> dict[str, object] | None:
    try:
        owner = json.loads(note)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _seconds(since: object) -> float:
    """Since when, in seconds of the clock; 0 where the note does not say."""
    try:
        return calendar.timegm(time.strptime(str(since), _SINCE))
    except ValueError:
        return 0.0


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
