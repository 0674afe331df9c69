"""``ShardWriter`` and ``ShardReader``: format 1 behind the interfaces of torch.distributed.checkpoint (DCP).

Planning, dedup and resharding stay DCP's. What one rank writes is in ``write_rank``, how it becomes visible in
``commit``, what one rank reads in ``read_rank``; here is only who calls what, on which rank.

[Note: how the save id travels]
Rank 0 draws it in ``prepare_global_plan`` and puts a ticket for each rank into the plans that DCP scatters. A planner
that caches plans (``enable_plan_caching=True``) gives ``write_data`` the plan of an earlier save, with the ticket of
that save in it. So the ticket is not looked for in the plan: unpickling it, which happens in the thread that runs the
save, leaves it where ``write_data`` takes it.
"""

import contextlib
import dataclasses
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ckptrun.engine import dcp_process as dcp_process  # for what it does in forked children
from ckptrun.engine.backends.interface import Url
from ckptrun.engine.commit import commit, hold_save, require_free, working_folder
from ckptrun.engine.consistency import contradictions
from ckptrun.engine.cycle_collector import collection_paused
from ckptrun.engine.layout import new_save_id
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Manifest, read_manifest
from ckptrun.engine.points import PointHook, untold
from ckptrun.engine.read_rank import read_rank, to_metadata
from ckptrun.engine.save_results import RankResult, SaveFacts, build_manifest, kinds_in, require_same_kinds
from ckptrun.engine.write_rank import SaveTarget, check_plan, write_rank
from ckptrun.errors import CheckpointError, InternalError, SaveRefusedError
from ckptrun.forks import Process, this_process

__all__ = ["ShardReader", "ShardWriter"]

_ARRIVED = threading.local()


@dataclasses.dataclass(frozen=True, slots=True)
class _Ticket:
    """Tells a rank what the save is called and which rank it is. See [Note: how the save id travels]."""

    save_id: str
    rank: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.save_id, self.rank)


def _arrive(save_id: str, rank: int) -> _Ticket:
    _ARRIVED.ticket = _Ticket(save_id, rank)
    return cast("_Ticket", _ARRIVED.ticket)


