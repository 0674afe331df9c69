"""Decides whether a run stands still, and which rank it waits for, from what all ranks say of themselves.

A function of its arguments: no clock, no store, no thread. The rule: a rank that has waited in one and the same
collective for the limit names, in this order,

1. the ranks that say nothing any more;
2. the ranks that do not move and are at work, that is not waiting for anybody;
3. if all wait: the ranks that are behind, or, once a collective has given up, nobody.

A rank that computes declares nothing, however long the others take: so long work on all ranks, as compilation, is no
stall. The main thread and the threads of a save are two tracks, which wait for each other's on other ranks.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckptrun.run.watch.stacks import Activity

__all__ = ["MAIN", "SAVE", "SILENT_SHARE", "Culprit", "Heartbeat", "Peer", "Stall", "Track", "find_stall"]

MAIN = "main"
SAVE = "save"
SILENT_SHARE = 0.6
"""Of the limit: after this time without a word a rank, or the store, is taken for dead.

A rank that stopped together with the others has been seen for less time than they have waited: they look at each other
only when they wait, and what they hear is a little old.
"""
_NAMED_AT_MOST = 4
# Of the limit, for the same reason.
_STILL_SHARE = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """How far the main thread, or the threads of a save, of one rank are."""

    activity: Activity
    seconds: float
    """Waiting: for how long in this one collective. Otherwise: since the last point."""
    step: int
    point: str
    """The last one that was passed; empty: none yet."""
    passes: int
    """Points passed in this step before it."""
    frame: str = ""

    @property
    def where(self) -> str:
        """In words."""
        place = f"in step {self.step} after '{self.point}'" if self.point else "before its first point"
        return f"{place} ({self.frame})" if self.frame else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a rank says of itself."""

    main: Track
    save: Track

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Heartbeat":
        """The inverse of :meth:`to_json`."""
        return Heartbeat(**{name: _track(fields) for name, fields in json.loads(text).items()})

    def aged(self, seconds: float) -> "Heartbeat":
        """The same, ``seconds`` later, if nothing has moved."""
        return Heartbeat(
            main=replace(self.main, seconds=self.main.seconds + seconds),
            save=replace(self.save, seconds=self.save.seconds + seconds),
        )


