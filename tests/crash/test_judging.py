"""Which resumes are made: none twice, most of them warm, and no cause is told that an ordinary start has not come to."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptrun.crash import judging
from ckptrun.crash.content import EMPTY
from ckptrun.crash.files import Entry, Tree
from ckptrun.crash.judging import Judging
from ckptrun.crash.looks import Looked
from ckptrun.crash.resumes import Came
from ckptrun.crash.states import CrashState, Ending, How
from ckptrun.evidence.verdict import Check, Status
from ckptrun.foreign.alignment import Aligned

EQUAL = Check(name="trajectory", status=Status.equal, detail="")


def state(**files: bytes) -> CrashState:
    tree = Tree({name: Entry(EMPTY.written(0, data)) for name, data in files.items()})
    return CrashState(tree, [Ending(how=How.killed, by=None, text="somewhere")])


class Job:
    """Fails where ``broken`` is there, or, if told so, only in warm or in ordinary starts; looks at some files."""

    output, cwd = Path("/output"), Path("/")
    whole = Tree({})
    starter = SimpleNamespace(argv=lambda newest: ["train"])

    def __init__(
        self,
        *,
        looks: tuple[str, ...] = ("a", "broken"),
        fails_cold: bool = True,
        fails_warm: bool = True,
        words: str = "KeyError: gone",
    ):
        self.looks = looks
        self.words = {True: "KeyError: gone", False: words}
        self.fails = {False: fails_cold, True: fails_warm}
        self.made: list[tuple[str, bool]] = []
        self.told: list[str] = []

    def newest(self, tree: Tree) -> None:
        return None

    def resume(self, tree: Tree, *, warm: object = None, is_watched: bool = True) -> SimpleNamespace:
        self.made.append((" ".join(sorted(tree.entries)), warm is not None))
        looked = Looked(files=set(self.looks))
        is_broken = "broken" in tree.entries and self.fails[warm is not None]
        return SimpleNamespace(
            looked=looked, argv=["train"], seen=looked.seen_in(tree, self.whole), end=SimpleNamespace(interrupted_by=None),
            aligned=Aligned(step=0, how="beginning"), failure=self.words[warm is not None] if is_broken else "", loaded=None, steps=EQUAL,
            heard=SimpleNamespace(steps=1, errors=()),
        )  # fmt: skip


@pytest.fixture
def judge(monkeypatch, tmp_path):
    class Servers:
        is_ready = True

        def __init__(self, *_, **__) -> None:
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

    monkeypatch.setattr(judging, "WarmServers", Servers)

    def run(job: Job, states: list[CrashState]):
        judged = Judging(job, states, states[0].tree.key, programs=(), folder=tmp_path)
        outcomes = [one.outcome for one in judged.run()]
        job.told = [outcome.text for outcome in outcomes if outcome.came is Came.failed]
        return [outcome.came for outcome in outcomes], judged.resumed

    return run


WHOLE = state(a=b"whole")
STATES = [WHOLE, state(a=b"half"), state(a=b"half", unseen=b"x"), state(a=b"half", broken=b""), state(broken=b"")]


def test_what_looks_the_same_is_resumed_once_and_a_cause_is_confirmed(judge) -> None:
    job = Job()
    came, resumed = judge(job, STATES)
    assert came == [Came.equal, Came.equal, Came.equal, Came.failed, Came.failed]
    # The whole state both ways; the third looks like the second; the first failure once more by an ordinary start.
    assert job.made == [
        ("a", False), ("a", True), ("a", True), ("a broken", True), ("a broken", False), ("broken", True),
    ]  # fmt: skip
    assert resumed == len(job.made)


def test_a_failure_is_told_as_an_ordinary_start_tells_it(judge) -> None:
    job = Job(words="RuntimeError: Connection closed by peer")
    came, resumed = judge(job, [WHOLE, state(a=b"half"), state(a=b"half", broken=b""), state(a=b"other")])
    assert came == [Came.equal, Came.equal, Came.failed, Came.equal]
    assert job.told == ["RuntimeError: Connection closed by peer"]
    assert job.made[-1] == ("a", True)
    assert resumed == len(job.made)


def test_a_cause_that_ordinary_starts_do_not_come_to_is_not_told(judge) -> None:
    job = Job(fails_cold=False)
    came, _ = judge(job, STATES)
    assert came == [Came.equal] * 5
    assert job.made[-1] == ("broken", False)


def test_warm_starts_that_do_not_come_to_the_same_from_the_whole_state_are_not_used(judge) -> None:
    job = Job(looks=("a",), fails_cold=False)
    came, _ = judge(job, [state(a=b"1", broken=b"")] + [state(a=bytes([i])) for i in range(4)])
    assert came == [Came.equal] * 5
    assert [is_warm for _, is_warm in job.made] == [False, True, False, False, False, False]


def test_nothing_more_is_done_where_the_whole_state_is_not_equal(judge) -> None:
    job = Job()
    came, _ = judge(job, [state(a=b"1", broken=b""), *STATES])
    assert came == [Came.failed]
    assert job.made == [("a broken", False)]


def test_with_few_states_there_are_no_servers(judge) -> None:
    job = Job()
    judge(job, STATES[:2])
    assert not any(is_warm for _, is_warm in job.made)
