"""Files that are there whole or not at all, and what tells that one was changed."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dcmpl import __version__
from dcmpl.errors import RunError

__all__ = [
    "as_json",
    "check_sealed",
    "put_in_place",
    "sealed",
    "sha256_of",
    "write_atomically",
    "write_whole",
]


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all; raises :class:`RunError` on failure."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunError(
            f"expected to write {path}, got: {error.strerror or error}; what stood there before "
            "is whole, make room and start again"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """The same; raises :class:`OSError`, for those who know more to say of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        put_in_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def put_in_place(temporary: Path, path: Path) -> None:
    """Move a file that was written, once it is on the disk; raises :class:`OSError`."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def as_json(value: Any) -> bytes:
    """Indented JSON in which what is not finite is null."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(v) for key, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        if isinstance(x, float) and (x != x or x in (float("inf"), float("-inf"))):
            return None
        return x

    return json.dumps(plain(value), indent=2).encode()


def sha256_of(path: Path) -> str:
    """The file's SHA-256; raises :class:`OSError` where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def sealed(record: dict[str, Any]) -> bytes:
    """``record`` as JSON with the SHA-256 of all the rest under ``digest``."""
    return as_json({**record, "digest": hashlib.sha256(as_json(record)).hexdigest()})


def check_sealed(record: dict[str, Any], path: Path) -> None:
    """Take the ``digest`` out of what was read from ``path``; it must be that of the rest.

    Raises :class:`RunError` where it is not, or where a later dcmpl wrote the record.
    """
    version = str(record.get("version", ""))
    if _numbers(version) > _numbers(__version__):
        raise RunError(
            f"expected what dcmpl {__version__} can read at {path}, got the record of a later "
            f"version, {version}: pip install --upgrade dcmpl-agiqa"
        )
    digest = record.pop("digest", None)
    if digest is None:
        raise RunError(
            f"expected the digest that seals {path}, found none: it is of an earlier "
            "version, make it again"
        )
    if digest != hashlib.sha256(as_json(record)).hexdigest():
        raise RunError(
            f"expected {path} as dcmpl wrote it, its digest says that it was changed since: "
            "take back the change, or make it again"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
