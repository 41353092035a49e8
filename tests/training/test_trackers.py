"""Trackers get every number of a run and change none."""

import os
from pathlib import Path
from typing import Any

import pytest

from conftest import refused
from dcmpl.cli.main import main
from dcmpl.presets import train_fields
from dcmpl.runs import read_run
from dcmpl.training.trackers import FOLDER

TENSORBOARD = ["--set", "train.tracker=tensorboard"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values that TensorBoard shows of a run, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / FOLDER))
    found.Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


@pytest.fixture(scope="module")
def watched(train_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of three epochs with TensorBoard."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("watched") / "run"
    assert main([*train_words, "--out", str(folder), *TENSORBOARD]) == 0
    return folder


def test_tensorboard_has_the_numbers_of_the_record(watched: Path) -> None:
    history, found = read_run(watched).history, scalars(watched)
    steps = found.pop("step/loss")
    assert [step for step, _ in steps] == list(range(1, 10))  # three of each epoch
    assert found.pop("epoch/lr") == [(step, pytest.approx(0.003)) for step in (3, 6, 9)]
    assert found.keys() == {f"epoch/{name}" for name in history[0]}
    for name, values in found.items():
        wanted = [entry[name.removeprefix("epoch/")] for entry in history]
        assert [value for _, value in values] == pytest.approx(wanted, rel=1e-6)
    means = [sum(value for _, value in steps[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert means == pytest.approx([entry["loss"] for entry in history], rel=1e-6)


def test_tracker_has_the_configuration(watched: Path) -> None:
    (written,) = (watched / FOLDER).rglob("hparams.yml")
    text = written.read_text()
    assert "model.mpa.form: cmpa\n" in text
    assert "train.batch_size: 16\n" in text
    assert "preset: dcmpl\n" in text


def test_tracker_changes_no_file_of_the_run(watched: Path, trained_run: Path) -> None:
    for path in trained_run.iterdir():
        assert (watched / path.name).read_bytes() == path.read_bytes(), path.name
    assert {p.name for p in watched.iterdir()} == {FOLDER, *(p.name for p in trained_run.iterdir())}


def test_run_goes_on_with_another_tracker(watched: Path, train_words: list[str]) -> None:
    assert main([*train_words, "--out", str(watched), "--resume"]) == 0


def test_run_that_goes_on_has_each_step_once(
    train_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from dcmpl.training import loop

    real, left = loop.train_step, 5

    def stopped(*given: Any) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(*given)

    words = [*train_words, "--out", str(tmp_path / "run"), *TENSORBOARD]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert main(words) == 130
    assert [step for step, _ in scalars(tmp_path / "run")["step/loss"]] == [1, 2, 3, 4, 5]
    assert main([*words, "--resume"]) == 0
    assert [step for step, _ in scalars(tmp_path / "run")["step/loss"]] == list(range(1, 10))


def test_wandb_stays_offline_in_the_run_folder(
    train_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "WANDB_CONSOLE"):
        monkeypatch.setenv(name, "")  # so that all are in the end what they were
        monkeypatch.delenv(name)
    words = [*train_words, "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "train.tracker=wandb"]) == 0
    assert os.environ["WANDB_MODE"] == "offline"
    (written,) = (tmp_path / "run" / FOLDER).rglob("offline-run-*/*.wandb")
    content = written.read_bytes()
    for name in (b"step/loss", b"epoch/quality_srcc", b"epoch/lr", b"model.mpa.form"):
        assert name in content


def test_tracker_that_is_not_installed_is_named_with_its_extra(
    train_words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dcmpl.training.trackers.find_spec", lambda _: None)
    words = [*train_words, "--out", tmp_path / "run", *TENSORBOARD]
    assert refused(capsys, 2, *words).strip() == (
        "expected the package tensorboard, which train.tracker=tensorboard writes with, got "
        "none installed: pip install 'dcmpl-agiqa[trackers]'"
    )
    assert not (tmp_path / "run").exists()


def test_unknown_tracker_is_refused(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*train_words, "--out", tmp_path / "run", "--set", "train.tracker=paper"]
    assert "tensorboard, wandb, mlflow" in refused(capsys, 2, *words)


def test_trackers_are_listed_with_the_fields() -> None:
    assert "train.tracker" in {name for name, *_ in train_fields()}
