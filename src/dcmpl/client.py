"""Client of ``dcmpl serve``: the rows of :class:`dcmpl.Scorer`, computed on another machine.

>>> client = Client("http://127.0.0.1:8765")                       # doctest: +SKIP
>>> client.score(["a.png"], ["a red fox"])[0].quality              # doctest: +SKIP
0.71
"""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from PIL import Image

from dcmpl.data.sources import NOTHING, Source
from dcmpl.errors import DataError, DcmplError, RunError, UsageError
from dcmpl.images.archives import read_file
from dcmpl.images.decode import decode_bytes
from dcmpl.scoring.batching import ahead
from dcmpl.scoring.calibration import Calibration, of_record
from dcmpl.scoring.judge import Judge
from dcmpl.scoring.results import Score

__all__ = ["MODEL", "Client", "digest_of"]

SOME = 32
"""Images of a request: few enough that a broken connection costs little."""

MOST_SENT = 32 * 2**20
"""Bytes of a request, or those of one image that has more."""

UNDER_WAY = 2
"""Requests at a time: one is sent while another is scored."""

FORM = 512
"""Bytes that a form may add to an image, and to all of them."""

MOST_PROMPT = 2**16
"""Bytes of a prompt."""

MOST_LINE = 2**22
LONGEST, PATIENCE = 600, 3600
"""Seconds that the client waits for a full queue at a time, and in all."""

OWN = {field.name for field in fields(Score)} - {"more"}
MODEL = "X-Model"
"""Header of an answer: the digest of what scored."""


