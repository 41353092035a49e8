"""Scores can be ranked, and put into a table."""

from pathlib import Path

import pytest

from dcmpl.config import TARGETS
from dcmpl.errors import UsageError
from dcmpl.scoring.results import Score, Scores
from dcmpl.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    return Scorer.from_pretrained(trained_run, device="cpu")


@pytest.fixture(scope="module")
def paths(image_data: Path) -> list[Path]:
    return [image_data.parent / f"{i:02}.png" for i in range(8)]


@pytest.mark.parametrize("by", ["quality", "alignment"])
def test_rank_puts_the_best_first_and_what_fails_last(
    scorer: Scorer, paths: list[Path], tmp_path: Path, by: str
) -> None:
    given = [tmp_path / "no.png", *paths]
    found = scorer.rank(given, "a fox", by)
    scores = [row[by] for row in found]
    assert scores[-1] is None
    assert scores[:-1] == sorted((s for s in scores if s is not None), reverse=True)
    assert [row.image for row in found] == [str(given[row.index]) for row in found]
    assert {row.prompt for row in found} == {"a fox"}


def test_rank_leaves_equal_images_in_their_order(scorer: Scorer, paths: list[Path]) -> None:
    assert [row.index for row in scorer.rank([paths[0]] * 5)] == [0, 1, 2, 3, 4]


def test_rank_by_what_is_not_predicted_is_a_usage_error(scorer: Scorer, paths: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"\(quality, alignment\), got authenticity"):
        scorer.rank(paths, by="authenticity")


def test_scores_become_a_frame(scorer: Scorer, paths: list[Path], tmp_path: Path) -> None:
    scores = scorer.score([paths[0], tmp_path / "no.png"], "a fox")
    frame = scores.to_dataframe()
    assert frame["image"].tolist() == [str(paths[0]), str(tmp_path / "no.png")]
    assert frame["status"].tolist() == ["ok", "error"]
    assert frame["quality"].tolist()[0] == scores[0].quality
    assert frame["quality"].isna().tolist() == [False, True]
    assert [str(frame[task].dtype) for task in TARGETS] == ["float64"] * 3


def test_no_scores_become_a_frame_with_all_columns() -> None:
    frame = Scores().to_dataframe()
    assert len(frame) == 0
    assert {"image", "quality", "status", "note"} <= set(frame.columns)


def test_score_of_an_unknown_target_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="expected one of quality, alignment, authenticity"):
        _ = Score("a.png", "")["beauty"]


def test_slice_of_scores_is_scores() -> None:
    scores = Scores(Score(f"{i}.png", "", quality=i / 4) for i in range(4))
    assert isinstance(scores[:2], Scores)
    assert scores[:2].to_dataframe()["quality"].tolist() == [0.0, 0.25]
    assert scores[-1].quality == 0.75
