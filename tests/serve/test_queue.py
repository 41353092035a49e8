"""Requests take turns in a queue that is bounded, and what ends one leaves the others alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Capture
from dcmpl.scoring.results import Score
from dcmpl.serve.queue import ROUND, FullError, Limits, ScoringQueue, Upload
from served import Rounds, uploads

Result = TypeVar("Result")
Made = Callable[..., tuple[Rounds, ScoringQueue]]


@pytest.fixture
def made() -> Iterator[Made]:
    """Make a scorer and its queue, which end with the test."""
    found: list[tuple[Rounds, ScoringQueue]] = []

    def make(limits: Limits | None = None, **options: Any) -> tuple[Rounds, ScoringQueue]:
        scorer = Rounds(**options)
        found.append((scorer, ScoringQueue(scorer, limits or Limits())))
        return found[-1]

    yield make
    for scorer, queue in found:
        scorer.free()
        queue.close()


async def all_of(scores: AsyncIterator[Score]) -> list[Score]:
    return [score async for score in scores]


async def started(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """A task that has run up to where it first waits."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def begun(scorer: Rounds) -> None:
    """Wait until the next round is under way."""
    await asyncio.to_thread(scorer.begun.acquire)


def names(name: str, count: int) -> list[str]:
    return [f"{name} {i}" for i in range(count)]


def test_rows_come_in_order_with_their_place_in_the_request(made: Made) -> None:
    scorer, queue = made()
    found = asyncio.run(all_of(queue.scores(uploads("a", 40))))
    assert [score.image for score in found] == names("a", 40)
    assert [score.index for score in found] == list(range(40))
    assert [score.prompt for score in found] == [f"prompt {i}" for i in range(40)]
    assert [len(each) for each in scorer.rounds] == [ROUND, ROUND, 40 - 2 * ROUND]
    assert queue.waiting == (0, 0)


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_every_request_gets_its_own_rows(sizes: list[int]) -> None:
    scorer = Rounds()
    queue = ScoringQueue(scorer, Limits())

    async def ask() -> list[list[Score]]:
        asked = [queue.scores(uploads(str(i), size)) for i, size in enumerate(sizes)]
        return await asyncio.gather(*map(all_of, asked))

    found = asyncio.run(ask())
    queue.close()
    assert [[score.image for score in scores] for scores in found] == [
        names(str(i), size) for i, size in enumerate(sizes)
    ]
    assert sum(map(len, scorer.rounds)) == sum(sizes)
    assert max(map(len, scorer.rounds)) <= ROUND


def test_requests_take_turns(made: Made) -> None:
    scorer, queue = made(held=True)

    async def ask() -> None:
        tasks = [await started(all_of(queue.scores(uploads("first", 1))))]
        await begun(scorer)
        for name, count in (("a", 6), ("b", 3), ("c", 1)):
            tasks.append(await started(all_of(queue.scores(uploads(name, count)))))
        scorer.free()
        await asyncio.gather(*tasks)

    asyncio.run(ask())
    assert scorer.rounds == [
        ["first 0"],
        ["a 0", "b 0", "c 0", "a 1", "b 1", "a 2", "b 2", "a 3", "a 4", "a 5"],
    ]


def test_one_image_behind_a_hundred_is_in_the_next_round(made: Made) -> None:
    scorer, queue = made(held=True)

    async def ask() -> list[Score]:
        long = await started(all_of(queue.scores(uploads("long", 100))))
        await begun(scorer)
        short = await started(all_of(queue.scores(uploads("short", 1))))
        scorer.go()
        await begun(scorer)
        scorer.go()
        found = await short  # the long one has most of its rounds before it
        assert not long.done()
        scorer.free()
        assert len(await long) == 100
        return found

    (found,) = asyncio.run(ask())
    assert (found.image, found.index) == ("short 0", 0)
    assert scorer.rounds[0] == names("long", ROUND)
    assert scorer.rounds[1][:2] == [f"long {ROUND}", "short 0"]


def test_rows_are_there_before_the_request_is_done(made: Made) -> None:
    scorer, queue = made(held=True)

    async def ask() -> None:
        async with aclosing(queue.scores(uploads("a", ROUND + 1))) as scores:
            scorer.go()
            assert (await anext(scores)).image == "a 0"
            await begun(scorer)
            await begun(scorer)
            scorer.free()
            assert len(await all_of(scores)) == ROUND

    asyncio.run(ask())


def test_image_is_read_when_its_turn_comes(made: Made) -> None:
    scorer, queue = made(held=True)
    read: list[int] = []

    def upload(number: int) -> Upload:
        return Upload(str(number), "", lambda: bytes(read.append(number) or 0))

    async def ask() -> None:
        task = await started(all_of(queue.scores([upload(i) for i in range(ROUND + 2)])))
        await begun(scorer)
        assert read == list(range(ROUND))
        scorer.free()
        await task

    asyncio.run(ask())
    assert read == list(range(ROUND + 2))


# Bounds


def test_requests_beyond_the_bound_are_refused(made: Made) -> None:
    scorer, queue = made(Limits(waiting=2), held=True)

    async def ask() -> FullError:
        tasks = [await started(all_of(queue.scores(uploads("first", 1))))]
        await begun(scorer)
        for name in "ab":
            tasks.append(await started(all_of(queue.scores(uploads(name, 1)))))
        assert queue.waiting == (2, 2)
        with pytest.raises(FullError) as caught:
            await all_of(queue.scores(uploads("c", 1)))
        assert queue.waiting == (2, 2)
        scorer.free()
        await asyncio.gather(*tasks)
        assert len(await all_of(queue.scores(uploads("d", 1)))) == 1
        return caught.value

    error = asyncio.run(ask())
    assert isinstance(error.seconds, int)
    assert error.seconds >= 1
    assert str(error) == (
        f"expected room in the queue, got 2 requests that wait: send it again in {error.seconds} s"
    )
    assert "c 0" not in [*scorer.rounds[0], *scorer.rounds[1]]


