"""Windows lie where they should, whatever the shape of the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcmpl.errors import UsageError
from dcmpl.images.windows import random_window, too_small, window_corners, windows


def ramp(height: int, width: int) -> np.ndarray:
    """An image in which no two pixels are equal (up to 65,536 of them)."""
    number = np.arange(height * width).reshape(height, width)
    return np.stack([number % 256, number // 256 % 256, number * 0], axis=2).astype(np.uint8)


def test_512_image_has_the_papers_25_windows_of_224_and_those_at_two_edges() -> None:
    assert len(list(windows(ramp(512, 512), 224, "paper-windows"))) == 25
    assert len(list(windows(ramp(512, 512), 224, "windows"))) == 36


@pytest.mark.parametrize(
    ("size", "paper"), [(224, [0, 64, 128, 192, 256]), (256, [0, 72, 144, 216])]
)
def test_last_window_ends_at_the_edge_unless_the_paper_is_replayed(
    size: int, paper: list[int]
) -> None:
    for views, wanted in (("paper-windows", paper), ("windows", [*paper, 512 - size])):
        corners = window_corners(512, 512, size, views)
        assert corners == [(top, left) for top in wanted for left in wanted]


def test_window_at_the_edge_stands_once() -> None:
    assert window_corners(224, 288, 224, "windows") == [(0, 0), (0, 64)]


@pytest.mark.parametrize("side", [*range(224, 240), 500, 511, 513, 1023])
def test_windows_see_all_of_an_image_but_what_is_less_than_a_jpeg_block(side: int) -> None:
    corners = window_corners(side, side, 224, "windows")
    seen = np.zeros(side, bool)
    for top, left in corners:
        assert top % 8 == 0
        assert left % 8 == 0
        seen[left : left + 224] = True
    assert seen[: side // 8 * 8].all()


@pytest.mark.parametrize(
    ("shape", "views", "note"),
    [
        ((224, 224), "windows", ""),
        ((224, 500), "center", ""),
        ((223, 500), "windows", "500 x 223 is smaller than a window of 224 x 224: mirrored"),
        ((500, 100), "grid-2", "100 x 500 is smaller than a window of 224 x 224: mirrored"),
        ((500, 100), "resize", "100 x 500 is smaller than a window of 224 x 224: scaled up"),
    ],
)
def test_image_smaller_than_a_window_is_told(shape: tuple[int, int], views: str, note: str) -> None:
    found = too_small(ramp(*shape), 224, views)
    assert found.startswith(note)
    assert bool(found) == bool(note)


def test_stride_is_in_proportion_to_the_window() -> None:
    corners = window_corners(32, 64, 32, "windows")
    assert [left for _, left in corners] == [0, 8, 16, 24, 32]  # 32 * 64 / 224 = 9.14, of 8


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_grid_has_n_by_n_windows(count: int) -> None:
    assert len(window_corners(500, 700, 224, f"grid-{count}")) == count**2


@pytest.mark.parametrize("count", [2, 3, 4])
def test_grid_reaches_all_edges(count: int) -> None:
    corners = window_corners(500, 700, 224, f"grid-{count}")
    assert corners[0] == (0, 0)
    bottom, right = corners[-1]
    assert 0 <= 500 - 224 - bottom < 8  # the last multiple of 8 that fits
    assert 0 <= 700 - 224 - right < 8


def test_center_is_the_middle_window() -> None:
    assert window_corners(500, 700, 224, "center") == [(136, 232)]  # 138 and 238, at multiples of 8


def test_windows_are_slices_of_the_image_at_their_corners() -> None:
    image = ramp(50, 70)
    corners = window_corners(50, 70, 32, "windows")
    for (top, left), window in zip(corners, windows(image, 32, "windows"), strict=True):
        assert np.array_equal(window, image[top : top + 32, left : left + 32])


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (31, 32), (32, 31), (5, 33)])
@pytest.mark.parametrize("views", ["windows", "center", "grid-2"])
def test_images_smaller_than_a_window_give_whole_windows(
    shape: tuple[int, int], views: str
) -> None:
    found = list(windows(ramp(*shape), 32, views))
    assert found
    assert {window.shape for window in found} == {(32, 32, 3)}


def test_one_pixel_fills_its_window() -> None:
    image = np.array([[[3, 5, 7]]], np.uint8)
    (window,) = windows(image, 32, "windows")
    assert np.array_equal(window, np.broadcast_to(image, (32, 32, 3)))


def test_small_image_is_continued_by_its_mirror_image() -> None:
    image = ramp(4, 2)
    (window,) = windows(image, 4, "center")
    assert np.array_equal(window, np.concatenate([image[:, :1], image, image[:, 1:]], axis=1))


@pytest.mark.parametrize("shape", [(32, 3000), (3000, 32), (8, 3000)])
def test_panorama_is_covered_along_its_long_side(shape: tuple[int, int]) -> None:
    corners = window_corners(*shape, 32, "windows")
    assert len(corners) == (3000 - 32) // 8 + 1


@pytest.mark.parametrize("views", ["windows", "center", "tiles", "grid-2", "grid-3", "grid-4"])
def test_windows_keep_the_phase_of_jpeg_blocks(views: str) -> None:
    corners = window_corners(500, 701, 256, views)
    assert all(top % 8 == 0 and left % 8 == 0 for top, left in corners)


def test_random_window_starts_anywhere() -> None:
    rng, found = np.random.default_rng(0), set()
    for _ in range(200):
        window = random_window(ramp(64, 64), 60, rng).astype(int)
        number = window[0, :, 0] + 256 * window[0, :, 1]
        found.add(min(int(number[0]), int(number[-1])))  # the left end, mirrored or not
    assert found == {64 * top + left for top in range(5) for left in range(5)}


@pytest.mark.parametrize(
    ("side", "count"), [(10, 1), (256, 1), (380, 1), (388, 2), (512, 2), (650, 3), (1024, 4)]
)
def test_tiles_are_as_many_as_the_image_is_windows_long(side: int, count: int) -> None:
    corners = window_corners(256, side, 256, "tiles")
    assert len(corners) == count
    if count > 1:
        assert corners[0] == (0, 0)
        assert corners[-1][1] > side - 256 - 8  # the edge, down to JPEG's grid


@pytest.mark.parametrize("views", ["", "all", "grid", "grid-0", "grid-100", "grid--1", "grid-2x"])
def test_unknown_views_are_a_usage_error(views: str) -> None:
    with pytest.raises(UsageError, match="expected views to be windows, paper-windows, center"):
        window_corners(64, 64, 32, views)


@settings(deadline=None, max_examples=100)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    size=st.integers(1, 60),
    views=st.sampled_from(
        ["windows", "paper-windows", "center", "tiles", "grid-1", "grid-2", "grid-9"]
    ),
)
def test_windows_are_inside_and_of_the_right_size(
    height: int, width: int, size: int, views: str
) -> None:
    corners = window_corners(height, width, size, views)
    assert len(set(corners)) == len(corners) > 0
    for top, left in corners:
        assert 0 <= top <= max(0, height - size)
        assert 0 <= left <= max(0, width - size)
    found = list(windows(ramp(height, width), size, views))
    assert len(found) == len(corners)
    assert all(window.shape == (size, size, 3) for window in found)


@settings(deadline=None, max_examples=50)
@given(height=st.integers(8, 60), width=st.integers(8, 60), seed=st.integers(0, 2**32 - 1))
def test_random_window_is_a_piece_of_the_image_or_its_mirror(
    height: int, width: int, seed: int
) -> None:
    image = ramp(height, width)
    window = random_window(image, 8, np.random.default_rng(seed))
    pieces = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))
    either = [(pieces == w).all(axis=(-1, -2, -3)) for w in (window, window[:, ::-1])]
    assert np.any(either)


def test_random_window_depends_on_the_generator_alone() -> None:
    image = ramp(100, 120)
    first, again = (
        [random_window(image, 32, rng) for _ in range(5)]
        for rng in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_random_windows_of_other_generators_differ() -> None:
    image = ramp(200, 200)
    found = [random_window(image, 32, np.random.default_rng(seed)) for seed in range(5)]
    assert len({window.tobytes() for window in found}) == 5


def test_random_window_mirrors_about_half_the_time() -> None:
    image = ramp(32, 32)  # one place for the window: it is the image or its mirror
    rng = np.random.default_rng(0)
    mirrored = sum(not np.array_equal(random_window(image, 32, rng), image) for _ in range(400))
    assert 150 < mirrored < 250  # five standard deviations about 200


def test_random_window_reaches_every_corner() -> None:
    image = ramp(9, 9)
    rng = np.random.default_rng(0)
    least = {int(random_window(image, 8, rng).sum(dtype=int)) for _ in range(100)}
    assert len(least) == 4


def test_random_window_of_a_tiny_image_is_whole() -> None:
    assert random_window(ramp(1, 3), 32, np.random.default_rng(0)).shape == (32, 32, 3)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    (window,) = windows(image, size, "resize")
    return window


@pytest.mark.parametrize("shape", [(64, 64), (90, 64), (64, 101), (300, 41), (20, 31), (32, 32)])
def test_resize_is_the_middle_square_scaled_as_pillow_does(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = shape
    side = min(shape)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    scaled = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC, box=box)
    difference = resized(pixels, 32).astype(int) - np.asarray(scaled)
    assert np.abs(difference).max() <= 1  # of 255: one step of rounding


def test_resize_of_an_image_of_the_window_size_is_the_image() -> None:
    assert np.array_equal(resized(ramp(32, 32), 32), ramp(32, 32))


def test_resize_looks_at_the_middle_only() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 20:80] = 200  # the square and what bicubic weighs beside it
    assert np.unique(resized(image, 16)).tolist() == [200]


def test_resize_does_not_let_fine_stripes_through() -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    image[:, ::2] = 255
    middle = resized(image, 32)[:, 2:-2].astype(int)
    assert np.abs(middle - 127.5).max() < 2  # the mean of the stripes, and rounding


@pytest.mark.parametrize("shape", [(30_000, 20), (20, 30_000), (1, 1), (1, 30_000), (30_000, 1)])
def test_resize_of_extreme_shapes_stay_small(shape: tuple[int, int]) -> None:
    window = resized(np.full((*shape, 3), 77, np.uint8), 224)
    assert window.shape == (224, 224, 3)
    assert np.unique(window).tolist() == [77]


def test_resize_does_not_grow_a_panorama(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = Image.Image.resize

    def seen(image: Image.Image, size: tuple[int, int], *rest: object, **named: object) -> object:
        sizes.append(size)
        return plain(image, size, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", seen)
    resized(ramp(20, 3000), 224)
    assert sizes == [(224, 224)]


@settings(deadline=None, max_examples=50)
@given(height=st.integers(1, 80), width=st.integers(1, 80), size=st.integers(1, 40))
def test_resize_gives_one_window_of_the_right_size(height: int, width: int, size: int) -> None:
    (window,) = windows(ramp(height, width), size, "resize")
    assert (window.shape, window.dtype) == ((size, size, 3), np.uint8)


@pytest.mark.parametrize("views", ["windows", "center", "grid-2", "resize"])
def test_windows_leave_the_image_as_it_was(views: str) -> None:
    image = ramp(40, 50)
    list(windows(image, 32, views))
    assert np.array_equal(image, ramp(40, 50))


@pytest.mark.parametrize("views", ["windows", "center", "resize"])
def test_no_window_keeps_its_image_in_memory(views: str) -> None:
    image = ramp(50, 70)
    assert not any(np.shares_memory(image, window) for window in windows(image, 32, views))
