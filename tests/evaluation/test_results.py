"""Numbers of an evaluation are those of its own table of predictions."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from conftest import made_table
from dcmpl.cli.main import main
from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.evaluation.results import (
    measure,
    predictions_frame,
    scatter_plots,
    write_plots,
    write_results,
)
from dcmpl.files import sealed
from dcmpl.metrics import pairwise_accuracy, plcc_mapped, plcc_mapped5
from dcmpl.runs import read_run, read_split

TOLERANCE = 1e-9
"""Float64, but predictions go through the text of a CSV."""

INTERVALS = ("srcc", "plcc", "plcc_mapped", "plcc_mapped5", "krcc", "rmse")
OTHERS = ("n", "within_generator_srcc", "pairwise_accuracy")


@pytest.fixture(scope="module")
def results(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the test part."""
    folder = tmp_path_factory.mktemp("results")
    assert main(["evaluate", str(trained_run), "--out", str(folder)]) == 0
    return folder


def metrics_in(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    return found


def test_metrics_have_their_keys(results: Path) -> None:
    metrics = metrics_in(results)
    assert {"quality", "alignment", "part", "protocol", "baselines"} <= metrics.keys()
    assert metrics["baselines"].keys() == {"generator", "statistics"}
    for target in ("quality", "alignment"):
        assert metrics[target].keys() == {*INTERVALS, *OTHERS}
        for name in INTERVALS:
            assert metrics[target][name].keys() == {"value", "low", "high"}


def test_metrics_name_the_protocol_and_the_split(results: Path, trained_run: Path) -> None:
    metrics = metrics_in(results)
    assert (metrics["part"], metrics["protocol"]) == ("test", "clean")
    assert metrics["selects_on_test"] is False
    assert metrics["split_sha256"] == read_run(trained_run).split_sha256


@pytest.mark.parametrize("target", ["quality", "alignment"])
def test_values_equal_direct_computation_from_the_predictions(results: Path, target: str) -> None:
    frame = pd.read_csv(results / "predictions.csv")
    predicted, opinion = 1 + 4 * frame[target], frame[f"mos_{target}"]
    found = metrics_in(results)[target]
    expected = {
        "srcc": stats.spearmanr(predicted, opinion).statistic,
        "plcc": stats.pearsonr(predicted, opinion).statistic,
        "plcc_mapped": plcc_mapped(predicted.to_numpy(), opinion.to_numpy()),
        "plcc_mapped5": plcc_mapped5(predicted.to_numpy(), opinion.to_numpy()),
        "krcc": stats.kendalltau(predicted, opinion).statistic,
        "rmse": np.sqrt(((predicted - opinion) ** 2).mean()),
    }
    values = {name: found[name]["value"] for name in INTERVALS}
    assert values == pytest.approx(expected, abs=TOLERANCE)
    assert found["n"] == len(frame)
    picked = pairwise_accuracy(*(c.to_numpy() for c in (predicted, opinion, frame["group"])))
    assert found["pairwise_accuracy"] == pytest.approx(picked, abs=TOLERANCE)


def test_within_generator_srcc_is_the_mean_over_generators(results: Path) -> None:
    frame = pd.read_csv(results / "predictions.csv")
    each = [
        stats.spearmanr(part["quality"], part["mos_quality"]).statistic
        for _, part in frame.groupby("generator")
    ]
    assert len(each) == 2
    found = metrics_in(results)["quality"]["within_generator_srcc"]
    assert found == pytest.approx(np.mean(each), abs=TOLERANCE)


def test_predictions_are_of_the_test_part(results: Path, trained_run: Path) -> None:
    frame = pd.read_csv(results / "predictions.csv")
    split = read_split(trained_run, read_run(trained_run))
    assert split is not None
    assert tuple(sorted(frame["image"])) == split.test


def test_predictions_name_image_prompt_and_opinions(results: Path, image_data: Path) -> None:
    frame = pd.read_csv(results / "predictions.csv").set_index("image")
    given = pd.read_csv(image_data).set_index("image").loc[frame.index]
    columns = ["prompt", "mos_quality", "mos_alignment", "generator"]
    pd.testing.assert_frame_equal(frame[columns], given[columns])


def test_opinions_of_the_predictions_are_scaled(results: Path) -> None:
    frame = pd.read_csv(results / "predictions.csv")
    scaled = ((frame["mos_quality"] - 1) / 4).to_numpy()
    assert frame["opinion_quality"].to_numpy() == pytest.approx(scaled, abs=1e-6)  # float32


@pytest.mark.parametrize("target", ["quality", "alignment"])
def test_plot_is_an_image(results: Path, target: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    with Image.open(results / f"{target}.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_evaluation_repeats_itself(results: Path, trained_run: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(trained_run), "--out", str(tmp_path)]) == 0
    ours = (tmp_path / "predictions.csv").read_bytes()
    assert ours == (results / "predictions.csv").read_bytes()


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be written to."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.mark.parametrize("part", ["train", "val"])
def test_part_that_is_asked_for_is_measured(run: Path, part: str) -> None:
    assert main(["evaluate", str(run), "--split", part]) == 0
    frame = pd.read_csv(run / part / "predictions.csv")
    assert set(frame["image"]) == set(getattr(read_split(run, read_run(run)), part))


def test_all_measures_every_row(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "all"]) == 0
    assert metrics_in(run / "all")["quality"]["n"] == 48


def test_test_part_is_written_into_the_run(run: Path) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert metrics_in(run)["part"] == "test"


def test_validation_srcc_is_that_of_the_best_epoch(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    record = read_run(run)
    told = record.history[record.best_epoch - 1]["quality_srcc"]
    found = metrics_in(run / "val")["quality"]["srcc"]["value"]
    assert found == pytest.approx(told, abs=TOLERANCE)


def test_interval_that_is_undefined_is_null(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "val"]) == 0  # one prompt: nothing to redraw
    assert metrics_in(run / "val")["quality"]["srcc"]["low"] is None


OtherData = Callable[[str], Path]


@pytest.fixture
def other_data(image_data: Path, tmp_path: Path) -> OtherData:
    """Twelve new images of new prompts, in a CSV of that name."""

    def make(name: str) -> Path:
        folder = tmp_path / "other"
        folder.mkdir()
        frame = pd.read_csv(image_data).iloc[:12].assign(prompt="something new")
        rng = np.random.default_rng(1)
        for image in frame["image"]:
            Image.fromarray(rng.integers(256, size=(40, 44, 3), dtype=np.uint8)).save(
                folder / image
            )
        frame.to_csv(folder / name, index=False)
        return folder / name

    return make


def evaluate_other(run: Path, data: Path) -> int:
    return main(["evaluate", str(run), "--data", str(data), "--mos-scale", "1", "5"])


def test_all_rows_of_another_data_set_are_measured(run: Path, other_data: OtherData) -> None:
    assert evaluate_other(run, other_data("new.csv")) == 0
    (folder,) = run.glob("new-*-all")
    metrics = metrics_in(folder)
    assert (metrics["part"], metrics["quality"]["n"]) == ("all", 12)
    assert metrics["protocol"] == "other data"


def test_another_data_set_of_the_same_file_name_is_another_data_set(
    run: Path, other_data: OtherData
) -> None:
    before = (run / "metrics.json").exists()
    assert evaluate_other(run, other_data("scores.csv")) == 0
    assert len(list(run.glob("scores-*-all"))) == 1
    assert (run / "metrics.json").exists() == before


@pytest.mark.parametrize("kind", ["prompt", "file"])
def test_data_that_training_has_seen_is_refused(
    run: Path,
    image_data: Path,
    kind: str,
    other_data: OtherData,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its images under other prompts, or its prompts of other images."""
    split = read_split(run, read_run(run))
    assert split is not None
    data = other_data("new.csv")
    known = split.train[0]
    frame = pd.read_csv(data)
    if kind == "file":
        shutil.copy(image_data.parent / known, data.parent / frame["image"][3])
    else:
        frame.loc[3, "prompt"] = pd.read_csv(image_data).set_index("image")["prompt"][known]
    frame.to_csv(data, index=False)
    assert evaluate_other(run, data) == 1
    told = capsys.readouterr().err
    assert "expected nothing in new that the run was trained on, got 03.png and " in told
    assert f"({kind})" in told
    assert not list(run.glob("new-*-all"))


def test_own_data_with_other_opinions_is_data_that_training_has_seen(
    run: Path, image_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved")) / "scores.csv"
    frame = pd.read_csv(moved)
    frame.assign(mos_quality=3.0 + frame["mos_quality"] / 10).to_csv(moved, index=False)
    assert evaluate_other(run, moved) == 1
    assert "expected nothing in scores that the run was trained on" in capsys.readouterr().err


def test_own_table_that_changed_is_refused(
    run: Path, image_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved")) / "scores.csv"
    record = json.loads((run / "run.json").read_text())
    del record["digest"]
    record["source"]["path"] = str(moved)
    (run / "run.json").write_bytes(sealed(record))
    moved.write_text(moved.read_text().replace("prompt 3", "prompt three"))
    assert main(["evaluate", str(run)]) == 1
    assert "got another scale or other rows: add --data" in capsys.readouterr().err


def test_plot_of_earlier_results_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "alignment.png").touch()
    write_plots(tmp_path, table(mos_alignment=np.nan), PREDICTED)
    assert not (tmp_path / "alignment.png").exists()


def test_own_data_that_moved_is_still_split(run: Path, image_data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved")) / "scores.csv"
    assert evaluate_other(run, moved) == 0
    assert metrics_in(run)["part"] == "test"


def test_own_data_that_moved_needs_no_scale_again(
    run: Path, image_data: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved")) / "scores.csv"
    assert main(["evaluate", str(run), "--data", str(moved)]) == 0


def table(**changes: Any) -> ImageTable:
    opinions = {"mos_quality": [1.0, 2.0, 4.0], "mos_alignment": [np.nan, 2.0, 3.0]}
    return made_table(prompt=["one", "two", "three"], **(opinions | changes))


PREDICTED = np.array([[0.0, 0.9, 0.2], [0.5, 0.1, 0.4], [0.75, 0.5, 0.1]])


def test_rmse_is_in_mos_units() -> None:
    found = measure(predictions_frame(table(), PREDICTED), MosScale(1, 5))
    # Predicted 1, 3, 4 on a scale of 1 to 5 against 1, 2, 4.
    assert found["quality"]["rmse"]["value"] == pytest.approx((1 / 3) ** 0.5, abs=TOLERANCE)


def test_rows_without_an_opinion_are_not_counted() -> None:
    found = measure(predictions_frame(table(), PREDICTED), MosScale(1, 5))
    assert (found["quality"]["n"], found["alignment"]["n"]) == (3, 2)


def test_target_without_opinions_is_left_out() -> None:
    frame = predictions_frame(table(mos_alignment=np.nan), PREDICTED)
    assert measure(frame, MosScale(1, 5)).keys() == {"quality"}


def test_target_without_opinions_has_no_plot() -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    frame = predictions_frame(table(mos_alignment=np.nan), PREDICTED)
    assert scatter_plots(frame, MosScale(1, 5)).keys() == {"quality.png"}


def test_results_without_matplotlib_have_no_plots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dcmpl.pages.importlib.util.find_spec", lambda _: None)
    assert not write_plots(tmp_path, table(), PREDICTED)
    assert list(tmp_path.iterdir()) == []


def test_results_are_predictions_and_metrics(tmp_path: Path) -> None:
    write_results(tmp_path, table(), PREDICTED, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]


def test_notes_are_in_the_metrics(tmp_path: Path) -> None:
    write = partial(write_results, tmp_path, table(), PREDICTED)
    assert write({"protocol": "a word"})["protocol"] == "a word"
    assert metrics_in(tmp_path)["protocol"] == "a word"


def test_own_table_is_named_after_its_file(image_data: Path) -> None:
    # What the folder of an evaluation is called hangs on it.
    assert load_table(image_data, MosScale(1, 5)).name == "scores"
