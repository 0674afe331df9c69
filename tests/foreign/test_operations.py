"""The first operation that two runs of a step did differently."""

from ckptrun.foreign.operations import first_operation
from ckptrun.foreign.records import Heard, HeardRank, Operation


def heard(*ranks: list[Operation]) -> Heard:
    found = [HeardRank(rank=number, ranks=len(ranks), operations=own) for number, own in enumerate(ranks)]
    return Heard(ranks=found, processes=len(ranks), exceptions=(), errors=())


A = Operation("aten.a", "1", "2", "train.py:1 main")
B = Operation("aten.b", "2", "3", "train.py:2 main")


def test_equal_runs_and_those_that_were_not_watched_have_none() -> None:
    assert first_operation(heard([A, B]), heard([A, B])) is None
    assert first_operation(heard([A, B]), heard([])) is None


def test_what_makes_something_else_of_the_same_is_told() -> None:
    other = Operation("aten.b", "2", "4", "train.py:2 main")
    said = "operation 2 of the step, aten.b at train.py:2 main, makes something else of the same (rank 0)"
    assert str(first_operation(heard([A, B]), heard([A, other]))) == said


def test_what_is_given_something_else_that_nobody_made_is_told() -> None:
    other = Operation("aten.b", "5", "4", "")
    said = (
        "operation 2 of the step, aten.b, is given other tensors or numbers, which no operation before it made (rank 0)"
    )
    assert str(first_operation(heard([A, B]), heard([A, other]))) == said


def test_what_memory_held_before_it_was_filled_is_no_difference() -> None:
    filled = Operation("aten.b", "anything", "3", "train.py:2 main")
    assert first_operation(heard([A, B]), heard([A, filled])) is None


def test_another_operation_and_one_that_is_not_there_are_told() -> None:
    said = "operation 2 of the step is aten.a at train.py:1 main instead of aten.b at train.py:2 main (rank 0)"
    assert str(first_operation(heard([A, B]), heard([A, A]))) == said
    assert "is nothing instead of aten.b" in str(first_operation(heard([A, B]), heard([A])))


def test_what_a_start_does_as_it_makes_its_modules_is_not_of_the_step() -> None:
    made = Operation("aten.mv", "7", "8", "train.py:1 main")
    other = Operation("aten.a", "5", "4", "train.py:1 main")
    found = first_operation(heard([A, B]), heard([made, made, other, B]))
    assert found is not None
    assert (found.number, found.expected, found.got) == (1, A, other)


def test_of_several_ranks_the_earliest_is_told() -> None:
    first, second = Operation("aten.a", "1", "x", ""), Operation("aten.b", "2", "x", "")
    found = first_operation(heard([A, B], [A, B]), heard([A, second], [first, B]))
    assert found is not None
    assert (found.rank, found.number) == (1, 1)
