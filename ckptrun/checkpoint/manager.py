"""Saves and loads the state of a run: request, stage, write, commit; and the way back. Decides nothing about bytes.

Order of a save, on every rank:

1. request: all leaves are collected and digested while nothing moves;
2. stage (asynchronous modes): host copies are taken; from here on training may go on;
3. write: each rank writes its chunks, in this thread, in another, or in another process;
4. commit: when all ranks have written, rank 0 writes the manifest with the digests of step 1 and makes the folder
   visible.

One save is in flight at a time: the next request waits for the last commit. No collective of a save that is in flight
uses a group that training uses.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, assert_never

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save

from ckptrun.checkpoint.failed_rank import first_failure
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.fault import FaultPoint, Reached, no_point
from ckptrun.digest import digest_leaves, digest_with_parts, part_digests
from ckptrun.engine.backends.interface import Url
from ckptrun.engine.commit import list_committed, remove_checkpoint, remove_leftovers
from ckptrun.engine.dcp_process import end_saving_process, serve_rank
from ckptrun.engine.layout import step_name
from ckptrun.engine.locate import locate
from ckptrun.engine.plan_cache import PlanCache
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardWriter
from ckptrun.errors import CheckpointError, CkptrunError, InternalError, SaveRefusedError
from ckptrun.forks import this_process
from ckptrun.local_part import local_part
from ckptrun.processes import held_back
from ckptrun.ranks import Ranks
from ckptrun.state.components import Path, TrainingState, is_per_rank, name_of

__all__ = ["CheckpointManager", "Commit", "SaveRequest", "conflicts_of", "digest_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """What was live when a save was requested, on this rank."""

    step: int
    folder: str
    digests: Mapping[str, str]
    """Leaf name -> digest of this rank's own values."""
    replica_conflicts: tuple[str, ...]
    """Leaves that several ranks hold and that were not the same on all of them."""
    parts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Leaf name -> what tells whether a copy of what this rank holds is the same; where copies are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A save that is done."""

    request: SaveRequest
    blocked_seconds: float
    """How long training waited for it on this rank."""
    background_seconds: float
    """From the end of staging to the commit; 0 for a synchronous save."""
    state_bytes: int
    """Bytes of the tensors that this rank handed over, replicas included."""
    not_removed: str | None = None
    """On rank 0: why older checkpoints that are not kept could not be removed. The next commit tries again."""


@dataclass(slots=True, kw_only=True)
class _InFlight:
    request: SaveRequest
    state_bytes: int
    upload: Future[Any]
    staged: Future[Any] | None
    blocked_seconds: float
    released_at: float
    finished_at: list[float] = field(default_factory=list)


class _AtStep:
    """What the engine tells of a save, with the step, which it does not know: the points at which faults strike."""

    def __init__(self, reached: Reached, step: int) -> None:
        self._reached = reached
        self._step = step

    def __call__(self, name: str) -> None:
        point = FaultPoint.__members__.get(name)
        if point is not None:
            self._reached(point, self._step)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # It travels to nowhere but to the process that saves.
        serve_rank()
        self.__dict__.update(state)


class CheckpointManager:
    """Saves into and loads from one folder of checkpoints. Every method is called on all ranks, in the same order.

    Args:
        root: What holds the ``step_...`` folders.
        mode: Who writes.
        keep: What is removed after a commit.
        ranks: Agreement between ranks on the main thread.
        saving_group: A CPU group for the ranks' background saves; used by nothing else. None without a process group.
        stager: Takes host copies in the asynchronous modes.
        facts: What the manifest says of the run beside the step (plain values).
        on_commit: Told of each commit, on the main thread.
        reached: Told, with the step that is saved, of each point of a save; in whatever thread or process comes by, so
            it must pickle for saves in a process. May not return.
    """

    def __init__(  # noqa: PLR0913  # one composition root passes all of them by name
        self,
        root: Url,
        *,
        mode: SaveMode,
        keep: KeepLast,
        ranks: Ranks,
        saving_group: dist.ProcessGroup | None,
        stager: HostStager | None,
        facts: Mapping[str, Any],
        on_commit: Callable[[Commit], None] = lambda _: None,
        reached: Reached = no_point,
    ) -> None:
        self._reached = reached
        self._root = locate(root)
        self._replaceable: set[str] = set()
        self._plans = PlanCache()
        self._mode = mode
        self._keep = keep
        self._ranks = ranks
        self._group = saving_group
        self._stager = stager
        self._facts = facts
        self._on_commit = on_commit
        self._in_flight: _InFlight | None = None
        self._last: Commit | None = None
        self._process = this_process()

    @property
    def last_commit(self) -> Commit | None:
        """The newest save of this process that is committed."""
        return self._last

    def committed_steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending, as rank 0 sees them."""
        return self._ranks.decide(lambda: list_committed(self._root))

    def remove_leftovers(self) -> list[str]:
        """Remove what killed saves left behind; return the names, as rank 0 saw them."""
        return self._ranks.decide(lambda: list(remove_leftovers(self._root)))

    def remove(self, steps: list[int]) -> None:
        """Remove committed checkpoints."""

        def remove_all() -> None:
            for step in steps:
                remove_checkpoint(self._root, step)

        self._ranks.decide(remove_all)

    def may_replace(self, folders: Iterable[str]) -> None:
        """Allow that a save replaces these checkpoints, which are damaged and of steps that are done again."""
        self._replaceable |= {str(locate(folder)) for folder in folders}

    def prepare(self, state: TrainingState) -> None:
        """Take the memory that saves of ``state`` are staged in, so that the first waits no longer than others."""
        if self._stager is not None:
            leaves = state.leaves()
            self._stager.prepare({name_of(path): _bare(value) for path, value in leaves.items()})

    def save(self, state: TrainingState, step: int) -> None:
        """Request a checkpoint of ``state`` after ``step``; return as soon as training may go on.

        Raises:
            CheckpointError: This save failed, or the one before it, which was still in flight.
        """
        if self._mode is SaveMode.none:
            raise InternalError("save() was called with checkpoint=none.")
        began = time.perf_counter()
        self.wait()
        leaves, containers = state.collect()
        request, digests = self._request(leaves, step)
        reached = _AtStep(self._reached, step)
        reached(FaultPoint.at_request)
        if self._stager is not None:
            self._stager.reached = reached
            if self._stager.overlapped:
                self._stager.on_copied = partial(_require_as_requested, request)
        paths = {name_of(path): path for path in leaves}
        writer = ShardWriter(
            self._root.child(step_name(step)),
            overwrite=request.folder in self._replaceable,
            digests=digests,
            paths=paths,
            containers=containers,
            run={"step": step, "world_size": self._ranks.world_size, **self._facts},
            reached=reached,
        )
        # Sorted: which rank writes a replicated leaf depends on the order, and equal states shall give equal files.
        named = {name: _bare(leaves[paths[name]]) for name in sorted(paths)}
        size = sum(_bytes_held(value) for value in named.values())
        if self._mode is SaveMode.sync:
            _translated(lambda: self._write(named, writer), request)
            self._committed(
                Commit(
                    request=request,
                    blocked_seconds=time.perf_counter() - began,
                    background_seconds=0.0,
                    state_bytes=size,
                )
            )
            return
        response = _translated(lambda: self._write_beside(named, writer), request)
        staged, upload = (
            (response.staging_completion, response.upload_completion)
            if isinstance(response, AsyncSaveResponse)
            else (None, response)
        )
        now = time.perf_counter()
        self._in_flight = _InFlight(
            request=request,
            state_bytes=size,
            upload=upload,
            staged=staged,
            blocked_seconds=now - began,
            released_at=now,
        )
        finished_at = self._in_flight.finished_at
        upload.add_done_callback(lambda _: finished_at.append(time.perf_counter()))

    def wait_staged(self) -> None:
        """Return once nothing of the save in flight is read from live state any more. Called before state changes."""
        flight = self._in_flight
        if flight is not None and flight.staged is not None:
            began = time.perf_counter()
            staged, flight.staged = flight.staged, None
            _translated(staged.result, flight.request)
            flight.blocked_seconds += time.perf_counter() - began
            flight.released_at = time.perf_counter()

    def poll(self) -> None:
        """Take note of a save that has ended meanwhile; raise what it raised. Does not wait, uses no collective."""
        if self._in_flight is not None and self._in_flight.upload.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight, if any.

        Raises:
            CheckpointError: It failed; earlier checkpoints are whole.
        """
        if self._process is not this_process():
            raise CheckpointError(
                "A process that was forked from a rank cannot save for it, nor wait for its saves: what writes them is "
                "in the rank. Save with a ShardWriter of its own."
            )
        flight = self._in_flight
        if flight is None:
            return
        self.wait_staged()
        began = time.perf_counter()
        self._in_flight = None
        _translated(flight.upload.result, flight.request)
        ended = flight.finished_at[0] if flight.finished_at else time.perf_counter()
        self._committed(
            Commit(
                request=flight.request,
                blocked_seconds=flight.blocked_seconds + time.perf_counter() - began,
                background_seconds=max(0.0, ended - flight.released_at),
                state_bytes=flight.state_bytes,
            )
        )

    def close(self) -> None:
        """Wait for the save in flight, end the process that saves, and give staging buffers back."""
        try:
            self.wait()
        finally:
            if self._mode is SaveMode.async_process and self._process is this_process():
                end_saving_process()
            self._plans.close()
            if self._stager is not None:
                self._stager.close()

    def _request(self, leaves: Mapping[Path, Any], step: int) -> tuple[SaveRequest, dict[str, str]]:
        """The request, and the digests that are saved: where ranks do not agree, those of the first."""
        if self._stager is not None and self._stager.overlapped:
            digests, parts = digest_with_parts({name_of(path): value for path, value in leaves.items()})
        else:
            digests, parts = digest_state(leaves), {}
        conflicts = _conflicts(digests, leaves, self._ranks)
        request = SaveRequest(
            step=step,
            folder=str(self._root.child(step_name(step))),
            digests=digests,
            replica_conflicts=tuple(sorted(conflicts)),
            parts=parts,
        )
        return request, {**digests, **conflicts}

    def _write(self, named: dict[str, Any], writer: ShardWriter) -> Any:
        return save(
            named,
            storage_writer=writer,
            planner=self._plans.planner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=self._group,
            no_dist=not self._ranks.distributed,
        )

    def _write_beside(self, named: dict[str, Any], writer: ShardWriter) -> Any:
        # What is blocked here is blocked in the thread that DCP starts, and in the process that this starts: it
        # shall end with its rank, which may be about to save.
        with held_back():
            return async_save(
                named,
                storage_writer=writer,
                planner=self._plans.planner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self._group,
                async_stager=self._stager,
                async_checkpointer_type=_saves_in(self._mode),
                no_dist=not self._ranks.distributed,
            )

    def _committed(self, commit: Commit) -> None:
        self._last = commit
        self._replaceable.discard(commit.request.folder)
        # Rank 0 alone: no rank needs the old checkpoints, and a collective here would tie poll() of all ranks together.
        if self._ranks.rank == 0:
            commit = replace(commit, not_removed=self._remove_old(commit.request.step))
        self._on_commit(commit)

    def _remove_old(self, newest: int) -> str | None:
        """Remove what is not kept; return what went wrong. The save is done: no reason to end the run."""
        try:
            for step in self._keep.to_remove(list_committed(self._root), newest=newest):
                remove_checkpoint(self._root, step, reached=_AtStep(self._reached, newest))
        except (OSError, CheckpointError) as error:
            return f"{type(error).__name__}: {error}"
        return None


def digest_state(leaves: Mapping[Path, Any]) -> dict[str, str]:
    """Leaf name -> digest. A collective: every rank calls with its leaves."""
    return digest_leaves({name_of(path): value for path, value in leaves.items()})


def conflicts_of(digests: Mapping[str, str], state: TrainingState, ranks: Ranks) -> list[str]:
    """Leaves on which ranks that should hold the same values do not agree now. All ranks call.

    ``digests`` is what :func:`digest_state` gave for ``state`` on this rank.
    """
    return sorted(_conflicts(digests, state.leaves(), ranks))


def _conflicts(own: Mapping[str, str], leaves: Mapping[Path, Any], ranks: Ranks) -> dict[str, str]:
    """The leaves on which ranks that should hold the same values do not agree, each with the digest of the first rank.

    Rank 0 alone sees what all ranks hold, and of leaves that are not one rank's own only where they differ: they are
    equal on all ranks unless ranks hold different leaves.
    """
    per_rank = {name_of(path) for path in leaves if is_per_rank(path)}
    common = {name: digest for name, digest in own.items() if name not in per_rank}
    alone = {name: digest for name, digest in own.items() if name in per_rank}
    everywhere = ranks.collect((hash_of(common), alone))
    same, conflicts = ranks.decide(
        lambda: (len({of_common for of_common, _ in everywhere}) == 1, _differing(alone for _, alone in everywhere))
    )
    if same:
        return conflicts
    in_common = ranks.collect(common)
    return {**conflicts, **ranks.decide(lambda: _differing(in_common))}


def _differing(of_ranks: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Leaf name -> the digest of the first rank that holds it, where another one has another."""
    first: dict[str, str] = {}
    conflicts: set[str] = set()
    for digests in of_ranks:
        conflicts |= {name for name, digest in digests.items() if first.setdefault(name, digest) != digest}
    return {name: first[name] for name in conflicts}


