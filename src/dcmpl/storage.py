"""Files by path or by URL: local ones, and those of object stores by pyarrow and huggingface_hub.

``s3://``, ``gs://`` and ``abfs://`` go through ``pyarrow.fs``, ``hf://`` through huggingface_hub.
Credentials come from their usual places (environment, profile, login) and from nowhere else: a
URL that carries any is refused, so none can be printed or written down. An object store has no
rename and no append; an object is there whole or not at all.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from dcmpl.errors import RunError, UsageError
from dcmpl.files import put_in_place

__all__ = [
    "About",
    "StoreError",
    "about",
    "base_of",
    "fetched",
    "fetched_file",
    "fetched_table",
    "is_folder",
    "is_url",
    "join",
    "list_files",
    "local_copy",
    "open_file",
    "reason_of",
    "remove",
    "remove_folder",
    "sha256_at",
    "upload",
    "write",
    "writing",
]

SCHEMES = ("s3", "gs", "abfs", "hf")
"""Kinds of URL, as ``s3://bucket/folder/file.png``."""

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

SIGNED = re.compile(
    r"[?&](x-(amz|goog)-[\w-]+|sig|signature|token|awsaccesskeyid|googleaccessid|"
    r"(access|secret|api)[_-]?\w*)=",
    re.IGNORECASE,
)
"""Parts of an address that let whoever has it read: signatures, tokens and keys."""

if TYPE_CHECKING:
    Opened = IO[bytes]
else:  # files of pyarrow read and seek, and are none of IO's for who looks
    Opened = Any


AHEAD = 2**20
"""Bytes that are fetched from a store at least: each request has its own wait."""


class StoreError(OSError):
    """Error of an object store, in its own words, with what was tried at which URL."""


class About(NamedTuple):
    """Size of a file in bytes, and the time of its last change in nanoseconds.

    The hub tells no times; there ``changed`` is a number made of the content's digest.
    """

    path: str
    size: int
    changed: int


def is_url(path: object) -> bool:
    """Whether a path is a URL.

    Raises :class:`UsageError` for one of an unknown kind, or with a name or a key in it.
    """
    found = URL.match(str(path))
    if not found:
        return False
    scheme = found[0][:-3].lower()
    if scheme not in SCHEMES:
        raise UsageError(
            f"a path, or a URL of {', '.join(f'{name}://' for name in SCHEMES)}",
            f"{scheme}://",
            "copy it to one of these first",
        )
    # A key may have a slash in it, so the @ may stand behind one; no bucket's name has a colon.
    netloc = str(path)[found.end() :].partition("/")[0]
    has_name = ":" in netloc or ("@" in netloc and scheme != "abfs")
    if has_name or SIGNED.search(str(path)):
        raise UsageError(
            "a URL without a name or a key in it",
            f"one of {scheme}://",
            "set the variables of the environment that the store's own programs read",
        )
    return True


def join(folder: str, name: str) -> str:
    """Path or URL of ``name`` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def base_of(path: str) -> str:
    """Last name of a path or URL."""
    return path.rstrip("/").rpartition("/")[2] if is_url(path) else os.path.basename(path)


@cache
def _filesystem(scheme: str, account: str, process: int) -> Any:
    """File system of a kind of URL, one for each process: threads do not survive a fork."""
    from pyarrow import fs

    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
    if scheme == "s3":
        # What every other S3 program reads, and pyarrow does not.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return fs.S3FileSystem(endpoint_override=endpoint) if endpoint else fs.S3FileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem()
    return fs.AzureFileSystem(account)


def _opened(url: str) -> tuple[Any, str]:
    """File system of a URL, and the path in there."""
    is_url(url)  # or nothing of it may be shown
    scheme, _, place = url.partition("://")
    scheme, bucket = scheme.lower(), place.partition("/")[0]
    account = ""
    if "@" in bucket:  # abfs://container@account.host/path
        container, _, host = bucket.partition("@")
        account = host.partition(".")[0]
        place = container + place[len(bucket) :]
    if not bucket:
        raise UsageError("a URL that names a bucket", url)
    return _filesystem(scheme, account or _azure(scheme), os.getpid()), place


def _azure(scheme: str) -> str:
    return os.environ.get("AZURE_STORAGE_ACCOUNT", "") if scheme == "abfs" else ""


def reason_of(error: BaseException) -> str:
    """Words of the system or of a store for an error, in one line."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split())[:300] or type(error).__name__


