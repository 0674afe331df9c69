"""The probe in one process: its hooks are set before the job's own code runs, and its end is noted."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType, TracebackType

from _ckptrun_probe.imports import AfterImport
from _ckptrun_probe.listen import Listener
from _ckptrun_probe.plan import Plan
from _ckptrun_probe.record import Record, quietly
from _ckptrun_probe.strikes import Strikes

__all__ = ["begin", "mark", "serve_warm"]

_listener: Listener | None = None


def begin(path: str) -> None:
    """Listen in this process from here on; called before the job's own code runs."""
    global _listener  # one per process
    try:
        plan = Plan(path)
    except (OSError, ValueError, KeyError):
        # The proof is over, and what it has started goes on.
        return
    if plan.warm:
        from _ckptrun_probe.warm import hand_over

        hand_over(plan.warm)
    listener = _listener = Listener(plan)
    record = listener.record
    calls: dict[str, Callable[[ModuleType], None]] = {
        "torch": listener.hook_torch,
        "torch.optim.optimizer": listener.hook_optimizers,
        "torch.autograd": listener.hook_backward,
        "torch.amp.grad_scaler": listener.hook_scaler,
        "torch.nn.modules.module": listener.watch.hook_modules,
    }
    from _ckptrun_probe.batches import batch_hooks
    from _ckptrun_probe.children import hook_children
    from _ckptrun_probe.files import move_hooks, watch_files
    from _ckptrun_probe.saves import save_hooks
    from _ckptrun_probe.trainers import trainer_hooks

    calls["subprocess"] = functools.partial(hook_children, listener)
    calls.update(batch_hooks(listener))
    calls.update(save_hooks(listener))
    calls.update(trainer_hooks(listener))
    calls.update(move_hooks(listener))
    if plan.tells_places:
        from _ckptrun_probe.places import meeting_hooks

        calls.update(meeting_hooks(listener))
    AfterImport({name: functools.partial(quietly, record, name, call) for name, call in calls.items()}).install()
    quietly(record, "files", watch_files, listener)
    _note_the_end(listener)
    if plan.tells_places:
        quietly(record, "the program", _note_program, record)


def _note_program(record: Record) -> None:
    """Say what this process was started as, and at its end what it has imported."""
    from _ckptrun_probe.warm import key_of

    key = key_of(list(getattr(sys, "orig_argv", ())))
    if key is None:
        return
    record.event("program", key=key, executable=sys.executable, environment=dict(os.environ))
    atexit.register(lambda: record.event("modules", modules=_imported()))


def _imported() -> list[str]:
    """Modules that were installed, in the order in which they were imported."""
    import sysconfig

    folders = tuple(os.path.join(sysconfig.get_path(key), "") for key in ("stdlib", "purelib", "platlib"))  # noqa: PTH118
    found = []
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if isinstance(origin, str) and origin.startswith(folders) and not name.startswith("_ckptrun_probe"):
            found.append(name)
    return found


def serve_warm() -> None:
    """Import what a job imports, and become it whenever it is started, in a forked child."""
    from _ckptrun_probe.warm import serve

    listener = _listener
    if listener is None:
        raise SystemExit("this process has no plan")

    def retarget(path: str) -> None:
        listener.plan = plan = Plan(path)
        listener.strikes = Strikes(plan)
        listener.record.retarget(plan.records)

    serve(listener.plan.server["place"], listener.plan.server["modules"], retarget)


def _note_the_end(listener: Listener) -> None:
    def ended() -> None:
        if listener.taken:
            quietly(listener.record, "the end", listener.finish_files)
        if listener.taken or "torch" in sys.modules:
            quietly(listener.record, "the end", lambda: listener.record.event("end", step=listener.taken))

    atexit.register(ended)
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        def tell() -> None:
            listener.record.event("exception", time=time.time(), text=f"{kind.__name__}: {error}"[:2000])

        quietly(listener.record, "an exception", tell)
        before(kind, error, at)

    sys.excepthook = hook


def mark(number: int) -> None:
    """See ``ckptrun.probe.step``."""
    listener = _listener
    if listener is not None:
        quietly(
            listener.record,
            "a step that the job counts",
            lambda: listener.record.event("counter", who="ckptrun.probe.step", number=int(number), step=listener.taken),
        )
