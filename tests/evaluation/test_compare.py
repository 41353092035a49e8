"""Runs beside published results: targets of one's own, parts, protocols."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dcmpl.cli.main import main
from dcmpl.errors import DataError
from dcmpl.evaluation.compare import our_rows, paired_rows


def test_two_runs_are_compared_where_one_has_a_target_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(20)], "group": "g"})
    for name in ("opinion_quality", "quality", "opinion_realism", "realism"):
        frame[name] = rng.random(20)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    frame.to_csv(tmp_path / "a" / "predictions.csv", index=False)
    fewer = frame.drop(columns=["opinion_realism", "realism"])
    fewer.to_csv(tmp_path / "b" / "predictions.csv", index=False)
    assert paired_rows([tmp_path / "a", tmp_path / "b"])["task"].tolist() == ["quality"]


@pytest.mark.parametrize("part", ["val", "train", "all"])
def test_results_of_a_part_can_be_compared_and_stand_beside_nothing_published(
    trained_run: Path, tmp_path: Path, part: str
) -> None:
    out = tmp_path / part
    assert main(["evaluate", str(trained_run), "--split", part, "--out", str(out)]) == 0
    kinds = our_rows(out)["protocol"].unique().tolist()
    assert kinds == [f"{part} part of its own data, clean"]


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.head(1)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="group"), "expected the columns image, group, quality in .*"),
        (lambda f: f.drop(columns="quality"), "expected the columns image, group, quality in .*"),
        (lambda f: f.rename(columns={"image": "file"}), "expected the columns image, group, .*"),
        (doubled, "expected each image once in .*predictions.csv, got 0.png twice"),
    ],
)
def test_predictions_of_another_layout_are_refused_in_a_sentence(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], told: str
) -> None:
    frame = pd.DataFrame({"image": ["0.png", "1.png"], "group": "g"})
    frame = frame.assign(opinion_quality=[0.1, 0.2], quality=[0.1, 0.2])
    change(frame).to_csv(tmp_path / "predictions.csv", index=False)
    with pytest.raises(DataError, match=told):
        paired_rows([tmp_path])
