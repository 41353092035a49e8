"""Batching: windows of many images in full batches, the only loop that scores.

Everything comes back in the order it came in, and what is held in memory at a time does not
grow with the number of images. With lanes (threads that each decode or compute, on one core)
reading and computing overlap and no core waits for another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, get_native_id
from time import sleep
from typing import Any, TypeVar

__all__ = ["ahead", "keyed_outputs", "lanes", "outputs_of"]

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")
Window = TypeVar("Window")


class _Inline(Executor):
    """Executor that runs its tasks at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@contextmanager
def lanes(count: int, begin: Callable[[], object] | None = None) -> Iterator[Executor]:
    """Pool of ``count`` threads, all of which have called ``begin`` before the block starts.

    What has not begun when the block ends is not done any more, and a process may fork then.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=begin)
    ids: list[Future[int]] = []
    try:
        together = Barrier(count + 1)
        for _ in range(count):  # threads are made as work comes
            ids.append(pool.submit(_named, together))
        together.wait()
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for thread in ids:
            _until_gone(thread.result())


def _named(together: Barrier) -> int:
    """Number that the system gives this thread, once all of its pool have begun."""
    together.wait()
    return get_native_id()


def _until_gone(thread: int) -> None:
    """Wait until the system has ended a thread that Python has done with.

    Before Python 3.13 that is a moment later, in which the thread still gives back memory
    under locks of libraries: who forks then has locks that nobody opens.
    """
    while Path(f"/proc/self/task/{thread}").exists():
        sleep(0.0005)


def ahead(
    items: Iterable[Item], function: Callable[[Item], Result], pool: Executor, depth: int
) -> Iterator[Result]:
    """Map ``function`` over items in order, with ``depth`` of them under way in ``pool``."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Batches:
    """Waiting windows, batches under way, and the outputs of each image so far."""

    def __init__(self, compute: Callable[[list[Any]], Iterable[Any]], pool: Executor) -> None:
        self.compute, self.pool = compute, pool
        self.waiting: list[Any] = []
        self.owners: list[int] = []
        self.jobs: deque[tuple[list[int], Future[Iterable[Any]]]] = deque()
        self.done: dict[int, tuple[Any, list[Any]]] = {}

    def flush(self, most: int) -> None:
        """Send what waits; then wait until at most ``most`` batches are under way."""
        if self.waiting:
            self.jobs.append((self.owners, self.pool.submit(self.compute, self.waiting)))
            self.waiting, self.owners = [], []
        while len(self.jobs) > most:
            owners, job = self.jobs.popleft()
            for owner, output in zip(owners, job.result(), strict=True):
                self.done[owner][1].append(output)

    def finished(self, before: int) -> Iterator[tuple[Any, list[Any]]]:
        """Images below ``before`` with all windows computed, in order."""
        under_way = self.jobs[0][0][:1] if self.jobs else []
        before = min([before, *self.owners[:1], *under_way])
        while self.done and (owner := next(iter(self.done))) < before:
            yield self.done.pop(owner)


def keyed_outputs(
    images: Iterable[tuple[Key, Iterable[Window]]],
    compute: Callable[[list[Window]], Iterable[Result]],
    batch_size: int,
    *,
    chunk: int | None = None,
    shard: Callable[[Key], object] = lambda _: None,
    pool: Executor | None = None,
    depth: int = 0,
) -> Iterator[tuple[Key, list[Result]]]:
    """Key and outputs of ``compute`` of each image, in order.

    An image is given as a key and its windows, of which there may be none, and comes back as
    soon as the last of them is done. ``chunk``: batches end behind every so many images of a
    ``shard``, and at its end, so that what shares a batch does not depend on where a job began.
    ``pool`` computes, with ``depth`` batches under way.
    """
    batches = _Batches(compute, pool or _Inline())
    index, first, last = -1, 0, None
    for index, (key, windows) in enumerate(images):
        if chunk and index and shard(key) != last:
            batches.flush(depth)
            first = index
        last = shard(key)
        batches.done[index] = key, []
        for window in windows:
            batches.waiting.append(window)
            batches.owners.append(index)
            if len(batches.waiting) == batch_size:
                batches.flush(depth)
        if chunk and (index + 1 - first) % chunk == 0:
            batches.flush(depth)
        yield from batches.finished(index + 1)
    batches.flush(0)
    yield from batches.finished(index + 1)


def outputs_of(
    images: Iterable[Iterable[Window]],
    compute: Callable[[list[Window]], Iterable[Result]],
    batch_size: int,
    **options: Any,
) -> Iterator[list[Result]]:
    """:func:`keyed_outputs` of images without keys."""
    keyed = ((None, windows) for windows in images)
    for _, found in keyed_outputs(keyed, compute, batch_size, **options):
        yield found
