"""A client gives the rows of a scorer, and says what a service says."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcmpl.client import FORM, LONGEST, MODEL, MOST_PROMPT, SOME, UNDER_WAY, Client, digest_of
from dcmpl.data.sources import Source
from dcmpl.errors import RunError, UsageError
from dcmpl.scoring.results import Score, Scores
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.serve.queue import Limits
from serving import listening

pytest_plugins = ("calibrated",)

KEY = "a-key-of-the-service"


@pytest.fixture(scope="module")
def scorer(calibrated_run: Path) -> Scorer:
    return Scorer.from_pretrained(
        calibrated_run, device="cpu", batch_size=1
    )  # no rounding of batches


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


def test_nothing_to_score_is_nothing(url: str) -> None:
    assert Client(url, KEY).score([]) == []


def test_ranking_is_that_of_the_scorer(scorer: Scorer, url: str, judged_data: Path) -> None:
    paths = sorted(judged_data.parent.glob("*.png"))[:5]
    ours = Client(url, KEY).rank(paths, "a fox", by="quality_mos")
    assert list(ours) == list(scorer.rank(paths, "a fox", by="quality_mos"))
    assert ours[0].more["call"]
    with pytest.raises(UsageError, match=r"targets that .* predicts .*, got beauty"):
        Client(url, KEY).rank(paths, by="beauty")


def test_images_are_taken_as_they_are_needed(url: str, judged_data: Path) -> None:
    path, taken = sorted(judged_data.parent.glob("*.png"))[0], 0

    def pairs() -> Iterator[tuple[Path, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield path, "a fox"

    stream = Client(url, KEY).stream(pairs())
    assert next(stream).status == "ok"
    assert taken == UNDER_WAY * SOME + 1  # the next image says that a request is full
    stream.close()


def test_model_is_that_of_the_scorer(scorer: Scorer, url: str) -> None:
    found = Client(url + "/", KEY)
    assert found.identity() == scorer.identity()
    assert found.about == scorer.about
    assert (found.targets, found.columns, found.reads) == (
        scorer.targets,
        scorer.columns,
        scorer.reads,
    )
    assert found.calibration
    assert scorer.calibration
    assert found.calibration.digest == scorer.calibration.digest


def test_wrong_key_is_told_in_the_words_of_the_service(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected the key of this service, .*, got another"):
        Client(url, "x" * 20).model()


def test_service_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RunError, match=r"expected an answer from the service at 127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9").model()


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8765", "ftp://127.0.0.1", "http://", "http://a/?b", "http://[::1"),
        *("http://a:99999", "http://a:b", "http://a..b", "http://127.0.0.1/\u706b"),
    ],
)
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected the address of a service"):
        Client(url)


def test_key_may_end_with_the_line_it_stood_in(url: str) -> None:
    assert Client(url, f"{KEY}\n").targets
    with pytest.raises(UsageError, match="expected a key of plain letters"):
        Client(url, "a\nb")


def strange(folder: Path, good: Path) -> list[Any]:
    """Files that are no images, in all the ways there are."""
    for name in ('a"b.png', "b\\c.png", "a\udc80.png", f"{'n' * 200}.png"):
        (folder / name).write_bytes(b"no image")
    os.mkfifo(folder / "fifo.png")
    inside = folder / "closed" / "a.png"
    return [*sorted(folder.iterdir()), "x" * 5000, inside, folder / "none.png", "a\0b", good, ""]


def test_reasons_are_those_of_the_scorer(
    scorer: Scorer, url: str, judged_data: Path, tmp_path: Path
) -> None:
    images = strange(tmp_path, judged_data.parent / "000.png")
    ours, theirs = Client(url, KEY).score(images), scorer.score(images)
    assert [score.reason for score in ours] == [score.reason for score in theirs]
    ours = Scores(Client(url, KEY).rows(Source(str(i), str(i)) for i in images))
    theirs = Scores(scorer.rows(Source(str(i), str(i)) for i in images))
    assert [score.reason for score in ours] == [score.reason for score in theirs]


def test_prompt_that_is_too_long_is_the_fault_of_its_row(url: str, judged_data: Path) -> None:
    path = judged_data.parent / "000.png"
    found = Client(url, KEY).score([path, path], ["a fox", "x" * (MOST_PROMPT + 1)])
    assert [score.status for score in found] == ["ok", "error"]
    assert found[1].reason.startswith("expected a prompt of at most 65,536 bytes for the service")


class Stranger(BaseHTTPRequestHandler):
    """A server whose answers the test chooses; each is a status, headers and a body."""

    answers: list[tuple[int, dict[str, str], bytes]]
    model: object

    def do_GET(self) -> None:
        self._answer(200, {}, json.dumps(self.model).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*self.answers.pop(0))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


IDENTITY = {"weights_sha256": "0" * 64}
OURS = {MODEL: digest_of(IDENTITY)}


def described(**changes: object) -> dict[str, object]:
    """A service's description of its model."""
    return {
        "about": {"model": "other", "backbone": "none"},
        "targets": ["quality"],
        "columns": [],
        "reads": None,
        "uncalibrated": "it never was",
        "calibration": None,
        "identity": IDENTITY,
        "most_bytes": 2**20,
        "most_images": 3,
        **changes,
    }


