"""A MOS column of one's own as a task: learned from some rows, scored, ranked and measured."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import Capture, evaluate_bare, made_table, refused
from dcmpl.cli.main import main
from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import UsageError
from dcmpl.evaluation.results import calibrations, predictions_frame
from dcmpl.model.dcmpl import Scores
from dcmpl.presets import PRESETS, with_targets
from dcmpl.runs import read_run, read_split
from dcmpl.scoring.calibration import Calibration, Meaning
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine
from dcmpl.training.calibrate import calibrate
from dcmpl.training.loop import task_loss

Words = list[str]
REALISM = "realism=realistic photo/fake photo"
UNLABELLED = 3
"""Every so many rows has no opinion on realism."""


@pytest.fixture(scope="module")
def data(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small images with columns of one's own; realism is that of quality, upside down."""
    file = tmp_path_factory.mktemp("own") / "own.csv"
    rows = pd.read_csv(image_data)
    rows["image"] = [str(image_data.parent / name) for name in rows["image"]]
    rows["mos_realism"] = 6 - rows["mos_quality"]
    rows["mos_photo_fit"] = rows["mos_quality"]
    rows.loc[rows.index % UNLABELLED == 0, "mos_realism"] = np.nan
    rows.to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def own_words(train_words: Words, data: Path) -> Words:
    """Of a training with that table, all but ``--out`` and tasks."""
    return [*train_words, "--data", str(data), "--epochs", "2"]


@pytest.fixture(scope="module")
def own_run(own_words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned realism and photo_fit; the tasks came from YAML."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "tasks.yaml"
    file.write_text(
        "targets:\n"
        "  - quality\n"
        "  - alignment\n"
        "  - realism=realistic photo/fake photo\n"
        "  - photo_fit=fitting photo/strange photo\n"
        "preset: dcmpl-prompted\n"
    )
    words = ["train", "--config", str(file), *own_words[1:]]
    assert main([*words, "--out", str(folder / "own")]) == 0
    return folder / "own"


@pytest.fixture(scope="module")
def scorer(own_run: Path) -> Scorer:
    return Scorer.from_pretrained(own_run, device="cpu", workers=1)


@pytest.fixture(scope="module")
def paths(image_data: Path) -> list[Path]:
    return [image_data.parent / f"{i:02}.png" for i in range(4)]


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words), "--workers", "1"])


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


# Learned


def test_tasks_of_yaml_stand_behind_those_of_the_preset_with_their_words(own_run: Path) -> None:
    run = read_run(own_run)
    assert run.learned == ("quality", "alignment", "realism", "photo_fit")
    assert run.model.words == {
        **PRESETS["dcmpl"].model.words,
        "realism": (("realistic photo", "fake photo"),),
        "photo_fit": (("fitting photo", "strange photo"),),
    }
    assert {"realism_srcc", "realism_plcc", "photo_fit_srcc"} <= run.history[-1].keys()


def test_rows_without_an_opinion_teach_that_task_nothing() -> None:
    values = torch.full((3, 4), 0.5, requires_grad=True)
    targets = torch.full((4, 3), 0.25)
    targets[[0, 2], 2] = float("nan")
    scores = Scores(("quality", "alignment", "realism"), values)
    task_loss(scores, targets, 0.5).backward()
    assert values.grad is not None
    # 2 (0.5 - 0.25), over the four that were asked, and half of that over two
    assert values.grad[0].tolist() == pytest.approx([0.125] * 4)
    assert values.grad[1].tolist() == pytest.approx([0.0625] * 4)
    assert values.grad[2].tolist() == pytest.approx([0.0, 0.125, 0.0, 0.125])


def test_own_task_may_be_the_main_one(
    capsys: Capture, own_words: Words, paths: list[Path], tmp_path: Path
) -> None:
    words = [*own_words, "--epochs", "1", "--targets", REALISM, "quality"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert read_run(tmp_path / "run").learned == ("realism", "quality")
    told = capsys.readouterr().err
    assert "best epoch 1: realism_srcc" in told
    found = Scorer.from_pretrained(tmp_path / "run", device="cpu", workers=1).score(paths)
    assert all(0 < row.realism < 1 and row.alignment is None for row in found)


# Refused


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("mood=cheerful photo/sad photo", "got mood: its column is mos_mood"),
        ("realism=realistic photo", "a positive and a negative end for the target realism"),
        ("realism=realistic/half/fake", "a positive and a negative end for the target realism"),
        ("realism=real/real", "a positive and a negative end for the target realism"),
        ("realism=realistic/ ", "a positive and a negative end for the target realism"),
        ("realism", "or realism with its two ends"),
        ("Real-ism=realistic photo/fake photo", "got Real-ism: rename it and its column"),
        ("prompt=good prompt/bad prompt", "got prompt: rename it and its column"),
        ("quality", "expected each of --targets once"),
    ],
)
def test_bad_targets_are_wrong_usage_in_a_sentence(
    capsys: Capture, own_words: Words, tmp_path: Path, target: str, told: str
) -> None:
    words = [*own_words, "--out", tmp_path / "run", "--targets", "quality", target]
    assert told in refused(capsys, 2, *words)
    assert not (tmp_path / "run").exists()


