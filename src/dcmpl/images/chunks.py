"""PNG files without the chunks that keep Pillow from their pixels."""

import struct
import zlib
from collections.abc import Iterator

__all__ = ["without_large_chunks"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_UNPACKED = 2**20
"""Bytes of an unpacked text or profile; Pillow reads no larger ones."""

MAX_TEXTS = 32 * 2**20
"""Bytes of all texts of a file; Pillow reads 64 MiB."""

PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

PACKED = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks whose content may be packed."""


def without_large_chunks(content: bytes, bare: bool = False) -> bytes | None:
    """PNG without texts and profiles that are too large; None where there is nothing to drop.

    ``bare``: with nothing but the pixels, their palette and their transparency.
    """
    if not content.startswith(SIGNATURE):
        return None
    kept, texts = [SIGNATURE], 0
    for kind, body, whole in _chunks(content):
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
            size = _unpacked(kind, body)
            texts += size
            if size > MAX_UNPACKED or texts > MAX_TEXTS:
                continue
        if bare and kind not in PIXELS:
            continue
        kept.append(whole)
    made = b"".join(kept)
    return made if len(made) < len(content) else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, data, the chunk itself) of every chunk; the last one may be cut off."""
    at = len(SIGNATURE)
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + size
        yield kind, content[at + 8 : end - 4], content[at:end]
        at = end


def _unpacked(kind: bytes, data: bytes) -> int:
    """Bytes of a text or profile once it is unpacked, counted up to the limit."""
    rest = data.partition(b"\0")[2]
    if kind not in PACKED or (kind == b"iTXt" and rest[:1] != b"\1"):
        return len(data)
    rest = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, MAX_UNPACKED + 1))
    except zlib.error:
        return len(data)