@contextmanager
def _store_errors(url: str, what: str) -> Iterator[None]:
    """Turn whatever a store's library raises into a :class:`StoreError` with its words."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
    except StoreError:
        raise
    except Exception as error:  # each library has its own
        raise StoreError(f"{what} {url}: {reason_of(error)}") from error


def about(path: str) -> About | None:
    """Size and time of a file; None where there is none. Raises :class:`OSError`."""
    if not is_url(path):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return About(path, found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else None
    from pyarrow import fs

    store, place = _opened(path)
    with _store_errors(path, "look at"):
        (info,) = store.get_file_info([place])
        return _about(path, store, info) if info.type == fs.FileType.File else None


def _about(url: str, store: Any, info: Any) -> About:
    changed = info.mtime_ns
    if changed is None and store.type_name.startswith("py::"):  # the hub's: listed, so no request
        known = store.handler.fs.info(info.path)
        changed = int(str(known.get("blob_id") or "0")[:15], 16)
    return About(url, int(info.size or 0), int(changed or 0))


def is_folder(path: str) -> bool:
    """Whether a folder, or what a store shows as one, is there; raises :class:`OSError`."""
    if not is_url(path):
        return os.path.isdir(path)
    from pyarrow import fs

    store, place = _opened(path)
    with _store_errors(path, "look at"):
        (info,) = store.get_file_info([place.rstrip("/")])
    return bool(info.type == fs.FileType.Directory)


def list_files(folder: str) -> list[About]:
    """All files below a folder, by name; none where it is not there. Raises :class:`OSError`."""
    if not is_url(folder):
        found = [
            about(os.path.join(place, name))
            for place, _, names in os.walk(folder)
            for name in names
        ]
        return sorted(file for file in found if file)
    from pyarrow import fs

    store, place = _opened(folder)
    with _store_errors(folder, "list"):
        selector = fs.FileSelector(place.rstrip("/"), allow_not_found=True, recursive=True)
        return sorted(
            _about(_url_of(folder, info.path), store, info)
            for info in store.get_file_info(selector)
            if info.type == fs.FileType.File
        )


def _url_of(folder: str, place: str) -> str:
    """URL of a place in the store of ``folder``."""
    scheme, _, rest = folder.partition("://")
    if "@" in (bucket := rest.partition("/")[0]):
        return f"{scheme}://{bucket}/{place.partition('/')[2]}"
    return f"{scheme}://{place}"


def open_file(path: str) -> Opened:
    """Open a file for reading, at any place in it; raises :class:`OSError`."""
    if not is_url(path):
        return Path(path).open("rb")
    store, place = _opened(path)
    with _store_errors(path, "read"):
        return io.BufferedReader(_Remote(path, store.open_input_file(place)), AHEAD)


class _Remote(io.RawIOBase):
    """File of a store whose errors are :class:`OSError`, also half-way."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _store_errors(self._url, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _store_errors(self._url, "read"):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with _store_errors(self._url, "read"):
            return bytes(self._file.read())

    def close(self) -> None:
        self._file.close()
        super().close()


def write(path: str, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all; raises :class:`OSError`."""
    if not is_url(path):
        with writing(path) as file:
            file.write(content)
        return
    store, place = _opened(path)
    with _store_errors(path, "write"), store.open_output_stream(place, compression=None) as file:
        file.write(content)


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file itself, or a copy of what a URL names, while the block lasts."""
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="dcmpl-") as folder:
        copy = Path(folder) / base_of(path)
        with open_file(path) as file, copy.open("wb") as out:
            shutil.copyfileobj(file, out)
        yield copy