def test_targets_of_the_command_line_are_those_of_yaml(own_run: Path) -> None:
    judged = ["quality", "alignment", "realism", "photo_fit"]
    targets = ["quality", "alignment", "realism=realistic photo/fake photo"]
    targets.append("photo_fit=fitting photo/strange photo")
    found = with_targets(PRESETS["dcmpl-prompted"].model, judged, targets)
    assert found == read_run(own_run).model


TAKEN = ("image", "prompt", "status", "reason", "note", "index", "rank", "call", "tokens_dropped")
"""Columns of files of scores and fields of rows; as a task's name they would be overwritten."""


@pytest.mark.parametrize("name", [*TAKEN, "generator", "group", "some_label", "quality_mos"])
def test_name_that_rows_use_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="names nothing else in tables"):
        with_targets(PRESETS["dcmpl"].model, [name], [f"{name}=realistic photo/fake photo"])


@pytest.mark.parametrize("column", ["generator", "prompt", "group", "image"])
def test_opinions_of_any_name_leave_the_columns_of_predictions(column: str) -> None:
    opinions: dict[str, Any] = {"mos_quality": [1.0, 2.0], f"mos_{column}": [3.0, 4.0]}
    table = made_table(generator=["a", "b"], **opinions)
    frame = predictions_frame(table, np.full((2, len(table.asked)), 0.5))
    ours = "name" if column == "image" else column
    assert frame[column].tolist() == table.frame[ours].tolist()


# Scored


def test_score_has_the_own_target_by_its_name(scorer: Scorer, paths: list[Path]) -> None:
    found = scorer.score(paths, "a red circle")
    assert len({row.realism for row in found}) == len(paths)
    for row in found:
        assert 0 < row.realism < 1
        assert row["realism"] == row.realism == row.more["realism"]
        assert row.photo_fit != row.realism
    frame = found.to_dataframe()
    assert frame["realism"].tolist() == [row.realism for row in found]


def test_own_target_does_not_depend_on_the_prompt(scorer: Scorer, paths: list[Path]) -> None:
    one, other = (scorer.score(paths, prompt) for prompt in ("blue", ""))
    assert [row.realism for row in one] == [row.realism for row in other]


def test_row_of_a_run_without_it_says_what_it_has() -> None:
    with pytest.raises(AttributeError, match="a score has no realism; it has quality, alignment"):
        _ = Score("a.png", "", quality=0.5).realism


def test_image_that_cannot_be_read_has_none_of_it(scorer: Scorer, tmp_path: Path) -> None:
    (found,) = scorer.score([tmp_path / "no.png"])
    assert (found.status, found.realism, found.photo_fit) == ("error", None, None)


def test_only_the_own_target_may_be_asked_for(
    own_run: Path, scorer: Scorer, paths: list[Path]
) -> None:
    alone = Scorer.from_pretrained(own_run, device="cpu", workers=1, targets=["realism"])
    found, wanted = alone.score(paths), scorer.score(paths)
    assert {(row.quality, row.alignment) for row in found} == {(None, None)}
    realism = [row.realism for row in wanted]
    assert [row.realism for row in found] == pytest.approx(realism, abs=1e-6)


def test_images_are_ranked_by_the_own_target(scorer: Scorer, paths: list[Path]) -> None:
    found = scorer.rank(paths, by="realism")
    values = [row.realism for row in found]
    assert values == sorted(values, reverse=True)
    assert [row.rank for row in found] == [1, 2, 3, 4]


def test_images_are_ranked_by_a_target_with_a_name_of_two_words(
    scorer: Scorer, paths: list[Path]
) -> None:
    assert [row.rank for row in scorer.rank(paths, by="photo_fit")] == [1, 2, 3, 4]


