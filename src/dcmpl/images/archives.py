"""Zip and tar archives of strangers, read member by member; nothing is unpacked to disk."""

import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from dcmpl.errors import DataError
from dcmpl.images.columns import ParquetImages
from dcmpl.storage import about, open_file

__all__ = ["Archives", "TooLargeError", "in_archive", "kind_of", "read_file"]

SUFFIXES = {"zip": (".zip",), "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")}
ZIPPED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_MEMBER_BYTES, MAX_HEADER_BYTES = 512 * 2**20, 2**20


def kind_of(path: str) -> str | None:
    """Kind of archive by name, zip or tar, or None."""
    return next((k for k, ends in SUFFIXES.items() if path.lower().endswith(ends)), None)


ENDINGS = "|".join(re.escape(ending) for endings in SUFFIXES.values() for ending in endings)
INSIDE = re.compile(f"({ENDINGS})/", re.IGNORECASE)


def in_archive(path: str) -> tuple[str, str] | None:
    """Archive and member that a path names, as in photos.zip/a.png; None where it names none."""
    for found in INSIDE.finditer(path):
        at = found.end() - 1
        if _is_file(path[:at]):
            return path[:at], path[at + 1 :]
    return None


def _is_file(path: str) -> bool:
    with suppress(OSError):
        return about(path) is not None
    return False


class TooLargeError(DataError):
    """Error of a member or a file with more bytes than may be read."""


class Archives(ExitStack):
    """Archives by path; the last one stays open, since members mostly come in its order."""

    def __init__(self) -> None:
        super().__init__()
        self._path = ""
        self._open: Any = None
        self._last: dict[str, tarfile.TarInfo] | None = None

    def _opened(self, path: str) -> Any:
        if path != self._path:
            self.close()
            self._path, self._last = "", None
            if path.lower().endswith(".parquet"):
                self._open = self.enter_context(ParquetImages(path))
            else:
                file = self.enter_context(open_file(path))
                made = zipfile.ZipFile if kind_of(path) == "zip" else _open_tar
                self._open = self.enter_context(made(file))
            self._path = path
        return self._open

    def members(self, path: str) -> Iterator[str]:
        """Names of an archive's files, links included; raises :class:`DataError` at the damage."""
        with _damage_is_an_error(path):
            archive = self._opened(path)
            if isinstance(archive, zipfile.ZipFile):
                yield from (info.filename for info in archive.infolist() if not info.is_dir())
            else:
                yield from (i.name for i in archive if i.isfile() or i.islnk() or i.issym())
                # tarfile takes a damaged header for the end, which is a block of zeros.
                archive.fileobj.seek(archive.offset)
                if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise DataError(f"a whole archive at {path}", "a damaged header")

    def read(self, path: str, member: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """Bytes of a member; raises :class:`DataError`, also for too large a member."""
        with _damage_is_an_error(f"{path}/{member}"):
            archive = self._opened(path)
            if isinstance(archive, ParquetImages):
                return archive.read(int(member), limit)
            if isinstance(archive, zipfile.ZipFile):
                if archive.getinfo(member).compress_type not in ZIPPED:  # unpacked whole by zipfile
                    raise DataError(f"a stored or deflated member at {path}/{member}", "another")
                file: Any = archive.open(member)
            else:
                file = _opened_member(archive, self._in_tar(archive, member), f"{path}/{member}")
            with file:
                content: bytes = file.read(limit + 1)
        if len(content) > limit:
            raise TooLargeError(f"at most {limit} bytes at {path}/{member}", "more")
        return content

    def _in_tar(self, archive: Any, member: str) -> tarfile.TarInfo:
        """Last member of that name: what is appended to a tar replaces what stands before it.

        Of a damaged archive, among those before the damage.
        """
        if self._last is None:
            with suppress(Exception):
                archive.getmembers()
            self._last = {os.path.normpath(info.name): info for info in archive.members}
        name = os.path.normpath(member)
        if name not in self._last:
            raise DataError(f"{member} in {self._path}", "none")
        return self._last[name]


def _opened_member(archive: Any, info: tarfile.TarInfo, what: str) -> Any:
    try:
        if (file := archive.extractfile(info)) is not None:
            return file
    except RecursionError:
        raise DataError(f"a file at {what}", "a link that leads to itself") from None
    raise DataError(f"a file at {what}", "a folder or another kind of entry")


OF_OTHERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Header(tarfile.TarInfo):
    """Tar header that refuses large extended headers, which tarfile reads whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in OF_OTHERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in stubs
        return made


def _open_tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, tarinfo=_Header)


@contextmanager
def _damage_is_an_error(what: str) -> Iterator[None]:
    """Turn whatever reading an archive raises into a :class:`DataError` that names ``what``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = getattr(error, "strerror", None) or str(error)
        reason = " ".join(said.split()) or type(error).__name__
        raise DataError(f"a whole file at {what}", reason=reason) from error


def read_file(path: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
    """Bytes of a file within the limits of a member; raises :class:`DataError`."""
    with _damage_is_an_error(path), open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"at most {limit} bytes at {path}", "more")
    return content