def remove_folder(url: str) -> None:
    """Remove a folder of a store, where no file is left in it; raises :class:`OSError`."""
    store, place = _opened(url)
    with _store_errors(url, "remove"):
        if not list_files(url):
            store.delete_dir(place.rstrip("/"))


def sha256_at(path: str) -> str:
    """SHA-256 of a file; raises :class:`OSError`."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def upload(file: Path, path: str) -> None:
    """Copy a local file to ``path``, whole or not at all; raises :class:`OSError`."""
    with file.open("rb") as source:
        if is_url(path):
            _send(source, path)
            return
        with writing(path) as out:
            shutil.copyfileobj(source, out, 2**23)


def _send(source: IO[bytes], url: str) -> None:
    store, place = _opened(url)
    with _store_errors(url, "write"), store.open_output_stream(place, compression=None) as file:
        shutil.copyfileobj(source, file, 2**23)


def fetched(url: str) -> Path:
    """Folder on this machine with the files of a folder in a store, copied where they changed.

    Raises :class:`RunError` where there is none.
    """
    try:
        files = list_files(url)
        if not files:
            raise RunError(f"a folder with files at {url}", "none")
        known = "\n".join(f"{file.path} {file.size} {file.changed}" for file in files)
        place = cache_folder() / hashlib.sha256(known.encode()).hexdigest()[:32]
        folder = place / base_of(url)
        if not folder.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=place) as temporary:
                for file in files:
                    names = file.path[len(url) :].strip("/").split("/")
                    if {"..", ".", ""} & {*names} or any(os.sep in name for name in names):
                        raise RunError(f"names of files below {url}", file.path)
                    copy = Path(temporary, "all", *names)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with open_file(file.path) as source, copy.open("wb") as out:
                        shutil.copyfileobj(source, out, 2**23)
                try:
                    Path(temporary, "all").rename(folder)
                except OSError:  # another process was faster
                    if not folder.is_dir():
                        raise
        return folder
    except OSError as error:
        raise RunError(f"a folder at {url}", reason=reason_of(error)) from error


def fetched_file(url: str) -> Path:
    """File on this machine with what a file in a store has, copied where it changed.

    Raises :class:`RunError` where there is none.
    """
    found = about(url)
    if found is None:
        raise RunError(f"a file at {url}", "none")
    known = f"{url} {found.size} {found.changed}"
    copy = cache_folder() / hashlib.sha256(known.encode()).hexdigest()[:32] / base_of(url)
    if not copy.is_file():
        with open_file(url) as source, writing(str(copy)) as out:
            shutil.copyfileobj(source, out, 2**23)
    return copy


def fetched_table(url: str) -> Path:
    """Folder, or table with all that lies beside it, on this machine; as :func:`fetched`."""
    if is_folder(url):
        return fetched(url)
    folder, _, name = url.rpartition("/")
    if about(url) is None:
        raise RunError(f"a table or a folder at {url}", "none")
    return fetched(folder) / name


def cache_folder() -> Path:
    """Folder of copies that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcmpl"


@contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """File to write, which is there, whole, when the block ends; raises :class:`OSError`.

    Nothing is written where the block ends with an error: a store takes what was sent so far
    for the whole, so it is sent when all of it is there. Two that write one file at a time each
    write their own, and the last one counts.
    """
    if is_url(path):
        with tempfile.TemporaryFile(prefix="dcmpl-") as spooled:
            yield spooled
            spooled.seek(0)
            _send(spooled, path)
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as opened:
            yield opened
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: str) -> None:
    """Remove a file; nothing happens where there is none. Raises :class:`OSError`."""
    if not is_url(path):
        Path(path).unlink(missing_ok=True)
        return
    store, place = _opened(path)
    with _store_errors(path, "remove"):
        try:
            store.delete_file(place)
        except FileNotFoundError:
            return
