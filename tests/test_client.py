"""A client gives the rows of a scorer, and says what a service says."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcmpl.client import SOME, Client
from dcmpl.errors import RunError, UsageError
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.serve.queue import Limits
from serving import listening

pytest_plugins = ("calibrated",)

KEY = "a-key-of-the-service"


@pytest.fixture(scope="module")
def scorer(calibrated_run: Path) -> Scorer:
    return Scorer.from_pretrained(calibrated_run, device="cpu")


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    """A service that listens, in a thread."""
    with listening(service(scorer, Limits(images=SOME), key=KEY)) as found:
        yield found


def test_rows_are_those_of_the_scorer(scorer: Scorer, url: str, judged_data: Path) -> None:
    paths: list[Any] = sorted(judged_data.parent.glob("*.png"))[: SOME + 3]
    with Image.open(paths[0]) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    images = [
        *paths,
        paths[0].parent / "none.png",
        judged_data,
        judged_data.parent,
        pixels,
        Image.fromarray(pixels),
    ]
    prompts = [f"prompt {i}, \u706b \U0001f600 <b>" for i in range(len(images) - 1)] + [None]
    ours, theirs = Client(url, KEY).score(images, prompts), scorer.score(images, prompts)
    assert list(ours) == list(theirs)
    assert [score.index for score in ours] == [score.index for score in theirs]
    assert [list(score.more) for score in ours if score.status == "ok"] == [
        list(score.more) for score in theirs if score.status == "ok"
    ]
    assert [score.status for score in ours].count("error") == 3


def test_nothing_to_score_asks_for_nothing() -> None:
    assert Client("http://127.0.0.1:9").score([]) == []


def test_images_are_taken_as_they_are_needed(url: str, judged_data: Path) -> None:
    path, taken = sorted(judged_data.parent.glob("*.png"))[0], 0

    def pairs() -> Iterator[tuple[Path, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield path, "a fox"

    stream = Client(url, KEY).stream(pairs())
    assert next(stream).status == "ok"
    assert taken == SOME
    stream.close()


def test_model_is_described(scorer: Scorer, url: str) -> None:
    found = Client(url + "/", KEY).model()
    assert found["weights_sha256"] == scorer.about["weights_sha256"]


def test_wrong_key_is_told_in_the_words_of_the_service(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected the key of this service, .*, got another"):
        Client(url, "x" * 20).model()


def test_service_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RunError, match=r"expected an answer from the service at 127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9").model()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8765", "ftp://127.0.0.1", "http://", "http://a/?b"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected the address of a service"):
        Client(url)


class Stranger(BaseHTTPRequestHandler):
    """A server whose answers the test chooses; each is a status, headers and a body."""

    answers: list[tuple[int, dict[str, str], bytes]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def stranger() -> Iterator[tuple[str, type[Stranger]]]:
    kind = type("Other", (Stranger,), {"answers": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()


ROW = json.dumps(
    {
        "image": "?",
        "prompt": "?",
        "quality": 0.5,
        "alignment": None,
        "authenticity": None,
        "status": "ok",
        "reason": "",
        "note": "",
    }
).encode()
FULL = 503, {"Retry-After": "7"}, b"{}"


def test_full_queue_is_waited_for(stranger: tuple[str, Any], image_data: Path) -> None:
    url, kind = stranger
    kind.answers = [FULL, FULL, (200, {}, ROW + b"\n")]
    slept: list[float] = []
    client = Client(url, sleep=slept.append)
    assert client.score([image_data.parent / "00.png"])[0].quality == 0.5
    assert slept == [7, 7]


def test_queue_that_stays_full_is_an_error(stranger: tuple[str, Any], image_data: Path) -> None:
    url, kind = stranger
    kind.answers = [FULL] * 100
    with pytest.raises(RunError, match="expected room in the queue of"):
        Client(url, sleep=lambda _: None).score([image_data.parent / "00.png"])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, {}, b""), "expected 1 rows from .*, got 0 and the end"),
        ((404, {}, b"<html>"), "got status 404: is it dcmpl serve"),
        ((500, {}, b"[1]"), "got status 500: is it dcmpl serve"),
        ((200, {}, b"{]\n"), "expected rows of JSON"),
        ((200, {}, b'{"image": 5}\n'), "expected rows of JSON"),
    ],
)
def test_answer_of_something_else_is_an_error(
    stranger: tuple[str, Any], image_data: Path, answer: Any, sentence: str
) -> None:
    url, kind = stranger
    kind.answers = [answer]
    with pytest.raises((RunError, UsageError), match=sentence):
        Client(url).score([image_data.parent / "00.png"])
