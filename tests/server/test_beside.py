"""Long work that many wait for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from localsteer.errors import VectorError
from localsteer.server import beside as beside_module
from localsteer.server.beside import Beside
from localsteer.server.engine import BusyError, StoppingError
from tests.server.conftest import PATIENCE


class Held:
    """Work that stands still until it is let go; how often and by how many threads at once it was done."""

    def __init__(self, *, fails: int = 0) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.done = 0
        self.most_at_once = 0
        self._at_once = 0
        self._fails = fails

    def __call__(self) -> int:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.begun.release()
        assert self.go.wait(PATIENCE)
        self._at_once -= 1
        self.done += 1
        if self.done <= self._fails:
            raise VectorError("It cannot be built.")
        return self.done

    async def begins(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)


async def soon() -> None:
    """Let other tasks come as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_many_want_is_done_once() -> None:
    async def run() -> None:
        beside, work = Beside[int]("vectors", 1), Held()
        waiting = [asyncio.create_task(beside.wait_for("happy", work)) for _ in range(5)]
        await work.begins()
        assert "happy" in beside
        assert "formal" not in beside
        work.go.set()
        assert await asyncio.gather(*waiting) == [1] * 5
        assert "happy" not in beside
        # It is done: who wants it now wants it anew.
        assert await beside.wait_for("happy", work) == 2

    asyncio.run(run())


def test_a_failure_is_told_to_all_who_wait_and_the_next_try_is_the_only_one() -> None:
    """Never two at once, though who waited for the first comes back while another one waits already."""

    async def run() -> None:
        beside, work = Beside[int]("vectors", 1), Held(fails=1)
        first = [asyncio.create_task(beside.wait_for("happy", work)) for _ in range(3)]
        await work.begins()
        work.go.set()
        for one in first:
            with pytest.raises(VectorError):
                await one
        work.go.clear()
        again = [asyncio.create_task(beside.wait_for("happy", work)) for _ in range(3)]
        await work.begins()
        again.append(asyncio.create_task(beside.wait_for("happy", work)))
        await soon()
        work.go.set()
        assert await asyncio.gather(*again) == [2] * 4
        assert work.most_at_once == 1

    asyncio.run(run())


def test_one_after_another() -> None:
    async def run() -> None:
        beside, work = Beside[int]("vectors", 1), Held()
        waiting = [asyncio.create_task(beside.wait_for(name, work)) for name in ("happy", "formal", "calm")]
        await work.begins()
        assert "calm" in beside
        work.go.set()
        assert await asyncio.gather(*waiting) == [1, 2, 3]
        assert work.most_at_once == 1

    asyncio.run(run())


def test_who_leaves_leaves_the_others_and_what_nobody_waits_for_is_not_begun() -> None:
    async def run() -> None:
        beside, work, unwanted = Beside[int]("vectors", 1), Held(), Held()
        leaving, staying = (asyncio.create_task(beside.wait_for("happy", work)) for _ in range(2))
        dropped = asyncio.create_task(beside.wait_for("formal", unwanted))
        await work.begins()
        for one in (leaving, dropped):
            one.cancel()
        await soon()
        work.go.set()
        assert await staying == 1
        assert "formal" not in beside
        assert not unwanted.begun.acquire(blocking=False)

    asyncio.run(run())


def test_too_many_are_sent_away_and_told_when_to_come_back() -> None:
    async def run() -> None:
        now = [0.0]
        beside, work = Beside[int]("vectors that are being built", 7, clock=lambda: now[0]), Held()
        waiting = [asyncio.create_task(beside.wait_for(number % 2, work)) for number in range(32)]
        await work.begins()
        await soon()
        with pytest.raises(BusyError, match="vectors that are being built") as refused:
            await beside.wait_for(0, work)
        assert refused.value.retry_after == 7
        for now[0], left in ((4.0, 3), (6.9, 1), (9.0, 9)):
            with pytest.raises(BusyError) as refused:
                await beside.wait_for(0, work)
            assert refused.value.retry_after == left
        waiting[0].cancel()
        await soon()
        waiting.append(asyncio.create_task(beside.wait_for(0, work)))
        await soon()
        work.go.set()
        assert await asyncio.gather(*waiting[1:]) == [number % 2 + 1 for number in range(1, 32)] + [1]

    asyncio.run(run())


def test_stopping_is_told_at_once() -> None:
    async def run() -> None:
        beside, work = Beside[int]("vectors", 1), Held()
        waiting = [asyncio.create_task(beside.wait_for(name, work)) for name in ("happy", "happy", "formal")]
        await work.begins()
        stopping = asyncio.create_task(asyncio.to_thread(beside.stop))
        for one in waiting:
            with pytest.raises(StoppingError):
                await one
        work.go.set()
        await stopping
        with pytest.raises(StoppingError):
            await beside.wait_for("calm", work)
        assert work.done == 1

    asyncio.run(run())


def test_where_no_thread_can_be_started_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        beside, work = Beside[int]("vectors", 1), Held()
        first = asyncio.create_task(beside.wait_for("happy", work))
        await work.begins()
        behind = asyncio.create_task(beside.wait_for("formal", work))
        await soon()
        with monkeypatch.context() as patch:

            def fail(_do: object) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(beside_module, "Apart", fail)
            work.go.set()
            assert await first == 1
            with pytest.raises(RuntimeError, match="new thread"):
                await asyncio.wait_for(behind, PATIENCE)
        assert await beside.wait_for("formal", work) == 2

    asyncio.run(run())
