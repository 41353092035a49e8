"""Figures for Prometheus: images, requests, the queue and the model."""

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dcmpl.scoring.results import Score
from dcmpl.serve.figures import Figures
from dcmpl.serve.queue import Limits, ScoringQueue
from served import Rounds, uploads

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def scorer() -> Rounds:
    scorer = Rounds(held=True)
    scorer.about = {"model": "small", "backbone": 'a "name"\n', "epochs": 3}
    return scorer


@pytest.fixture
def queue(scorer: Rounds) -> Iterator[ScoringQueue]:
    queue = ScoringQueue(scorer, Limits())
    yield queue
    scorer.free()
    queue.close()


def values_of(figures: Figures) -> Values:
    """Value of each figure by its name and labels."""
    text = bytes(figures.answer().body).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(figures: Figures, name: str, **labels: str) -> float:
    return values_of(figures)[name, frozenset(labels.items())]


def test_images_are_counted_by_status(queue: ScoringQueue) -> None:
    figures = Figures(queue)
    for _ in range(3):
        figures.count(Score("a.png", "", quality=0.5))
    figures.count(Score("b.png", "", reason="expected an image"))
    assert value(figures, "dcmpl_images_total", status="ok") == 3
    assert value(figures, "dcmpl_images_total", status="error") == 1


def test_requests_are_counted_by_path_and_status(queue: ScoringQueue) -> None:
    figures = Figures(queue)
    figures.note("/v1/score", 200, 0.2)
    figures.note("/v1/score", 200, 7.0)
    figures.note("/v1/score", 422, 1000.0)
    assert value(figures, "dcmpl_requests_total", path="/v1/score", status="200") == 2
    assert value(figures, "dcmpl_requests_total", path="/v1/score", status="422") == 1
    assert value(figures, "dcmpl_request_seconds_count", path="/v1/score") == 3
    assert value(figures, "dcmpl_request_seconds_sum", path="/v1/score") == pytest.approx(1007.2)
    for most, count in (("0.1", 0), ("0.25", 1), ("10.0", 2), ("+Inf", 3)):
        name = "dcmpl_request_seconds_bucket"
        assert value(figures, name, path="/v1/score", le=most) == count


def test_queue_is_shown_as_it_is_now(queue: ScoringQueue, scorer: Rounds) -> None:
    figures = Figures(queue)
    names = ("dcmpl_queue_requests", "dcmpl_queue_images")

    async def drain(count: int) -> None:
        async for _ in queue.scores(uploads("a", count)):
            pass

    async def ask() -> None:
        tasks = [asyncio.create_task(drain(1))]
        await asyncio.sleep(0)
        await asyncio.to_thread(scorer.begun.acquire)
        tasks += [asyncio.create_task(drain(count)) for count in (2, 5)]
        await asyncio.sleep(0)
        assert [value(figures, name) for name in names] == [2, 7]
        scorer.free()
        await asyncio.gather(*tasks)

    asyncio.run(ask())
    assert [value(figures, name) for name in names] == [0, 0]


def test_model_is_named(queue: ScoringQueue) -> None:
    about = {"model": "small", "backbone": 'a "name"\n', "epochs": "3"}
    assert value(Figures(queue), "dcmpl_model_info", **about) == 1


def test_services_of_one_program_have_figures_of_their_own(queue: ScoringQueue) -> None:
    one, other = Figures(queue), Figures(queue)
    one.count(Score("a.png", "", quality=0.5))
    assert value(one, "dcmpl_images_total", status="ok") == 1
    assert ("dcmpl_images_total", frozenset({("status", "ok")})) not in values_of(other)


def test_answer_is_prometheus_text(queue: ScoringQueue) -> None:
    answer = Figures(queue).answer()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.headers["content-type"].count("charset") == 1
