"""An ablation: the grid that was asked for, on the same splits, kept and summed up."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dcmpl.cli import main
from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_pictures
from dcmpl.data.table import MosScale
from dcmpl.errors import RunError, UsageError
from dcmpl.evaluation.summary import verdict, write_report
from dcmpl.evaluation.trials import Variant, Workbench, read_grid, run_trials, summary, trials_of
from dcmpl.presets import PRESETS
from dcmpl.runs import Source, read_run, read_split
from dcmpl.weights.backbones import load_backbone
from write_ablations import page

GRID = """
train: {windows: views}
variants:
  dcmpl: {}
  no adapter: {preset: dcmpl-no-adapter}
  linear: {preset: linear-probe}
  "lambda=1, n=2": {model: {n_context: 2}, train: {alignment_weight: 1}}
"""
RECIPE = TrainConfig(epochs=1, batch_size=16, lr=3e-3, views="center")

Write = Callable[[str], Path]


@pytest.fixture
def grid(tmp_path: Path) -> Write:
    """A grid file of that text."""

    def write(text: str) -> Path:
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return file

    return write


def test_grid_gives_its_variants_in_order(grid: Write) -> None:
    variants = read_grid(grid(GRID), RECIPE, {})
    assert [v.name for v in variants] == ["dcmpl", "no adapter", "linear", "lambda=1, n=2"]
    assert variants[1].model == PRESETS["dcmpl-no-adapter"].model
    assert variants[3].model == ModelConfig(n_context=2)
    assert (variants[3].train.alignment_weight, variants[0].train.alignment_weight) == (1, 0.1)
    assert {v.train.windows for v in variants} == {"views"}


def test_flags_go_over_the_grid(grid: Write) -> None:
    variants = read_grid(grid(GRID), RECIPE, {"alignment_weight": 0.3})
    assert {v.train.alignment_weight for v in variants} == {0.3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a mapping with train, variants in"),
        ("[1, 2]", "expected a mapping with train, variants in"),
        ("variants: {}", "expected at least one entry under variants"),
        ("variants: {a: {presett: x}}", "expected a mapping with model, preset, train under a"),
        ("variants: {a: {preset: x}}", "expected a preset for a in"),
        ("variants: {a: {model: {mpa.frm: joint}}}", "did you mean model.mpa.form?"),
        ("variants: {a: {train: {epoch: 1}}}", "unexpected keyword argument 'epoch'"),
        ("variants: {a: {train: {lr: -1}}}", "expected a positive lr"),
        ("variants: [1", "expected a YAML grid at"),
        ("!!python/object/apply:os.mkdir [trap]", "expected a YAML grid at"),
    ],
)
def test_grid_of_other_content_is_refused(
    grid: Write, text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_grid(grid(text), RECIPE, {})
    assert told in str(caught.value)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("file", ["minimum.yaml", "tiny.yaml"])
def test_grids_of_the_repository_are_read(file: str) -> None:
    path = Path(__file__).parents[2] / "grids" / file
    variants = read_grid(path, TrainConfig(), {})
    assert variants[0].name == "dcmpl"
    assert len({variant.folder for variant in variants}) == len(variants)


Results = list[dict[str, Any]]
Ablate = Callable[[Path, list[Variant], range], Results]
Finished = tuple[Path, list[Variant], Results]


@pytest.fixture(scope="module")
def ablate(picture_data: Path, small_backbone: Path) -> Ablate:
    """Run variants on the splits of these seeds, as the command does."""
    table = load_table(picture_data, MosScale(1, 5))
    source = Source(str(picture_data), table.name, table.scale, table.digest)

    def run(out: Path, variants: list[Variant], seeds: range) -> Results:
        backbone, cpu = load_backbone(str(small_backbone)), torch.device("cpu")
        bench = Workbench(table, backbone, check_pictures(table), cpu)
        trials = trials_of(bench, source, variants, seeds, out)
        return run_trials(trials, bench, lambda _: None)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ablate: Ablate) -> Finished:
    """The grid above on two splits."""
    out = tmp_path_factory.mktemp("ablation")
    (out / "grid.yaml").write_text(GRID)
    variants = read_grid(out / "grid.yaml", RECIPE, {})
    return out, variants, ablate(out, variants, range(2))


def test_every_variant_is_measured_on_every_split(finished: Finished) -> None:
    _, variants, results = finished
    assert [(r["repeat"], r["name"]) for r in results] == [
        (repeat, v.name) for repeat in (0, 1) for v in variants
    ]
    assert all(-1 <= r["quality"]["srcc"]["value"] <= 1 for r in results)


def test_variants_share_their_splits(finished: Finished) -> None:
    out, variants, _ = finished
    splits = set()
    for variant in variants:
        folder = out / variant.folder / "seed1"
        split = read_split(folder, read_run(folder))
        assert split is not None
        splits.add(split.digest)
    assert len(splits) == 1


def test_variant_is_a_run_that_evaluate_takes(finished: Finished) -> None:
    out, variants, results = finished
    folder = out / variants[1].folder / "seed0"
    assert main(["evaluate", str(folder)]) == 0
    found = json.loads((folder / "metrics.json").read_text())["quality"]["srcc"]["value"]
    (told,) = (r for r in results if (r["name"], r["repeat"]) == (variants[1].name, 0))
    assert told["quality"]["srcc"]["value"] == pytest.approx(found, abs=1e-6)


def test_evaluating_a_trial_does_not_make_it_another(finished: Finished, ablate: Ablate) -> None:
    out, variants, results = finished
    assert main(["evaluate", str(out / variants[1].folder / "seed1")]) == 0
    assert ablate(out, variants, range(2)) == results


def test_what_is_finished_is_not_run_again(
    finished: Finished, ablate: Ablate, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, variants, results = finished
    monkeypatch.setattr("dcmpl.evaluation.trials.fit", None)
    assert ablate(out, variants, range(2)) == results


def test_results_of_other_settings_are_not_taken_over(finished: Finished, ablate: Ablate) -> None:
    out, variants, _ = finished
    other = replace(variants[0], train=replace(variants[0].train, lr=0.1))
    with pytest.raises(RunError, match="expected results of these settings, data and backbone"):
        ablate(out, [other], range(1))


FLOOR = "floor: generator's mean"


def made(name: str, repeat: int, quality: float, floor: float = 0.1) -> dict[str, Any]:
    """Metrics of a trial that found the same of quality in every way."""
    interval = {"value": quality, "low": None, "high": None}
    of_floor = dict.fromkeys(("srcc", "plcc", "krcc", "within_generator_srcc"), floor)
    return {
        **{"name": name, "repeat": repeat, "parameters": 7, "seconds_per_step": 0.5},
        "quality": {"srcc": interval, "plcc": interval, "within_generator_srcc": quality, "n": 9},
        "floors": {"generator": {"quality": of_floor}},
    }


def test_summary_is_the_t_interval_and_the_paired_test() -> None:
    base, other = [0.70, 0.72, 0.77], [0.71, 0.76, 0.78]
    results = [made("a", s, q) for s, q in enumerate(base)]
    results += [made("b", s, q) for s, q in enumerate(other)][::-1]  # any order
    frame = summary(results, ["a", "b"]).set_index("variant")
    interval = stats.t.interval(0.95, 2, np.mean(base), stats.sem(base))
    assert frame.loc["a", ["quality low", "quality high"]].tolist() == pytest.approx(interval)
    assert frame.loc["b", "quality mean"] == pytest.approx(0.75)
    assert frame.loc["b", "quality median"] == 0.76
    assert frame.loc["b", "quality difference"] == pytest.approx(0.02)
    assert frame.loc["b", "quality p"] == pytest.approx(stats.ttest_rel(other, base).pvalue)
    assert np.isnan(frame.loc["a", "quality p"])


def test_floors_of_the_splits_follow_the_variants() -> None:
    base, floor = [0.70, 0.72, 0.77], [0.2, 0.1, 0.3]
    results = [made("a", s, q, f) for s, (q, f) in enumerate(zip(base, floor, strict=True))]
    results += [made("b", s, q, f) for s, (q, f) in enumerate(zip(base, floor, strict=True))]
    frame = summary(results, ["a", "b"])
    assert frame["variant"].tolist() == ["a", "b", FLOOR]
    row = frame.set_index("variant").loc[FLOOR]
    assert (row["repeats"], row["parameters"]) == (3, 0)
    assert row["quality mean"] == pytest.approx(0.2)
    assert row["quality difference"] == pytest.approx(0.2 - 0.73)


def test_single_repeat_has_no_interval_and_no_p() -> None:
    frame = summary([made("a", 0, 0.7), made("b", 0, 0.8)], ["a", "b"])
    assert frame[["quality deviation", "quality low", "quality p"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("difference", "p", "told"),
    [
        (0.1, 0.2, "no difference shown"),
        (0.1, 0.04, "higher, if it were the only test"),
        (-0.1, 0.001, "lower"),
        (float("nan"), float("nan"), ""),
    ],
)
def test_verdict_bounds_all_tests_at_once(difference: float, p: float, told: str) -> None:
    assert verdict({"quality difference": difference, "quality p": p}, "quality", 10) == told


def test_report_is_written_in_all_forms(finished: Finished, tmp_path: Path) -> None:
    _, variants, results = finished
    names = [variant.name for variant in variants]
    write_report(summary(results, names), tmp_path, "Title")
    told = (tmp_path / "ablation.md").read_text()
    assert all(f"| {name} |" in told for name in [*names, FLOOR])
    assert pd.read_csv(tmp_path / "ablation.csv")["repeats"].unique().tolist() == [2]


def test_command_writes_the_report(
    picture_data: Path, small_backbone: Path, grid: Write, tmp_path: Path
) -> None:
    words = f"ablate --data {picture_data} --mos-scale 1 5 --backbone {small_backbone} --repeats 1"
    words += f" --grid {grid('variants: {ivlp: {preset: ivlp}}')} --out {tmp_path / 'out'}"
    assert main([*words.split(), "--epochs", "1", "--views", "center"]) == 0
    assert (tmp_path / "out" / "ablation.md").exists()
    assert read_run(tmp_path / "out" / "ivlp" / "seed0").finished


def test_page_of_the_docs_says_what_the_numbers_say(tmp_path: Path) -> None:
    names = ["dcmpl", "mpa.form=joint", "coop", "adapter.shared"]
    values = {"dcmpl": 0.7, "mpa.form=joint": 0.72, "coop": 0.5, "adapter.shared": 0.701}
    drift = [0.0, 0.01, 0.02, 0.012, 0.004]
    results = [made(n, s, values[n] + d) for n in names for s, d in enumerate(drift)]
    for index in (7, 12):  # or the paired differences of joint were constant
        results[index]["quality"]["srcc"]["value"] += 0.001
    frame = summary(results, names)
    write_report(frame, tmp_path, "Title")
    told = page(pd.read_csv(tmp_path / "ablation.csv"), (tmp_path / "ablation.md").read_text())
    assert "## The form of prompt attention\n" in told
    assert "- `mpa.form=joint`: 0.729 (+0.020, p 0.000): higher." in told
    assert "- `coop`: 0.509 (-0.200, p 0.000): lower." in told
    assert "- `floor: generator's mean`: 0.100 (-0.609, p 0.000): lower." in told
