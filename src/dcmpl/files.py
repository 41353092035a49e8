"""Atomic writes and tamper-evident JSON records."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dcmpl import __version__
from dcmpl.errors import DcmplError, RunError

UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError),
    *(OverflowError, ZeroDivisionError),
)
"""What a file of another form raises while it is read."""

Record = TypeVar("Record")

__all__ = [
    "MADE_BY",
    "UNREADABLE",
    "added",
    "as_json",
    "check_sealed",
    "digest_of_text",
    "put_in_place",
    "read_most",
    "read_plain",
    "read_record",
    "read_yaml",
    "record_of",
    "sealed",
    "sha256_of",
    "write_atomically",
    "write_whole",
]

MADE_BY = "made by dcmpl-agiqa"
"""Mark in pages, plots and results, which later ones may replace."""


MAX_DEPTH = 20
LONG_NUMBER = re.compile("[-+]?(0[xob])?[0-9a-fA-F_]{101,}")


def read_most(path: Path, most: int) -> bytes:
    """All bytes of a file, which may be a device without end or say a wrong size.

    Raises :class:`OSError`, and :class:`ValueError` where there are more than ``most``.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


MERGE = "tag:yaml.org,2002:merge"


class _OnceLoader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs
    """Loader of plain values that refuses a key which is there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                value = self.construct_object(key)
                if value in seen:
                    raise ValueError(f"{value} twice")
                seen.add(value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(path: Path, most: int) -> Any:
    """Plain values of a YAML file of at most ``most`` bytes.

    Raises :class:`OSError` and :class:`ValueError`, also for keys that are there twice, for
    aliases, whose values may double at each, and for what YAML or Python cannot read.
    """
    try:
        text = read_most(path, most).decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"values in values, more than {MAX_DEPTH} deep")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias (*), write the value out")
            if isinstance(event, yaml.ScalarEvent) and LONG_NUMBER.fullmatch(event.value):
                raise ValueError("a number of more than 100 digits")
        return yaml.load(text, _OnceLoader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all; raises :class:`RunError` on failure."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunError(
            f"to write {path}",
            hint="what stood there before is whole, make room and start again",
            reason=error.strerror or error,
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """:func:`write_atomically` that raises :class:`OSError`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        put_in_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a written file to disk, then move it into place; raises :class:`OSError`."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def as_json(value: Any) -> bytes:
    """Indented JSON with null for numbers that are not finite."""

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
    """SHA-256 of a file; raises :class:`OSError` for an unreadable one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def added(digests: Iterable[str]) -> str:
    """Digest of many, whatever their order: their sum, so that shards add up to the whole."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"


def digest_of_text(key: str, text: str) -> str:
    """SHA-256 of a text that goes with an image, by the image's key."""
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()


def sealed(record: dict[str, Any]) -> bytes:
    """JSON of ``record`` with the SHA-256 of all the rest under ``digest``."""
    return as_json({**record, "digest": hashlib.sha256(as_json(record)).hexdigest()})


def check_sealed(record: dict[str, Any], path: Path | str) -> None:
    """Check and remove the ``digest`` of a record that was read from ``path``.

    Raises :class:`RunError` where it is not, or where a later dcmpl wrote the record.
    """
    version = str(record.get("version", ""))
    if _numbers(version) > _numbers(__version__):
        raise RunError(
            f"what dcmpl {__version__} can read at {path}",
            f"the record of a later version, {version}",
            "pip install --upgrade dcmpl-agiqa",
        )
    digest = record.pop("digest", None)
    if digest is None:
        raise RunError(
            f"the digest that seals {path}", "none", "it is of an earlier version, make it again"
        )
    if digest != hashlib.sha256(as_json(record)).hexdigest():
        raise RunError(
            f"{path} as dcmpl wrote it",
            "one that its digest says was changed since",
            "take back the change, or make it again",
        )


def read_record(
    path: Path, what: str, build: Callable[[dict[str, Any]], Record], most: int = 256 * 2**20
) -> Record:
    """Read a JSON record that :func:`sealed` wrote; ``build`` makes the value of the dictionary.

    The one reader of our own records. Raises :class:`RunError` where the file is missing, has
    more than ``most`` bytes, was changed, or is not ``what`` it should be.
    """
    return _read(path, what, build, most, check_sealed)


def read_plain(
    path: Path, what: str, build: Callable[[dict[str, Any]], Record], most: int = 256 * 2**20
) -> Record:
    """:func:`read_record` for a record without a seal."""
    return _read(path, what, build, most, lambda record, path: None)


def _read(
    path: Path,
    what: str,
    build: Callable[[dict[str, Any]], Record],
    most: int,
    check: Callable[[dict[str, Any], Path | str], None],
) -> Record:
    try:
        content = read_most(path, most)
    except UNREADABLE as error:
        raise _not_what(path, what, error) from error
    return record_of(content, path, what, build, check)


def record_of(
    content: bytes,
    path: Path | str,
    what: str,
    build: Callable[[dict[str, Any]], Record],
    check: Callable[[dict[str, Any], Path | str], None] = check_sealed,
) -> Record:
    """:func:`read_record` of the content of a file, which may lie in an object store."""
    try:
        record = json.loads(content)
        if not isinstance(record, dict):
            raise TypeError(f"a {type(record).__name__}")
    except UNREADABLE as error:
        raise _not_what(path, what, error) from error
    check(record, path)
    try:
        return build(record)
    except (*UNREADABLE, DcmplError) as error:
        raise _not_what(path, what, error) from error


def _not_what(path: Path | str, what: str, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, KeyError):
        reason = f"no entry {reason}"
    return RunError(f"{what} at {path}", reason=reason or type(error).__name__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
