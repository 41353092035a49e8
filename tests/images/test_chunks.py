"""PNG files lose what keeps Pillow from their pixels, and nothing else."""

import io
import struct
import zlib

import pytest
from PIL import Image

from dcmpl.images.chunks import MAX_UNPACKED, without_large_chunks
from pngs import chunk


def png(*more: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "PNG", transparency=0)
    return file.getvalue()[:33] + b"".join(more) + file.getvalue()[33:]


def packed(size: int) -> bytes:
    return zlib.compress(bytes(size))


SMALL = chunk(b"tEXt", b"parameters\0a red fox")
LARGE = {
    "zTXt": chunk(b"zTXt", b"a\0\0" + packed(MAX_UNPACKED + 1)),
    "iTXt": chunk(b"iTXt", b"a\0\1\0en\0a\0" + packed(MAX_UNPACKED + 1)),
    "iCCP": chunk(b"iCCP", b"a\0\0" + packed(MAX_UNPACKED + 1)),
    "a bomb": chunk(b"zTXt", b"a\0\0" + packed(2**27)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_chunk_goes_and_small_ones_stay(kind: str) -> None:
    assert without_large_chunks(png(SMALL, LARGE[kind], SMALL)) == png(SMALL, SMALL)


def test_small_chunks_leave_nothing_to_drop() -> None:
    assert without_large_chunks(png(SMALL)) is None
    assert without_large_chunks(png()) is None


def test_bare_file_keeps_pixels_palette_and_transparency() -> None:
    assert without_large_chunks(png(SMALL, chunk(b"pHYs", b"")), bare=True) == png()


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_other_files_are_left_alone(content: bytes) -> None:
    assert without_large_chunks(content) is None


def test_length_that_lies_ends_the_file() -> None:
    lying = png()[:33] + struct.pack(">I", 2**31) + b"zTXt" + b"a\0\0"
    assert without_large_chunks(lying) is None
