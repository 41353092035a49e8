"""A judge asks its rows for everything else: scores, ranks and what may be ranked by."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calibrated import plain_calibration
from dcmpl.data.sources import Source
from dcmpl.errors import UsageError
from dcmpl.scoring.calibration import Calibration
from dcmpl.scoring.judge import Judge, chosen_targets, paired
from dcmpl.scoring.results import Score


class Lengths(Judge):
    """A judge of prompts: the longer, the better."""

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.about = {"model": "lengths"}
        self.targets, self.reads = ("quality", "quality_of_light"), "quality"
        self.calibration, self.uncalibrated = calibration, "nobody did it"
        known = calibration.columns(self.targets, None) if calibration else ()
        self.columns = ("quality_of_light", *known)

    def rows(self, sources: Iterable[Source], start: int = 0) -> Iterator[Score]:
        for index, source in enumerate(sources, start):
            found = len(source.prompt) / 10 if source.prompt else None
            more = {"quality_spread": 0.01, "quality_of_light": found}
            yield Score(source.name, source.prompt, quality=found, more=more, index=index)

    def identity(self) -> dict[str, Any]:
        return {}


IMAGES = ["a.png", "b.png", "c.png"]


def test_scores_are_the_rows_in_order() -> None:
    found = Lengths().score(IMAGES, ["xx", None, "x"])
    assert [(s.image, s.prompt, s.quality, s.index) for s in found] == [
        ("a.png", "xx", 0.2, 0),
        ("b.png", "", None, 1),
        ("c.png", "x", 0.1, 2),
    ]


def test_stream_takes_no_more_than_it_is_asked_for() -> None:
    pairs = iter([("a.png", "x"), ("b.png", "y")])
    assert next(Lengths().stream(pairs)).image == "a.png"
    assert next(pairs) == ("b.png", "y")


def test_ranking_is_best_first_with_the_chance_of_each() -> None:
    judge = Lengths(plain_calibration("quality"))
    scores = judge.score(IMAGES, ["x", "xxxxxxxxx", ""])
    best, second, failed = judge.ranked(scores)
    assert [best.index, second.index, failed.index] == [1, 0, 2]
    assert [s.more["rank"] for s in (best, second, failed)] == [1, 2, None]
    assert best.more["better_than_next"] > 0.9
    assert best.more["call"] == "better than the next"


def test_ranking_without_a_calibration_knows_no_chance() -> None:
    best, *_ = Lengths().rank(IMAGES, "xx", by="quality_of_light")
    assert (best.more["rank"], best.more["better_than_next"], best.more["call"]) == (1, None, None)


@pytest.mark.parametrize(
    ("by", "target"),
    [
        ("quality", "quality"),
        ("quality_mos", "quality"),
        ("quality_of_light_mos", "quality_of_light"),
        ("beauty", "beauty"),
    ],
)
def test_column_goes_with_the_longest_target_it_begins_with(by: str, target: str) -> None:
    assert Lengths().target_of(by) == target


def test_ranking_by_what_is_not_predicted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"targets that lengths predicts .*, got beauty"):
        Lengths().rank(IMAGES, by="beauty")
    with pytest.raises(UsageError, match=r"a calibrated model for quality_mos, .*nobody did it"):
        Lengths().check_target("quality_mos")


def test_targets_are_all_known_or_those_chosen() -> None:
    assert chosen_targets(None, ["a", "b"], "it") == ("a", "b")
    assert chosen_targets(["b"], ["a", "b"], "it") == ("b",)
    with pytest.raises(UsageError, match=r"expected targets that it predicts \(a, b\), got c"):
        chosen_targets(["c"], ["a", "b"], "it")


@pytest.mark.parametrize("images", ["a.png", np.zeros((8, 8, 3), np.uint8)])
def test_one_image_is_no_list_of_them(images: Any) -> None:
    with pytest.raises(UsageError, match="expected a list of images"):
        paired(images, None)


def test_prompts_are_one_for_each_image() -> None:
    assert list(paired(["a", "b"], "x")) == [("a", "x"), ("b", "x")]
    with pytest.raises(UsageError, match="expected one prompt for each of 2 images, got 1"):
        paired(["a", "b"], ["x"])


def test_rank_keeps_what_rows_say_besides() -> None:
    judge = Lengths()
    scores = judge.score(["a.png"], "xxx")
    (found,) = judge.ranked(scores)
    assert found == replace(scores[0], more={**scores[0].more, **found.more})
