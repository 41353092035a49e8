"""``dcmpl train``: a run folder from human scores, resumed, refused, recorded."""

import shutil
from pathlib import Path

import pandas as pd

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.cli.train import epoch_printer
from dcmpl.config import TrainConfig
from dcmpl.runs import read_run
from dcmpl.training.loop import EpochReport


def test_existing_run_is_not_overwritten(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    before = {file.name: file.read_bytes() for file in trained_run.iterdir()}
    assert refused(capsys, 2, *train_words, "--out", trained_run) == (
        f"expected a new folder at --out {trained_run}, got a run in it: "
        "add --resume to go on with it, or choose another"
    )
    assert {file.name: file.read_bytes() for file in trained_run.iterdir()} == before


def test_finished_run_is_resumed_without_work(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()}
    assert main([*train_words, "--out", str(trained_run), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()} == before


def test_finished_run_that_lost_its_model_is_not_called_finished(
    capsys: Capture, train_words: list[str], trained_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "model.safetensors").unlink()
    told = refused(capsys, 1, *train_words, "--out", run, "--resume")
    assert told.startswith(f"expected model.safetensors in {run}")


def test_resume_with_other_opinions_fails(
    capsys: Capture, train_words: list[str], trained_run: Path, image_data: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(image_data.parent, tmp_path / "other")) / "scores.csv"
    frame = pd.read_csv(other)
    frame.assign(mos_quality=frame["mos_quality"].round(1)).to_csv(other, index=False)
    words = [*train_words, "--out", trained_run, "--resume", "--data", other]
    told = refused(capsys, 1, *words)
    assert told.startswith(f"expected to resume {trained_run} with the table it was started with")


def test_resume_with_other_settings_fails(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    words = [*train_words, "--out", trained_run, "--resume", "--lr", "0.5"]
    assert refused(capsys, 1, *words).startswith(f"expected to resume {trained_run} with the train")


def test_unreadable_images_stop_training_before_it_begins(
    capsys: Capture, train: list[str], image_data: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved"))
    (moved / "07.png").write_text("no image")
    train[train.index("--data") + 1] = str(moved / "scores.csv")
    assert main(train) == 1
    assert str(moved / "07.png") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_says_what_to_do_next(capsys: Capture, train: list[str], tmp_path: Path) -> None:
    assert main([*train, "--epochs", "1"]) == 0
    assert capsys.readouterr().out == (
        f"run: {tmp_path / 'run'}\nnext: dcmpl evaluate {tmp_path / 'run'} --split test\n"
    )


def test_flags_reach_the_record(trained_run: Path) -> None:
    config = read_run(trained_run).train
    assert config == TrainConfig(epochs=3, batch_size=16, lr=0.003, views="center")


def test_preset_and_settings_are_in_the_record(train: list[str], tmp_path: Path) -> None:
    settings = ["--preset", "clip-agiqa", "--set", "model.n_context=3", "model.fusion.depth=2"]
    assert main([*train, *settings, "--epochs", "1"]) == 0
    run = read_run(tmp_path / "run")
    assert (run.preset, run.model.mpa.form) == ("clip-agiqa", "none")
    assert (run.model.n_context, run.model.fusion.depth) == (3, 2)


def test_learned_tensors_without_a_record_are_not_taken_for_a_training(
    capsys: Capture, train_words: list[str], trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.safetensors").write_bytes((trained_run / "last.safetensors").read_bytes())
    told = refused(capsys, 1, *train_words, "--out", tmp_path)
    assert told.startswith("expected run.json beside last.safetensors")


def test_time_left_is_that_of_the_epochs(capsys: Capture) -> None:
    """What came before them, as freezing features, is no part of it."""
    show = epoch_printer()
    show(EpochReport(3, 6, {"loss": 0.5}, seconds=60, seconds_per_step=1, best=True))
    show(EpochReport(4, 6, {"loss": 0.25}, seconds=20, seconds_per_step=1, best=False))
    assert capsys.readouterr().err.splitlines() == [
        "epoch   3/6  loss 0.5000  left 0:03:00  best",
        "epoch   4/6  loss 0.2500  left 0:01:20",
    ]
