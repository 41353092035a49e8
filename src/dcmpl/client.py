"""Client of ``dcmpl serve``: the rows of :class:`dcmpl.Scorer`, computed on another machine.

>>> client = Client("http://127.0.0.1:8765")                       # doctest: +SKIP
>>> client.score(["a.png"], ["a red fox"])[0].quality              # doctest: +SKIP
0.71
"""

import io
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec
from PIL import Image

from dcmpl.data.sources import Source
from dcmpl.errors import DataError, DcmplError, RunError, UsageError
from dcmpl.images.archives import read_file
from dcmpl.images.decode import Input, name_of, read_input, text_of
from dcmpl.scoring.results import Score, Scores
from dcmpl.scoring.scorer import paired

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Client"]

SOME = 32
"""Images of a request: few enough that a broken connection costs little."""

MOST_LINE = 2**22
RETRIES = 20
OWN = {field.name for field in fields(Score)} - {"more"}


class Client:
    """Score images with the service at ``url``; ``key`` is the one it asks for, if any.

    ``timeout``: seconds without a sign of life. While the service's queue is full the client
    waits as long as it is told, up to twenty times. Raises :class:`UsageError` for a URL that
    is none.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 600,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UsageError("the address of a service, as http://127.0.0.1:8765", url or "none")
        self._parts, self._key, self._timeout, self._sleep = parts, key, timeout, sleep

    def model(self) -> dict[str, Any]:
        """Description of the model that scores there."""
        with self._asked("GET", "/v1/model") as answer:
            found: dict[str, Any] = json.loads(answer.read(MOST_LINE))
            return found

    def score(
        self,
        images: "Sequence[Input] | Tensor",
        prompts: Sequence[object] | str | None = None,
    ) -> Scores:
        """One :class:`Score` per image, in order, as :meth:`dcmpl.Scorer.score`."""
        return Scores(self.stream(paired(images, prompts)))

    def stream(self, pairs: Iterable[tuple[Input, object]]) -> Iterator[Score]:
        """Score (image, prompt) pairs one by one, in bounded memory."""
        rest, start = iter(pairs), 0
        while some := list(islice(rest, SOME)):
            yield from self._some(some, start)
            start += len(some)

    def _some(self, pairs: Sequence[tuple[Input, object]], start: int) -> Iterator[Score]:
        """Scores of one request; what cannot be read here has its row, and is not sent."""
        sources = [
            Source(name_of(image), prompt=text_of(prompt), given=image) for image, prompt in pairs
        ]
        contents: list[bytes | DcmplError] = [_content(source) for source in sources]
        sent = [(s, c) for s, c in zip(sources, contents, strict=True) if isinstance(c, bytes)]
        rows = self._rows(sent) if sent else iter(())
        for place, (source, content) in enumerate(zip(sources, contents, strict=True), start):
            if isinstance(content, bytes):
                row = next(rows)
                yield _score_of(row, source, place)
            else:
                more = dict.fromkeys(self._columns)
                reason = str(content)
                yield Score(source.name, source.prompt, reason=reason, more=more, index=place)

    @cached_property
    def _columns(self) -> list[str]:
        """What the model's rows have beside the columns of all."""
        return [str(name) for name in self.model()["columns"]]

    def _rows(self, sent: Sequence[tuple[Source, bytes]]) -> Iterator[dict[str, Any]]:
        kind, body = _form(sent)
        headers = {"Content-Type": kind, "Accept": "application/x-ndjson"}
        count = 0
        with self._asked("POST", "/v1/score", body, headers) as answer:
            while line := answer.readline(MOST_LINE):
                count += 1
                yield _row_in(line)
        if count != len(sent):
            raise RunError(f"{len(sent)} rows from {self._parts.netloc}", f"{count} and the end")

    @contextmanager
    def _asked(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Answer to a request; raises :class:`RunError` or :class:`UsageError` with the reason."""
        where = f"the service at {self._parts.netloc}"
        for _ in range(RETRIES):
            try:
                with closing(self._connection()) as connection:
                    connection.request(
                        method,
                        self._parts.path.rstrip("/") + path,
                        body,
                        {
                            **(headers or {}),
                            **({"X-API-Key": self._key} if self._key else {}),
                        },
                    )
                    answer = connection.getresponse()
                    after = answer.headers.get("Retry-After", "")
                    if answer.status == 503 and after.isdecimal():
                        self._sleep(int(after))
                        continue
                    if answer.status != 200:
                        raise _problem(answer, where)
                    yield answer
                    return
            except (OSError, HTTPException) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise RunError(f"an answer from {where}", "none", reason=reason) from error
        raise RunError(f"room in the queue of {where}", f"none after {RETRIES} tries")

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(str(self._parts.hostname), self._parts.port, timeout=self._timeout)


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


def _content(source: Source) -> bytes | DcmplError:
    """Bytes of a file to send, PNG of an image that a program has, or why there are none."""
    image = source.given
    try:
        if isinstance(image, (str, Path)) and Path(image).is_file():
            return read_file(str(image))
        pixels = read_input(image).pixels  # of a path that is no file: the error of a scorer
    except (DataError, UsageError) as error:
        return error
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _form(sent: Sequence[tuple[Source, bytes]]) -> tuple[str, bytes]:
    """Content type and body of a form with these files and their prompts (RFC 7578)."""
    mark = secrets.token_hex(16)
    parts = []
    for source, content in sent:
        name = source.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A") or "image"
        files = f'name="files"; filename="{name}"\r\nContent-Type: application/octet-stream'
        for about, value in ((files, content), ('name="prompt"', source.prompt.encode())):
            head = f"--{mark}\r\nContent-Disposition: form-data; {about}\r\n\r\n"
            parts += [head.encode(errors="replace"), value, b"\r\n"]
    return f"multipart/form-data; boundary={mark}", b"".join([*parts, f"--{mark}--\r\n".encode()])


def _score_of(row: dict[str, Any], source: Source, place: int) -> Score:
    more = {name: value for name, value in row.items() if name not in OWN and name != "status"}
    own = {name: value for name, value in row.items() if name in OWN}
    return Score(**{**own, "image": source.name, "prompt": source.prompt}, more=more, index=place)
