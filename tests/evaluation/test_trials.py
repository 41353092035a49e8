"""An ablation: the grid that was asked for, on the same splits, kept and summed up."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dcmpl.cli.main import main
from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_images
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.evaluation.trials import (
    RESULT,
    Trial,
    TrialContext,
    Variant,
    read_grid,
    read_result,
    run_transfer,
    run_trial,
    trials_of,
)
from dcmpl.presets import PRESETS
from dcmpl.runs import DataSource, read_run, read_split
from dcmpl.weights.backbones import load_backbone

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
    variants = read_grid(grid(GRID), RECIPE)
    assert [v.name for v in variants] == ["dcmpl", "no adapter", "linear", "lambda=1, n=2"]
    assert variants[1].model == PRESETS["dcmpl-no-adapter"].model
    assert variants[3].model == ModelConfig(n_context=2)
    assert (variants[3].train.alignment_weight, variants[0].train.alignment_weight) == (1, 0.1)
    assert {v.train.windows for v in variants} == {"views"}


def test_flags_go_over_the_grid(grid: Write) -> None:
    variants = read_grid(grid(GRID), RECIPE, ["train.alignment_weight=0.3"])
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
        ("variants: {a: {train: {epoch: 1}}}", "did you mean train.epochs?"),
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
        read_grid(grid(text), RECIPE)
    assert told in str(caught.value)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("file", ["minimum.yaml", "small.yaml"])
def test_grids_of_the_repository_are_read(file: str) -> None:
    path = Path(__file__).parents[2] / "grids" / file
    variants = read_grid(path, TrainConfig())
    assert variants[0].name == "dcmpl"
    assert len({variant.name for variant in variants}) == len(variants)


Results = list[dict[str, Any]]
Run = Callable[[Path, list[Variant], int], Results]
Finished = tuple[Path, list[Variant], Results]


@pytest.fixture(scope="module")
def context(image_data: Path, small_backbone: Path) -> TrialContext:
    table = load_table(image_data, MosScale(1, 5))
    backbone, cpu = load_backbone(str(small_backbone)), torch.device("cpu")
    return TrialContext(table, backbone, check_images(table), cpu)


@pytest.fixture(scope="module")
def run(image_data: Path, context: TrialContext) -> Run:
    """Run variants on so many clean splits, as the command does."""
    table = context.table
    source = DataSource(str(image_data), table.name, table.scale, table.digest)

    def run(out: Path, variants: list[Variant], repeats: int) -> Results:
        trials = trials_of(context, source, variants, ["clean"], repeats, out)
        return [run_trial(trial, context) for trial in trials]

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Finished:
    """The grid above on two splits."""
    out = tmp_path_factory.mktemp("trials")
    (out / "grid.yaml").write_text(GRID)
    variants = read_grid(out / "grid.yaml", RECIPE)
    return out, variants, run(out, variants, 2)


def folder_of(out: Path, variant: str, repeat: int) -> Path:
    return out / "scores" / variant / "clean" / f"repeat{repeat}"


def test_every_variant_is_measured_on_every_split(finished: Finished) -> None:
    _, variants, results = finished
    assert [(r["repeat"], r["name"]) for r in results] == [
        (repeat, v.name) for repeat in (0, 1) for v in variants
    ]
    assert all(-1 <= r["quality"]["srcc"]["value"] <= 1 for r in results)


def test_variants_share_their_splits(finished: Finished) -> None:
    out, _variants, _ = finished
    splits = set()
    for name in ("dcmpl", "no-adapter", "linear"):
        folder = folder_of(out, name, 1)
        split = read_split(folder, read_run(folder))
        assert split is not None
        splits.add(split.digest)
    assert len(splits) == 1


def test_trial_is_a_run_that_evaluate_takes(finished: Finished, tmp_path: Path) -> None:
    out, _, results = finished
    folder = folder_of(out, "no-adapter", 0)
    assert main(["evaluate", str(folder), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["quality"]["srcc"]["value"]
    (told,) = (r for r in results if (r["name"], r["repeat"]) == ("no adapter", 0))
    assert told["quality"]["srcc"]["value"] == pytest.approx(found, abs=1e-6)


def test_what_is_finished_is_not_run_again(
    finished: Finished, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, variants, results = finished
    monkeypatch.setattr("dcmpl.evaluation.trials.fit", None)
    assert run(out, variants, 2) == results


def test_results_of_other_settings_are_not_taken_over(finished: Finished, run: Run) -> None:
    out, variants, _ = finished
    other = replace(variants[0], train=replace(variants[0].train, lr=0.1))
    with pytest.raises(RunError, match="expected results of these settings, data and backbone"):
        run(out, [other], 1)


def test_results_that_are_none_are_refused(finished: Finished, tmp_path: Path) -> None:
    out, _, _ = finished
    found = read_run(folder_of(out, "dcmpl", 0))
    for text in ("", "[]", "{}", '{"run": '):
        (tmp_path / RESULT).write_text(text)
        with pytest.raises(RunError, match="expected results at"):
            read_result(tmp_path, found)


def test_trial_on_other_data_refuses_what_it_was_trained_on(
    finished: Finished, context: TrialContext
) -> None:
    out, _, _ = finished
    folder = folder_of(out, "dcmpl", 0)
    found = read_run(folder)
    split = read_split(folder, found)
    assert split is not None
    trial = Trial("dcmpl", found, split, folder)
    renamed = replace(context, table=replace(context.table, name="other"))
    with pytest.raises(DataError, match="expected nothing of other in the training of scores"):
        run_transfer(trial, context, renamed)
