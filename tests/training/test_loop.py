"""Training repeats itself bit for bit, survives a kill, and sees no test image."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dcmpl.cli.main import main
from dcmpl.config import TARGETS, ModelConfig, TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_images, tied_units
from dcmpl.data.splits import Split, draw_split
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.errors import DataError, RunError
from dcmpl.images.decode import read_image
from dcmpl.model.dcmpl import DCMPL, Scores, is_trainable, trainable_parameters
from dcmpl.presets import PRESETS
from dcmpl.runs import DataSource, Run, read_run
from dcmpl.training.loop import EpochReport, dice_of, fit, learning_rate, task_loss
from dcmpl.weights.backbones import load_backbone

QUICK = TrainConfig(epochs=3, batch_size=16, lr=3e-3, views="center")

NAN = float("nan")

READERS = (
    "dcmpl.training.batches.read_image",
    "dcmpl.training.features.read_image",
    "dcmpl.scoring.torch_engine.read_image",
)
"""Where training and validation read their images."""


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Trained(NamedTuple):
    model: DCMPL
    run: Run
    folder: Path

    def content(self) -> list[bytes]:
        return [(self.folder / f"{n}.safetensors").read_bytes() for n in ("model", "last")]


Fit = Callable[..., Trained]


@pytest.fixture(scope="module")
def table(image_data: Path) -> ImageTable:
    return load_table(image_data, MosScale(1, 5))


@pytest.fixture(scope="module")
def split(table: ImageTable) -> Split:
    return draw_split("clean", table, tied_units(table, check_images(table)), 0)


@pytest.fixture(scope="module")
def fit_in(small_backbone: Path, table: ImageTable, split: Split) -> Fit:
    """Train in a folder; a second call with that folder goes on in it."""

    def work(
        folder: Path,
        config: TrainConfig = QUICK,
        data: ImageTable = table,
        report: Callable[[EpochReport], None] = lambda _: None,
        spoil: Callable[[DCMPL], None] = lambda _: None,
    ) -> Trained:
        backbone = load_backbone(str(small_backbone))
        model = DCMPL(backbone.clip, backbone.tokenizer, ModelConfig(), config.seed)
        spoil(model)
        source = DataSource("scores.csv", "scores", MosScale(1, 5), "0" * 64)
        run = Run.begin("dcmpl", backbone, source, model.config, config, split, data)
        parts = split.train_part(data), split.validation_part(data)
        return Trained(model, fit(model, *parts, run, folder, report), folder)

    return work


@pytest.fixture
def fitted(fit_in: Fit, tmp_path: Path) -> Fit:
    """The same, in a folder of that name that this test alone has."""

    def work(name: str = "run", config: TrainConfig = QUICK, **options: object) -> Trained:
        return fit_in(tmp_path / name, config, **options)

    return work


@pytest.fixture(scope="module")
def unbroken(fit_in: Fit, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of :data:`QUICK` that nothing stopped."""
    return fit_in(tmp_path_factory.mktemp("runs") / "unbroken")


def test_two_runs_of_one_seed_write_the_same_bytes(fitted: Fit, unbroken: Trained) -> None:
    assert fitted().content() == unbroken.content()


def test_two_runs_of_one_seed_have_the_same_history(fitted: Fit, unbroken: Trained) -> None:
    assert fitted().run == unbroken.run


def test_global_random_state_changes_nothing(fitted: Fit, unbroken: Trained) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    assert fitted().content() == unbroken.content()


def test_another_seed_ends_elsewhere(fitted: Fit, unbroken: Trained) -> None:
    other = fitted(config=replace(QUICK, seed=1))
    assert other.run.history[-1]["loss"] != unbroken.run.history[-1]["loss"]


