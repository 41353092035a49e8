"""The service scores, ranks and compares as a scorer does, and says what is wrong as problems."""

import asyncio
import csv
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.types import Message

import dcmpl
from dcmpl.cli.main import main
from dcmpl.scoring.files import columns_of, row_of
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.serve.queue import ROUND, Limits
from served import Rounds, by_brightness, fault_of, files, held_scorer, png, served

pytest_plugins = ("calibrated",)

LINES = {"accept": "application/x-ndjson"}
SCRIPT = "<script>alert('a fox')</script>&amp;\u2028"
TOLERANCE = 1e-6
"""Batches of other sizes add up in another order."""


@pytest.fixture(scope="module")
def scorer(calibrated_run: Path) -> Scorer:
    return Scorer.from_pretrained(calibrated_run, device="cpu")


@pytest.fixture(scope="module")
def client(scorer: Scorer) -> Iterator[TestClient]:
    with served(scorer) as client:
        yield client


@pytest.fixture(scope="module")
def bright() -> Iterator[TestClient]:
    """A service by brightness."""
    with served() as client:
        yield client


@pytest.fixture
def paths(judged_data: Path) -> list[Path]:
    return [judged_data.with_name(f"{i:03}.png") for i in range(5)]


def form_of(paths: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (path.name, path.read_bytes())) for path in paths]


# Scores


def test_rows_are_those_of_the_scorer_to_the_last_digit(
    client: TestClient, scorer: Scorer, paths: list[Path]
) -> None:
    prompts = [f"prompt {i}" for i in range(len(paths))]
    answer = client.post("/v1/score", files=form_of(paths), data={"prompt": prompts})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    expected = [replace(s, image=Path(s.image).name) for s in scorer.score(paths, prompts)]
    assert answer.json() == {"rows": [row_of(score) for score in expected]}
    assert len({row["quality"] for row in answer.json()["rows"]}) == len(paths)


