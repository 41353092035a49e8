"""Pictures are decoded one way, and windows lie where they should."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcmpl.errors import DataError, UsageError
from dcmpl.images import (
    MAX_PIXELS,
    MAX_SIDE,
    random_window,
    read_image,
    to_unit_range,
    window_corners,
    windows,
)


def pixel(path: Path) -> list[int]:
    """The top left pixel of what is read."""
    return read_image(path)[:, 0, 0].tolist()


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture in which no two pixels are equal (up to 65,536 of them)."""
    number = torch.arange(height * width).reshape(height, width)
    return torch.stack([number % 256, number // 256 % 256, number * 0]).to(torch.uint8)


def png_of_zeros(path: Path, width: int, height: int) -> None:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(b"\0" * 100)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_rgb_png_comes_back_as_it_was(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 77).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 2, 3)
    assert image.unique().tolist() == [77]


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == [10, 200, 30]


def test_transparent_palette_entry_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png", transparency=1)
    assert pixel(tmp_path / "a.png") == [255, 255, 255]


def test_transparent_rgba_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == [255, 255, 255]


def test_half_transparent_rgba_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 255, 128)).save(tmp_path / "a.png")
    mixed = [255 + (value - 255) * 128 / 255 for value in (0, 100, 255)]
    # Pillow rounds to whole levels.
    assert pixel(tmp_path / "a.png") == pytest.approx(mixed, abs=1)


def test_gray_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("LA", (4, 4), (0, 51)).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == pytest.approx([204] * 3, abs=1)  # Pillow rounds


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = pixel(tmp_path / "a.jpg")
    assert red > 250  # JPEG moves values by a few levels
    assert max(green, blue) < 5


@pytest.mark.parametrize(("stored", "read"), [(65535, 255), (0, 0), (32896, 128), (257, 1)])
def test_16_bit_gray_is_scaled_to_8_bit(tmp_path: Path, stored: int, read: int) -> None:
    Image.fromarray(np.full((4, 4), stored, np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16"
    assert pixel(tmp_path / "a.png") == [read] * 3


def test_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == [255, 0, 0]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(pixels, -1).copy()
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(turned).permute(2, 0, 1))


def make_truncated(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])


UNREADABLE = {
    "truncated": make_truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no picture at all"),
    "directory": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "lying header": lambda path: png_of_zeros(path, 500, 500),
    "over our limit": lambda path: png_of_zeros(path, 12_000, 12_000),
    "over Pillow's limit": lambda path: png_of_zeros(path, 60_000, 60_000),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_file_is_one_sentence_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some picture.png"
    UNREADABLE[kind](path)
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.startswith("expected ")
    assert "\n" not in message
    assert not message.endswith(".")


@pytest.mark.skipif(
    os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="all files are readable"
)
def test_file_without_permission_is_a_data_error(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_missing_file_has_an_exact_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "no.png")
    assert str(caught.value) == f"expected a picture at {tmp_path / 'no.png'}, found no file"


def test_too_many_pixels_have_an_exact_message(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png_of_zeros(path, 12_000, 12_000)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"expected at most {MAX_PIXELS} pixels and sides of at most {MAX_SIDE}, "
        f"got 12000 x 12000 in {path}: scale it down first"
    )


def test_side_too_long_is_refused_before_it_is_mirrored(tmp_path: Path) -> None:
    png_of_zeros(tmp_path / "a.png", MAX_SIDE + 1, 1)
    with pytest.raises(DataError, match=f"got {MAX_SIDE + 1} x 1"):
        read_image(tmp_path / "a.png")


def test_formats_that_start_programs_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DataError, match="cannot identify image file"):
        read_image(tmp_path / "a.png")


def test_512_picture_has_25_windows_of_224() -> None:
    assert len(list(windows(ramp(512, 512), 224, "windows"))) == 25


def test_paper_stride_is_64_for_224() -> None:
    corners = window_corners(512, 512, 224, "windows")
    assert sorted({left for _, left in corners}) == [0, 64, 128, 192, 256]


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


def test_windows_are_slices_of_the_picture_at_their_corners() -> None:
    image = ramp(50, 70)
    corners = window_corners(50, 70, 32, "windows")
    for (top, left), window in zip(corners, windows(image, 32, "windows"), strict=True):
        assert torch.equal(window, image[:, top : top + 32, left : left + 32])


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (31, 32), (32, 31), (5, 33)])
@pytest.mark.parametrize("views", ["windows", "center", "grid-2"])
def test_pictures_smaller_than_a_window_give_whole_windows(
    shape: tuple[int, int], views: str
) -> None:
    found = list(windows(ramp(*shape), 32, views))
    assert found
    assert {window.shape for window in found} == {(3, 32, 32)}