def hash_of(digests: Mapping[str, str]) -> str:
    """One digest of many, independent of their order."""
    return digest_leaves({"all": sorted(digests.items())})["all"]


def _require_as_requested(request: SaveRequest, copied: Mapping[str, Any]) -> None:
    """Refuse a copy that is not what was live at the request, however it came to that. In the thread that copies.

    Counters of changes do not see all of them: not what goes through ``.data``, NumPy or a raw pointer.
    """
    found = part_digests(copied)
    wrong = [name for name in sorted(request.parts) if found.get(name) != request.parts[name]]
    if wrong:
        more = f" and {len(wrong) - 1} more leaves were" if len(wrong) > 1 else " was"
        raise SaveRefusedError(
            f"The save of step {request.step} is not committed: leaf '{wrong[0]}'{more} changed between the request "
            f"and the end of the copy. Nothing was written to {request.folder}; earlier checkpoints are untouched. "
            "Something changes the state outside of the optimizer's step: use checkpoint.overlapped_staging=false.",
            leaves=wrong,
            folder=request.folder,
        )


def _bare(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _bytes_held(value: Any) -> int:
    if not isinstance(value, Tensor):
        return 0
    local = local_part(value)
    return local.numel() * local.element_size()


def _translated(function: Callable[[], Any], request: SaveRequest) -> Any:
    """Call ``function``; turn what DCP raises into a CheckpointError that says what happened on which rank."""
    try:
        return function()
    except CheckpointException as error:
        rank, cause = first_failure(error)
        raise CheckpointError(
            f"The save of step {request.step} failed on rank {rank}: {type(cause).__name__}: {cause}. "
            f"Nothing was committed to {request.folder}; earlier checkpoints are untouched.",
            folder=request.folder,
        ) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, CkptrunError):
            raise
        raise CheckpointError(
            f"The save of step {request.step} failed: {type(error).__name__}: {error}. "
            f"Nothing was committed to {request.folder}; earlier checkpoints are untouched.",
            folder=request.folder,
        ) from error


def _saves_in(mode: SaveMode) -> AsyncCheckpointerType:
    """What DCP starts to save beside training."""
    match mode:
        case SaveMode.async_thread:
            return AsyncCheckpointerType.THREAD
        case SaveMode.async_process:
            return AsyncCheckpointerType.PROCESS
        case SaveMode.none | SaveMode.sync:
            raise InternalError(f"checkpoint={mode} saves nothing beside training.")
        case _:
            assert_never(mode)
