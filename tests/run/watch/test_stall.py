"""Who is named, from what ranks say of themselves."""

from dataclasses import replace

import pytest

from ckptrun.run.watch.stacks import Activity
from ckptrun.run.watch.stall import Heartbeat, Peer, Stall, Track, find_stall

IDLE = Track(activity=Activity.idle, seconds=0.0, step=0, point="", passes=0)
WAITS = Track(
    activity=Activity.collective, seconds=10.0, step=5, point="after_forward", passes=1, frame="c10d.py:1 in wait"
)
WORKS = replace(WAITS, activity=Activity.working, frame="mine.py:3 in forward")
DEVICE = replace(WAITS, activity=Activity.device)
FAILS = replace(WAITS, activity=Activity.failing)
AHEAD = replace(WAITS, point="after_backward", passes=2)
SAVING = replace(WAITS, activity=Activity.saving)
ENDED = replace(WAITS, activity=Activity.ended)


def peer(main: Track, save: Track = IDLE, silent: float = 0.0) -> Peer:
    return Peer(heartbeat=Heartbeat(main=main, save=save), silent_seconds=silent)


def declared(own: Track, *peers: Peer, save: Track = IDLE) -> Stall | None:
    """What rank 0 declares; the peers are ranks 1, 2, ..."""
    return find_stall(
        Heartbeat(main=own, save=save), dict(enumerate(peers, start=1)), limit_seconds=8.0, timeout_seconds=10.0
    )


@pytest.mark.parametrize(
    ("own", "peers", "named"),
    [
        pytest.param(WAITS, [peer(WAITS), peer(WORKS)], [2], id="one works"),
        pytest.param(WAITS, [peer(WORKS), peer(WORKS)], [1, 2], id="two work"),
        pytest.param(WAITS, [peer(WORKS), peer(WAITS, silent=9)], [2], id="silence comes first"),
        pytest.param(WAITS, [peer(WORKS), Peer(heartbeat=None, silent_seconds=9)], [2], id="never heard of"),
        pytest.param(AHEAD, [peer(AHEAD), peer(WAITS)], [2], id="one is behind"),
        pytest.param(AHEAD, [peer(WORKS), peer(WAITS)], [1], id="work comes before waiting behind"),
        pytest.param(DEVICE, [peer(WORKS), peer(DEVICE)], [1], id="waits on the device"),
        pytest.param(FAILS, [peer(FAILS), peer(FAILS)], [], id="all wait alike, and the group has given up"),
        pytest.param(FAILS, [peer(WORKS), peer(FAILS)], [1], id="the group gave up sooner than the watchdog"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(own, peers, named) -> None:
    stall = declared(own, *peers)
    assert stall is not None
    assert [culprit.rank for culprit in stall.culprits] == named


@pytest.mark.parametrize(
    ("own", "peers"),
    [
        pytest.param(WORKS, [peer(WAITS), peer(WAITS, silent=99)], id="a rank that works declares nothing"),
        pytest.param(WORKS, [peer(WORKS), peer(WORKS)], id="all work"),
        pytest.param(replace(WAITS, seconds=7), [peer(WORKS), peer(WORKS)], id="not for long"),
        pytest.param(WAITS, [peer(replace(WORKS, seconds=3)), peer(WAITS)], id="it moves"),
        pytest.param(WAITS, [peer(WAITS), peer(WAITS)], id="all wait alike, and the group may go on"),
        pytest.param(WAITS, [peer(AHEAD), peer(AHEAD)], id="this rank is behind"),
        pytest.param(WAITS, [peer(AHEAD), peer(WAITS)], id="this rank is one of those behind"),
        pytest.param(AHEAD, [peer(DEVICE), peer(DEVICE)], id="devices may be computing"),
        pytest.param(WAITS, [peer(ENDED, silent=99), peer(WAITS)], id="silence after the end"),
        pytest.param(WAITS, [], id="nobody was looked at yet"),
    ],
)
def test_nothing_is_declared(own, peers) -> None:
    assert declared(own, *peers) is None


def test_whoever_waits_for_its_own_save_is_judged_by_the_save() -> None:
    stuck, waits = peer(SAVING, save=WORKS), peer(SAVING, save=WAITS)
    for own, save in ((WAITS, IDLE), (SAVING, WAITS)):
        stall = declared(own, stuck, waits, save=save)
        assert stall is not None
        assert [(culprit.rank, culprit.name) for culprit in stall.culprits] == [(1, "save")]
        assert "the checkpoint thread of rank 1 has not moved for 10.0 s: it stands in step 5" in stall.message


def test_a_save_that_a_rank_has_not_begun_is_its_main_threads_business() -> None:
    stall = declared(replace(WORKS, seconds=0), peer(WORKS), peer(WAITS, save=WAITS), save=WAITS)
    assert stall is not None
    assert [(culprit.rank, culprit.name) for culprit in stall.culprits] == [(1, "main")]


def test_messages_say_who_where_and_the_way_out() -> None:
    stall = declared(WAITS, *[peer(WORKS)] * 6)
    assert stall is not None
    assert stall.message.startswith(
        "rank 1 has not moved for 10.0 s: it stands in step 5 after 'after_forward' (mine.py:3 in forward); rank 2 "
    )
    assert stall.message.endswith(
        "; and 2 more ranks like these. The other ranks wait for them in step 5 after 'after_forward' (c10d.py:1 in "
        "wait). If it was only slow, raise launch.timeout_seconds=10."
    )
    unheard = declared(WAITS, Peer(heartbeat=None, silent_seconds=9))
    assert unheard is not None
    assert unheard.message.startswith("rank 1 has said nothing since the start: its process does not answer (stopped")
    stopped = declared(AHEAD, peer(replace(WORKS, step=0, point="", frame=""), silent=9))
    assert stopped is not None
    assert (
        "; last heard of before its first point. The other ranks wait for it in step 5 after 'after_" in stopped.message
    )


def test_a_heartbeat_survives_the_store() -> None:
    heartbeat = Heartbeat(main=WAITS, save=IDLE)
    assert Heartbeat.from_json(heartbeat.to_json()) == heartbeat
    assert heartbeat.aged(2.5).main.seconds == 12.5