def test_one_pixel_fills_its_window() -> None:
    image = torch.tensor([3, 5, 7], dtype=torch.uint8)[:, None, None]
    (window,) = windows(image, 32, "windows")
    assert torch.equal(window, image.expand(3, 32, 32))


def test_small_picture_is_continued_by_its_mirror_image() -> None:
    image = ramp(4, 2)
    (window,) = windows(image, 4, "center")
    assert torch.equal(window, torch.cat([image[..., :1], image, image[..., 1:]], dim=2))


@pytest.mark.parametrize("shape", [(32, 3000), (3000, 32), (8, 3000)])
def test_panorama_is_covered_along_its_long_side(shape: tuple[int, int]) -> None:
    corners = window_corners(*shape, 32, "windows")
    assert len(corners) == (3000 - 32) // 8 + 1


@pytest.mark.parametrize("views", ["windows", "center", "grid-2", "grid-3", "grid-4"])
def test_windows_keep_the_phase_of_jpeg_blocks(views: str) -> None:
    corners = window_corners(500, 701, 256, views)
    assert all(top % 8 == 0 and left % 8 == 0 for top, left in corners)


def test_random_window_starts_at_multiples_of_its_step() -> None:
    rng, found = np.random.default_rng(0), set()
    for _ in range(60):
        window = random_window(ramp(64, 64), 48, rng, step=8).int()
        number = window[0, 0] + 256 * window[1, 0]
        found.add(min(int(number[0]), int(number[-1])))  # the left end, mirrored or not
    assert found == {64 * top + left for top in (0, 8, 16) for left in (0, 8, 16)}


@pytest.mark.parametrize("views", ["", "all", "grid", "grid-0", "grid-100", "grid--1", "grid-2x"])
def test_unknown_views_are_a_usage_error(views: str) -> None:
    with pytest.raises(UsageError, match="expected views to be windows, center or grid-N"):
        window_corners(64, 64, 32, views)


@settings(deadline=None, max_examples=100)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    size=st.integers(1, 60),
    views=st.sampled_from(["windows", "center", "grid-1", "grid-2", "grid-3", "grid-9"]),
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
    assert all(window.shape == (3, size, size) for window in found)


@settings(deadline=None, max_examples=50)
@given(height=st.integers(8, 60), width=st.integers(8, 60), seed=st.integers(0, 2**32 - 1))
def test_random_window_is_a_piece_of_the_picture_or_its_mirror(
    height: int, width: int, seed: int
) -> None:
    image = ramp(height, width)
    window = random_window(image, 8, np.random.default_rng(seed))
    pieces = image.unfold(1, 8, 1).unfold(2, 8, 1)
    same = [
        (pieces == w[:, None, None]).flatten(3).all(0).all(-1) for w in (window, window.flip(2))
    ]
    assert (same[0] | same[1]).any()


def test_random_window_depends_on_the_generator_alone() -> None:
    image = ramp(100, 120)
    first, again = (
        [random_window(image, 32, rng) for _ in range(5)]
        for rng in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_random_windows_of_other_generators_differ() -> None:
    image = ramp(200, 200)
    found = [random_window(image, 32, np.random.default_rng(seed)) for seed in range(5)]
    assert len({window.numpy().tobytes() for window in found}) == 5


def test_random_window_mirrors_about_half_the_time() -> None:
    image = ramp(32, 32)  # one place for the window: it is the picture or its mirror
    rng = np.random.default_rng(0)
    mirrored = sum(not torch.equal(random_window(image, 32, rng), image) for _ in range(400))
    assert 150 < mirrored < 250  # five standard deviations about 200


def test_random_window_reaches_every_corner() -> None:
    image = ramp(9, 9)
    rng = np.random.default_rng(0)
    least = {int(random_window(image, 8, rng).to(int).sum()) for _ in range(100)}
    assert len(least) == 4


def test_random_window_of_a_tiny_picture_is_whole() -> None:
    assert random_window(ramp(1, 3), 32, np.random.default_rng(0)).shape == (3, 32, 32)


def test_unit_range_ends_at_zero_and_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None]
    scaled = to_unit_range(pixels).flatten()
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)  # float32