def _track(fields: Mapping[str, Any]) -> Track:
    return Track(**{**fields, "activity": Activity(fields["activity"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What is known of another rank."""

    heartbeat: Heartbeat | None
    """Its last one, as old as it is by now; None: there was none."""
    silent_seconds: float
    """Since when this rank looks at it and has heard nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """A rank that the others wait for."""

    rank: int
    stopped: bool
    """Its process does not answer."""
    name: str
    """Of the track."""
    track: Track | None

    def __str__(self) -> str:
        track = self.track
        if track is None:
            return f"rank {self.rank} has said nothing since the start: {_NO_ANSWER}"
        where = track.where
        if self.stopped:
            return f"rank {self.rank} has said nothing for {track.seconds:.1f} s: {_NO_ANSWER}; last heard of {where}"
        if track.activity.is_waiting:
            return f"rank {self.rank} is behind: it has waited for {track.seconds:.1f} s {where}"
        who = f"rank {self.rank}" if self.name == MAIN else f"the checkpoint thread of rank {self.rank}"
        return f"{who} has not moved for {track.seconds:.1f} s: it stands {where}"


_NO_ANSWER = "its process does not answer (stopped, its machine is gone, or C code keeps the interpreter to itself)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A run that stands still."""

    culprits: tuple[Culprit, ...]
    """Empty: all ranks wait, and none is behind; or the store is silent."""
    waiting: Track
    """Where the rank that declares it waits."""
    timeout_seconds: float
    store_is_silent: bool = False
    """Whoever hosts the store does not answer, so nothing is known of other ranks. Calls of the store do not return."""

    @property
    def message(self) -> str:
        """What failed, where, and the way out."""
        way_out = f" If it was only slow, raise launch.timeout_seconds={self.timeout_seconds:g}."
        return self._who() + way_out

    def _who(self) -> str:
        here = f"this rank has waited for {self.waiting.seconds:.1f} s {self.waiting.where}"
        if self.store_is_silent:
            return f"the store of the launcher, or of rank 0, does not answer: stopped, or its machine is gone; {here}."
        if not self.culprits:
            return f"all ranks wait for each other, and none is behind: not all are in the same collective; {here}."
        named, more = self.culprits[:_NAMED_AT_MOST], len(self.culprits) - _NAMED_AT_MOST
        text = "; ".join(map(str, named)) + (f"; and {more} more ranks like these" if more > 0 else "")
        return f"{text}. The other ranks wait for {'it' if len(self.culprits) == 1 else 'them'} {self.waiting.where}."


def find_stall(
    own: Heartbeat, peers: Mapping[int, Peer], *, limit_seconds: float, timeout_seconds: float
) -> Stall | None:
    """What this rank has to declare, if anything.

    Args:
        own: Where this rank stands.
        peers: All other ranks.
        limit_seconds: For how long a rank must have stood still.
        timeout_seconds: What the user has set, for the message.
    """
    for name in (MAIN, SAVE):
        track: Track = getattr(own, name)
        if not (track.activity.is_waiting and track.seconds >= limit_seconds and peers):
            continue
        culprits = tuple(_stopped(peers, name, limit_seconds)) or tuple(_stuck(peers, name, limit_seconds))
        behind = None if culprits else _behind(track, peers, name, limit_seconds)
        if culprits or behind is not None:
            return Stall(culprits=culprits or behind or (), waiting=track, timeout_seconds=timeout_seconds)
    return None


def _decisive(heartbeat: Heartbeat, name: str) -> tuple[str, Track]:
    """The track that those wait for who wait for track ``name`` of this rank."""
    if name == MAIN:
        waits_for_save = heartbeat.main.activity is Activity.saving and heartbeat.save.activity is not Activity.idle
        return (SAVE, heartbeat.save) if waits_for_save else (MAIN, heartbeat.main)
    # A save that others have begun and this rank has not is the business of its main thread.
    return (MAIN, heartbeat.main) if heartbeat.save.activity is Activity.idle else (SAVE, heartbeat.save)


def _stopped(peers: Mapping[int, Peer], name: str, limit_seconds: float) -> Iterator[Culprit]:
    for rank, peer in sorted(peers.items()):
        if peer.silent_seconds < SILENT_SHARE * limit_seconds:
            continue
        if peer.heartbeat is None:
            yield Culprit(rank=rank, stopped=True, name=name, track=None)
        elif peer.heartbeat.main.activity is not Activity.ended:
            of, track = _decisive(peer.heartbeat, name)
            yield Culprit(rank=rank, stopped=True, name=of, track=replace(track, seconds=peer.silent_seconds))


def _stuck(peers: Mapping[int, Peer], name: str, limit_seconds: float) -> Iterator[Culprit]:
    for rank, peer in sorted(peers.items()):
        if peer.heartbeat is not None:
            of, track = _decisive(peer.heartbeat, name)
            if track.activity is Activity.working and track.seconds >= _STILL_SHARE * limit_seconds:
                yield Culprit(rank=rank, stopped=False, name=of, track=track)


def _behind(own: Track, peers: Mapping[int, Peer], name: str, limit_seconds: float) -> tuple[Culprit, ...] | None:
    """The ranks that are behind when all wait; None: not all do, or this rank is one of those."""
    tracks: dict[int, tuple[str, Track]] = {}
    for rank, peer in sorted(peers.items()):
        if peer.heartbeat is None:
            return None
        of, track = _decisive(peer.heartbeat, name)
        # What a device is doing cannot be seen, so a rank that waits for it may as well be computing.
        if track.activity not in (Activity.collective, Activity.failing) or of != name:
            return None
        if track.seconds < _STILL_SHARE * limit_seconds:
            return None
        tracks[rank] = (of, track)
    last = min((track.step, track.passes) for _, track in tracks.values())
    here = (own.step, own.passes)
    if here < last or own.activity is Activity.device:
        return None
    if here == last:
        # Nobody is behind this rank. Somebody may be ahead: then it is for them to speak.
        alike = all((track.step, track.passes) == here for _, track in tracks.values())
        return () if alike and own.activity is Activity.failing else None
    return tuple(
        Culprit(rank=rank, stopped=False, name=of, track=track)
        for rank, (of, track) in tracks.items()
        if (track.step, track.passes) == last
    )
