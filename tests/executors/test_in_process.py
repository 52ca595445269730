"""The executor without workers: items in order, the next one read while one is computed."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest

from pplscape.executors import InProcess, Job, TwoStep


def values(job: Job, items: list[Any]) -> list[Any]:
    return [d.value for d in InProcess().map(job, items)]


def test_the_next_item_is_read_while_one_is_computed() -> None:
    read = [Event() for _ in range(3)]

    def reading(item: int) -> int:
        read[item].set()
        return 10 * item

    def computing(value: int) -> tuple[int, bool]:
        following = value // 10 + 1
        return value, following == len(read) or read[following].wait(30)

    assert values(lambda tell: TwoStep(reading, computing), [0, 1, 2]) == [(0, True), (10, True), (20, True)]


def test_two_steps_give_what_one_gives() -> None:
    work = TwoStep(lambda i: i + 1, lambda i: i * i)
    assert values(lambda tell: work, [3, 1, 2]) == values(lambda tell: lambda i: work(i), [3, 1, 2]) == [16, 4, 9]
    assert values(lambda tell: work, []) == []


def test_an_item_that_cannot_be_read_ends_the_run_after_those_before_it() -> None:
    done = InProcess().map(lambda tell: TwoStep(lambda i: 1 // i, lambda v: v), [1, 0, 1])
    assert next(done).value == 1
    with pytest.raises(ZeroDivisionError):
        next(done)
