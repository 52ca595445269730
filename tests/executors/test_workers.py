"""Handing out items: each result once, whatever workers do; the pool here is simulated."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.executors import Where
from pplscape.executors.base import in_order
from pplscape.executors.workers import TRIES, Died, Event, Failed, Ready, Result, Told, Workers


class Simulated:
    """A pool whose workers' fates are drawn; it checks what it is asked to do."""

    def __init__(self, size: int, fates: Any):
        self.size, self.fates = size, fates
        self.busy: dict[int, Any] = {}
        self.idle: set[int] = set()
        self.spared: list[int] = []
        self.born, self.at_once = 0, 0
        self.harmed: Counter[Any] = Counter()

    def begin(self, job: Any) -> int:
        worker = self.spared.pop() if self.spared else self.born
        self.born += worker == self.born
        self.busy[worker] = "begin"
        assert len(self.busy) + len(self.idle) <= self.size
        return worker

    def give(self, worker: int, item: Any) -> None:
        self.idle.remove(worker)
        self.busy[worker] = item

    def wait(self) -> list[tuple[int, Event]]:
        assert self.busy, "nobody is at work: it would wait forever"
        worker = self.fates.draw(st.sampled_from(sorted(self.busy)))
        item = self.busy[worker]
        fate = self.fates.draw(st.sampled_from(["good"] * 5 + ["told", "fail", "die", "lost"]))
        if fate == "told" and item != "begin":
            return [(worker, Told(1))]
        del self.busy[worker]
        if fate in ("die", "fail"):
            self.harmed[item] += 1
        if fate == "fail":
            self.idle.add(worker)
            return [(worker, Failed(ValueError("bad luck")))]
        if fate in ("die", "lost"):
            return [(worker, Died(fate, machine_lost=fate == "lost"))]
        self.idle.add(worker)
        if item == "begin":
            self.harmed["begin"] = 0
            return [(worker, Ready(Where("here", worker)))]
        return [(worker, Result(item * 10, told=0))]

    def spare(self, worker: int) -> None:
        self.idle.remove(worker)
        self.spared.append(worker)

    def end(self, worker: int) -> None:
        del self.busy[worker]

    def close(self) -> None:
        self.busy, self.idle, self.spared = {}, set(), []


@given(st.integers(1, 4), st.integers(0, 9), st.sampled_from([None, 1, 3]), st.data())
def test_every_item_once_or_an_error(size: int, n: int, ahead: int | None, fates: Any) -> None:
    pool, done, told = Simulated(size, fates), [], []
    with Workers(pool) as executor:
        for _ in range(2):  # spare workers serve the second
            pool.harmed.clear()
            try:
                for one in executor.map("job", list(range(n)), tell=told.append, ahead=ahead):  # type: ignore[arg-type]
                    assert one.value == one.item * 10
                    done.append(one.index)
                    if ahead is not None:
                        first = min(set(range(n)) - set(done), default=n)
                        assert all(b <= first + ahead for b in pool.busy.values() if b != "begin")
            except (UserError, ValueError):
                assert max(pool.harmed.values()) == TRIES
                return
            assert sorted(done) == list(range(n))
            assert max(pool.harmed.values(), default=0) < TRIES
            assert sum(told) >= 0
            done.clear()


def test_what_was_told_of_lost_work_is_taken_back() -> None:
    class Scripted(Simulated):
        script = [Ready(Where("h", 0)), Told(5), Died("x"), Ready(Where("h", 1)), Told(5), Result(1, told=2)]  # noqa: RUF012

        def wait(self) -> list[tuple[int, Event]]:
            (worker,) = self.busy
            event = self.script.pop(0)
            if not isinstance(event, Told):
                del self.busy[worker]
                if not isinstance(event, Died):
                    self.idle.add(worker)
            return [(worker, event)]

    told: list[int] = []
    with Workers(Scripted(1, None)) as executor:
        (one,) = executor.map("job", [3], tell=told.append)  # type: ignore[arg-type]
    assert (one.value, one.where.pid, sum(told)) == (1, 1, 7)


def test_items_whose_workers_die_may_be_given_up() -> None:
    """The deaths of workers are then a result; everything else is as before."""

    class Deadly(Simulated):
        def wait(self) -> list[tuple[int, Event]]:
            worker, item = self.busy.popitem()
            if item == 1:
                return [(worker, Died("shot"))]
            self.idle.add(worker)
            return [(worker, Ready(Where("h", worker)) if item == "begin" else Result(item * 10))]

    with Workers(Deadly(2, None)) as executor:
        found = list(executor.map("job", [0, 1, 2], lost=lambda item, how: (item, how)))  # type: ignore[arg-type]
    assert {one.item: one.value for one in found} == {0: 0, 1: (1, "shot"), 2: 20}


def test_in_order() -> None:
    from pplscape.executors import Done

    where = Where.here()
    assert list(in_order(Done(i, i, str(i), where) for i in (2, 0, 1, 4, 3))) == list("01234")