def test_files_are_ranked_by_a_target_with_a_name_of_two_words(
    own_run: Path, paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    words = [*paths, "--model", own_run, "-o", out, "--prompt", "x", "--rank"]
    assert score(*words, "--by", "photo_fit") == 0


def test_loss_of_the_own_target_is_one_less_its_score(scorer: Scorer) -> None:
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    images.requires_grad_()
    loss = scorer.as_loss("realism")(images)
    wanted = [1 - row.realism for row in scorer.score(images.detach())]
    assert loss.tolist() == pytest.approx(wanted, abs=1e-5)
    loss.sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_loss_of_a_number_that_goes_with_a_target_is_a_usage_error(own_run: Path) -> None:
    known = dict.fromkeys(["realism"], Meaning(1.0, 5.0))
    scorer = Scorer.from_pretrained(own_run, device="cpu", workers=1)
    calibrated = Scorer(
        scorer.engine,
        "center",
        ScoringOptions(workers=1),
        calibration=Calibration("own", "center", "", known),
    )
    with pytest.raises(UsageError):
        calibrated.as_loss("realism_mos")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_of_scores_have_its_column(
    own_run: Path, scorer: Scorer, paths: list[Path], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"scores{suffix}"
    assert score(*paths, "--model", own_run, "-o", out, "--rank", "--by", "realism") == 0
    read: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".jsonl": lambda file: pd.read_json(file, lines=True, precise_float=True),
        ".parquet": pd.read_parquet,
    }
    frame = read[suffix](out)
    assert list(frame.columns) == [
        *("image", "prompt", "quality", "alignment", "authenticity", "realism", "photo_fit"),
        *("tokens_dropped", "rank", "better_than_next", "call", "status", "reason", "note"),
    ]
    wanted = {str(row.image): row.realism for row in scorer.score(paths)}
    assert frame["realism"].tolist() == pytest.approx(sorted(wanted.values(), reverse=True))
    assert dict(zip(frame["image"], frame["realism"], strict=True)) == pytest.approx(wanted)


def test_target_that_the_run_has_not_is_wrong_usage(
    capsys: Capture, own_run: Path, paths: list[Path], tmp_path: Path
) -> None:
    words = ["score", paths[0], "--model", own_run, "-o", tmp_path / "scores.csv"]
    told = refused(capsys, 2, *words, "--targets", "mood")
    assert told == (
        f"expected targets that {own_run} predicts (quality, alignment, realism, photo_fit), "
        "got mood"
    )


# Measured


@pytest.fixture(scope="module")
def metrics(own_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an evaluation of all images; intervals and plots are tested with that of runs."""
    folder = tmp_path_factory.mktemp("results")

    with pytest.MonkeyPatch.context() as patch:
        evaluate_bare(patch)
        assert main(["evaluate", str(own_run), "--split", "all", "--out", str(folder)]) == 0
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    found["rows"] = pd.read_csv(folder / "predictions.csv")
    return found


def test_own_target_is_measured_on_the_rows_that_have_an_opinion(metrics: dict[str, Any]) -> None:
    rows = metrics["rows"]
    assert metrics["realism"]["n"] == 32 == rows["mos_realism"].notna().sum()
    assert metrics["quality"]["n"] == 48
    known = rows[rows["mos_realism"].notna()]
    wanted = known["realism"].corr(known["mos_realism"], method="spearman")
    assert metrics["realism"]["srcc"]["value"] == pytest.approx(wanted)


def test_predictions_of_the_own_target_are_the_scorers(
    metrics: dict[str, Any], scorer: Scorer, paths: list[Path]
) -> None:
    found = metrics["rows"].set_index("image").loc[list(map(str, paths)), "realism"]
    wanted = [row.realism for row in scorer.score(paths)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_calibrated_run_is_measured_on_data_without_its_own_target(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, meaning = read_run(own_run), Meaning(1.0, 5.0)
    known = dict.fromkeys(run.learned, meaning)
    monkeypatch.setattr(
        "dcmpl.evaluation.results.measure_calibration", lambda *_: {"mean_error": 0.0}
    )
    scores = np.full((2, len(run.learned)), 0.5)
    table = made_table(mos_quality=[1.0, 2.0])
    found = calibrations(known, run.learned, table, scores, scores)
    assert found == {"quality": {"mean_error": 0.0}}


def test_target_with_few_opinions_leaves_the_others_calibrated(
    own_run: Path, data: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = read_run(own_run), load_table(data, MosScale(1, 5))
    split = read_split(own_run, run)
    assert split is not None
    assert isinstance(scorer.engine, TorchEngine)
    monkeypatch.setattr("dcmpl.training.calibrate.FEWEST", len(split.val))
    few = table.frame["name"].isin(split.val[1:])
    table.frame.loc[few, "mos_realism"] = np.nan
    found = calibrate(run, scorer.engine, table, split)
    assert found is not None
    assert list(found.targets) == ["quality", "alignment", "photo_fit"]


def test_column_that_names_no_target_is_told(data: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(data).rename(columns={"mos_realism": "mos_prompt"})
    frame["image"] = [str(data.parent / image) for image in frame["image"]]
    frame.to_csv(tmp_path / "data.csv", index=False)
    (note,) = load_table(tmp_path / "data.csv", MosScale(1, 5)).notes
    assert note == (
        "no target is read from the column mos_prompt: expected mos_ and small letters, digits "
        "or _ that name nothing else in tables of scores"
    )
