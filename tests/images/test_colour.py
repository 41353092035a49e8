"""Colours as the maker of an image saw them: profiles, depths, transparency."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dcmpl.errors import DataError
from dcmpl.images.colour import MAX_PROFILE_BYTES
from dcmpl.images.decode import DecodedImage, decode_bytes, from_pil
from pngs import chunk

RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


def drawn(seed: int = 0, size: int = 64) -> Image.Image:
    y, x = np.mgrid[0:size, 0:size] / size
    a = np.stack([np.sin(6 * x + seed) + y, np.cos(5 * y + seed) + x, np.sin(4 * (x + y))], -1)
    return Image.fromarray((255 * (a - a.min()) / np.ptp(a)).round().astype("uint8"))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def icc(red: Any, green: Any, blue: Any, gamma: float, space: bytes = b"RGB ") -> bytes:
    """Profile of a display, by its primaries (of D50) and its gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 81
    tags = {b"desc": name, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == b"GRAY":
        tags |= {b"kTRC": curve}
    else:
        tags |= {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        padded = content + b"\0" * (-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(padded))
        body += padded
    head = struct.pack(">I", start + len(body)) + b"lcms\x02\x10\0\0mntr" + space + b"XYZ "
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head + b"\0" * (128 - len(head)) + table + body


PROFILES = {
    "Display P3": icc(
        (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841), 2.2
    ),
    "linear": icc(RED, GREEN, BLUE, 1.0),
    "red and blue change places": icc(BLUE, GREEN, RED, 2.2),
}


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(rows: list[bytes], size: tuple[int, int], bits: int, kind: int, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (chunk(b"IHDR", head), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_image_is_decoded_as_a_viewer_shows_it(name: str, mode: str) -> None:
    own = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[name]))
    srgb = ImageCms.createProfile("sRGB")
    tagged = ImageCms.profileToProfile(drawn(4), srgb, own, outputMode="RGB")
    assert tagged is not None
    shown = ImageCms.profileToProfile(tagged, own, srgb, outputMode="RGB")
    found = decode_bytes(saved(tagged.convert(mode), icc_profile=PROFILES[name]), "tagged.png")
    assert np.array_equal(found.pixels, np.asarray(shown))
    assert found.notes == ("colour profile applied",)


def test_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = decode_bytes(saved(drawn(), icc_profile=profile), "srgb.png")
    assert np.array_equal(found.pixels, np.asarray(drawn()))
    assert found.notes == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_profile_counts_in_every_format(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    name = "red and blue change places"
    found = decode_bytes(saved(drawn(), kind, icc_profile=PROFILES[name], **options), "image")
    assert found.notes == ("colour profile applied",)
    assert np.abs(found.pixels.astype(int)[..., ::-1] - np.asarray(drawn())).mean() < 6


def test_grey_image_goes_through_its_profile() -> None:
    grey, profile = drawn().convert("L"), icc(RED, GREEN, BLUE, 1.0, b"GRAY")
    found = decode_bytes(saved(grey, icc_profile=profile), "grey.png")
    assert found.notes == ("colour profile applied",)
    assert found.pixels.mean() > np.asarray(grey).mean() + 20


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        PROFILES["linear"][:200],
        icc(RED, GREEN, BLUE, 1.0, b"GRAY"),
        icc(RED, GREEN, BLUE, 1.0, b"CMYK"),
    ],
    ids=["text", "cut off", "of grey", "of another space"],
)
def test_profile_that_cannot_be_read_leaves_a_note(profile: bytes) -> None:
    found = decode_bytes(saved(drawn(), icc_profile=profile), "image.png")
    assert np.array_equal(found.pixels, np.asarray(drawn()))
    assert found.notes == ("its colour profile cannot be read",)


def test_profile_that_is_too_large_leaves_a_note() -> None:
    image = drawn()
    image.info["icc_profile"] = b"\0" * (MAX_PROFILE_BYTES + 1)
    assert from_pil(image).notes == ("its colour profile is too large to read",)


def test_cmyk_without_a_profile_leaves_a_note() -> None:
    found = decode_bytes(saved(drawn().convert("CMYK"), "TIFF"), "image.tif")
    assert found.notes == ("CMYK without a colour profile",)


def test_lab_is_turned_into_srgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(drawn(), srgb, lab, outputMode="LAB")
    assert image is not None
    found = decode_bytes(saved(image, "TIFF"), "lab.tif")
    assert np.abs(found.pixels.astype(int) - np.asarray(drawn())).mean() < 4


def with_gamma(content: bytes, gamma: int) -> DecodedImage:
    content = content[:33] + chunk(b"gAMA", struct.pack(">I", gamma)) + content[33:]
    return decode_bytes(content, "gamma.png")


def test_gamma_of_a_png_is_applied_as_a_profile_that_says_the_same() -> None:
    linear = with_gamma(saved(drawn()), 100_000)
    assert linear.notes == ("gamma applied",)
    profiled = decode_bytes(saved(drawn(), icc_profile=PROFILES["linear"]), "linear.png")
    assert np.abs(linear.pixels.astype(int) - profiled.pixels).max() <= 2


def test_gamma_of_16_bit_grey_is_applied_before_it_is_scaled() -> None:
    levels = np.array([0, 40, 131, 200, 400, 655, 1311, 65_535], np.uint16)
    found = with_gamma(saved(Image.fromarray(np.tile(levels, (4, 1)))), 100_000)
    # The sRGB curve of IEC 61966-2-1 at levels / 65535, times 255.
    assert found.pixels[0, :, 0].tolist() == [0, 2, 7, 10, 18, 25, 39, 255]
    assert found.notes == ("gamma applied", "16 bit scaled to 8")


def test_usual_gamma_changes_nothing() -> None:
    usual = with_gamma(saved(drawn()), 45_455)
    assert usual.notes == ()
    assert np.array_equal(usual.pixels, np.asarray(drawn()))


@pytest.mark.parametrize("gamma", [0, 1, 4_000_000_000])
def test_gamma_that_makes_no_sense_is_a_note(gamma: int) -> None:
    found = with_gamma(saved(drawn()), gamma)
    assert found.notes in ((), ("its gamma makes no sense and is not applied",))
    assert np.array_equal(found.pixels, np.asarray(drawn()))


def test_other_primaries_of_a_png_leave_a_note() -> None:
    def with_primaries(*found: float) -> DecodedImage:
        packed = struct.pack(">8I", *(round(value * 100_000) for value in found))
        content = saved(drawn())
        return decode_bytes(content[:33] + chunk(b"cHRM", packed) + content[33:], "p3.png")

    srgb = with_primaries(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    p3 = with_primaries(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
    assert (srgb.notes, p3.notes) == ((), ("its primaries are not applied",))


def test_profile_counts_before_a_gamma() -> None:
    content = saved(drawn(), icc_profile=PROFILES["linear"])
    assert with_gamma(content, 100_000).notes == ("colour profile applied",)


WHITE = "transparent parts laid on white"


def packed(levels: np.ndarray, bits: int) -> list[bytes]:
    """Rows of a PNG of 1 to 16 bits a pixel."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in levels]
    each = 8 // bits
    parts = levels.reshape(len(levels), -1, each) << (np.arange(each)[::-1] * bits)
    return [row.astype(np.uint8).tobytes() for row in parts.sum(-1)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_any_depth_is_laid_on_white(bits: int) -> None:
    most = 2**bits - 1
    levels = np.tile(np.arange(16) % (most + 1), (4, 1)) * (257 if bits == 16 else 1)
    named = struct.pack(">H", levels[0, 1])
    content = png_of(packed(levels, bits), (16, 4), bits, 0, chunk(b"tRNS", named))
    found = decode_bytes(content, "grey.png")
    wanted = np.where(levels == levels[0, 1], 255, np.round(levels / most * 255))
    assert np.array_equal(found.pixels, np.stack([wanted] * 3, -1).astype(np.uint8))
    assert found.notes == (*(("16 bit scaled to 8",) if bits == 16 else ()), WHITE)


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_colour_is_laid_on_white(bits: int) -> None:
    colours = np.arange(48).reshape(1, 48) * (257 if bits == 16 else 1)
    named = struct.pack(">3H", *colours[0, 3:6])
    content = png_of(packed(colours, bits), (16, 1), bits, 2, chunk(b"tRNS", named))
    found = decode_bytes(content, "colour.png")
    wanted = np.arange(48).reshape(1, 16, 3)
    wanted[0, 1] = 255
    assert np.array_equal(found.pixels, wanted.astype(np.uint8))
    assert WHITE in found.notes


def test_transparent_entries_of_a_palette_are_laid_on_white() -> None:
    palette = chunk(b"PLTE", bytes(range(48)))
    alpha = chunk(b"tRNS", bytes([255, 0, 128]))
    levels = np.arange(16)[None]
    found = decode_bytes(png_of(packed(levels, 4), (16, 1), 4, 3, palette, alpha), "p.png")
    assert found.pixels[0, 0].tolist() == [0, 1, 2]
    assert found.pixels[0, 1].tolist() == [255, 255, 255]
    assert np.abs(found.pixels[0, 2].astype(int) - [130, 131, 131]).max() <= 1
    assert found.notes == (WHITE,)


def test_grey_of_16_bit_is_the_grey_of_8() -> None:
    grey = np.asarray(drawn(3).convert("L")).astype(">u2") * 257
    grey[:32] = 0
    rows = [row.tobytes() for row in grey]
    deep = decode_bytes(png_of(rows, (64, 64), 16, 0, chunk(b"tRNS", b"\0\0")), "deep.png")
    flat = saved(Image.fromarray((grey // 257).astype(np.uint8)), transparency=0)
    assert np.array_equal(deep.pixels, decode_bytes(flat, "flat.png").pixels)


def wide(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 64).reshape(8, 8).astype(np.int32))


@pytest.mark.parametrize(
    "content",
    [
        lambda: saved(wide(0, 255), "TIFF"),
        lambda: saved(wide(-5, 300), "TIFF"),
        lambda: saved(wide(0, 2**30), "TIFF"),
        lambda: saved(wide(0, 9).convert("F"), "TIFF"),
    ],
    ids=["32 bit", "signed", "large", "fractions"],
)
def test_pixels_whose_white_is_not_known_are_refused(content: Callable[[], bytes]) -> None:
    with pytest.raises(DataError) as caught:
        decode_bytes(content(), "image.tif")
    assert "image.tif" in caught.value.got
    assert caught.value.hint == "save as PNG"


def test_pillow_image_of_numbers_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match="32 bit or signed ones, -1 to 5"):
        from_pil(wide(-1, 5))
    assert from_pil(wide(0, 65_535)).pixels.max() == 255
