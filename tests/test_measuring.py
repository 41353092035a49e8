"""Protocols over repeats, comparisons and cross-data-set tables, through the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl.cli import main
from dcmpl.config import TARGETS

QUICK = ["--epochs", "3", "--batch-size", "16", "--lr", "0.003", "--views", "center"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def agiqa(tmp_path_factory: pytest.TempPathFactory, picture_data: Path) -> Path:
    """The small pictures as AGIQA-3K lays them out."""
    folder = tmp_path_factory.mktemp("data") / "AGIQA-3K"
    (folder / "img").mkdir(parents=True)
    frame = pd.read_csv(picture_data)
    for image in frame["image"]:
        shutil.copy(picture_data.parent / image, folder / "img" / f"glide_{image}")
    frame["image"] = "glide_" + frame["image"]
    frame = frame.rename(columns={"image": "name", "mos_alignment": "mos_align"})
    frame.drop(columns="generator").to_csv(folder / "data.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def words(agiqa: Path, small_backbone: Path) -> list[str]:
    return ["--data", str(agiqa), "--backbone", str(small_backbone), *QUICK]


@pytest.fixture(scope="module")
def protocols(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """Two repeats of three protocols."""
    out = tmp_path_factory.mktemp("protocols")
    names = ["--protocol", "image-level", "clip-agiqa", "--repeats", "2"]
    assert main(["evaluate", *names, *words, "--out", str(out)]) == 0
    return out


def rows(out: Path, **wanted: str) -> pd.DataFrame:
    frame = pd.read_csv(out / "protocols.csv")
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def trial(out: Path, protocol: str, repeat: int) -> dict:
    return json.loads((out / protocol / f"repeat{repeat}" / "trial.json").read_text())


def test_clean_is_run_beside_every_other_protocol(protocols: Path) -> None:
    assert set(rows(protocols)["protocol"]) == {"clean", "image-level", "clip-agiqa"}
    assert set(rows(protocols)["repeats"]) == {2}


def test_mean_and_optimism_are_those_of_the_trials(protocols: Path) -> None:
    means = {}
    for name in ("clean", "image-level"):
        values = [trial(protocols, name, r)["quality"]["srcc"]["value"] for r in (0, 1)]
        own = rows(protocols, protocol=name, target="quality").iloc[0]
        means[name] = np.mean(values)
        assert own["mean"] == pytest.approx(means[name])
        assert own["deviation"] == pytest.approx(np.std(values, ddof=1))
    optimism = rows(protocols, protocol="image-level", target="quality").iloc[0]["optimism"]
    assert optimism == pytest.approx(means["image-level"] - means["clean"])


def test_every_table_carries_its_floors(protocols: Path) -> None:
    predictors = rows(protocols, protocol="clean", target="quality")["predictor"].tolist()
    assert predictors[1:] == ["generator's mean", "statistics, support vectors"]


def test_leaks_of_a_protocol_are_recorded_and_clean_has_none(protocols: Path) -> None:
    assert trial(protocols, "clean", 0)["leaks"] == []
    (first, *_) = trial(protocols, "image-level", 0)["leaks"]
    assert "test pictures share a prompt with one of train" in first
    assert trial(protocols, "clip-agiqa", 0)["leaks"] == ["the epoch is chosen on the test part"]


def test_clip_agiqa_reports_the_epoch_that_is_best_on_test(protocols: Path) -> None:
    found = trial(protocols, "clip-agiqa", 0)
    history = [entry["quality_srcc"] for entry in found["history"]]
    assert found["best_epoch"] == 1 + int(np.argmax(history))
    assert found["quality"]["srcc"]["value"] == pytest.approx(max(history), abs=1e-6)


def test_finished_trials_are_not_run_again(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    names = ["--protocol", "image-level", "clip-agiqa", "--repeats", "2"]
    assert main(["evaluate", *names, *words, "--out", str(out)]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    assert (out / "protocols.csv").read_text() == (protocols / "protocols.csv").read_text()


def test_trial_that_was_broken_off_ends_with_the_same_numbers(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    shutil.rmtree(out / "clean" / "repeat1")
    (out / "image-level" / "repeat0" / "trial.json").unlink()
    names = ["--protocol", "image-level", "clip-agiqa", "--repeats", "2"]
    assert main(["evaluate", *names, *words, "--out", str(out)]) == 0
    assert (out / "protocols.csv").read_text() == (protocols / "protocols.csv").read_text()


def test_results_of_other_settings_are_refused(
    protocols: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    changed = [*words, "--alignment-weight", "0.7", "--out", str(out)]
    assert main(["evaluate", "--protocol", "clean", "--repeats", "1", *changed]) == 1
    assert "got those of others: choose another --out" in said(capsys)


def test_evaluating_a_trial_leaves_its_record(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    folder = out / "clean" / "repeat0"
    assert main(["evaluate", str(folder)]) == 0
    before = trial(out, "clean", 0)
    metrics = json.loads((folder / "metrics.json").read_text())
    for target in ("quality", "alignment"):
        found, then = (m[target]["srcc"]["value"] for m in (metrics, before))
        assert found == pytest.approx(then, abs=1e-6)
    assert metrics["protocol"] == "clean"
    assert metrics["floors"]["statistics"] == before["floors"]["statistics"]


def test_compare_sets_like_beside_like(
    protocols: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(protocols), "--out", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "comparison.csv")
    ours = frame[frame["ours"] & frame["method"].str.startswith("dcmpl on")]
    assert set(ours["protocol"]) == {
        "prompt-grouped",
        "prompt-grouped, best epoch on test",
        "image-level",
    }
    theirs = frame[~frame["ours"]]
    assert set(theirs["dataset"]) == {"AGIQA-3K"}
    fu = theirs[(theirs["method"] == "CLIP-AGIQA (Fu)") & (theirs["task"] == "quality")].iloc[0]
    assert (fu["srcc"], fu["plcc"]) == (0.8747, 0.9190)
    assert fu["protocol"] == "prompt-grouped, best epoch on test"
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("<h2>") == page.count("</h2>") > 3
    assert "48 pictures" in (tmp_path / "comparison.md").read_text()


def test_two_runs_on_the_same_pictures_are_compared(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    preset = ["--preset", "linear-probe", "--out", str(other)]
    assert main(["train", *words, *preset]) == 0
    assert main(["evaluate", str(other)]) == 0
    first = protocols / "clean" / "repeat0"
    assert main(["compare", str(first), str(other), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "## Run against run" in text
    table = [line for line in text.splitlines() if line.startswith(f"| {first} | {other} |")]
    assert [line.split(" | ")[2] for line in table] == ["quality", "alignment"]


def test_compare_refuses_a_folder_without_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path)]) == 1
    assert "found neither metrics.json (dcmpl evaluate RUN) nor protocols.json" in said(capsys)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3}', "[" * 100_000])
def test_compare_refuses_results_that_are_none(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "protocols.json").write_text(content)
    assert main(["compare", str(tmp_path)]) == 1
    assert said(capsys).startswith("dcmpl: expected results ")


def second_set(folder: Path, seed: int) -> Path:
    """Other pictures of other prompts, judged from 0 to 100 for all three targets."""
    folder.mkdir()
    rng, lines = np.random.default_rng(seed), []
    for i in range(30):
        noise = rng.random()
        pixels = 100 + rng.normal(0, 5 + 80 * noise, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"x{i}.png")
        mos = 100 * (1 - noise)
        lines.append([f"x{i}.png", f"other {i % 10}", mos, mos, mos])
    columns = ["image", "prompt", *(f"mos_{target}" for target in TARGETS)]
    pd.DataFrame(lines, columns=columns).to_csv(folder / "second.csv", index=False)
    return folder / "second.csv"


def test_cross_tests_every_model_on_every_set(
    agiqa: Path, small_backbone: Path, tmp_path: Path
) -> None:
    own, out = second_set(tmp_path / "s", 5), tmp_path / "out"
    command = ["cross", "--data", str(agiqa), str(own), "--mos-scale", "0", "100"]
    command += ["--backbone", str(small_backbone), *QUICK, "--out", str(out)]
    assert main(command) == 0
    frame = pd.read_csv(out / "cross.csv").set_index(["target", "trained_on", "tested_on"])["srcc"]
    own_test = json.loads((out / "second" / "trial.json").read_text())
    assert frame["quality", "second", "second"] == pytest.approx(
        own_test["quality"]["srcc"]["value"]
    )
    transferred = json.loads((out / "AGIQA-3K" / "on-second" / "trial.json").read_text())
    assert transferred["quality"]["n"] == 30
    assert frame["quality", "AGIQA-3K", "second"] == transferred["quality"]["srcc"]["value"]
    # AGIQA-3K was not judged for authenticity, so nothing was learned of it or can be tested.
    assert np.isnan(frame["authenticity", "AGIQA-3K", "second"])
    assert np.isnan(frame["authenticity", "second", "AGIQA-3K"])
    before = (out / "cross.csv").read_text()
    assert main(command) == 0
    assert (out / "cross.csv").read_text() == before


def test_cross_refuses_sets_that_share_pictures(
    agiqa: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = second_set(tmp_path / "s", 5)
    for i in range(10):  # whichever of them are trained on
        shutil.copy(agiqa / "img" / f"glide_{i:02}.png", own.parent / f"x{i}.png")
    command = ["cross", "--data", str(own), str(agiqa), "--mos-scale", "0", "100"]
    command += ["--backbone", str(small_backbone), *QUICK, "--out", str(tmp_path / "out")]
    assert main(command) == 1
    told = said(capsys)
    assert "expected nothing of" in told
    assert re.search(r"x(\d)\.png and glide_0\1\.png|glide_0(\d)\.png and x\2\.png", told)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "expected a RUN to measure or --protocol NAME"),
        (["evaluate", "--protocol", "cleen"], "did you mean clean?"),
        (["evaluate", "--protocol", "clean"], "expected --data with --protocol, got none"),
        (["cross", "--data", ".", "--out", "x"], "expected two data sets or more"),
        (["compare", "nowhere"], "expected a run folder made by dcmpl train, found none"),
        (["data", "chek", "x"], "did you mean data check?"),
        (["data", "split", ".", "--protocol", "mine", "--out", "x"], "expected --protocol of"),
        (["data", "check", "nowhere"], "expected a data set at nowhere, found nothing there"),
    ],
)
def test_wrong_words_are_told_at_once(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = said(capsys)
    assert message in told
    assert told.count("\n") == 1
