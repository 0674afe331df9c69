"""Notices that a rank hangs while the others wait for it in a collective, and says which, before they give up.

Two threads on each rank. One looks, a few times a second, where the main thread and the threads of a save stand (see
``stacks.py``), and decides whether the run stands still (``stall.py``). The other exchanges heartbeats through the
store, on a connection of its own, because a call of the store does not return while its host is stopped. A rank reads
the others' heartbeats only while it waits itself, so a run that moves costs one ``set`` per rank and second.

Clocks of machines are never compared: a heartbeat is as old as it has been unchanged here.

[Note: what waiting is]
A thread waits only if its stack says so and it has used no processor time since the last look. So neither a long
backward nor a loop of many collectives is mistaken for one collective that does not end. A rank that computes for long
and then waits for a slower one waits from then on, not from its last point on.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

from torch._C._distributed_c10d import Store

from ckptrun.run.watch.stacks import Activity, activity_of, describe, is_of_checkpoint
from ckptrun.run.watch.stall import SILENT_SHARE, Heartbeat, Peer, Stall, Track, find_stall

__all__ = ["Watchdog"]

_LIMIT_SHARE = 0.8
# Of the limit: how long a rank waits before it looks at the others, and how often it does.
_ATTENTIVE_SHARE = 0.2
_READ_SHARE = 0.1
# After this time without a look of its own this rank was stopped, or had no processor, and so may the others.
_BLIND_SHARE = 0.125
_BLIND_SECONDS = 1.0
# One collective costs several times as much; a thread that waits uses nothing at all.
_WORK_NS = 50_000

_Mark: TypeAlias = tuple[float, int, str, int]
"""When, at which step, which point, and how many points of the step came before."""


@dataclass(slots=True)
class _Seen:
    """A heartbeat of another rank, and since when it is known."""

    number: int
    since: float
    heartbeat: Heartbeat | None


class Watchdog:
    """Watches the ranks of a run from one of them.

    Create it on any thread; points are told apart by whether the main thread passes them. With one rank it does
    nothing.

    Args:
        connect: Returns a new connection to the store that all ranks see, prefixed by the attempt. Called once, in a
            thread.
        rank: This rank.
        world_size: The number of ranks.
        timeout_seconds: How long ranks wait in one collective before they give up. The watchdog speaks earlier.
        on_stall: Called at most once, in a thread; as a rule it ends the process. Several ranks may call theirs at the
            same time. When ``store_is_silent``, it must not use the store.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Store],
        rank: int,
        world_size: int,
        timeout_seconds: float,
        on_stall: Callable[[Stall], None],
    ) -> None:
        self._connect = connect
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout_seconds
        self._limit = _LIMIT_SHARE * timeout_seconds
        self._interval = min(1.0, timeout_seconds / 20)
        self._on_stall = on_stall
        self._main_thread = threading.main_thread().ident
        now = time.monotonic()
        self._main_mark: _Mark = (now, 0, "", 0)
        self._save_mark: _Mark = (now, 0, "", 0)
        self._awake_since = now
        self._main_watch = _Watch(now)
        self._save_watch = _Watch(now)
        self._heartbeat = self._look(now)
        self._is_attentive = False
        self._seen: dict[int, _Seen] = {}
        self._asked_at: float | None = None
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"Watchdog{target.__name__}", daemon=True)
            for target in (self._exchange, self._watch)
        ]

    def passed(self, point: str, step: int) -> None:
        """Take note that this rank comes by ``point``. Called often and in any thread: it only stores a tuple."""
        if threading.get_ident() == self._main_thread:
            last = self._main_mark
            self._main_mark = (time.monotonic(), step, point, last[3] + 1 if last[1] == step else 0)
        else:
            last = self._save_mark
            self._save_mark = (time.monotonic(), step, point, last[3] + 1 if last[1] == step else 0)

    def start(self) -> None:
        """Begin to watch. All ranks call, once there is a store."""
        if self._world_size > 1:
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """Stop, and tell the others that this rank's silence means nothing. All ranks call before they end."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                # Not for ever: the store may not answer.
                thread.join(1.0)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._interval):
            now = time.monotonic()
            if now - last > max(_BLIND_SECONDS, _BLIND_SHARE * self._limit):
                self._awake_since = now
            last = now
            own = self._heartbeat = self._look(now)
            waited = max((track.seconds for track in (own.main, own.save) if track.activity.is_waiting), default=0.0)
            self._is_attentive = waited >= _ATTENTIVE_SHARE * self._limit
            if waited >= self._limit:
                stall = self._stall(own, now)
                if stall is not None:
                    self._on_stall(stall)
                    return

    def _stall(self, own: Heartbeat, now: float) -> Stall | None:
        asked_at = self._asked_at
        if asked_at is not None and now - max(asked_at, self._awake_since) >= SILENT_SHARE * self._limit:
            track = own.main if own.main.activity.is_waiting else own.save
            return Stall(culprits=(), waiting=track, timeout_seconds=self._timeout, store_is_silent=True)
        peers = {}
        for rank, seen in self._seen.items():
            age = max(0.0, now - max(seen.since, self._awake_since))
            heartbeat = seen.heartbeat.aged(age) if seen.heartbeat is not None else None
            peers[rank] = Peer(heartbeat=heartbeat, silent_seconds=age)
        return find_stall(own, peers, limit_seconds=self._limit, timeout_seconds=self._timeout)

    def _look(self, now: float) -> Heartbeat:
        """Where this rank stands."""
        # Marks first: a thread that moves after that only seems to stand still until the next look.
        main_mark, save_mark = self._main_mark, self._save_mark
        frames = sys._current_frames()
        # A stack that holds itself would live until the collector comes by.
        frames.pop(threading.get_ident(), None)
        awake = self._awake_since
        main = self._main_watch.look(now, awake, main_mark, threading.main_thread(), frames.get(self._main_thread or 0))
        saver = _saver(frames)
        save = self._save_watch.look(now, awake, save_mark, saver, frames.get(saver.ident or 0) if saver else None)
        noteworthy = _ATTENTIVE_SHARE * self._limit
        return Heartbeat(main=main.track(noteworthy), save=save.track(noteworthy))

    def _exchange(self) -> None:
        # A store that is gone: the launcher has ended, and the run with it.
        with contextlib.suppress(RuntimeError, OSError):
            self._asked_at = time.monotonic()
            store = self._connect()
            self._asked_at = None
            read_at = 0.0
            for number in itertools.count():
                over = self._over.is_set()
                heartbeat = _ENDED if over else self._heartbeat
                store.set(_key(self._rank), f"{number} {heartbeat.to_json()}")
                if over:
                    return
                read_at = self._read(store, read_at)
                self._over.wait(self._interval)
        self._over.set()

    def _read(self, store: Store, read_at: float) -> float:
        """Read what the others say, if it is time to; return when that was done last."""
        now = time.monotonic()
        if not self._is_attentive:
            self._seen = {}
            return 0.0
        if now - read_at < _READ_SHARE * self._limit:
            return read_at
        seen = self._seen
        self._asked_at = now
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        known = [rank for rank in others if (rank in seen and seen[rank].heartbeat) or store.check([_key(rank)])]
        values = dict(zip(known, store.multi_get([_key(rank) for rank in known]) if known else [], strict=True))
        self._asked_at = None
        self._seen = {rank: _updated(seen.get(rank), values.get(rank)) for rank in others}
        return now


class _Watch:
    """Follows one track of this rank from look to look. See [Note: what waiting is]."""

    def __init__(self, now: float) -> None:
        self._mark: _Mark = (now, 0, "", 0)
        self._activity = Activity.idle
        self._busy_since = now
        self._waits_since = now
        self._processor_ns = 0
        self._seconds = 0.0
        self._frame: FrameType | None = None

    def look(
        self, now: float, awake: float, mark: _Mark, thread: threading.Thread | None, frame: FrameType | None
    ) -> "_Watch":
        """Take note of where the track stands. Before ``awake`` nobody could move."""
        activity = activity_of(frame) if thread is not None else Activity.idle
        processor_ns = _processor_ns(thread) if thread is not None else 0
        worked = activity is Activity.collective and processor_ns - self._processor_ns > _WORK_NS
        if self._activity is Activity.idle:
            self._busy_since = now
        if worked or mark is not self._mark or not (activity.is_waiting and self._activity.is_waiting):
            self._waits_since = now
        since = self._waits_since if activity.is_waiting else max(mark[0], self._busy_since, awake)
        self._mark, self._activity, self._processor_ns = mark, activity, processor_ns
        self._seconds, self._frame = now - since, frame
        return self

    def track(self, noteworthy_seconds: float) -> Track:
        """What was seen; the frame is put into words only after some time without a move."""
        # A frame that is kept would keep what it refers to.
        frame, self._frame = self._frame, None
        _, step, point, passes = self._mark
        return Track(
            activity=self._activity,
            seconds=self._seconds,
            step=step,
            point=str(point),
            passes=passes,
            frame=describe(frame) if self._seconds >= noteworthy_seconds and frame is not None else "",
        )


def _saver(frames: dict[int, FrameType]) -> threading.Thread | None:
    """The thread that says most about a save in flight: one in a collective, or else at work."""
    savers = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is not None and thread is not threading.main_thread() and is_of_checkpoint(frame):
            savers[activity_of(frame)] = thread
    most_telling = (Activity.collective, Activity.working, Activity.saving)
    return next((savers[activity] for activity in most_telling if activity in savers), None)


def _processor_ns(thread: threading.Thread) -> int:
    """Processor time that the thread has used so far; 0 where that cannot be known."""
    try:
        # What pthread_getcpuclockid() gives on Linux; unlike that, it may be asked for a thread that has ended.
        return time.clock_gettime_ns((~(thread.native_id or 0) << 3) | 6)
    except OSError:
        return 0


def _updated(seen: _Seen | None, value: bytes | None) -> _Seen:
    """What is known of a rank once ``value`` was read."""
    number, text = value.decode().split(" ", 1) if value is not None else ("-1", "")
    if seen is not None and seen.number == int(number):
        return seen
    return _Seen(int(number), time.monotonic(), Heartbeat.from_json(text) if text else None)


def _key(rank: int) -> str:
    return f"watchdog/{rank}"


_NOTHING = Track(activity=Activity.ended, seconds=0.0, step=0, point="", passes=0)
_ENDED = Heartbeat(main=_NOTHING, save=_NOTHING)
