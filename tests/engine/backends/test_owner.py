"""Whether the owner of a lock file still lives, told from its note alone."""

import json
import os
import subprocess
import time
from typing import Any

import pytest

from ckptrun.engine.backends.owner import describe, is_alive, note_of_this_process


def note(**changes: Any) -> str:
    return json.dumps(json.loads(note_of_this_process()) | changes)


def test_this_process_lives_and_is_described() -> None:
    assert is_alive(note())
    assert f"process {os.getpid()}, since 20" in describe(note())


def test_a_process_that_has_ended_is_dead_and_so_is_one_with_its_number_taken_over() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not is_alive(note(pid=ended.pid, started=1))
    assert not is_alive(note(started=json.loads(note())["started"] - 1))
    assert not is_alive(note(boot="another boot of this machine"))


@pytest.mark.parametrize(("hours", "alive"), [(0, True), (23, True), (25, False)])
def test_on_another_machine_an_owner_counts_as_alive_for_a_day(hours: int, alive: bool) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - 3600 * hours))
    assert is_alive(note(host="another", since=since)) == alive


@pytest.mark.parametrize("damaged", ["", "{", "[]", "1", json.dumps({"host": "another", "since": "yesterday"})])
def test_what_is_no_note_has_no_living_owner(damaged: str) -> None:
    assert not is_alive(damaged)
    assert describe(damaged)