def test_rows_have_the_columns_and_digits_of_a_csv(
    client: TestClient, calibrated_run: Path, scorer: Scorer, paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    words = ["--model", calibrated_run, "--device", "cpu", "--prompt", "a fox", "-o", out]
    assert main(["score", *map(str, paths), *map(str, words)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        expected = [{**row, "image": Path(row["image"]).name} for row in csv.DictReader(file)]
    answer = client.post("/v1/score", files=form_of(paths), data={"prompt": "a fox"})
    rows = answer.json()["rows"]
    assert [tuple(row) for row in rows] == [columns_of(scorer.row_of.columns)] * len(paths)
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == expected


def test_what_is_no_image_is_a_row_with_its_reason(bright: TestClient) -> None:
    asked = [*files(10), ("files", ("bad.png", b"no image")), ("files", ("empty.png", b""))]
    answer = bright.post("/v1/score", files=[*asked, *files(20)], data={"prompt": "a fox"})
    assert answer.status_code == 200
    rows = answer.json()["rows"]
    assert [row["status"] for row in rows] == ["ok", "error", "error", "ok"]
    for row, name in zip(rows[1:3], ("bad.png", "empty.png"), strict=True):
        assert (row["image"], row["prompt"]) == (name, "a fox")
        assert (row["quality"], row["quality_mos"]) == (None, None)
        assert row["reason"].startswith("expected ")


def test_lines_are_the_rows_in_order(bright: TestClient) -> None:
    levels = range(10, 10 + 2 * ROUND + 3)
    asked: dict[str, Any] = {"files": files(*levels), "data": {"prompt": "a\nfox"}}
    answer = bright.post("/v1/score", **asked, headers=LINES)
    assert (answer.status_code, answer.headers["content-type"]) == (200, LINES["accept"])
    lines = answer.text.split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert [row["image"] for row in rows] == [f"{level}.png" for level in levels]
    assert rows == bright.post("/v1/score", **asked).json()["rows"]


def test_lines_of_a_model_are_the_rows_of_the_scorer(
    client: TestClient, scorer: Scorer, judged_data: Path
) -> None:
    paths = [judged_data.with_name(f"{i:03}.png") for i in range(ROUND + 4)]
    answer = client.post("/v1/score", files=form_of(paths), headers=LINES)
    rows = [json.loads(line) for line in answer.text.splitlines()]
    for name in ("quality", "alignment"):
        expected = [score[name] for score in scorer.score(paths)]
        assert [row[name] for row in rows] == pytest.approx(expected, abs=TOLERANCE)


def test_lines_have_the_reasons_of_what_is_no_image(bright: TestClient) -> None:
    asked = [("files", ("bad.png", b"no image")), *files(10)]
    answer = bright.post("/v1/score", files=asked, headers=LINES)
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["status"] for row in rows] == ["error", "ok"]


def test_wrong_request_for_lines_is_a_problem(bright: TestClient) -> None:
    fault_of(bright.post("/v1/score", data={"prompt": "a"}, headers=LINES), 415)
    fault_of(bright.post("/v1/score", json={"images": []}, headers=LINES), 422)


@pytest.mark.parametrize("headers", [{}, LINES])
def test_script_in_a_prompt_or_a_name_is_a_text_in_json(
    bright: TestClient, headers: dict[str, str]
) -> None:
    asked = [("files", (SCRIPT, png(10)))]
    answer = bright.post("/v1/score", files=asked, data={"prompt": SCRIPT}, headers=headers)
    kinds = {answer.headers["content-type"], answer.headers["x-content-type-options"]}
    assert kinds == {headers.get("accept", "application/json"), "nosniff"}
    found = json.loads(answer.text) if headers else answer.json()["rows"][0]
    assert (found["image"], found["prompt"]) == (SCRIPT, SCRIPT)


# Ranks


def test_ranks_are_those_of_the_scorer(
    client: TestClient, scorer: Scorer, paths: list[Path]
) -> None:
    asked = {"prompt": "a fox", "by": "alignment"}
    answer = client.post("/v1/rank", files=form_of(paths), data=asked)
    ranked = scorer.rank(paths, "a fox", by="alignment")
    expected = [{**row_of(s), "image": Path(s.image).name, "index": s.index} for s in ranked]
    assert answer.json() == {"by": "alignment", "rows": expected}


def test_best_image_is_first_and_errors_are_last(bright: TestClient) -> None:
    asked = [("files", ("bad.png", b"no image")), *files(100, 240, 20, 104)]
    rows = bright.post("/v1/rank", files=asked).json()["rows"]
    assert [row["image"] for row in rows] == [
        "240.png",
        "104.png",
        "100.png",
        "20.png",
        "bad.png",
    ]
    assert [row["index"] for row in rows] == [2, 4, 1, 3, 0]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, None]
    better, close = "better than the next", "too close to call"
    assert [row["call"] for row in rows] == [better, close, better, None, None]
    chances = [row["better_than_next"] for row in rows]
    assert chances[0] > chances[2] > chances[1] > 0.5
    assert chances[3:] == [None, None]


def test_first_target_is_that_of_ranks_unless_one_is_named(bright: TestClient) -> None:
    levels = (20, 200)
    for by, best in (("", 1), ("quality", 1), ("quality_mos", 1), ("alignment", 0)):
        found = bright.post("/v1/rank", files=files(*levels), data={"by": by}).json()
        assert (found["by"], found["rows"][0]["index"]) == (by or "quality", best)


def test_ranks_without_a_calibration_have_no_call() -> None:
    with served(by_brightness(calibrated=False)) as client:
        rows = client.post("/v1/rank", files=files(20, 200)).json()["rows"]
        found = client.post("/v1/compare", files=files(20, 200)).json()
        fault = fault_of(client.post("/v1/rank", files=files(20), data={"by": "quality_mos"}), 422)
    assert [(row["rank"], row["call"], row["better_than_next"]) for row in rows] == [
        (1, None, None),
        (2, None, None),
    ]
    assert (found["first_is_better"], found["call"]) == (None, None)
    assert fault["detail"] == (
        "expected a calibrated model for quality_mos, got bright: it was never calibrated"
    )


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/compare"])
def test_images_of_several_prompts_are_refused(bright: TestClient, path: str) -> None:
    asked = {"prompt": ["a fox", "a dog"]}
    found = fault_of(bright.post(path, files=files(10, 20), data=asked), 422)
    assert found["detail"] == (
        "expected images of one prompt, got 2 prompts: rank those of each alone"
    )


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/compare"])
@pytest.mark.parametrize(
    "by", ["beauty", "authenticity", "quality_label", "Quality", "image", "\n"]
)
def test_unknown_target_is_refused(bright: TestClient, path: str, by: str) -> None:
    found = fault_of(bright.post(path, files=files(10, 20), data={"by": by}), 422)
    assert found["got"] == by
    assert "quality, alignment" in found["expected"]


# Pairs


def test_first_is_better_is_what_ranks_say(client: TestClient, paths: list[Path]) -> None:
    one, other = (row_by_name(client, pair) for pair in (paths[:2], paths[1::-1]))
    assert one["first_is_better"] + other["first_is_better"] == pytest.approx(1, abs=1e-12)
    assert one["rows"] == other["rows"][::-1]
    ranked = client.post("/v1/rank", files=form_of(paths[:2])).json()["rows"]
    best = one if ranked[0]["index"] == 0 else other
    assert best["first_is_better"] == ranked[0]["better_than_next"]


def row_by_name(client: TestClient, paths: list[Path]) -> dict[str, Any]:
    found: dict[str, Any] = client.post("/v1/compare", files=form_of(paths)).json()
    assert [row["image"] for row in found["rows"]] == [path.name for path in paths]
    assert found["by"] == "quality"
    return found


@pytest.mark.parametrize(
    ("first", "second", "by", "call"),
    [
        (240, 20, "quality", "first"),
        (20, 240, "quality", "second"),
        (240, 20, "alignment", "second"),
        (20, 240, "quality_mos", "second"),
        (100, 100, "quality", "too close to call"),
        (100, 102, "quality", "too close to call"),
        (102, 100, "quality", "too close to call"),
    ],
)
def test_call_says_which_is_better(
    bright: TestClient, first: int, second: int, by: str, call: str
) -> None:
    found = bright.post("/v1/compare", files=files(first, second), data={"by": by}).json()
    other = bright.post("/v1/compare", files=files(second, first), data={"by": by}).json()
    assert found["call"] == call
    assert [row["image"] for row in found["rows"]] == [f"{first}.png", f"{second}.png"]
    assert (found["first_is_better"] > 0.5) is (found["rows"][0][by] > found["rows"][1][by])
    assert found["first_is_better"] + other["first_is_better"] == pytest.approx(1, abs=1e-12)


def test_pair_of_which_one_is_no_image_has_no_call(bright: TestClient) -> None:
    asked = [("files", ("bad.png", b"no image")), *files(10)]
    found = bright.post("/v1/compare", files=asked).json()
    assert (found["first_is_better"], found["call"]) == (None, None)
    assert [row["status"] for row in found["rows"]] == ["error", "ok"]


@pytest.mark.parametrize("count", [1, 3])
def test_other_counts_than_two_are_no_pair(bright: TestClient, count: int) -> None:
    found = fault_of(bright.post("/v1/compare", files=files(*range(count))), 422)
    assert found["detail"] == f"expected 2 images in files or images, got {count}"


# What it is


def test_model_is_described(client: TestClient, scorer: Scorer) -> None:
    found = client.get("/v1/model").json()
    assert found["version"] == dcmpl.__version__
    assert (found["views"], found["targets"]) == (scorer.views, list(scorer.targets))
    assert (found["engine"], found["precision"]) == ("torch", "fp32")
    assert found["about"] == scorer.about
    assert found["reads"] is None
    assert found["columns"] == list(scorer.columns)
    assert found["scales"]["quality"] == [1, 5]
    assert found["uncalibrated"] == ""


def test_model_without_a_calibration_says_why() -> None:
    with served(by_brightness(calibrated=False)) as client:
        found = client.get("/v1/model").json()
    assert (found["scales"], found["uncalibrated"]) == ({}, "it was never calibrated")


def refs_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from refs_of(each)


def test_api_is_described_by_openapi(bright: TestClient) -> None:
    answer = bright.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["openapi"].startswith("3.1.")
    assert found["info"]["version"] == dcmpl.__version__
    for path in ("/v1/score", "/v1/rank", "/v1/compare"):
        asked = found["paths"][path]["post"]
        assert set(asked["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
        assert {"200", "413", "415", "422", "503"} <= set(asked["responses"])
        assert set(asked["responses"]["422"]["content"]) == {"application/problem+json"}
    assert LINES["accept"] in found["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]
    assert {"/v1/model", "/healthz", "/readyz", "/metrics"} <= set(found["paths"])
    for ref in refs_of(found):
        place = found
        for step in ref.removeprefix("#/").split("/"):
            place = place[step]


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_pages_with_scripts_of_others_are_not_there(bright: TestClient, path: str) -> None:
    fault_of(bright.get(path), 404)


def test_health_and_readiness(bright: TestClient) -> None:
    assert bright.get("/healthz").json() == {"status": "ok"}
    assert bright.get("/readyz").json() == {"status": "ready"}


# Problems


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/", "/v1/nowhere", "/%00", "/..%2f"])
def test_unknown_path_is_a_problem(bright: TestClient, path: str) -> None:
    found = fault_of(bright.get(path), 404)
    assert found["expected"] == "a path of this service"
    assert (found["got"][:5], found["hint"]) == ("GET /", "see /openapi.json")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/score", "POST"),
        ("DELETE", "/v1/rank", "POST"),
        ("POST", "/v1/model", "GET"),
        ("PUT", "/healthz", "GET"),
    ],
)
def test_other_method_is_a_problem(
    bright: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = bright.request(method, path)
    found = fault_of(answer, 405)
    assert found["detail"] == (f"expected another request, got {method} {path}: see /openapi.json")
    assert answer.headers["allow"] == allowed


def test_failure_is_a_problem_and_the_next_request_works() -> None:
    with served(held_scorer(Rounds(failing=[0]))) as client:
        assert fault_of(client.post("/v1/score", files=files(10)), 500)["title"] == "Internal error"
        assert client.post("/v1/score", files=files(10)).status_code == 200


def test_failure_of_lines_before_the_first_is_a_problem() -> None:
    with served(held_scorer(Rounds(failing=[0]))) as client:
        fault_of(client.post("/v1/score", files=files(10), headers=LINES), 500)


# Figures and the log


def figures_of(client: TestClient) -> dict[tuple[str, str], float]:
    """Figures by their name and the values of their labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, " ".join(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_images_and_requests_and_name_the_model() -> None:
    with served() as client:
        asked = [*files(10, 20), ("files", ("bad.png", b"no image"))]
        client.post("/v1/score", files=asked)
        client.post("/v1/score", files=asked, headers=LINES)
        client.post("/v1/rank", files=files(10, 20), data={"by": "beauty"})
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        found = figures_of(client)
    assert found["dcmpl_images_total", "ok"] == 4
    assert found["dcmpl_images_total", "error"] == 2
    assert found["dcmpl_requests_total", "/v1/score 200"] == 2
    assert found["dcmpl_requests_total", "/v1/rank 422"] == 1
    assert found["dcmpl_requests_total", "other 404"] == 2
    assert found["dcmpl_request_seconds_count", "/v1/score"] == 2
    assert found["dcmpl_queue_requests", ""] == found["dcmpl_queue_images", ""] == 0
    assert found["dcmpl_model_info", "none bright"] == 1


def test_log_has_an_entry_for_each_request() -> None:
    entries: list[dict[str, Any]] = []
    with served(log=entries.append) as client:
        client.get("/healthz")
        client.post("/v1/score", files=files(10), data={"prompt": "a secret"})
        client.get("/nowhere/a-secret?prompt=a-secret")
    assert [(entry["path"], entry["status"]) for entry in entries] == [
        ("/healthz", 200),
        ("/v1/score", 200),
        ("other", 404),
    ]
    assert all(entry["seconds"] >= 0 for entry in entries)
    assert "secret" not in json.dumps(entries)


# Many requests, and those that go


class Asked:
    """A request without a client around it, which goes when it is told to."""

    def __init__(self, app: FastAPI, images: int, accept: str = "*/*") -> None:
        self.app, self.gone = app, asyncio.Event()
        self.sent: list[Message] = []
        self.came = asyncio.Condition()
        body = {"images": [{"data": ""}] * images}
        self._left = [{"type": "http.request", "body": json.dumps(body).encode()}]
        headers = {"host": "localhost", "content-type": "application/json", "accept": accept}
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/score",
            "raw_path": b"/v1/score",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }

    async def __call__(self) -> None:
        await self.app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._left:
            return self._left.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        async with self.came:
            self.sent.append(message)
            self.came.notify_all()

    async def lines(self, count: int) -> None:
        """Wait until so many lines have been sent."""
        async with self.came:
            await self.came.wait_for(lambda: len(self.sent) > count)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


@asynccontextmanager
async def running(app: FastAPI, rounds: Rounds) -> Any:
    """The life of a service; rounds that are held go at its end."""
    async with app.router.lifespan_context(app):
        try:
            yield
        finally:
            rounds.free()


async def entered(rounds: Rounds) -> None:
    await asyncio.to_thread(rounds.begun.acquire)


async def waiting(app: FastAPI, images: int) -> None:
    """Wait until so many images are in the queue."""
    route = next(route for route in app.routes if getattr(route, "path", "") == "/v1/score")
    queue = route.endpoint.__self__.queue  # type: ignore[attr-defined]
    while queue.waiting[1] != images:
        await asyncio.sleep(0)


@pytest.mark.parametrize("accept", ["*/*", LINES["accept"]])
def test_full_queue_says_when_to_come_again(accept: str) -> None:
    rounds = Rounds(held=True)
    app = service(held_scorer(rounds), Limits(waiting=1))

    async def ask() -> Asked:
        async with running(app, rounds):
            tasks = [asyncio.create_task(Asked(app, 1)())]
            await entered(rounds)
            tasks.append(asyncio.create_task(Asked(app, 2)()))
            await waiting(app, 2)
            refused = Asked(app, 1, accept)
            await refused()
            rounds.free()
            await asyncio.gather(*tasks)
            return refused

    refused = asyncio.run(ask())
    assert refused.status == 503
    assert refused.headers[b"content-type"] == b"application/problem+json"
    seconds = int(refused.headers[b"retry-after"])
    assert seconds >= 1
    found = json.loads(refused.sent[1]["body"])
    assert found["title"] == "Queue full"
    assert found["hint"] == f"send it again in {seconds} s"
    assert sum(map(len, rounds.rounds)) == 3


@pytest.mark.parametrize("accept", ["application/json", LINES["accept"]])
def test_images_of_a_request_that_goes_are_not_scored(accept: str) -> None:
    rounds = Rounds(held=True)
    app = service(held_scorer(rounds))

    async def ask() -> None:
        async with running(app, rounds):
            asked = Asked(app, 100, accept)
            task = asyncio.create_task(asked())
            await entered(rounds)
            asked.gone.set()
            await asyncio.wait_for(task, 60)
            await waiting(app, 0)
            rounds.free()
            await Asked(app, 1)()

    asyncio.run(ask())
    assert [len(each) for each in rounds.rounds] == [ROUND, 1]


def test_images_of_lines_whose_reader_goes_are_not_scored() -> None:
    rounds = Rounds(held=True)
    app = service(held_scorer(rounds))

    async def ask() -> None:
        async with running(app, rounds):
            asked = Asked(app, 100, LINES["accept"])
            task = asyncio.create_task(asked())
            rounds.go()
            await asked.lines(ROUND)
            await entered(rounds)
            await entered(rounds)
            asked.gone.set()
            await task
            await waiting(app, 0)
            rounds.free()
            await Asked(app, 1)()

    asyncio.run(ask())
    assert [len(each) for each in rounds.rounds] == [ROUND, ROUND, 1]


def test_lines_are_sent_as_they_are_ready() -> None:
    rounds = Rounds(held=True)
    app = service(held_scorer(rounds))

    async def ask() -> None:
        async with running(app, rounds):
            asked = Asked(app, ROUND + 1, LINES["accept"])
            task = asyncio.create_task(asked())
            rounds.go()
            await asked.lines(ROUND)
            assert not task.done()
            rounds.free()
            await task
        lines = b"".join(m["body"] for m in asked.sent[1:]).splitlines()
        names = [json.loads(line)["image"] for line in lines]
        assert names == [f"image {i}" for i in range(1, ROUND + 2)]

    asyncio.run(ask())


def test_service_that_ends_is_not_ready_and_finishes_what_it_took() -> None:
    rounds = Rounds()
    app = service(held_scorer(rounds))

    async def ask() -> Asked:
        async with running(app, rounds):
            asked = Asked(app, ROUND + 1)
            await asked()
        late = Asked(app, 1)
        await late()
        assert late.status == 503
        return asked

    assert len(json.loads(asyncio.run(ask()).sent[1]["body"])["rows"]) == ROUND + 1
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/healthz").status_code == 200
    assert fault_of(client.get("/readyz"), 503)["got"] == "one that is ending"
