"""Windows in full batches: nothing is lost, turned around, or held longer than it must be."""

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmpl.scoring.batching import ahead, lanes, outputs_of

IMAGES = st.lists(st.lists(st.integers(), max_size=6), max_size=20)


def squares(batch: list[int]) -> list[int]:
    return [value * value for value in batch]


class Noting:
    """Squares that remember their batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(list(batch))
        return squares(batch)


def lane_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane")]


@settings(deadline=None)
@given(
    images=IMAGES,
    batch_size=st.integers(1, 9),
    chunk=st.none() | st.integers(1, 7),
    depth=st.integers(0, 3),
)
def test_every_image_gets_what_its_windows_give_in_order(
    images: list[list[int]], batch_size: int, chunk: int | None, depth: int
) -> None:
    expected = [squares(image) for image in images]
    assert list(outputs_of(images, squares, batch_size, chunk=chunk)) == expected
    with lanes(3) as pool:
        found = outputs_of(images, squares, batch_size, chunk=chunk, pool=pool, depth=depth)
        assert list(found) == expected


@given(images=IMAGES, batch_size=st.integers(1, 9))
def test_batches_are_full_but_for_the_last(images: list[list[int]], batch_size: int) -> None:
    noting = Noting()
    list(outputs_of(images, noting, batch_size))
    assert list(chain(*noting.batches)) == list(chain(*images))
    assert [len(batch) for batch in noting.batches[:-1]] == [batch_size] * len(noting.batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in noting.batches)


@given(images=IMAGES, batch_size=st.integers(1, 9), chunk=st.integers(1, 5), begin=st.integers(0))
def test_what_shares_a_batch_does_not_depend_on_where_one_begins(
    images: list[list[int]], batch_size: int, chunk: int, begin: int
) -> None:
    marked = [[(i, j) for j in range(len(image))] for i, image in enumerate(images)]
    begin = begin % (len(images) // chunk + 1) * chunk

    def batches(from_image: int) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = []

        def compute(batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
            found.append(list(batch))
            return batch

        list(outputs_of(marked[from_image:], compute, batch_size, chunk=chunk))
        return found

    whole = [batch for batch in batches(0) if batch[0][0] >= begin]
    assert batches(begin) == whole


@given(images=IMAGES, batch_size=st.integers(1, 9))
def test_chunk_of_one_keeps_images_apart(images: list[list[int]], batch_size: int) -> None:
    noting = Noting()
    marked = [[i] * len(image) for i, image in enumerate(images)]
    list(outputs_of(marked, noting, batch_size, chunk=1))
    assert all(len(set(batch)) == 1 for batch in noting.batches)


def test_windows_that_are_cut_as_needed_are_taken() -> None:
    images = (iter(range(count)) for count in (3, 0, 2))
    assert list(outputs_of(images, squares, 2)) == [[0, 1, 4], [], [0, 1]]


def test_no_images_give_nothing_and_compute_nothing() -> None:
    noting = Noting()
    assert list(outputs_of([], noting, 4)) == []
    assert list(outputs_of([[], []], noting, 4)) == [[], []]
    assert noting.batches == []


def test_image_comes_back_as_soon_as_its_last_window_is_done() -> None:
    taken = []

    def images() -> Iterator[list[int]]:
        for i in range(9):
            taken.append(i)
            yield [i, i]

    found = outputs_of(images(), squares, 3)
    assert next(found) == [0, 0]
    assert taken == [0, 1]


def test_empty_image_before_all_others_comes_back_at_once() -> None:
    noting = Noting()
    assert next(outputs_of([[], [1]], noting, 4)) == []
    assert noting.batches == []


def test_outputs_that_do_not_fit_the_windows_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(outputs_of([[1, 2]], lambda batch: batch[:1], 2))


class Image:
    """Something that can be seen to be let go."""


@pytest.mark.parametrize("depth", [0, 2])
def test_what_is_held_does_not_grow_with_the_number_of_images(depth: int) -> None:
    held: list[weakref.ref[Image]] = []
    most = 0

    def images() -> Iterator[list[Image]]:
        for _ in range(60):
            image = Image()
            held.append(weakref.ref(image))
            yield [image]
            del image

    with lanes(2) as pool:
        found = outputs_of(images(), lambda b: [1] * len(b), 4, pool=pool, depth=depth)
        for _ in found:
            most = max(most, sum(ref() is not None for ref in held))
    assert most <= 4 * (depth + 2) + 1  # batches under way, one that waits, the one at hand


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_more_batches_are_under_way_than_asked_for(depth: int) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def compute(batch: list[int]) -> list[int]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1
        return batch

    with lanes(8) as pool:
        list(outputs_of([[i] for i in range(40)], compute, 2, pool=pool, depth=depth))
    assert most <= depth + 1


def test_lanes_compute_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def compute(batch: list[int]) -> list[int]:
        both.wait()
        return batch

    with lanes(2) as pool:
        assert list(outputs_of([[1], [2]], compute, 1, pool=pool, depth=2)) == [[1], [2]]


@settings(deadline=None)
@given(items=st.lists(st.integers(), max_size=30), depth=st.integers(0, 5))
def test_results_ahead_come_in_order(items: list[int], depth: int) -> None:
    with lanes(3) as pool:
        assert list(ahead(items, lambda item: item + 1, pool, depth)) == [i + 1 for i in items]


def test_later_results_wait_for_an_earlier_one_that_takes_long() -> None:
    with lanes(4) as pool:
        seconds = [0.05, 0, 0.02, 0]
        found = list(ahead(seconds, lambda s: (time.sleep(s), s)[1], pool, 3))
    assert found == seconds


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_no_more_items_are_taken_ahead_than_asked_for(depth: int) -> None:
    taken = given_back = most = 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for i in range(30):
            taken += 1
            most = max(most, taken - given_back)
            yield i

    with lanes(2) as pool:
        for _ in ahead(items(), lambda item: item, pool, depth):
            given_back += 1
    assert (taken, most) == (30, depth + 1)


def test_nothing_is_taken_before_it_is_asked_for() -> None:
    taken: list[int] = []
    with lanes(1) as pool:
        ahead((taken.append(i) for i in range(3)), lambda item: item, pool, 2)
        outputs_of(([taken.append(i)] for i in range(3)), lambda batch: batch, 1, pool=pool)
    assert taken == []


def fail_at(number: int) -> Any:
    def compute(batch: Sequence[int]) -> list[int]:
        if number in batch:
            raise RuntimeError(f"no {number}")
        return squares(list(batch))

    return compute


@pytest.mark.parametrize("depth", [0, 2])
def test_error_in_a_batch_comes_out_and_ends_the_threads(depth: int) -> None:
    found: list[list[int]] = []
    images = [[i] for i in range(50)]
    with pytest.raises(RuntimeError, match="no 7"), lanes(2) as pool:
        found.extend(outputs_of(images, fail_at(7), 2, pool=pool, depth=depth))
    assert found == [[i * i] for i in range(6)]
    assert lane_threads() == []


def test_error_in_a_batch_comes_out_without_a_pool() -> None:
    with pytest.raises(RuntimeError, match="no 3"):
        list(outputs_of([[1], [2], [3]], fail_at(3), 2))


def test_error_ahead_comes_out_at_its_place() -> None:
    found: list[int] = []
    with pytest.raises(ZeroDivisionError), lanes(2) as pool:
        found.extend(ahead([1, 2, 0, 4], lambda item: 8 // item, pool, 2))
    assert found == [8, 4]
    assert lane_threads() == []


def test_error_of_what_gives_the_images_comes_out() -> None:
    def images() -> Iterator[list[int]]:
        yield [1]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), lanes(2) as pool:
        list(outputs_of(images(), squares, 4, pool=pool, depth=2))
    assert lane_threads() == []


def test_iteration_that_is_broken_off_ends_its_threads() -> None:
    def scores() -> Iterator[list[int]]:
        with lanes(2) as pool:
            yield from outputs_of(([i] for i in range(10**9)), squares, 2, pool=pool, depth=2)

    found = scores()
    assert next(found) == [0]
    assert lane_threads() != []
    found.close()
    assert lane_threads() == []


def test_what_has_not_begun_when_lanes_end_is_not_done() -> None:
    done = []
    begun, ended = threading.Event(), threading.Event()

    def slow(number: int) -> None:
        begun.set()
        ended.wait()
        done.append(number)

    with lanes(1) as pool:
        first, *_, last = [pool.submit(slow, number) for number in range(20)]
        last.add_done_callback(lambda future: ended.set())  # called when it is cancelled
        begun.wait()
    assert first.done()
    assert last.cancelled()
    assert done == [0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are not told here")
def test_threads_of_lanes_have_ended_when_the_block_has() -> None:
    """A process that forks while one is ending gets its locks, and nobody to open them."""
    for _ in range(300):
        before = set(Path("/proc/self/task").iterdir())
        with lanes(3) as pool:
            list(pool.map(len, ["image"] * 3))
        assert set(Path("/proc/self/task").iterdir()) <= before


def test_reading_and_computing_may_share_a_pool() -> None:
    with lanes(1) as pool:
        read = ahead(range(50), lambda i: [i, i], pool, 3)
        found = outputs_of(read, squares, 4, chunk=8, pool=pool, depth=2)
        assert list(found) == [[i * i, i * i] for i in range(50)]


def test_pool_of_somebody_else_is_left_open() -> None:
    with ThreadPoolExecutor(1) as pool:
        list(outputs_of([[1]], squares, 1, pool=pool, depth=1))
        assert pool.submit(squares, [2]).result() == [4]
