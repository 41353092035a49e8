"""Coats: the same image after a crop, a resize or another encoding."""

import io

import numpy as np
import pytest
from PIL import Image

from dcmpl.images.coats import COATS, Pixels, encoded, random_coat, random_windows
from dcmpl.images.decode import decode_bytes


def photo(height: int = 60, width: int = 80) -> Pixels:
    """Slopes with a little noise, so that codecs keep most of it."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([2 * x, 3 * y, x + y], axis=-1) % 200
    noise = np.random.default_rng(0).integers(0, 30, slopes.shape)
    return (slopes + noise).astype(np.uint8)


def png_of(image: Pixels) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("coat", "shape"),
    [
        ("crop of 3 and 5", (57, 75, 3)),
        ("resize to 7/8", (52, 70, 3)),
        ("resize to 5/4", (75, 100, 3)),
        ("JPEG 75", (60, 80, 3)),
        ("WebP 80", (60, 80, 3)),
    ],
)
def test_coat_has_its_size(coat: str, shape: tuple[int, ...]) -> None:
    found = COATS[coat](photo())
    assert found.shape == shape
    assert found.dtype == np.uint8


def test_crop_takes_the_first_rows_and_columns() -> None:
    assert np.array_equal(COATS["crop of 3 and 5"](photo()), photo()[3:, 5:])


def test_jpeg_is_the_one_that_pillow_writes() -> None:
    file = io.BytesIO()
    Image.fromarray(photo()).save(file, "JPEG", quality=75)
    assert np.array_equal(COATS["JPEG 75"](photo()), np.asarray(Image.open(file)))


@pytest.mark.parametrize("coat", COATS)
def test_coat_shows_the_same_image_a_little_changed(coat: str) -> None:
    image, found = photo(), COATS[coat](photo())
    assert image.shape != found.shape or not np.array_equal(image, found)
    assert abs(found.mean() - image.mean()) < 5  # levels


@pytest.mark.parametrize("coat", COATS)
def test_png_of_a_coat_is_the_coat(coat: str) -> None:
    found = COATS[coat](photo())
    assert np.array_equal(decode_bytes(png_of(found), "a PNG").pixels, found)


@pytest.mark.parametrize("coat", COATS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 5)])
def test_smallest_images_have_coats(coat: str, shape: tuple[int, int]) -> None:
    assert min(COATS[coat](photo(*shape)).shape) >= 1


@pytest.mark.parametrize(("kind", "longest"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_image_that_a_format_cannot_hold_is_left_as_it_is(kind: str, longest: int) -> None:
    assert encoded(photo(2, longest), kind, 80).shape == (2, longest, 3)
    larger = photo(2, longest + 1)
    assert np.array_equal(encoded(larger, kind, 80), larger)


def test_random_coat_is_its_seed_s() -> None:
    first, again = random_coat(photo(), rng(4)), random_coat(photo(), rng(4))
    assert np.array_equal(first, again)


def test_random_coats_are_of_many_sizes_and_encodings() -> None:
    image = photo(100, 100)
    found = [random_coat(image, rng(seed)) for seed in range(200)]
    sides = np.array([len(coat) for coat in found])
    assert 50 < (sides != 100).sum() < 150
    assert 60 <= sides.min() < 70
    assert 140 < sides.max() <= 160
    untouched = sum(np.array_equal(coat, image) for coat in found)
    assert 10 < untouched < 60  # one in six: neither resized nor encoded


def test_random_windows_without_coats_are_pieces_of_the_image() -> None:
    image = photo()
    pieces = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))
    for window in random_windows(image, 8, rng(), 5, coats=False):
        either = (window, window[:, ::-1])
        assert any((pieces == w).all(axis=(-1, -2, -3)).any() for w in either)


def test_random_windows_in_coats_are_mostly_no_pieces() -> None:
    image = photo()
    pieces = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))
    found = random_windows(image, 8, rng(), 30, coats=True)
    assert {window.shape for window in found} == {(8, 8, 3)}
    same = [
        any((pieces == w).all(axis=(-1, -2, -3)).any() for w in (window, window[:, ::-1]))
        for window in found
    ]
    assert sum(same) < 15