@pytest.mark.parametrize("write", [1, 2, 3, 5, 7])
def test_run_killed_at_a_write_ends_as_an_unbroken_one(
    fitted: Fit, unbroken: Trained, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    real, count = os.replace, 0

    def replace_or_die(source: str, target: Path) -> None:
        nonlocal count
        count += 1
        if count == write:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("dcmpl.files.os.replace", replace_or_die)
        with pytest.raises(Killed):
            fitted("killed")
    again = fitted("killed")
    assert again.content() == unbroken.content()
    assert again.run == unbroken.run


def test_dropout_changes_training_and_is_drawn_anew_from_seed_and_epoch(
    fitted: Fit, unbroken: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, count = replace(QUICK, adapter_dropout=0.5), os.replace, 0
    whole = fitted("whole", config=config)
    assert whole.run.history[0]["loss"] != unbroken.run.history[0]["loss"]

    def replace_or_die(source: str, target: Path) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("dcmpl.files.os.replace", replace_or_die)
        with pytest.raises(Killed):
            fitted("killed", config=config)
    assert len(read_run(whole.folder.with_name("killed")).history) > 0
    assert fitted("killed", config=config).content() == whole.content()


def test_dropout_is_another_in_every_epoch() -> None:
    drawn = {
        tuple(torch.rand(4, generator=dice_of(*where)).tolist())
        for where in ((0, 1), (0, 2), (1, 1), (0, 1))
    }
    assert len(drawn) == 3


@pytest.mark.parametrize("image", [1, 38, 70])
def test_run_killed_within_an_epoch_ends_as_an_unbroken_one(
    fitted: Fit, unbroken: Trained, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    count = 0

    def read_or_die(path: str) -> np.ndarray:
        nonlocal count
        count += 1
        if count == image:
            raise Killed
        return read_image(path)

    with monkeypatch.context() as patch:
        for reader in READERS:
            patch.setattr(reader, read_or_die)
        with pytest.raises(Killed):
            fitted("killed")
    again = fitted("killed")
    assert again.content() == unbroken.content()
    assert again.run == unbroken.run


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("line", ["trainable parameters", "epoch   1/3"])
def test_process_killed_after_a_line_resumes_to_the_same_bytes(
    train_words: list[str], trained_run: Path, tmp_path: Path, line: str
) -> None:
    words = [*train_words, "--out", str(tmp_path / "run")]
    script = "import sys; from dcmpl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        told = []
        for text in process.stderr:
            told.append(text)
            if line in text:
                process.kill()
                break
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, "".join(told)
    assert main([*words, "--resume"]) == 0
    for name in ("model.safetensors", "last.safetensors", "split.json"):
        assert (tmp_path / "run" / name).read_bytes() == (trained_run / name).read_bytes()
    assert read_run(tmp_path / "run") == read_run(trained_run)


def test_finished_run_is_left_as_it_is(fit_in: Fit, unbroken: Trained) -> None:
    before = unbroken.content()
    assert fit_in(unbroken.folder).content() == before


def test_loss_falls(fitted: Fit) -> None:
    config = replace(QUICK, epochs=15, lr=1e-2, patience=None)
    losses = [entry["loss"] for entry in fitted(config=config).run.history]
    assert len(losses) == 15
    # From a random start the mean alone is worth more than this.
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


@pytest.fixture
def paths_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that training reads, in order."""
    seen: list[str] = []

    def noted(path: str) -> np.ndarray:
        seen.append(path)
        return read_image(path)

    for reader in READERS:
        monkeypatch.setattr(reader, noted)
    return seen


def test_training_reads_all_of_training_and_validation(
    fitted: Fit, table: ImageTable, split: Split, paths_read: list[str]
) -> None:
    check_images(table)
    fitted()
    wanted = {p for part in ("train", "val") for p in split.rows(table, part).frame["image"]}
    assert set(paths_read) == wanted


def test_training_reads_no_test_image(
    fitted: Fit, table: ImageTable, split: Split, paths_read: list[str]
) -> None:
    fitted()
    assert not set(paths_read) & set(split.rows(table, "test").frame["image"])


def test_test_opinions_do_not_change_training(
    fitted: Fit, table: ImageTable, split: Split, unbroken: Trained
) -> None:
    frame = table.frame.copy()
    frame.loc[frame["name"].isin(split.test), ["mos_quality", "mos_alignment"]] = 1.0
    other = fitted("other", data=ImageTable(table.name, table.scale, frame))
    assert other.content() == unbroken.content()


def test_validation_opinions_do_not_change_the_weights(
    fitted: Fit, table: ImageTable, split: Split, unbroken: Trained
) -> None:
    frame = table.frame.copy()
    rows = frame["name"].isin(split.val)
    frame.loc[rows, "mos_quality"] = 6 - frame.loc[rows, "mos_quality"]
    other = fitted("other", data=ImageTable(table.name, table.scale, frame))
    ours, theirs = (load_file(t.folder / "last.safetensors") for t in (unbroken, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_model_file_holds_exactly_the_trainable_tensors(unbroken: Trained) -> None:
    names = load_file(unbroken.folder / "model.safetensors").keys()
    assert names == trainable_parameters(unbroken.model).keys()


@pytest.mark.parametrize("file", ["model", "last"])
def test_no_file_holds_a_tensor_of_the_backbone(unbroken: Trained, file: str) -> None:
    names = load_file(unbroken.folder / f"{file}.safetensors").keys()
    assert [name for name in names if "clip." in name] == []


def test_last_file_holds_what_adam_knows_of_every_tensor(unbroken: Trained) -> None:
    names = load_file(unbroken.folder / "last.safetensors").keys()
    wanted = {
        f"optimizer/{name}/{entry}"
        for name in trainable_parameters(unbroken.model)
        for entry in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {name for name in names if name.startswith("optimizer/")} == wanted


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.pop(next(name for name in t if name.endswith("/exp_avg"))),
        lambda t: t.update({"optimizer/foo/step": torch.zeros(())}),
        lambda t: t.update({next(n for n in t if n.endswith("/exp_avg")): torch.zeros(3)}),
    ],
    ids=["missing", "foreign", "of another shape"],
)
def test_state_of_adam_that_does_not_fit_is_refused(
    fitted: Fit, unbroken: Trained, edit: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    folder = fitted("run", replace(QUICK, epochs=1)).folder
    shutil.copy(unbroken.folder / "last.safetensors", folder)
    with safe_open(folder / "last.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "last.safetensors")
    edit(tensors)
    save_file(tensors, folder / "last.safetensors", metadata)
    with pytest.raises(RunError, match="expected Adam's state of the"):
        fitted()


def test_targets_of_training_without_a_validation_are_refused(
    fitted: Fit, table: ImageTable, split: Split
) -> None:
    frame = table.frame.copy()
    frame.loc[frame["name"].isin(split.val), "mos_alignment"] = math.nan
    with pytest.raises(DataError, match="expected opinions on the same of"):
        fitted(data=ImageTable(table.name, table.scale, frame))


def test_folder_holds_nothing_but_what_it_names(unbroken: Trained) -> None:
    wanted = ["last.safetensors", "model.safetensors", "run.json"]
    assert sorted(os.listdir(unbroken.folder)) == wanted


@pytest.fixture(scope="module")
def start(small_backbone: Path) -> dict[str, torch.Tensor]:
    """All parameters before training."""
    backbone = load_backbone(str(small_backbone))
    model = DCMPL(backbone.clip, backbone.tokenizer, ModelConfig(), QUICK.seed)
    return dict(model.named_parameters())


def test_every_trainable_tensor_changes(unbroken: Trained, start: dict[str, torch.Tensor]) -> None:
    now = dict(unbroken.model.named_parameters())
    assert [n for n in start if is_trainable(n) and torch.equal(start[n], now[n])] == []


def test_no_frozen_tensor_changes(unbroken: Trained, start: dict[str, torch.Tensor]) -> None:
    now = dict(unbroken.model.named_parameters())
    frozen = [n for n in start if not is_trainable(n)]
    assert frozen
    assert [n for n in frozen if not torch.equal(start[n], now[n])] == []


def without_alignment(table: ImageTable, rows: slice) -> ImageTable:
    frame = table.frame.copy()
    frame.loc[frame.index[rows], "mos_alignment"] = np.nan
    return ImageTable(table.name, table.scale, frame)


def test_table_without_alignment_trains_quality(fitted: Fit, table: ImageTable) -> None:
    found = fitted(data=without_alignment(table, slice(None)))
    assert found.run.history[-1].keys() == {"loss", "quality_srcc", "quality_plcc"}
    assert found.run.learned == ("quality",)


def test_table_with_some_alignment_has_a_finite_loss(fitted: Fit, table: ImageTable) -> None:
    found = fitted(data=without_alignment(table, slice(0, 48, 2)))
    assert all(math.isfinite(entry["loss"]) for entry in found.run.history)


def test_adapter_of_a_target_that_nobody_judged_stays(
    fitted: Fit, table: ImageTable, start: dict[str, torch.Tensor]
) -> None:
    found = fitted(data=without_alignment(table, slice(None)))
    now = dict(found.model.named_parameters())
    names = [name for name in start if name.startswith("adapters.alignment.")]
    assert names
    assert all(torch.equal(start[name], now[name]) for name in names)


def spoil_adapter(model: DCMPL) -> None:
    with torch.no_grad():
        model.adapters["quality"].up.weight.fill_(float("nan"))


def test_loss_that_is_no_number_is_a_run_error(fitted: Fit, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        fitted(spoil=spoil_adapter)
    assert str(caught.value) == (
        "expected a finite loss, got nan in epoch 1: lower --lr; "
        f"the epochs before it are kept in {tmp_path / 'run'}"
    )


def scores(*pairs: tuple[float, float]) -> Scores:
    return Scores(("quality", "alignment"), torch.tensor(pairs, requires_grad=True).T)


def test_loss_is_the_weighted_sum_of_two_squared_errors() -> None:
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    loss = task_loss(scores((0.0, 0.5), (0.5, 1.0)), targets, 0.1)
    assert loss.item() == pytest.approx(0.25 + 0.1 * 0.5, abs=1e-7)  # float32


def test_missing_target_counts_nothing() -> None:
    targets = torch.tensor([[0.5, NAN], [NAN, 0.0]])
    loss = task_loss(scores((0.0, 0.5), (0.5, 1.0)), targets, 0.1)
    assert loss.item() == pytest.approx(0.25 + 0.1, abs=1e-7)  # float32


def test_losses_of_parts_add_up_to_that_of_the_batch() -> None:
    values, targets = torch.rand(2, 5), torch.rand(5, 2)
    targets[1:, 1] = NAN
    mismatch = torch.rand(5)
    whole = task_loss(Scores(TARGETS[:2], values, mismatch), targets, 0.5, 0.1)
    parts = [
        task_loss(Scores(TARGETS[:2], values[:, p], mismatch[p]), targets[p], 0.5, 0.1, targets)
        for p in ([0, 2, 4], [1, 3])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_missing_targets_give_gradients_of_zero() -> None:
    values = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    task_loss(Scores(TARGETS, values.T), torch.full((1, 3), NAN), 0.1).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_every_auxiliary_task_has_the_weight_of_alignment() -> None:
    found = Scores(TARGETS, torch.tensor([[0.5], [0.5], [0.5]]))
    loss = task_loss(found, torch.tensor([[1.0, 0.0, 0.1]]), 0.1)
    assert loss.item() == pytest.approx(0.25 + 0.1 * (0.25 + 0.16), abs=1e-7)  # float32


def test_loss_of_one_task_is_its_own() -> None:
    targets = torch.tensor([[0.1], [0.9]])
    only = Scores(("alignment",), torch.tensor([[0.1, 0.4]]))
    assert task_loss(only, targets, 0.1).item() == pytest.approx(0.125, abs=1e-7)  # float32


def test_constant_schedule_stays() -> None:
    assert {learning_rate(QUICK, progress) for progress in (0.0, 0.5, 0.99)} == {3e-3}


def test_cosine_schedule_falls_to_nothing() -> None:
    config = replace(QUICK, schedule="cosine")
    rates = [learning_rate(config, progress) for progress in (0.5, 1.0)]
    assert rates == pytest.approx([1.5e-3, 0.0], abs=1e-12)  # float64


def test_cosine_schedule_rises_over_the_first_twentieth() -> None:
    config = replace(QUICK, schedule="cosine")
    rates = [learning_rate(config, progress) for progress in (0.0, 0.02, 0.05)]
    assert 0 < rates[0] < rates[1] < rates[2] < config.lr


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, float]]], None]:
    """Make validation find these numbers, epoch by epoch."""

    def tell(found: list[dict[str, float]]) -> None:
        entries: Iterator[dict[str, float]] = iter(found)
        monkeypatch.setattr("dcmpl.training.loop.validate", lambda *_: next(entries))

    return tell


@pytest.mark.parametrize(
    ("series", "best"),
    [([0.1, 0.5, 0.3], 2), ([0.5, 0.5, 0.5], 1), ([NAN, -0.2, NAN], 2), ([NAN, NAN, NAN], 1)],
)
def test_best_epoch_is_the_first_of_the_highest_validation_srcc(
    fitted: Fit,
    told: Callable[[list[dict[str, float]]], None],
    series: list[float],
    best: int,
) -> None:
    told([{"quality_srcc": value} for value in series])
    assert fitted().run.best_epoch == best


def test_alignment_chooses_where_there_is_no_quality(
    fitted: Fit, told: Callable[[list[dict[str, float]]], None]
) -> None:
    told([{"alignment_srcc": value} for value in (0.1, 0.5, 0.3)])
    assert fitted().run.best_epoch == 2


def test_model_ends_with_the_tensors_of_the_best_epoch(
    fitted: Fit, told: Callable[[list[dict[str, float]]], None]
) -> None:
    told([{"quality_srcc": value} for value in (0.5, 0.1, 0.1)])
    found = fitted()
    told([{"quality_srcc": 0.5}])
    one = fitted("one", replace(QUICK, epochs=1))
    ours, theirs = trainable_parameters(found.model), trainable_parameters(one.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_patience_ends_a_run_that_no_longer_improves(
    fitted: Fit, told: Callable[[list[dict[str, float]]], None]
) -> None:
    told([{"quality_srcc": value} for value in (0.1, 0.5, 0.4, 0.3, 0.9, 0.9)])
    assert len(fitted(config=replace(QUICK, epochs=6, patience=2)).run.history) == 4


def test_no_patience_is_endless_patience(
    fitted: Fit, told: Callable[[list[dict[str, float]]], None]
) -> None:
    told([{"quality_srcc": 0.5}] * 4)
    assert len(fitted(config=replace(QUICK, epochs=4, patience=None)).run.history) == 4


def test_every_epoch_is_reported(fitted: Fit) -> None:
    reports: list[EpochReport] = []
    found = fitted(report=reports.append)
    assert [(r.epoch, r.epochs, r.found["loss"]) for r in reports] == [
        (i + 1, 3, entry["loss"]) for i, entry in enumerate(found.run.history)
    ]


def test_record_on_disk_is_what_comes_back(unbroken: Trained) -> None:
    assert read_run(unbroken.folder) == unbroken.run
    assert unbroken.run.finished


def test_history_of_the_record_is_plain_json(unbroken: Trained) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (unbroken.folder / "run.json").read_text()
    assert len(json.loads(text, parse_constant=refuse)["history"]) == 3


@pytest.mark.parametrize(
    "config",
    [replace(QUICK, crops=3, epochs=1), replace(QUICK, precision="bf16", epochs=1)],
    ids=["three crops", "bf16"],
)
def test_option_trains_and_repeats(fitted: Fit, config: TrainConfig) -> None:
    assert fitted("one", config).content() == fitted("two", config).content()


@pytest.fixture
def fit_preset(
    small_backbone: Path, table: ImageTable, split: Split, tmp_path: Path
) -> Callable[..., Trained]:
    """Train a preset in a folder of its own."""

    def work(preset: str, config: TrainConfig = QUICK, name: str = "run") -> Trained:
        backbone = load_backbone(str(small_backbone))
        model = DCMPL(backbone.clip, backbone.tokenizer, PRESETS[preset].model, config.seed)
        source = DataSource("scores.csv", "scores", MosScale(1, 5), "0" * 64)
        run = Run.begin(preset, backbone, source, model.config, config, split, table)
        parts = split.train_part(table), split.validation_part(table)
        folder = tmp_path / name
        return Trained(model, fit(model, *parts, run, folder), folder)

    return work


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_is_read_back(
    fit_preset: Callable[..., Trained], preset: str
) -> None:
    trained = fit_preset(preset, replace(QUICK, epochs=1))
    assert trained.run.finished
    assert read_run(trained.folder) == trained.run
    assert f"{trained.model.config.tasks[0]}_srcc" in trained.run.history[0]


@pytest.mark.parametrize("preset", ["coop-deep", "clip-adapter", "linear-probe"])
def test_images_are_read_once_where_nothing_visual_is_learned(
    fit_preset: Callable[..., Trained], preset: str, paths_read: list[str]
) -> None:
    fit_preset(preset)
    assert len(paths_read) == len(set(paths_read)) == 40  # training and validation


def test_views_may_be_trained_on_where_visual_prompts_are_learned(
    fit_preset: Callable[..., Trained],
) -> None:
    config = replace(QUICK, windows="views")
    one, two = (fit_preset("dcmpl", config, name) for name in ("one", "two"))
    assert one.content() == two.content()


@pytest.mark.parametrize("preset", ["dcmpl", "coop-deep"])
def test_drawn_windows_are_read_once_and_repeat(
    fit_preset: Callable[..., Trained], preset: str, paths_read: list[str]
) -> None:
    config = replace(QUICK, windows="drawn", draws=2, coats=True)
    one = fit_preset(preset, config, "one")
    assert len(paths_read) == len(set(paths_read)) == 40  # training and validation
    assert fit_preset(preset, config, "two").content() == one.content()