class ShardWriter(StorageWriter):
    """Writes one checkpoint; for ``dcp.save`` and ``dcp.async_save``, in a thread or a process.

    Every rank makes its own. What fails on one rank is raised on all, as DCP does it: inside a ``CheckpointException``,
    whose ``failures`` hold the error of each rank that had one. Nothing is committed then, and earlier checkpoints are
    as they were.

    Args:
        url: The folder that becomes the checkpoint: a local path or any fsspec URL.
        overwrite: Replace a committed checkpoint in ``url``, in one go; otherwise it is a CheckpointExistsError. Files
            there that no save has written stay.
        digests: Leaf name -> digest of its bits when the save was requested.
        paths: Leaf name -> its place in the nested state, where DCP's planner does not know it.
        containers: Path -> kind (``ckptrun.values.dict_kind``, or ``tuple``) of each container in the nested state that
            is no plain dict and no list.
        run: Plain values about the run, such as ``step``; those of rank 0 are stored.
        reached: Told of each point from ``before_write`` on, see ``ckptrun.engine.points``. Must pickle for saves in a
            process.
    """

    def __init__(  # noqa: PLR0913  # all but the first by name
        self,
        url: Url,
        *,
        overwrite: bool = False,
        digests: Mapping[str, str] | None = None,
        paths: Mapping[str, tuple[str | int, ...]] | None = None,
        containers: Mapping[tuple[str | int, ...], str] | None = None,
        run: Mapping[str, Any] | None = None,
        reached: PointHook = untold,
    ) -> None:
        self._target = locate(url)
        self._overwrite = overwrite
        self._facts = SaveFacts(
            digests=dict(digests or {}), paths=dict(paths or {}), run=dict(run or {}), containers=dict(containers or {})
        )
        self._reached = reached
        self._ticket: _Ticket | None = None
        self._lock: weakref.finalize[Any, Any] | None = None
        self._process: Process | None = None
        """That of the save that is planned."""

    def __getstate__(self) -> dict[str, Any]:
        # A save in another process takes its lock there.
        return {**self.__dict__, "_lock": None}

    @property
    def checkpoint_id(self) -> str:
        """The folder, as DCP's log names it."""
        return str(self._target)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Write to another folder from now on. Every rank."""
        if checkpoint_id is not None:
            self._target = locate(checkpoint_id)
        self._ticket = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Start a save. Every rank.

        Raises:
            CheckpointError: DCP is asked to save without agreement between ranks.
        """
        if not kwargs.get("use_collectives", True):
            raise CheckpointError(
                f"{self._target} cannot be saved with use_collectives=False: a commit needs all ranks. Leave it out.",
                folder=str(self._target),
            )
        self._ticket, self._process = None, this_process()
        # One of an earlier save that ended between plan and write must not be taken for ours.
        _ARRIVED.ticket = None

    def storage_meta(self) -> StorageMeta:
        """What planners are told. The save has no id yet."""
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuse what cannot be stored. Every rank, before any writes.

        Raises:
            UnsupportedLeafError: Names the leaf.
        """
        check_plan(plan)
        # A plan that is not usable stands for the one of an earlier save, whose tensors were the same.
        return dataclasses.replace(plan, storage_data=kinds_in(plan)) if plan.usable else plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make sure that the checkpoint may be written, and name the save. Rank 0.

        Raises:
            CheckpointExistsError: A checkpoint is there and may not be overwritten.
            CheckpointError: Ranks have tensors of different shape or dtype under one name.
        """
        require_free(self._target, overwrite=self._overwrite)
        require_same_kinds([plan.storage_data if isinstance(plan.storage_data, dict) else None for plan in plans])
        save_id = new_save_id()
        self._release()
        # A save that fails lets go of its lock with its writer, and a process that dies with itself.
        self._lock = weakref.finalize(self, hold_save(self._target, save_id))
        # Without a process group nothing is pickled, so nothing arrives.
        self._ticket = _Ticket(save_id, 0)
        return [dataclasses.replace(plan, storage_data=_Ticket(save_id, rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part; done on return. Every rank.

        Raises:
            UnsupportedLeafError: A leaf is neither tensor nor plain value; this rank has written nothing.
            CheckpointError: The plan does not fit the state.
            OSError: From the storage.
        """
        self._require_own_process()
        ticket = getattr(_ARRIVED, "ticket", None) or self._ticket
        _ARRIVED.ticket = None
        if ticket is None:
            raise InternalError("This rank was told to write, but not what the save is called.")
        folder = working_folder(self._target, ticket.save_id)
        target = SaveTarget(folder=folder, rank=ticket.rank, save_id=ticket.save_id)
        try:
            result = write_rank(plan, planner, target, self._facts, self._reached)
        except BaseException:
            self._release()
            raise
        index = MetadataIndex(f"rank {ticket.rank}")
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(index=index, size_in_bytes=result.bytes, storage_data=result)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit what all ranks have written. Rank 0.

        Raises:
            CheckpointError: What the ranks wrote does not make a checkpoint.
            SaveRefusedError: What is said of the run contradicts what was saved, or the name of the folder.
            OSError: From the storage.
        """
        self._require_own_process()
        if self._ticket is None:
            raise InternalError("finish() was called for a save that was not planned here.")
        of_ranks = [cast("RankResult", result.storage_data) for rank in results for result in rank]
        try:
            with collection_paused():
                manifest = build_manifest(metadata, of_ranks, self._facts, save_id=self._ticket.save_id)
            self._require_consistent(manifest)
            commit(self._target, manifest, reached=self._reached)
            # dcp.save() returns it.
            metadata.version = CURRENT_DCP_VERSION
            metadata.storage_meta = StorageMeta(checkpoint_id=self.checkpoint_id, save_id=manifest.save_id)
        finally:
            self._release()

    def _require_consistent(self, manifest: Manifest) -> None:
        found = contradictions(manifest, self._target.name)
        if found:
            raise SaveRefusedError(
                f"{self._target} is not committed, because it would contradict itself: {found[0]}. Earlier "
                "checkpoints are untouched.",
                leaves=[one.leaf for one in found if one.leaf is not None],
                folder=str(self._target),
            )

    def _require_own_process(self) -> None:
        if self._process is not this_process():
            raise CheckpointError(
                f"The save of {self._target} was planned in another process, from which this one was forked; only that "
                "one can go on with it. Start a save of its own here.",
                folder=str(self._target),
            )

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            # The checkpoint counts without it; a lock file that stays is a leftover once this process is gone.
            with contextlib.suppress(OSError):
                lock()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a local path, or a URL that fsspec can open here."""
        return _can_locate(checkpoint_id)


def _can_locate(url: Url) -> bool:
    try:
        locate(url)
    except (ValueError, ImportError):
        return False
    return True


class _Unreadable:
    """Stands for metadata that could not be read, and raises the reason once it is looked at.

    DCP turns every exception of ``read_metadata`` into an AssertionError, and class and fields would be lost.
    """

    def __init__(self, error: CheckpointError | OSError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


class ShardReader(StorageReader):
    """Reads one checkpoint; for ``dcp.load``, into any layout of the same leaves.

    Every rank makes its own, and reads only the byte ranges that it needs. Every byte is checked before ``dcp.load``
    returns; after an error the target tensors are undefined. What fails is raised inside a ``CheckpointException``.

    Args:
        url: The folder of the checkpoint: a local path or any fsspec URL.
        manifest: Its manifest, where one rank has read it for all; None: every rank reads it.
    """

    def __init__(self, url: Url, *, manifest: Manifest | None = None) -> None:
        self._folder = locate(url)
        self._load_id = new_save_id()
        self._given = manifest
        self._manifest: Manifest | None = None
        self._failure: CheckpointError | OSError | None = None

    @property
    def checkpoint_id(self) -> str:
        """The folder, as DCP's log names it."""
        return str(self._folder)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Read from another folder from now on. Every rank."""
        if checkpoint_id is not None:
            self._folder = locate(checkpoint_id)
            self._given = None
        self._load_id = new_save_id()
        self._manifest = self._failure = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what is in the checkpoint, in DCP's words. Every rank.

        Raises:
            CheckpointNotFoundError: There is none. Raised as soon as the result is used, as is
            ManifestError: It cannot be trusted.
        """
        try:
            with collection_paused():
                self._manifest = self._given or read_manifest(self._folder)
                metadata = to_metadata(self._manifest)
                metadata.storage_meta = StorageMeta(
                    checkpoint_id=self.checkpoint_id, save_id=self._manifest.save_id, load_id=self._load_id
                )
        except (CheckpointError, OSError) as error:
            self._failure = error
            return cast("Metadata", _Unreadable(error))
        self._failure = None
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raise what ``read_metadata`` found. Every rank."""
        if self._failure is not None:
            raise self._failure

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add. Every rank."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add. Rank 0."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what ``planner`` resolves; done on return. Every rank.

        Raises:
            StateMismatchError: A leaf has another dtype or kind in the state than in the checkpoint, or is not whole in
                the checkpoint. Nothing has been read.
            ShardFileError: A file is missing or damaged.
        """
        if self._manifest is None:
            raise InternalError("read_data() was called before read_metadata().")
        with collection_paused():
            read_rank(plan, planner, self._folder, self._manifest)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a local path, or a URL that fsspec can open here."""
        return _can_locate(checkpoint_id)