@pytest.fixture
def stranger() -> Iterator[tuple[str, type[Stranger]]]:
    kind = type("Other", (Stranger,), {"answers": [], "model": described()})
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
FULL, LONG = ((503, {"Retry-After": after}, b"{}") for after in ("7", "9" * 99))


def test_full_queue_is_waited_for(stranger: tuple[str, Any], image_data: Path) -> None:
    url, kind = stranger
    kind.answers = [FULL, LONG, (200, OURS, ROW + b"\n")]
    slept: list[float] = []
    client = Client(url, sleep=slept.append)
    assert client.score([image_data.parent / "00.png"])[0].quality == 0.5
    assert slept == [7, LONGEST]


class Waiting(Client):
    """A client whose first request fails while the others wait until they are broken off."""

    def _answered(self, calls: Any, sent: Any) -> Any:
        if sent[0].source.name.endswith("00.png"):
            raise RunError("an answer", "none")
        calls.gone.wait()
        raise RunError("time", "none")


def test_who_stops_does_not_wait_for_what_is_under_way(
    stranger: tuple[str, Any], image_data: Path
) -> None:
    url, kind = stranger
    kind.model = described(most_images=1)
    with pytest.raises(RunError, match="expected an answer, got none"):
        Waiting(url).score([image_data.parent / f"0{i}.png" for i in range(3)])


def test_queue_that_stays_full_is_an_error(stranger: tuple[str, Any], image_data: Path) -> None:
    url, kind = stranger
    kind.answers = [LONG] * 100
    with pytest.raises(RunError, match="expected room in the queue of"):
        Client(url, sleep=lambda _: None).score([image_data.parent / "00.png"])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, OURS, b""), "expected 1 rows from .*, got 0 and the end"),
        ((200, OURS, (ROW + b"\n") * 2), "expected 1 rows from .*, got more"),
        ((200, {}, ROW), "expected the model that .* had at first, got another since"),
        ((200, {MODEL: "1" * 64}, ROW), "got another since: begin anew"),
        ((404, {}, b"<html>"), "got status 404: is it dcmpl serve"),
        ((500, {}, b"[1]"), "got status 500: is it dcmpl serve"),
        ((200, OURS, b"{]\n"), "expected rows of JSON"),
        ((200, OURS, b'{"image": 5}\n'), "expected rows of JSON"),
    ],
)
def test_answer_of_something_else_is_an_error(
    stranger: tuple[str, Any], image_data: Path, answer: Any, sentence: str
) -> None:
    url, kind = stranger
    kind.answers = [answer]
    with pytest.raises((RunError, UsageError), match=sentence):
        Client(url).score([image_data.parent / "00.png"])


def test_rows_that_came_before_the_end_are_kept(
    stranger: tuple[str, Any], image_data: Path
) -> None:
    """Those of a service that ended half-way, and what needs none of them."""
    url, kind = stranger
    kind.answers = [(200, OURS, ROW + b"\n" + ROW[:20])]
    paths = [image_data.parent / name for name in ("none.png", "00.png", "01.png")]
    scores, kept = Client(url).stream((path, "a fox") for path in paths), list[Score]()
    with pytest.raises(RunError, match=r"^expected rows of JSON from the service"):
        kept.extend(scores)
    assert [(score.index, score.status) for score in kept] == [(0, "error"), (1, "ok")]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ([], "expected an object of JSON from .*, got list"),
        ({}, "got another description: .*about.: is it dcmpl serve, of this version"),
        (described(targets="quality"), "got another description"),
        (described(most_images="many"), "got another description"),
        (described(calibration={"targets": {}}), "expected a calibration from .*, got another"),
        (described(calibration={"targets": 5}), "expected a calibration from .*, got another"),
    ],
)
def test_description_of_something_else_is_an_error(
    stranger: tuple[str, Any], model: object, sentence: str
) -> None:
    url, kind = stranger
    kind.model = model
    with pytest.raises(RunError, match=sentence):
        Client(url)


def test_requests_have_no_more_than_the_service_takes(
    stranger: tuple[str, Any], image_data: Path, tmp_path: Path
) -> None:
    url, kind = stranger
    path = image_data.parent / "00.png"
    large = tmp_path / "large.png"
    large.write_bytes(path.read_bytes() + bytes(2**20))
    kind.answers = [(200, OURS, (ROW + b"\n") * 2)] * 2
    found = Client(url).score([path, path, large, path, path])
    assert [score.status for score in found] == ["ok", "ok", "error", "ok", "ok"]
    assert found[2].reason.startswith(
        f"expected a file of at most {2**20 - FORM:,} bytes for the service, got {large}"
    )
    assert kind.answers == []


def test_requests_have_no_more_bytes_than_the_service_takes(
    scorer: Scorer, judged_data: Path
) -> None:
    paths = sorted(judged_data.parent.glob("*.png"))[:12]
    most = 2 * max(path.stat().st_size for path in paths) + 4 * FORM
    with listening(service(scorer, Limits(upload=most))) as found:
        rows = Client(found).score(paths, "p" * FORM)
    assert [row.status for row in rows] == ["ok"] * 12
