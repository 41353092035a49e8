"""Images are decoded one way, and it is said what was done to them."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dcmpl.errors import DataError
from dcmpl.images.decode import (
    MAX_PIXELS,
    MAX_SIDE,
    DecodedImage,
    decode,
    decode_bytes,
    from_pil,
    read_image,
)
from pngs import chunk


def pixel(path: Path) -> list[int]:
    """The top left pixel of what is read."""
    return read_image(path)[0, 0].tolist()


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
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 77).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (2, 3, 3)
    assert np.unique(image).tolist() == [77]


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


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


def make_truncated(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])


UNREADABLE = {
    "truncated": make_truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image at all"),
    "directory": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "lying header": lambda path: png_of_zeros(path, 500, 500),
    "over our limit": lambda path: png_of_zeros(path, 13_000, 13_000),
    "over Pillow's limit": lambda path: png_of_zeros(path, 60_000, 60_000),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_file_is_one_sentence_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some image.png"
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
    assert str(caught.value) == f"expected an image at {tmp_path / 'no.png'}, got no file"


def test_too_many_pixels_have_an_exact_message(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png_of_zeros(path, 13_000, 13_000)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"expected at most {MAX_PIXELS} pixels and sides of at most {MAX_SIDE}, "
        f"got 13000 x 13000 in {path}: scale it down first"
    )


def test_side_too_long_is_refused_before_it_is_mirrored(tmp_path: Path) -> None:
    png_of_zeros(tmp_path / "a.png", MAX_SIDE + 1, 1)
    with pytest.raises(DataError, match=f"got {MAX_SIDE + 1} x 1"):
        read_image(tmp_path / "a.png")


def test_formats_that_start_programs_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DataError, match="cannot identify image file"):
        read_image(tmp_path / "a.png")


def notes_of(path: Path) -> tuple[str, ...]:
    return decode(path).notes


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animation_is_noted_with_its_frames(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert notes_of(path) == ("the first of 3 frames",)


def test_animation_cut_behind_its_first_frame_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in "abc"]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert np.array_equal(read_image(path), whole)


def test_16_bit_is_noted(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 257, np.uint16)).save(tmp_path / "a.png")
    assert notes_of(tmp_path / "a.png") == ("16 bit scaled to 8",)


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGBA", (9, 9, 9, 254)), ("LA", (9, 0)), ("RGBA", (9, 9, 9, 0))]
)
def test_transparent_parts_are_noted(tmp_path: Path, mode: str, colour: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4), (*colour[:-1], 255))
    image.putpixel((3, 2), colour)
    image.save(tmp_path / "a.png")
    assert notes_of(tmp_path / "a.png") == ("transparent parts laid on white",)


@pytest.mark.parametrize("colour", [(9, 8, 7, 255), (9, 8, 7)])
def test_opaque_image_has_no_notes(tmp_path: Path, colour: tuple[int, ...]) -> None:
    Image.new("RGBA" if len(colour) == 4 else "RGB", (4, 4), colour).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png")
    assert found.notes == ()
    assert found.pixels[1, 1].tolist() == [9, 8, 7]


def test_notes_add_up(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (8, 8), (200, 0, 0, alpha)) for alpha in (0, 128)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert notes_of(tmp_path / "a.png") == (
        "the first of 2 frames",
        "transparent parts laid on white",
    )


def texts() -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", "a red fox")
    info.add_itxt("prompt", "狐")
    info.add_text("long", "b" * 500, zip=True)
    return info


def test_texts_of_a_png_come_with_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=texts())
    assert decode(tmp_path / "a.png").texts == {
        "parameters": "a red fox",
        "prompt": "狐",
        "long": "b" * 500,
    }


def test_texts_of_an_animation_leave_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], pnginfo=texts())
    assert decode(path).texts["parameters"] == "a red fox"
    assert np.unique(read_image(path).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_image_without_texts_has_none(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}").texts == {}


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt"])
def test_text_that_is_too_large_costs_neither_pixels_nor_other_texts(
    tmp_path: Path, kind: str
) -> None:
    info, large = PngInfo(), "b" * 2**21
    info.add_text("parameters", "a red fox")
    if kind == "iTXt":
        info.add_itxt("workflow", large, zip=True)
    else:
        info.add_text("workflow", large, zip=kind == "zTXt")
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    drawn.save(tmp_path / "a.png", pnginfo=info)
    found = decode(tmp_path / "a.png")
    assert np.array_equal(found.pixels, np.asarray(drawn))
    assert found.texts["parameters"] == "a red fox"
    is_read = "workflow" in found.texts
    assert found.notes == (() if is_read else ("texts or profile too large to read",))


def test_profile_that_unfolds_without_end_costs_no_pixels(tmp_path: Path) -> None:
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    drawn.save(tmp_path / "a.png", icc_profile=b"\0" * 2**21)
    found = decode(tmp_path / "a.png")
    assert np.array_equal(found.pixels, np.asarray(drawn))
    assert found.notes == ("texts or profile too large to read",)


RAW = b"Raw profile type exif\0\nexif\n  4\nzzzz\n"
NO_EXIF = "EXIF not read, nor an orientation in it"


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"eXIf", b"b'Exif\\x00\\x00II*'"),
        chunk(b"tEXt", RAW),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        chunk(b"tIME", b"x") + chunk(b"pHYs", b"") + chunk(b"sBIT", b"yyyyyyyyy"),
        chunk(b"iCCP", b"no name") + chunk(b"cHRM", b"1") + chunk(b"gAMA", b""),
    ],
    ids=["a literal", "raw profile", "offset beyond the end", "short chunks", "colour chunks"],
)
def test_broken_metadata_costs_no_pixels(tmp_path: Path, added: bytes) -> None:
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    drawn.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    found = decode_bytes(content[:33] + added + content[33:], "a.png")
    assert np.array_equal(found.pixels, np.asarray(drawn))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
def test_exif_that_cannot_be_read_is_noted_where_pillow_tells(tmp_path: Path, kind: str) -> None:
    drawn = Image.effect_noise((9, 7), 50).convert("RGB")
    more = {"lossless": True} if kind == "WEBP" else {}
    drawn.save(tmp_path / "a", kind, exif=b"Exif\0\0garbage", **more)
    drawn.save(tmp_path / "b", kind, **more)
    found = decode(tmp_path / "a")
    assert np.array_equal(found.pixels, decode(tmp_path / "b").pixels)
    assert kind == "JPEG" or found.notes == (NO_EXIF,)


def test_bytes_are_read_as_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=texts())
    found, file = (
        decode_bytes((tmp_path / "a.png").read_bytes(), "some name"),
        decode(tmp_path / "a.png"),
    )
    assert np.array_equal(found.pixels, file.pixels)
    assert (found.notes, found.texts) == (file.notes, file.texts)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftyp"])
def test_bytes_that_are_no_image_are_one_sentence_with_their_name(content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode_bytes(content, "x.zip/a.png")
    assert str(caught.value).startswith("expected an image that can be decoded, got x.zip/a.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "I", "YCbCr"])
def test_pillow_image_of_any_mode_is_rgb(mode: str) -> None:
    found = from_pil(Image.new(mode, (3, 2))).pixels
    assert (found.shape, found.dtype) == ((2, 3, 3), np.uint8)


def test_pillow_image_of_fractions_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        from_pil(Image.new("F", (3, 2), 0.5))
    assert str(caught.value) == (
        "expected whole numbers for pixels, got fractions in a Pillow image: save as PNG"
    )


def test_pillow_image_too_large_is_refused() -> None:
    with pytest.raises(DataError, match=f"got {MAX_SIDE + 1} x 1 in a Pillow image"):
        from_pil(Image.new("L", (MAX_SIDE + 1, 1)))


def test_pixels_may_be_written_to(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flags.writeable


def test_image_has_neither_notes_nor_texts_unless_given() -> None:
    plain = DecodedImage(np.zeros((1, 1, 3), np.uint8))
    assert (plain.notes, plain.texts) == ((), {})