def test_images_beyond_the_bound_are_refused(made: Made) -> None:
    scorer, queue = made(Limits(waiting_images=10), held=True)

    async def ask() -> FullError:
        tasks = [await started(all_of(queue.scores(uploads("first", 1))))]
        await begun(scorer)
        tasks.append(await started(all_of(queue.scores(uploads("a", 6)))))
        with pytest.raises(FullError, match="got 6 images that wait: ") as caught:
            await all_of(queue.scores(uploads("b", 5)))
        tasks.append(await started(all_of(queue.scores(uploads("c", 4)))))
        assert queue.waiting == (2, 10)
        scorer.free()
        await asyncio.gather(*tasks)
        return caught.value

    assert asyncio.run(ask()).seconds >= 1


def test_request_larger_than_the_bound_is_taken_alone(made: Made) -> None:
    _, queue = made(Limits(waiting_images=10))
    assert len(asyncio.run(all_of(queue.scores(uploads("a", 50))))) == 50


# Who goes


def test_images_of_a_caller_that_goes_are_freed(made: Made) -> None:
    scorer, queue = made(held=True)

    async def ask() -> None:
        scores = queue.scores(uploads("a", 100))
        scorer.go()
        await anext(scores)
        await begun(scorer)
        await begun(scorer)  # the second round is under way
        await scores.aclose()
        assert queue.waiting == (0, 0)
        other = await started(all_of(queue.scores(uploads("b", 1))))
        scorer.free()
        await other

    asyncio.run(ask())
    assert scorer.rounds == [
        names("a", ROUND),
        names("a", 2 * ROUND)[ROUND:],
        ["b 0"],
    ]


def test_images_of_a_caller_that_is_cancelled_are_freed(made: Made) -> None:
    scorer, queue = made(held=True)

    async def ask() -> None:
        task = await started(all_of(queue.scores(uploads("a", 100))))
        await begun(scorer)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.waiting == (0, 0)
        scorer.free()
        await all_of(queue.scores(uploads("b", 1)))

    asyncio.run(ask())
    assert scorer.rounds == [names("a", ROUND), ["b 0"]]


def test_request_that_goes_takes_no_other_of_its_round_along() -> None:
    """Files of a request that is gone are closed, and can no longer be read."""
    reading, gone = threading.Event(), threading.Event()

    def closed() -> bytes:
        reading.set()
        gone.wait()
        raise ValueError("I/O operation on closed file.")

    scorer = Rounds(held=True)
    queue = ScoringQueue(scorer, Limits())

    async def ask() -> list[Score]:
        first = await started(all_of(queue.scores(uploads("first", 1))))
        await begun(scorer)
        going = await started(all_of(queue.scores([Upload("a 0", "", closed)])))
        other = await started(all_of(queue.scores(uploads("b", 1))))
        scorer.free()
        await asyncio.to_thread(reading.wait)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        gone.set()
        await first
        return await other

    try:
        (found,) = asyncio.run(ask())
    finally:
        gone.set()
        scorer.free()
        queue.close()
    assert (found.image, found.status) == ("b 0", "ok")


# Errors


@pytest.mark.parametrize("after", [0, 3])
def test_round_that_fails_ends_the_requests_in_it_alone(
    made: Made, capsys: Capture, after: int
) -> None:
    _scorer, queue = made(failing=[0], after=after)
    came: list[str] = []

    async def ask() -> None:
        async for score in queue.scores(uploads("a", ROUND + 4)):
            came.append(score.image)

    with pytest.raises(RuntimeError, match="round 0"):
        asyncio.run(ask())
    assert came == names("a", after)
    assert queue.is_open
    found = asyncio.run(all_of(queue.scores(uploads("b", 2))))
    assert [score.image for score in found] == names("b", 2)
    assert capsys.readouterr().err == f"a round of {ROUND} images failed: RuntimeError('round 0')\n"


def test_all_requests_of_a_round_that_fails_get_the_error(made: Made) -> None:
    scorer, queue = made(held=True, failing=[1])

    async def ask() -> list[Any]:
        tasks = [await started(all_of(queue.scores(uploads("first", 1))))]
        await begun(scorer)
        for name in "ab":
            tasks.append(await started(all_of(queue.scores(uploads(name, 2)))))
        scorer.free()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(ask())
    assert [score.image for score in first] == ["first 0"]
    assert [str(error) for error in others] == ["round 1", "round 1"]


# The end


def test_queue_that_is_closed_finishes_what_it_took(made: Made) -> None:
    scorer, queue = made(held=True)
    assert queue.is_open

    async def ask() -> list[Score]:
        task = await started(all_of(queue.scores(uploads("a", 40))))
        await begun(scorer)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        scorer.free()
        await closing
        assert not queue.is_open
        with pytest.raises(FullError, match="got a service that is about to end: ") as caught:
            await all_of(queue.scores(uploads("b", 1)))
        assert caught.value.seconds >= 1
        return await task

    assert [score.image for score in asyncio.run(ask())] == names("a", 40)


def test_queue_may_be_closed_twice_and_empty(made: Made) -> None:
    scorer, queue = made()
    queue.close()
    queue.close()
    assert not queue.is_open
    assert scorer.rounds == []
