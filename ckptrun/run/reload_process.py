"""Loads checkpoints into objects that a process beside the rank builds, while the rank's own training waits.

A second model in the process that trains would be seen by user code: a registry in a class, a counter, a cache in a
module. So each rank has a process of its own for this, which knows nothing of the rank but its config; those of all
ranks make up groups of their own, load together as a resume does, and compare what they have with what was live at the
request. It takes as much memory as the rank's state, on the same device, while it looks; it ends with its rank.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ckptrun.build import Builder
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.reload import check_reload
from ckptrun.config.checkpoint import LoadSelection
from ckptrun.config.fault import no_point
from ckptrun.config.run import RunConfig, check_world
from ckptrun.errors import CkptrunError
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.verdict import Check, Status
from ckptrun.process_groups import choose_device, open_groups
from ckptrun.processes import LEFT_TO_RANKS, end_with_parent, held_back, print_to
from ckptrun.ranks import Ranks
from ckptrun.run.determinism import make_deterministic
from ckptrun.run.resume import Restorer
from ckptrun.run.watch.broken_connection import is_broken_connection

__all__ = ["ReloadProcess"]

_NAME = "loaded_equals_saved"
_STARTED, _BUILT, _DONE = "started", "built", "done"
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """One checkpoint, and what it must give back on this rank."""

    folder: str
    step: int
    expected: Mapping[str, str]


class ReloadProcess:
    """The process beside one rank. All ranks make one, ask the same questions, and close it.

    Args:
        config: The checked config of the run.
        log: Where what it prints goes; None: where the rank prints to.
        beside: Name of a corner of the store that the groups of these processes meet in.
        ranks: All ranks of the run.
    """

    def __init__(self, config: RunConfig, *, log: Path | None, beside: str, ranks: Ranks) -> None:
        self._limit_seconds = config.launch.timeout_seconds
        self._ranks = ranks
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "ckptrun.launch.rank"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, config, log, beside, dict(os.environ)), name="ReloadProcess"
        )
        with held_back():
            # So its server does not end by what is for the rank to answer.
            self._process.start()
        theirs.close()
        self._has_started = False

    def check(self, folder: str, expected: Mapping[str, str], *, step: int) -> Check:
        """Load ``folder`` into objects built anew there and compare. All ranks call; all get the same.

        Args:
            folder: A committed checkpoint.
            expected: Leaf name -> digest of what was live on this rank.
            step: Of the checkpoint.
        """
        own = self._answer(_Question(folder=folder, step=step, expected=dict(expected)))
        found = [Check.from_json(answer) for answer in self._ranks.gather(own.as_json())]
        order = (Status.different, Status.not_verified, Status.equal)
        return min(found, key=lambda check: order.index(check.status))

    def _answer(self, question: _Question) -> Check:
        try:
            self._pipe.send(question)
            for stage in (_BUILT, _DONE) if self._has_started else (_STARTED, _BUILT, _DONE):
                if not self._pipe.poll(self._limit_seconds):
                    return _unknown(
                        question,
                        f"was not {stage} within launch.timeout_seconds={self._limit_seconds:g}",
                    )
                reached, answer = self._pipe.recv()
                self._has_started = True
                if answer is not None:
                    return Check.from_json(answer)
                if reached != stage:
                    return _unknown(question, f"said {reached!r} instead of {stage!r}")
        except (EOFError, OSError) as error:
            self._process.join(_END_SECONDS)
            return _unknown(question, f"ended with exit code {self._process.exitcode} ({type(error).__name__})")
        return _unknown(question, "gave no answer")

    def close(self) -> None:
        """End it; nothing is waited for that may not come."""
        self._pipe.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _unknown(question: _Question, what: str) -> Check:
    detail = f"step {question.step}: the process that loads {question.folder} {what}"
    return Check(name=_NAME, status=Status.not_verified, detail=detail)


def _serve(pipe: Connection, config: RunConfig, log: Path | None, beside: str, environment: dict[str, str]) -> None:
    """What the process does: answer until nobody asks any more."""
    end_with_parent()
    # Whoever asks the whole job to end means the rank, which then closes the pipe.
    for number in LEFT_TO_RANKS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_RANKS)
    os.environ.update(environment)
    if log is not None:
        print_to(log)
    try:
        make_deterministic(config.train)
        server = _Server(config, beside=beside)
        pipe.send((_STARTED, None))
        while True:
            question = pipe.recv()
            pipe.send((_DONE, server.answer(question, pipe).as_json()))
    except (EOFError, OSError):
        os._exit(0)


class _Server:
    def __init__(self, config: RunConfig, *, beside: str) -> None:
        self._config = config
        self._device = choose_device(config.device)
        groups = open_groups(config, self._device, beside=beside)
        self._ranks = Ranks(groups.control)
        mesh = check_world(config, self._ranks.world_size)
        self._builder = Builder(config, mesh_shape=mesh, device=self._device, rank=self._ranks.rank)
        self._restorer = Restorer(
            seed=config.train.seed,
            data_rank=self._builder.share.data_rank,
            ranks=self._ranks,
            group=groups.saving,
            reached=no_point,
        )

    def answer(self, question: _Question, pipe: Connection) -> Check:
        """Build, load, compare; what goes wrong meanwhile is an answer too."""
        try:
            return self._compared(question, pipe)
        except Exception as error:  # noqa: BLE001  # whatever it is: a resume would end so too
            if is_broken_connection(error):
                return _unknown(question, f"lost contact with that of another rank: {error}")
            return _failed(question, error, rank=self._ranks.rank)
        finally:
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _compared(self, question: _Question, pipe: Connection) -> Check:
        fresh = self._builder.build()
        pipe.send((_BUILT, None))
        try:
            self._restorer.load(fresh, question.folder, LoadSelection())
            return check_reload(
                question.expected,
                lambda: fresh.training.state,
                step=question.step,
                folder=question.folder,
                ranks=self._ranks,
                ignored=Ignored(self._config.proof.ignore),
            )
        finally:
            fresh.close()


def _failed(question: _Question, error: Exception, *, rank: int) -> Check:
    text = str(error) if isinstance(error, CkptrunError) else f"{type(error).__name__}: {error}"
    leaf = next(iter(getattr(error, "leaves", ())), None)
    first = Difference.of_leaf(leaf, step=question.step, rank=rank, expected="a state that loads", got=text)
    component = getattr(error, "component", None) or first.component
    return Check(
        name=_NAME,
        status=Status.different,
        detail=f"step {question.step}: {question.folder} does not load into objects built anew, on rank {rank}: {text}",
        first_difference=replace(first, component=component),
        blame=component,
    )