def digest_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of a judge's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Client(Judge):
    """Score images with the service at ``url``; ``key`` is the one it asks for, if any.

    ``timeout``: seconds without a sign of life. While the service's queue is full the client
    waits as long as it is told, an hour at most. Raises :class:`UsageError` for a URL or a key
    that is none or a key that is another, :class:`RunError` where no service answers.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 600,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._parts, self._key = _address(url), (key or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError("a key of plain letters", "others")
        self._timeout, self._sleep = timeout, sleep
        found = _described(self.model(), self._parts.netloc)
        self.about, self.targets, self.columns = found.about, found.targets, found.columns
        self.reads, self.uncalibrated = found.reads, found.uncalibrated
        self.calibration = _calibration(found.calibration, self._parts.netloc)
        self._identity, self._digest = found.identity, digest_of(found.identity)
        self._most = found.most_bytes - FORM
        self._some = min(SOME, found.most_images)

    def model(self) -> dict[str, Any]:
        """Description of the model that scores there."""
        with self._asked(_Calls(), "GET", "/v1/model") as answer:
            return _json_of(answer.read(MOST_LINE), self._parts.netloc)

    def identity(self) -> dict[str, Any]:
        """What the scorer of the service is known by: the same as it has there."""
        return dict(self._identity)

    def rows(self, sources: Iterable[Source], start: int = 0) -> Iterator[Score]:
        """Score sources, numbered from ``start``; a few requests are in memory.

        What cannot be read here has its row, and is not sent.
        """
        pool, calls = ThreadPoolExecutor(UNDER_WAY), _Calls()
        try:
            answered = partial(self._answered, calls)
            for scores, fault in ahead(self._requests(sources), answered, pool, UNDER_WAY - 1):
                for score in scores:
                    yield replace(score, index=start)
                    start += 1
                if fault:
                    raise fault
        finally:
            calls.end()
            pool.shutdown(cancel_futures=True)

    def _requests(self, sources: Iterable[Source]) -> "Iterator[list[_Part]]":
        """Parts of each request, as many as it may have."""
        parts: list[_Part] = []
        size, most = 0, min(MOST_SENT, self._most)
        for source in sources:
            part = _part_of(source, self._most)
            if parts and (len(parts) == self._some or size + part.size > most):
                yield parts
                parts, size = [], 0
            parts.append(part)
            size += part.size
        if parts:
            yield parts

    def _answered(
        self, calls: "_Calls", parts: "Sequence[_Part]"
    ) -> tuple[list[Score], DcmplError | None]:
        """Scores of one request, up to the fault that ended it, if any."""
        sent = [part for part in parts if part.content is not None]
        rows: list[dict[str, Any]] = []
        fault = None
        try:
            if sent:
                self._fill(rows, calls, sent)
        except DcmplError as error:
            fault = error
        left, scores = iter(rows), list[Score]()
        for part in parts:
            if part.content is None:
                scores.append(part.failed(self.columns))
            elif row := next(left, None):
                scores.append(part.scored(row))
            else:
                break
        return scores, fault

    def _fill(self, rows: list[dict[str, Any]], calls: "_Calls", sent: "Sequence[_Part]") -> None:
        """Add the rows of a request as they come."""
        mark = secrets.token_hex(16)  # stands for each name, which the service gives back in texts
        kind, body = _form(sent, mark)
        headers = {"Content-Type": kind, "Accept": "application/x-ndjson"}
        with self._asked(calls, "POST", "/v1/score", body, headers) as answer:
            if answer.headers.get(MODEL) != self._digest:
                raise RunError(
                    f"the model that {self._parts.netloc} had at first",
                    "another since",
                    "begin anew, or serve the first again",
                )
            for place, part in enumerate(sent):
                if not (line := answer.readline(MOST_LINE)):
                    wanted = f"{len(sent)} rows from {self._parts.netloc}"
                    raise RunError(wanted, f"{place} and the end")
                row = _row_in(line)
                for text in ("reason", "note"):
                    row[text] = row[text].replace(_name(mark, place), part.source.name)
                rows.append(row)
            if answer.readline(MOST_LINE):
                raise RunError(f"{len(sent)} rows from {self._parts.netloc}", "more")

    @contextmanager
    def _asked(
        self,
        calls: "_Calls",
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        """Answer to a request; raises :class:`RunError` or :class:`UsageError` with the reason."""
        where = f"the service at {self._parts.netloc}"
        waited = 0
        while waited <= PATIENCE and not calls.gone.is_set():
            try:
                with calls.opened(self._connection()) as connection:
                    connection.request(
                        method,
                        self._parts.path.rstrip("/") + path,
                        body,
                        {
                            **(headers or {}),
                            **({"X-API-Key": self._key} if self._key else {}),
                        },
                    )
                    with connection.getresponse() as answer:
                        after = answer.headers.get("Retry-After", "")
                        if answer.status == 200:
                            yield answer
                            return
                        if answer.status != 503 or not after.isdecimal():
                            raise _problem(answer, where)
                seconds = min(int(after[:9]), LONGEST)
                waited += max(1, seconds)
                (self._sleep or calls.gone.wait)(seconds)
            except (OSError, HTTPException) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise RunError(f"an answer from {where}", "none", reason=reason) from error
        raise RunError(f"room in the queue of {where}", f"none after {waited} s")

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(str(self._parts.hostname), self._parts.port, timeout=self._timeout)


class _Calls:
    """Requests of one call, which end together where their rows are no longer wanted."""

    def __init__(self) -> None:
        self.gone = Event()
        self._open: set[HTTPConnection] = set()

    @contextmanager
    def opened(self, connection: HTTPConnection) -> Iterator[HTTPConnection]:
        """A connection of the requests, closed when the block ends."""
        self._open.add(connection)
        try:
            with closing(connection):
                yield connection
        finally:
            self._open.discard(connection)

    def end(self) -> None:
        """Break off whatever waits."""
        self.gone.set()
        for connection in [*self._open]:
            with suppress(OSError, AttributeError):  # it may not have begun
                connection.sock.shutdown(SHUT_RDWR)


def _address(url: str) -> SplitResult:
    """Parts of a service's address; raises :class:`UsageError` for what is none."""
    try:
        parts = urlsplit(url)
        whole = f"{parts.hostname}{parts.port}{parts.path}".encode("ascii")
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query and whole:
            parts.hostname.encode("idna")
            return parts
    except ValueError:  # as of a port that is no number
        pass
    raise UsageError("the address of a service, as http://127.0.0.1:8765", url or "none")


def _problem(answer: HTTPResponse, where: str) -> DcmplError:
    """Error of an answer, in the service's own words where it has some."""
    kind = UsageError if 400 <= answer.status < 500 else RunError
    try:
        told = json.loads(answer.read(MOST_LINE))
        return kind(str(told["expected"]), str(told["got"]), str(told["hint"]))
    except (ValueError, KeyError, TypeError):
        return kind(f"a score from {where}", f"status {answer.status}", "is it dcmpl serve?")


class _Row(msgspec.Struct):
    """What every row has."""

    status: Literal["ok", "error"]
    reason: str
    note: str
    quality: float | None
    alignment: float | None
    authenticity: float | None


def _row_in(line: bytes) -> dict[str, Any]:
    try:
        row: dict[str, Any] = msgspec.json.decode(line)
        msgspec.convert(row, _Row)
        return row
    except (ValueError, msgspec.MsgspecError) as error:
        raise RunError("rows of JSON from the service", reason=error) from error


