"""Explanations over HTTP are those of the command, and wait in a bounded line."""

import asyncio
import io
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dcmpl.images.decode import decode
from dcmpl.scoring.explain import explain
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve import explanations
from dcmpl.serve.app import service
from dcmpl.serve.explanations import MOST_WAITING, Explainer
from dcmpl.serve.problems import Problem
from dcmpl.serve.queue import FullError, Upload

pytest_plugins = ("calibrated",)


@pytest.fixture(scope="module")
def scorer(calibrated_run: Path) -> Scorer:
    return Scorer.from_pretrained(calibrated_run, device="cpu")


@pytest.fixture
def client(scorer: Scorer) -> Any:
    with TestClient(service(scorer), base_url="http://127.0.0.1") as found:
        yield found


def sent(path: Path) -> dict[str, Any]:
    return {"files": ("a.png", path.read_bytes())}


def test_json_has_the_maps_and_sentences_of_the_command(
    client: TestClient, scorer: Scorer, judged_data: Path
) -> None:
    path = judged_data.parent / "000.png"
    found = client.post("/v1/explain", files=sent(path), data={"prompt": "a fox"}).json()
    engine: Any = scorer.engine
    wanted = explain(engine, scorer.calibration, decode(path).pixels, "a fox", scorer.views)
    assert found["sentences"] == list(wanted.sentences)
    assert [each["name"] for each in found["maps"]] == [each.name for each in wanted.maps]
    for ours, theirs in zip(found["maps"], wanted.maps, strict=True):
        np.testing.assert_array_equal(ours["values"], theirs.values)
        assert ours["worst"] == list(theirs.worst)
    assert [tuple(pair) for pair in found["words"]] == list(wanted.words)


def test_answer_says_why_there_is_no_map(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 16)).save(file, "PNG")
    found = client.post("/v1/explain", files={"files": ("a.png", file.getvalue())}).json()
    assert found["maps"] == []
    assert found["notes"][0].startswith("no map: expected an image of at least 32 x 32, got 20 x 1")


def test_figure_comes_as_png(client: TestClient, judged_data: Path) -> None:
    files = sent(judged_data.parent / "000.png")
    found = client.post("/v1/explain", files=files, headers={"Accept": "image/png"})
    assert found.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.width > 300


def test_what_is_no_image_is_a_problem(client: TestClient) -> None:
    found = client.post("/v1/explain", files={"files": ("a.png", b"no image")})
    assert (found.status_code, found.json()["got"]) == (422, "a.png")


def test_only_one_image_is_taken(client: TestClient) -> None:
    files = [("files", ("a.png", b"1")), ("files", ("b.png", b"2"))]
    found = client.post("/v1/explain", files=files)
    assert (found.status_code, found.json()["got"]) == (422, "2")


def test_export_cannot_explain(scorer: Scorer) -> None:
    scorer = copy(scorer)
    scorer.engine = cast(Any, SimpleNamespace(name="onnx"))
    with pytest.raises(Problem, match="expected a run to explain images by, got an export"):
        asyncio.run(Explainer(scorer).answer(Upload("a", "", bytes), ""))


def test_figure_without_matplotlib_is_told(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "has_matplotlib", lambda: False)
    with pytest.raises(Problem, match="expected matplotlib to draw with"):
        asyncio.run(Explainer(scorer).answer(Upload("a", "", bytes), "image/png"))


def test_line_of_explanations_is_bounded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; what would wait too long is sent away, and the line empties."""
    under_way, most = 0, 0

    async def in_thread(function: Any, *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return cast(Any, SimpleNamespace(task="", sentences=(), maps=(), words=(), notes=())), b""

    monkeypatch.setattr(explanations.asyncio, "to_thread", in_thread)
    explainer = Explainer(scorer)

    async def ask(count: int) -> list[Any]:
        asked = (explainer.answer(Upload("a", "", bytes), "") for _ in range(count))
        return await asyncio.gather(*asked, return_exceptions=True)

    async def twice() -> tuple[list[Any], list[Any]]:
        return await ask(MOST_WAITING + 3), await ask(MOST_WAITING)

    first, second = asyncio.run(twice())
    assert [isinstance(each, FullError) for each in first].count(True) == 3
    assert most == 1
    assert not any(isinstance(each, Exception) for each in second)
