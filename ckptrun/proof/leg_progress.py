"""What a person sees while a leg of a proof runs: on a terminal its name, steps and seconds, live. Torch-free."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from ckptrun.console import has_colour
from ckptrun.evidence.run_folder import EVENTS

__all__ = ["leg_progress", "newest_step"]

_TAIL_BYTES = 4096
_MARK = b'"event": "step", "step": '


@contextmanager
def leg_progress(name: str, folder: Path, *, steps: int) -> Iterator[None]:
    """Show, while the context lasts, that the leg ``name`` runs in ``folder``; elsewhere than on a terminal nothing."""
    if not has_colour():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), _Steps(folder, steps), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stdout), transient=True) as progress:
        progress.add_task(name.replace("_", " "), total=None)
        yield


class _Steps(ProgressColumn):
    """The step that the leg has done last, read from what it has written."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self._file = folder / EVENTS
        self._steps = steps

    def render(self, task: Task) -> Text:
        """Return it as text."""
        step = newest_step(self._file)
        return Text("" if step is None else f"step {step} of {self._steps}")


def newest_step(file: Path) -> int | None:
    """Return the last step that a record of events tells of; None where it tells of none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            tail = stream.read()
    except OSError:
        return None
    text = tail.rpartition(_MARK)[2].partition(b",")[0] if _MARK in tail else b""
    return int(text) if text.isdigit() else None
