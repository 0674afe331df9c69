"""A sweep: many runs or proofs, one per combination of overrides, each in a folder of its own. Torch-free.

Hydra expands the command line and calls once per cell; when all are known to compose, they are run (``run_cells.py``).
What a sweep leaves::

    <sweep>/multirun.yaml       Hydra's own record of the command line
            summary.json        what became of each cell
            junit.xml           the same for CI systems
            report.html         the same for people, see ``ckptrun.report``
            logs/<cell>.log     what a cell has printed
            <cell>/             what a run leaves

Under torchrun every rank runs the same cells in the same order in the same folders, one as soon as it is known; rank 0
alone writes and speaks. There the sweep ends with the first rank that fails; otherwise it goes on with the next cell.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ckptrun.config.fault import FaultKind
from ckptrun.config.run import RunConfig
from ckptrun.config.sweep import SweepNames
from ckptrun.config.sweep_cells import Only
from ckptrun.console import say, say_error
from ckptrun.errors import CkptrunError, ConfigError
from ckptrun.evidence.run_folder import RUN_LOCK
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.run.lock import RunLock
from ckptrun.sweep.cell import Cell, CellVerdict, LeftByStart, cell_verdict, save_figures
from ckptrun.sweep.identity import identity_of
from ckptrun.sweep.record import SweepRecord, cells_of_last, was_made_by_sweep
from ckptrun.sweep.run_cells import CellRunner, PlannedCell, cells_at_a_time
from ckptrun.sweep.view import SweepView

__all__ = ["Sweep", "put_cell"]

# What a sweep has left that was ended before its first cell.
_FIRST_FILES = ("multirun.yaml", RUN_LOCK)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Sweep:
    """Takes the cells that Hydra makes, and runs them. Does nothing in a command that is no sweep.

    Args:
        arguments: The command line, for names.
        rank: The rank of this process under an outside launcher; None without one.
    """

    def __init__(self, arguments: Iterable[str], *, rank: int | None) -> None:
        self._names = SweepNames(arguments)
        self._rank = rank
        self._record: SweepRecord | None = None
        self._lock: RunLock | None = None
        self._made: list[Path] = []
        self._folder = Path()
        self._last: dict[str, Cell] = {}
        self._planned: list[PlannedCell | Cell] = []
        self._ran = 0
        # conf/config.yaml: Hydra asks when it begins a sweep, in whatever way it was told to.
        OmegaConf.register_new_resolver("sweep_folder", self._place, replace=True)

    @property
    def has_begun(self) -> bool:
        """Whether Hydra has asked for a cell."""
        return self._record is not None or bool(self._planned)

    @property
    def folder(self) -> Path:
        """Where the sweep lies."""
        return Path(self._names.folder)

    def check_place(self) -> None:
        """Look whether the sweep may have its folder, before Hydra writes there; nothing is touched.

        Raises:
            ConfigError: It is a file, or holds something that no sweep has left; or it has several names.
        """
        self._names.check()
        folder = Path(self._names.folder).resolve()
        above = next(path for path in (folder, *folder.parents) if path.exists())
        if not above.is_dir():
            raise ConfigError(f"run.dir={folder}: {above} is no folder. Choose another one.")
        found = list(folder.iterdir()) if folder.is_dir() else []
        strangers = sorted(path.name for path in found if path.name not in _FIRST_FILES or not path.is_file())
        if self._is_first and strangers and not was_made_by_sweep(folder):
            raise ConfigError(
                f"run.dir={folder} holds {strangers[0]!r} and was not made by a sweep, which begins with an empty "
                "folder. Give the sweep a folder of its own: run.name=..."
            )

    def take(self, check: Callable[[], RunConfig], start: Callable[[RunConfig], int]) -> None:
        """Take one cell. It is run by :meth:`finish`; by a rank of an outside launcher, here and now.

        Args:
            check: Makes the config of the cell.
            start: Runs it; returns the exit code of the run.

        Raises:
            KeyboardInterrupt: The process was told to end, and nobody has said so yet.
            SystemExit: The process was told to end, and it has been said; or the sweep cannot be.
        """
        hydra = HydraConfig.get()
        self._folder, overrides = Path(hydra.sweep.dir), tuple(hydra.overrides.task)
        if not self.has_begun:
            self._begin(self._folder)
        name = self._names.cell(overrides)
        same = next((place for place, cell in enumerate(self._planned, 1) if cell.name == name), None)
        try:
            if same is not None:
                raise ConfigError(f"It is the same as cell {same}.")
            config = check()
            put_cell(config, self._folder, name, under_torchrun=self._rank is not None)
        except ConfigError as error:
            self._planned.append(_skipped(name, overrides, str(error)))
            return
        place, identity = len(self._planned), identity_of(config)
        self._planned.append(PlannedCell(place=place, name=name, overrides=overrides, config=config, identity=identity))
        if self._rank is not None:
            self._run_here(start)

    def finish(self, start: Callable[[RunConfig], int]) -> int:
        """Run the cells that were taken, print their table; return the exit code of the sweep.

        Args:
            start: Carries out the config of a cell; importable, as it is called in other processes.
        """
        if self._rank is not None:
            self._run_here(start)
            return ExitCode.done if self._record is None else self._record.finish()
        record = SweepRecord(self._folder, command=sys.argv, is_silent=False)
        cells = [cell for cell in self._planned if isinstance(cell, PlannedCell)]
        parallel = cells_at_a_time([cell.config for cell in cells])
        with SweepView(len(self._planned), parallel=parallel) as view:
            runner = CellRunner(self._folder, record, view, start=start, parallel=parallel)
            told = runner.run(self._left_to_run(record, view))
        code = record.finish(is_complete=told is None)
        if told is not None:
            how = "interrupted" if told is signal.SIGINT else f"ended by {told.name}"
            say_error(f"ckptrun: {how}. What is missing is run by the same command with sweep.resume=true.")
            return ExitCode.failed
        return code

    def _left_to_run(self, record: SweepRecord, view: SweepView) -> list[PlannedCell]:
        """Those cells that are to be run; what becomes of the others is told at once."""
        left = []
        for place, cell in enumerate(self._planned):
            before = self._last.get(cell.name)
            if isinstance(cell, PlannedCell) and not (before is not None and _stays(cell, before)):
                left.append(cell)
                continue
            known = before if isinstance(cell, PlannedCell) and before is not None else cell
            if isinstance(known, Cell):
                record.put(place, known)
                view.ended(place, known)
        return left

    def discard(self) -> None:
        """Remove what Hydra has made for a sweep that did not begin: its record, and folders that were not there."""
        for folder in self._made[:1]:
            (folder / "multirun.yaml").unlink(missing_ok=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                # It was not made after all, or somebody uses it meanwhile.
                return

    @property
    def _is_first(self) -> bool:
        return self._rank in (None, 0)

    def _place(self) -> str:
        """Name the folder of the sweep, which Hydra makes."""
        folder = Path(self._names.folder)
        if self._rank is None and not self._made:
            self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        return str(folder)

    def _begin(self, folder: Path) -> None:
        try:
            self._names.check()
            if self._is_first:
                self._lock = RunLock(folder)
        except ConfigError as error:
            if self._is_first:
                say_error(f"ckptrun: {error}")
            raise SystemExit(ExitCode.config) from error
        self._last = cells_of_last(folder)

    def _run_here(self, start: Callable[[RunConfig], int]) -> None:
        """Run what was taken, in this process, which is a rank of all cells."""
        record = self._record = self._record or SweepRecord(
            self._folder, command=sys.argv, is_silent=not self._is_first
        )
        for place, cell in enumerate(self._planned[self._ran :], self._ran):
            self._ran = place + 1
            if isinstance(cell, PlannedCell):
                self._run(cell, start, record)
            else:
                record.put(place, cell)
                self._say_outcome(place, cell)

    def _run(self, cell: PlannedCell, start: Callable[[RunConfig], int], record: SweepRecord) -> None:
        record.begin(cell.place, cell.name, cell.overrides, identity=cell.identity)
        if self._is_first:
            say(f"\ncell {cell.place + 1}: {cell.name}")
        config = cell.config
        left, watch, began = LeftByStart(config.run_dir), _SignalWatch(), time.monotonic()
        code, verdict, reason = None, CellVerdict.failed, ""
        try:
            with watch:
                code = start(config)
            verdict, reason = cell_verdict(code, left)
        except CkptrunError as error:
            say_error(f"ckptrun: {error}")
            code, reason = exit_code_of(error), str(error)
        except Exception as error:
            # Nobody has foreseen it: Hydra goes on with the next cell, and reports it at the end.
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            # Ranks answer SIGTERM at a step boundary; the watch does not see it.
            is_ended = watch.was_told_to_end or left.was_preempted()
            if is_ended:
                verdict, reason = CellVerdict.failed, "was interrupted"
            save = save_figures(config.run_dir) if self._is_first else None
            seconds = time.monotonic() - began
            ended = record.end(cell.place, seconds=seconds, exit_code=code, verdict=verdict, reason=reason, save=save)
        if is_ended:
            record.write_report()
            # A run that ends with an error because of it has said so.
            raise SystemExit(ExitCode.failed) if code else KeyboardInterrupt
        self._say_outcome(cell.place, ended)

    def _say_outcome(self, place: int, cell: Cell) -> None:
        if self._is_first:
            SweepView(place + 1, parallel=1).ended(place, cell)


def _skipped(name: str, overrides: tuple[str, ...], reason: str) -> Cell:
    code = ExitCode.config
    return Cell(name=name, overrides=overrides, verdict=CellVerdict.skipped, exit_code=code, reason=reason)


def _stays(cell: PlannedCell, before: Cell) -> bool:
    """Whether a cell stays as it was left before."""
    options = cell.config.sweep
    if options.only is Only.failed and before.is_good:
        return True
    return options.resume and before.is_settled and before.identity == cell.identity


def put_cell(config: RunConfig, folder: Path, name: str, *, under_torchrun: bool) -> None:
    """Give a cell its name and its places in the sweep.

    Raises:
        ConfigError: It cannot be a cell of this sweep.
    """
    if under_torchrun and config.fault.kind is not FaultKind.none:
        raise ConfigError(
            f"fault={config.fault.kind}: under torchrun a sweep ends with the first rank that does. Let ckptrun start "
            "the ranks: python -m ckptrun -m ..."
        )
    config.run.name, config.run.dir = name, str(folder / name)
    if config.checkpoint.path is not None:
        # In one place, each cell would resume from the checkpoints of the one before it.
        config.checkpoint.path = f"{config.checkpoint.path.rstrip('/')}/{name}"


class _SignalWatch:
    """Sees the signals that come while the ranks of a run are looked after, and puts the handlers back afterwards.

    The launcher answers Ctrl-C by itself, reports the run as failed like any other, and leaves its handlers in place.
    Python tells of a signal through the wakeup file whoever handles it. On the main thread only.
    """

    def __init__(self) -> None:
        self.was_told_to_end = False

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in _ENDING}
        # None: what was there before Python, and cannot be put back.
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        # One byte per signal. With the other end closed there is always an answer, if only an empty one.
        os.close(self._write)
        self.was_told_to_end = bool(set(os.read(self._read, 4096)) & set(_ENDING))
        os.close(self._read)
        if self.was_told_to_end and isinstance(error, Exception):
            # Raised by the launcher's handler at a place where nobody waits for it.
            raise KeyboardInterrupt from error
