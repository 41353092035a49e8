"""Protocols over repeats, comparisons and cross-data-set tables, through the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarked import NAMES, QUICK, folder_of, rows
from dcmpl.cli.main import main
from dcmpl.config import TARGETS

pytest_plugins = ("benchmarked",)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def trial(out: Path, protocol: str, repeat: int) -> dict:
    return json.loads((folder_of(out, protocol, repeat) / "trial.json").read_text())


def test_clean_is_run_beside_every_other_protocol(protocols: Path) -> None:
    assert set(rows(protocols)["protocol"]) == {"clean", "image-level", "clip-agiqa"}
    assert set(rows(protocols)["repeats"]) == {2}


def test_mean_and_optimism_are_those_of_the_trials(protocols: Path) -> None:
    means = {}
    for name in ("clean", "image-level"):
        values = [trial(protocols, name, r)["quality"]["srcc"]["value"] for r in (0, 1)]
        own = rows(protocols, protocol=name, target="quality", variant="dcmpl").iloc[0]
        means[name] = np.mean(values)
        assert own["mean"] == pytest.approx(means[name])
        assert own["deviation"] == pytest.approx(np.std(values, ddof=1))
    own = rows(protocols, protocol="image-level", target="quality", variant="dcmpl").iloc[0]
    assert own["optimism"] == pytest.approx(means["image-level"] - means["clean"])


def test_every_table_carries_its_baselines(protocols: Path) -> None:
    variants = rows(protocols, protocol="clean", target="quality")["variant"].tolist()
    assert variants == [
        "dcmpl",
        "baseline: generator's mean",
        "baseline: statistics, support vectors",
    ]


def test_every_trial_has_its_rows_and_everything_is_written(protocols: Path) -> None:
    trials = pd.read_csv(protocols / "trials.csv")
    assert len(trials) == 2 * 3 * 2 * 3  # repeats, protocols, targets, predictors
    own = trials[(trials["variant"] == "dcmpl") & (trials["protocol"] == "clean")]
    first = own[(own["repeat"] == 0) & (own["target"] == "quality")].iloc[0]
    assert first["srcc"] == trial(protocols, "clean", 0)["quality"]["srcc"]["value"]
    for name in ("summary.md", "summary.json", "summary.png"):
        assert (protocols / name).stat().st_size > 100


def test_leaks_of_a_protocol_are_recorded_and_clean_has_none(protocols: Path) -> None:
    assert trial(protocols, "clean", 0)["leaks"] == []
    (first, *_) = trial(protocols, "image-level", 0)["leaks"]
    assert "test images share a prompt with one of train" in first
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
    assert main(["benchmark", *NAMES, *words, "--out", str(out)]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    assert (out / "trials.csv").read_text() == (protocols / "trials.csv").read_text()


def test_number_format_that_the_device_has_not_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("dcmpl.training.features.has_bfloat16", lambda device: False)
    quick = ["--repeats", "1", "--epochs", "1", "--presets", "dcmpl", "linear-probe"]
    lower = ["--set", "train.precision=bf16"]
    assert main(["benchmark", *words, *quick, *lower, "--out", str(tmp_path / "b")]) == 0
    assert said(capsys).count("cpu has no units for bfloat16 here; the towers compute in") == 1


def test_trial_that_was_broken_off_ends_with_the_same_numbers(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    shutil.rmtree(folder_of(out, "clean", 1))
    (folder_of(out, "image-level", 0) / "trial.json").unlink()
    assert main(["benchmark", *NAMES, *words, "--out", str(out)]) == 0
    found, wanted = (
        pd.read_csv(place / "trials.csv").drop(columns="seconds_per_step")
        for place in (out, protocols)
    )
    pd.testing.assert_frame_equal(found, wanted)


def test_results_of_other_settings_are_refused(
    protocols: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    changed = [*words, "--set", "train.alignment_weight=0.7", "--out", str(out)]
    assert main(["benchmark", "--repeats", "1", *changed]) == 1
    assert "got those of others: choose another --out" in said(capsys)


def test_evaluating_a_trial_leaves_its_record(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(protocols, tmp_path / "again")
    folder = folder_of(out, "clean", 0)
    assert main(["evaluate", str(folder)]) == 0
    before = trial(out, "clean", 0)
    metrics = json.loads((folder / "metrics.json").read_text())
    for target in ("quality", "alignment"):
        found, then = (m[target]["srcc"]["value"] for m in (metrics, before))
        assert found == pytest.approx(then, abs=1e-6)
    assert metrics["protocol"] == "clean"
    assert metrics["baselines"]["statistics"] == before["baselines"]["statistics"]


def second_set(folder: Path, seed: int) -> Path:
    """Other images of other prompts, judged from 0 to 100 for all three targets."""
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


def test_every_model_is_tested_on_every_set(
    agiqa: Path, small_backbone: Path, tmp_path: Path
) -> None:
    own, out = second_set(tmp_path / "s", 5), tmp_path / "out"
    command = ["benchmark", "--data", str(agiqa), str(own), "--mos-scale", "0", "100"]
    command += ["--backbone", str(small_backbone), *QUICK, "--repeats", "1", "--out", str(out)]
    assert main(command) == 0
    frame = pd.read_csv(out / "summary.csv")
    frame = frame[frame["variant"] == "dcmpl"]
    found = frame.set_index(["target", "trained_on", "tested_on"])["mean"]
    place = "dcmpl/clean/repeat0"
    own_test = json.loads((out / "second" / place / "trial.json").read_text())
    assert found["quality", "second", "second"] == own_test["quality"]["srcc"]["value"]
    there = out / "AGIQA-3K" / place / "on-second" / "trial.json"
    transferred = json.loads(there.read_text())
    assert transferred["quality"]["n"] == 30
    assert found["quality", "AGIQA-3K", "second"] == transferred["quality"]["srcc"]["value"]
    # AGIQA-3K was not judged for authenticity, so nothing was learned of it or can be tested.
    assert ("authenticity", "AGIQA-3K", "second") not in found
    assert ("authenticity", "second", "AGIQA-3K") not in found
    told = (out / "summary.md").read_text()
    assert "rows are trained on, columns tested on" in told
    before = (out / "summary.csv").read_text()
    assert main(command) == 0
    assert (out / "summary.csv").read_text() == before


def test_sets_that_share_images_are_refused(
    agiqa: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = second_set(tmp_path / "s", 5)
    for i in range(10):  # whichever of them are trained on
        shutil.copy(agiqa / "img" / f"glide_{i:02}.png", own.parent / f"x{i}.png")
    command = ["benchmark", "--data", str(own), str(agiqa), "--mos-scale", "0", "100"]
    command += ["--backbone", str(small_backbone), *QUICK, "--epochs", "1", "--repeats", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    told = said(capsys)
    assert "expected nothing of" in told
    assert re.search(r"x(\d)\.png and glide_0\1\.png|glide_0(\d)\.png and x\2\.png", told)


def test_variants_of_a_grid_are_compared_with_the_first(
    agiqa: Path, small_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text("variants: {a: {preset: coop}, b: {preset: linear-probe}}")
    out = tmp_path / "out"
    command = ["benchmark", "--data", str(agiqa), "--grid", str(tmp_path / "grid.yaml")]
    command += ["--backbone", str(small_backbone), *QUICK, "--epochs", "1", "--repeats", "2"]
    assert main([*command, "--out", str(out)]) == 0
    frame = pd.read_csv(out / "summary.csv")
    own = frame[(frame["variant"] == "b") & (frame["target"] == "quality")].iloc[0]
    values = {
        name: [
            json.loads(
                (out / "AGIQA-3K" / name / "clean" / f"repeat{r}" / "trial.json").read_text()
            )
            for r in (0, 1)
        ]
        for name in "ab"
    }
    means = {n: np.mean([v["quality"]["srcc"]["value"] for v in of]) for n, of in values.items()}
    assert own["difference"] == pytest.approx(means["b"] - means["a"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "expected RUN for dcmpl evaluate, got none"),
        (["benchmark", "--data", ".", "--out", "x", "--protocols", "cleen"], "did you mean clean?"),
        (["benchmark", "--out", "x"], "expected --data for dcmpl benchmark, got none"),
        (["benchmark", "--data", ".", "--out", "x", "--repeats", "0"], "--repeats of at least 1"),
        (
            ["benchmark", "--data", ".", "--out", "x", "--grid", "no"],
            "expected a YAML file at --grid",
        ),
        (["benchmark", "--data", ".", "--out", "x", "--presets", "dcmlp"], "did you mean dcmpl?"),
        (["compare", "nowhere"], "expected a run folder made by dcmpl train, got none"),
        (["data", "chek", "x"], "did you mean data check?"),
        (["data", "split", ".", "--protocol", "mine", "--out", "x"], "expected --protocol of"),
        (["data", "check", "nowhere"], "expected a data set at nowhere, got nothing there"),
    ],
)
def test_wrong_words_are_told_at_once(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = said(capsys)
    assert message in told
    assert told.count("\n") == 1
