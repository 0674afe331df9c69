"""The probe itself: what it hooks into, and what it notes of each update of an optimizer.

An *update* is one call of an optimizer's ``step``, a *step* of the job one update of the optimizer that was stepped
first: in a GAN the second one's update belongs to the step of the first. Several backward passes before an update are
accumulation, and belong to it; so do the batches that loaders have handed out since the update before. A call without
any backward pass, on gradients that are all zero, trains nothing: state is made that way before it is loaded.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.operations import Watch
from _ckptrun_probe.plan import Plan
from _ckptrun_probe.record import Record, quietly
from _ckptrun_probe.strikes import Strikes

__all__ = ["Listener"]


class Listener:
    """Everything that this process has been seen to do since its last update.

    Args:
        plan: What this start is about.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = Record(plan.records)
        self.strikes = Strikes(plan)
        self.watch = Watch(self)
        self.taken = 0
        """How many steps this process has begun to take."""
        self._lock = threading.Lock()
        self._stepped: Any = None
        self._nested: list[Any] = []
        self._in_backward = threading.local()
        self._losses: list[Any] = []
        self._batches: list[Any] = []
        self._iterators: list[dict[str, str]] = []
        self._points: set[str] = set()
        self._tables: dict[tuple[str, ...], int] = {}
        self._scaler: Callable[[], Any] = lambda: None
        self._facts: dict[str, Any] = {}
        self._is_idle = False
        self._has_closure = False
        self._in_memory: dict[str, Any] | None = None
        self._unfinished: list[dict[str, Any]] = []
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """A forked process has a file of its own, in which no names are known."""
        self._lock, self._tables = threading.Lock(), {}

    # --- who and where ---

    @property
    def step(self) -> int:
        """The number of the last step, among all starts as far as that is known."""
        return self.plan.first_step + self.taken

    @staticmethod
    def rank() -> int:
        """Of this process, in its job."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_rank())
        return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0)

    @staticmethod
    def ranks() -> int:
        """How many there are."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_world_size())
        return int(os.environ.get("WORLD_SIZE", "1") or 1)

    def reached(self, point: str, *, begins: bool = True) -> None:
        """The job comes by a point of the step that it is about to take (``begins``) or has taken: fail if planned."""
        if not self.plan.faults:
            return
        step = self.step + 1 if begins else self.step
        self.strikes.at(point, step=step, rank=self.rank())

    def reached_first(self, point: str) -> None:
        """Like ``reached``, the first time since the last update."""
        if point not in self._points:
            self._points.add(point)
            # Within a closure the step that it belongs to is counted already.
            self.reached(point, begins=not self._has_closure)

    # --- updates ---

    def before_update(self, optimizer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """An optimizer is about to step; a hook. With a closure, forward and backward come within the step."""
        if not self._nested:
            quietly(self.record, "a watched step", self.watch.end)
        has_closure = any(callable(given) for given in [*arguments[1:], *options.values()])
        quietly(self.record, "before an update", self._before, optimizer, has_closure)
        if len(self._nested) == 1 and self._leads(optimizer) and not (self._is_idle or has_closure):
            self.reached("after_backward", begins=False)

    def after_update(self, optimizer: Any, *_: Any) -> None:
        """It has; a hook."""
        is_outermost = bool(self._nested) and self._nested[0] is optimizer
        quietly(self.record, "after an update", self._after, optimizer)
        if is_outermost and self._leads(optimizer) and not self._is_idle:
            self._points.clear()
            self.reached("after_optimizer", begins=False)
            self._end_early()

    def _end_early(self) -> None:
        """This start is over when it has taken as many steps as it is about."""
        most = self.plan.most_steps
        if most is not None and self.taken >= most:
            self.record.event("early_end", step=self.taken)
            os._exit(0)

    def _before(self, optimizer: Any, has_closure: bool) -> None:
        from _ckptrun_probe.optimizers import gradients, moments, options

        if optimizer in self._nested:
            # A step that raised has not come to its end.
            del self._nested[self._nested.index(optimizer) :]
        self._nested.append(optimizer)
        if len(self._nested) > 1:
            self._before_inner(optimizer)
            return
        self._is_idle = not (self._losses or has_closure) and _has_only_zeros(optimizer)
        if self._is_idle:
            return
        is_first = self._register(optimizer)
        index = self._stepped.index(optimizer)
        self.taken += self._leads(optimizer)
        prefix, schedule = self._prefixes(index)
        self._has_closure = has_closure
        self._facts = {"optimizer": index, "class": type(optimizer).__name__}
        self._facts["plain"] = dict(options(optimizer, prefix, schedule))
        if not self._is_due() and not is_first:
            return
        names = self._stepped.names
        self._facts["before"] = self.digests([*names.tensors(), *self._stepped.homeless()])
        if not has_closure:
            self._facts["gradients"] = self.digests(gradients(optimizer, names))
        if is_first:
            self._facts["sign"] = self._stepped.sign(optimizer)
            self._facts["moments_before"] = self.digests(moments(optimizer, names, prefix))

    def _before_inner(self, optimizer: Any) -> None:
        """One that another one steps holds the moments, and goes by options of its own."""
        from _ckptrun_probe.optimizers import moments, options

        if self._is_idle or "plain" not in self._facts:
            return
        prefix, schedule = self._prefixes(self._stepped.index(self._nested[0]))
        part = f".inner{len(self._nested) - 2}" if len(self._nested) > 2 else ""
        self._facts["plain"].update(options(optimizer, prefix + part, schedule + part))
        if "moments_before" in self._facts:
            found = moments(optimizer, self._stepped.names, prefix)
            self._facts.setdefault("inner_before", []).append(self.digests(found))

    def _after(self, optimizer: Any) -> None:
        from _ckptrun_probe.optimizers import gradients, moments
        from _ckptrun_probe.streams import stream_digests

        if not self._nested or self._nested[0] is not optimizer:
            return
        inner, self._nested = self._nested[1:], []
        if self._is_idle:
            return
        prefix, _ = self._prefixes(self._stepped.index(optimizer))
        names = self._stepped.names
        facts, self._facts = self._facts, {}
        facts.update(self._seen())
        self._has_closure = False
        if self._is_due() or "moments_before" in facts:
            facts.setdefault("gradients", self.digests(gradients(optimizer, names)))
            held = [p for group in optimizer.param_groups for p in group["params"]]
            facts["after"] = self.digests((f"model.{names.parameters.get(id(p), '?')}", p) for p in held)
            found = dict(moments(optimizer, names, prefix))
            for other in inner:
                found.update(moments(other, names, prefix))
            facts["moments"] = self.digests(found.items())
        facts["rng"] = stream_digests()
        facts["skipped"] = False
        self.record.event("update", **facts)

    def skipped(self, optimizer: Any) -> None:
        """The loss scaler has found gradients that overflow: there is no update, and yet a step is done."""
        quietly(self.record, "a skipped update", self._skip, optimizer)
        self._points.clear()

    def _skip(self, optimizer: Any) -> None:
        from _ckptrun_probe.streams import stream_digests

        self._register(optimizer)
        self.taken += self._leads(optimizer)
        facts = {
            "optimizer": self._stepped.index(optimizer),
            "class": type(optimizer).__name__,
            "plain": {},
            **self._seen(),
        }
        self.record.event("update", **facts, rng=stream_digests(), skipped=True)

    def _seen(self) -> dict[str, Any]:
        """What led to an update, which is told once."""
        self.finish_files()
        losses, self._losses = self._losses, []
        batches, self._batches = self._batches, []
        facts = {"step": self.taken, "rank": self.rank(), "ranks": self.ranks(), "batches": batches}
        facts["iterators"], self._iterators = self._iterators, []
        facts["losses"] = [loss if isinstance(loss, str) else _value(loss) for loss in losses]
        scaler = self._scaler()
        if scaler is not None:
            facts["scaler"] = {
                "scaler.scale": float(scaler.get_scale()).hex(),
                "scaler.growth_tracker": str(scaler._get_growth_tracker()),
            }
        return facts

    def _register(self, optimizer: Any) -> bool:
        """Note an optimizer; return whether it is new."""
        if self._stepped is None:
            from _ckptrun_probe.optimizers import Stepped

            self._stepped = Stepped(self.plan.optimizers)
        return bool(self._stepped.register(optimizer))

    def _leads(self, optimizer: Any) -> bool:
        """Whether a step begins with an update of ``optimizer``."""
        return self.plan.by_update or (self._stepped is not None and self._stepped.index(optimizer) == 0)

    def _may_lead(self, optimizer: Any) -> bool:
        """Whether it does, or may where none was stepped."""
        return self._stepped is None or self._stepped.index(optimizer) < 0 or self._leads(optimizer)

    def _is_due(self) -> bool:
        return self.step % self.plan.every == 0

    @staticmethod
    def _prefixes(index: int) -> tuple[str, str]:
        """Of the names of an optimizer's state, and of its learning rates."""
        return ("optimizer", "schedule") if not index else (f"optimizer.#{index}", f"schedule.#{index}")

    def digests(self, named: Any) -> list[Any]:
        """What stands in a line for values with names: the number of the table of names, and all digests in one."""
        import torch

        from _ckptrun_probe.digest import digests_of

        pairs = list(named)
        names = tuple(name for name, _ in pairs)
        with self._lock:
            # Saves come from threads as well.
            if names not in self._tables:
                self._tables[names] = len(self._tables)
                self.record.event("names", table=self._tables[names], names=names)
        with torch.no_grad():
            tensors = [value for _, value in pairs if isinstance(value, torch.Tensor)]
            whole = digests_of(tensors) if tensors else ""
        if len(tensors) == len(pairs):
            return [self._tables[names], whole]
        each = iter(whole[i : i + 16] for i in range(0, len(whole), 16))
        return [
            self._tables[names],
            "".join(next(each) if isinstance(value, torch.Tensor) else _short(value) for _, value in pairs),
        ]

    # --- what leads to an update ---

    def on_backward(self, roots: Any) -> bool:
        """``backward`` is called; returns whether it is no call within another one."""
        if getattr(self._in_backward, "is", False):
            return False
        quietly(self.record, "backward", self._loss, roots)
        self.reached_first("before_step")
        if "after_forward" in self._points:
            self.reached_first("mid_accumulation")
        self.reached_first("after_forward")
        return True

    def _loss(self, roots: Any) -> None:
        import torch

        from _ckptrun_probe.digest import digest_of

        with torch.no_grad():
            for root in [roots] if isinstance(roots, torch.Tensor) else roots:
                if root.numel() != 1:
                    self._losses.append(f"digest {digest_of(root)}")
                elif root.device.type == "cpu":
                    self._losses.append(_value(root.detach()))
                else:
                    # A copy of one number: it is read when the device is waited for anyway.
                    self._losses.append(root.detach().clone())

    def on_batch(self, label: str, batch: Any, drawn: list[str]) -> None:
        """A loader hands out a batch; ``drawn``: the random streams that it has drawn from so far."""
        from _ckptrun_probe.batches import batch_digest

        self._batches.append([label, batch_digest(batch), drawn])
        if not self._losses:
            self.watch.on_batch()

    def on_iterator(self) -> None:
        """A loader is about to begin."""
        from _ckptrun_probe.streams import stream_digests

        self._iterators.append(stream_digests())

    def on_scaler(self, scaler: Any) -> None:
        """A loss scaler is in use."""
        self._scaler = weakref.ref(scaler)

    # --- files ---

    def on_saved_in_memory(self, what: dict[str, Any]) -> None:
        """Something was saved to memory: the next file that is written is what it is for."""
        self._in_memory = what

    def on_file_written(self, path: str) -> None:
        """A file in the job's folder is opened to be written, or comes there whole."""
        if self._in_memory is not None:
            self._wrote(path, "torch.save in memory", **self._in_memory)
            self._in_memory = None
        elif self.plan.is_checkpoint(path) and not any(facts["path"] == path for facts in self._unfinished):
            self._wrote(path, "job.checkpoints", resumable=True)

    def _wrote(self, path: str, how: str, **what: Any) -> None:
        """A checkpoint is written by a function of the job's own; that it is done shows when the job goes on."""
        facts = {"path": path, "how": how, "step": self.taken, "rank": self.rank()}
        self.record.event("save", **facts, **what)
        self._unfinished.append(facts)

    def on_file_changed(self, event: str, names: list[str]) -> None:
        """A file or folder there is about to be renamed or removed."""
        self.record.event("file", what=event, names=names, step=self.taken, rank=self.rank())

    def finish_files(self) -> None:
        """The job has gone on: what it wrote with functions of its own is written."""
        from _ckptrun_probe.saves import file_size

        unfinished, self._unfinished = self._unfinished, []
        for facts in unfinished:
            self.record.event("saved", **facts, size=file_size(facts["path"], facts["rank"]), failed=False)

    # --- what is hooked ---

    def hook_optimizers(self, module: ModuleType) -> None:
        """``torch.optim.optimizer`` is there."""
        module.register_optimizer_step_pre_hook(self.before_update)
        module.register_optimizer_step_post_hook(self.after_update)

    def hook_backward(self, module: ModuleType) -> None:
        """``torch.autograd`` is there."""
        original = module.backward

        @functools.wraps(original)
        def backward(tensors: Any, *arguments: Any, **options: Any) -> Any:
            is_outermost = self.on_backward(tensors)
            self._in_backward.__dict__["is"] = True
            try:
                return original(tensors, *arguments, **options)
            finally:
                if is_outermost:
                    self._in_backward.__dict__["is"] = False
                    if self._has_closure:
                        self.reached_first("after_backward")

        module.backward = backward  # type: ignore[attr-defined]

    def hook_scaler(self, module: ModuleType) -> None:
        """``torch.amp.grad_scaler`` is there."""
        original = module.GradScaler.step

        @functools.wraps(original)
        def step(scaler: Any, optimizer: Any, *arguments: Any, **options: Any) -> Any:
            self.on_scaler(scaler)
            before = self.taken
            result = original(scaler, optimizer, *arguments, **options)
            if scaler.is_enabled() and self.taken == before and self._may_lead(optimizer):
                self.skipped(optimizer)
            return result

        module.GradScaler.step = step  # type: ignore[method-assign]

    def hook_torch(self, module: ModuleType) -> None:
        """All of torch is there."""
        if self.plan.is_deterministic:
            module.use_deterministic_algorithms(True, warn_only=True)
            module.backends.cudnn.benchmark = False


def _has_only_zeros(optimizer: Any) -> bool:
    """Whether there are gradients, and nothing in them."""
    found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(found) and not any(bool(_local(gradient).any()) for gradient in found)


def _local(tensor: Any) -> Any:
    return getattr(tensor.detach(), "_local_tensor", tensor.detach())


def _value(scalar: Any) -> str:
    return float(scalar.item()).hex() if not scalar.is_complex() else str(scalar.item())


def _short(value: Any) -> str:
    import hashlib

    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