@dataclass(frozen=True)
class _Part:
    """Image of a request: its source, the bytes to send, and what is known of it here."""

    source: Source
    content: bytes | None
    prompt: str
    words: bytes
    note: str
    fault: str
    file: str

    @property
    def size(self) -> int:
        """Bytes of a form that it takes."""
        return len(self.content or b"") + len(self.words) + FORM

    def scored(self, row: Mapping[str, Any]) -> Score:
        """Score of the service's row."""
        more = {name: value for name, value in row.items() if name not in OWN and name != "status"}
        own = {name: value for name, value in row.items() if name in OWN}
        note = "; ".join(filter(None, [self.note, row["note"]]))
        here = {"image": self.source.name, "prompt": self.prompt, "note": note, "file": self.file}
        return Score(**{**own, **here}, more=more)

    def failed(self, columns: Sequence[str]) -> Score:
        """Score of an image that was not sent."""
        more = dict.fromkeys(columns)
        return Score(
            self.source.name,
            self.prompt,
            reason=self.fault,
            note=self.note,
            more=more,
            file=self.file,
        )


def _part_of(source: Source, most: int) -> _Part:
    """Part of a request; a failure to read the image becomes the fault of its row."""
    file = source.file() if source.is_job else ""
    prompt, note, content, fault = source.prompt, source.note, None, ""
    words = prompt
    try:
        content = _content_of(source)
        if source.in_metadata:
            prompt, words, read = source.prompt_of(decode_bytes(content, source.name))
            note = "; ".join(filter(None, [note, read]))
    except (DataError, UsageError) as error:
        fault = str(error)
    part = _Part(source, content, prompt, words.encode(errors="replace"), note, fault, file)
    fault = fault or _too_large(part, most)
    return replace(part, content=None, fault=fault) if fault else part


def _too_large(part: _Part, most: int) -> str:
    """Why the service would not take a part, or nothing."""
    if len(part.words) > MOST_PROMPT:
        wanted, got = f"a prompt of at most {MOST_PROMPT:,} bytes", "a longer one of "
    elif part.size > most:
        wanted, got = f"a file of at most {most:,} bytes", ""
    else:
        return ""
    return str(DataError(f"{wanted} for the service", f"{got}{part.source.name}"))


def _content_of(source: Source) -> bytes:
    """Bytes of a file, PNG of an image that a program has; raises as a scorer does for none."""
    if source.content is not None:
        return source.content
    given = source.given
    path = source.path if given is NOTHING else given
    if isinstance(path, (str, Path)) and not source.fault and os.path.isfile(path):
        with suppress(DataError):  # then reading it as a scorer does says why
            return read_file(str(path))
    content = io.BytesIO()
    Image.fromarray(source.read().pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _name(mark: str, place: int) -> str:
    return f"{mark}-{place}-"


def _form(sent: Sequence[_Part], mark: str) -> tuple[str, bytes]:
    """Content type and body of a form with these files and their prompts (RFC 7578)."""
    parts = []
    for place, part in enumerate(sent):
        files = f'name="files"; filename="{_name(mark, place)}"'
        kind = "\r\nContent-Type: application/octet-stream"
        for about, value in (
            (files + kind, part.content or b""),
            ('name="prompt"', part.words),
        ):
            head = f"--{mark}\r\nContent-Disposition: form-data; {about}\r\n\r\n"
            parts += [head.encode(errors="replace"), value, b"\r\n"]
    return f"multipart/form-data; boundary={mark}", b"".join([*parts, f"--{mark}--\r\n".encode()])


class _Described(msgspec.Struct):
    """What the service says of its model."""

    about: dict[str, Any]
    targets: tuple[str, ...]
    columns: tuple[str, ...]
    reads: str | None
    uncalibrated: str
    calibration: dict[str, Any] | None
    identity: dict[str, Any]
    most_bytes: int
    most_images: int


def _described(found: dict[str, Any], where: str) -> _Described:
    try:
        return msgspec.convert(found, _Described)
    except msgspec.ValidationError as error:
        raise RunError(
            f"the model of a service at {where}",
            "another description",
            "is it dcmpl serve, of this version?",
            reason=error,
        ) from error


def _calibration(record: dict[str, Any] | None, where: str) -> Calibration | None:
    try:
        return of_record(record) if record else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"a calibration from {where}", "another record", reason=error) from error


def _json_of(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"JSON from {where}", "something else", "is it dcmpl serve?") from error
    if not isinstance(found, dict):
        raise RunError(f"an object of JSON from {where}", type(found).__name__)
    return found
