"""Rows are in one worker's hands at a time, and who dies costs what was in theirs."""

import random
from collections.abc import Iterator

import pytest

from mmrag_batch.errors import InternalError
from mmrag_batch.execute.assignments import MAX_DEATHS, WORKER_DIED, Assignments
from mmrag_batch.records import Question, Row


def make_rows(count: int) -> Iterator[Row]:
    for number in range(count):
        question = Question(f"What costs {number}?", None, (), ())
        yield Row(number, number + 2, str(number), {"note": number}, question)


def answered(row: Row) -> Row:
    """As it comes back."""
    return Row(row.number, row.line, row.id, {})


def numbers(rows: list[Row]) -> list[int]:
    return [row.number for row in rows]


def test_a_worker_gets_what_it_has_room_for_and_is_told_when_no_more_follow() -> None:
    rows = Assignments(make_rows(5))
    first, second = rows.give(1, 3), rows.give(2, 3)
    assert (numbers(first.rows), first.is_last) == ([0, 1, 2], True)
    assert (numbers(second.rows), second.is_last) == ([3, 4], True)
    assert not rows.is_waiting
    many = Assignments(make_rows(9))
    first = many.give(1, 3, workers=2)
    assert (numbers(first.rows), first.is_last) == ([0, 1, 2], False)
    assert many.give(1, 3, workers=2) == ([], False)
    list(many.take(1, [answered(first.rows[1])]))
    assert numbers(many.give(1, 3, workers=2).rows) == [3]


def test_what_is_fewer_than_workers_can_have_is_shared_by_them() -> None:
    rows = Assignments(make_rows(200))
    assert [len(rows.give(worker, 90, workers=4).rows) for worker in range(4)] == [50] * 4
    assert rows.give(0, 90, workers=4) == ([], True)


def test_an_answer_has_the_cells_and_the_question_that_stayed_here() -> None:
    rows = Assignments(make_rows(1))
    (row,) = rows.give(1, 1).rows
    (done,) = rows.take(1, [answered(row)])
    assert (done.cells, done.question) == (row.cells, row.question)
    assert rows.give(1, 1) == ([], True)
    assert rows.is_done


def test_an_answer_that_was_not_asked_for_is_found_out() -> None:
    rows = Assignments(make_rows(2))
    first, second = rows.give(1, 2).rows
    list(rows.take(1, [answered(first)]))
    with pytest.raises(InternalError, match="Row 0 came from a worker twice or unasked"):
        list(rows.take(1, [answered(first)]))
    with pytest.raises(InternalError, match="Row 1 came"):
        list(rows.take(2, [answered(second)]))


def test_rows_of_a_worker_that_died_are_asked_together_and_then_each_alone() -> None:
    rows = Assignments(make_rows(3))
    rows.give(1, 3)
    assert rows.lose(1) == 3
    assert numbers(rows.give(2, 3).rows) == [0, 1, 2]
    assert rows.lose(2) == 3
    first, second = rows.give(3, 3), rows.give(4, 3)
    assert (numbers(first.rows), first.is_last) == ([0], True)
    assert (numbers(second.rows), second.is_last) == ([1], True)
    assert rows.give(3, 3) == ([], True)
    list(rows.take(3, [answered(first.rows[0])]))
    assert numbers(rows.give(3, 3).rows) == [2]


def test_a_row_at_fault_waits_for_an_answer_of_another() -> None:
    """Where there is none, it is not the rows that kill workers."""
    rows = Assignments(make_rows(2))
    for worker in range(MAX_DEATHS):
        rows.give(worker, 2)
        rows.lose(worker)
    (other,) = rows.give(9, 2).rows
    done = list(rows.take(9, [answered(other)]))
    assert [(row.number, row.error) for row in done] == [(1, None), (0, WORKER_DIED)]
    assert rows.give(9, 2) == ([], True)
    assert rows.is_done
    assert not list(rows.end())


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_kept_once_whoever_dies(seed: int) -> None:
    """A row at fault kills each worker that has it; some die of nothing."""
    chance, poison = random.Random(seed), {7, 8, 31}
    rows = Assignments(make_rows(60))
    kept: dict[int, Row] = {}
    at_work: dict[int, list[Row]] = {}
    started = accidents = 0
    while not rows.is_done:
        while len(at_work) < 3:
            started += 1
            at_work[started] = []
        worker = chance.choice(list(at_work))
        at_work[worker] += rows.give(worker, 8, workers=3).rows
        mine = at_work[worker]
        accident = accidents < 2 and len(mine) > 1 and chance.random() < 0.05
        accidents += accident
        if accident or (mine and mine[0].number in poison):
            del at_work[worker]
            rows.lose(worker)
        elif mine:
            for row in rows.take(worker, [answered(mine.pop(0))]):
                assert row.number not in kept
                kept[row.number] = row
    for row in rows.end():
        assert row.number not in kept
        kept[row.number] = row
    assert kept.keys() == set(range(60))
    assert {number for number, row in kept.items() if row.error} == poison
