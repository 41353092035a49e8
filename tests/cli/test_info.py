"""``dcmpl info``: what a run is, what its scores mean, where to cut; and why it cannot say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrated import plain_meaning
from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.presets import PRESETS
from dcmpl.runs import Run, read_run
from dcmpl.scoring.calibration import CALIBRATION, Calibration, Cut, PatchReadout, read_calibration

pytest_plugins = ("calibrated",)

Cells = list[list[str]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell is broken into lines."""
    monkeypatch.setenv("COLUMNS", "250")


def shown(capsys: Capture, run: Path) -> tuple[str, str]:
    assert main(["info", str(run)]) == 0
    told = capsys.readouterr()
    return told.out, told.err


def cells_of(printed: str) -> Cells:
    """The cells of every line of a table."""
    lines = (line.replace("┃", "│").strip() for line in printed.splitlines())
    return [[c.strip() for c in line.strip("│").split("│")] for line in lines if "│" in line]


def row_of(printed: str, name: str, nth: int = 0) -> list[str]:
    return [cells for cells in cells_of(printed) if cells[0] == name][nth][1:]


def known(run: Path) -> Calibration:
    found = read_calibration(run, read_run(run).weights_sha256)
    assert found is not None
    return found


def written(run: Path, **fields: object) -> Calibration:
    """A calibration of one target that is made by hand, put beside a run."""
    meaning = plain_meaning(training=300, validation=50, **fields)
    weights = read_run(run).weights_sha256
    found = Calibration("made data", "grid-2", weights, {"quality": meaning})
    found.write(run)
    return found


# A finished run


def test_run_is_described(capsys: Capture, calibrated_run: Path, judged_data: Path) -> None:
    printed, _ = shown(capsys, calibrated_run)
    run = read_run(calibrated_run)
    best = run.history[run.best_epoch - 1]
    expected = {
        "preset": "dcmpl",
        "backbone": run.backbone,
        "data": f"noise, {judged_data}",
        "MOS scale": "1 to 5",
        "predicts": "quality, alignment",
        "alignment": "judged from the image alone",
        "views": "grid-2",
        "state": f"finished, best epoch {run.best_epoch}",
        "weights": run.weights_sha256[:16],
    }
    assert {name: row_of(printed, name) for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    (validation,) = row_of(printed, "validation")
    assert f"quality_srcc {best['quality_srcc']:.3f}" in validation
    assert "loss" not in validation


def test_both_targets_are_told_with_their_numbers(capsys: Capture, calibrated_run: Path) -> None:
    printed, _ = shown(capsys, calibrated_run)
    for nth, (target, meaning) in enumerate(known(calibrated_run).targets.items()):
        for title in (
            "where labels begin",
            "percentiles of the scores of 84 images",
            "how sure",
        ):
            assert f"{target}: {title}" in printed
        for name, population in {"noise": meaning.population, **meaning.generators}.items():
            expected = [f"{population[p]:.3f}" for p in (5, 25, 50, 75, 95)]
            assert row_of(printed, name, nth) == expected
        for cut in meaning.cuts:
            mos, *_ = row_of(printed, cut.label, nth)
            assert float(mos) == pytest.approx(cut.mos)
        assert row_of(printed, "fitted on", nth) == ["12 validation images"]


def test_curve_is_told_at_five_scores(capsys: Capture, copied: Path) -> None:
    written(copied, curve=(4.5, 1.5, 0.5, 0.2))
    (told,) = row_of(shown(capsys, copied)[0], "from score to MOS")
    at = [0.1, 0.3, 0.5, 0.7, 0.9]
    expected = [f"{s}: {1.5 + 3 / (1 + np.exp(-(s - 0.5) / 0.2)):.2f}" for s in at]
    assert told == ", ".join(expected)


def test_lack_of_a_curve_is_told(capsys: Capture, copied: Path) -> None:
    written(copied)
    assert row_of(shown(capsys, copied)[0], "from score to MOS") == [
        "its place on the scale: no rising curve could be fitted"
    ]


def test_width_is_that_of_the_middle_image_whose_windows_agree(
    capsys: Capture, copied: Path
) -> None:
    written(
        copied, spread=(0.25, 9.0, 1.0), raters=(0.0, 0.0, 0.5), rater_range=(0.5, 0.5), cuts=()
    )
    (told,) = row_of(shown(capsys, copied)[0], "90% intervals")
    assert told == f"{1.6 * (0.25 + 0.25) ** 0.5:.2f} MOS units to each side"


def test_cuts_are_told_and_what_is_not_known_is_a_dash(capsys: Capture, copied: Path) -> None:
    cuts = (
        Cut("poor", 1.8, 0.25, 0.875, 1.0, 0.9, 0.3125, 0.666),
        Cut("fair", 2.6, None, float("nan"), float("nan"), 0.0, None, 0.0),
    )
    written(copied, cuts=cuts)
    printed, _ = shown(capsys, copied)
    assert row_of(printed, "poor") == ["1.8", "0.250", "0.875", "1.000", "0.900", "0.312", "67%"]
    assert row_of(printed, "fair") == ["2.6", "-", "-", "-", "0.000", "-", "-"]
    header = ["MOS", "score", "precision", "recall", "share", "9 in 10", "finds"]
    assert row_of(printed, "or better") == header


def test_calibrated_run_says_nothing_on_standard_error(
    capsys: Capture, calibrated_run: Path
) -> None:
    assert shown(capsys, calibrated_run)[1] == ""


def test_readout_of_patches_is_there_and_not_told(capsys: Capture, calibrated_run: Path) -> None:
    assert isinstance(known(calibrated_run).patches, PatchReadout)
    assert "patch" not in shown(capsys, calibrated_run)[0]


@pytest.mark.parametrize("name", ["sdxl [turbo]", "x[/b]", "[red]"])
def test_generator_is_told_as_it_is_called(capsys: Capture, copied: Path, name: str) -> None:
    written(copied, generators={name: tuple(np.linspace(0, 1, 101).tolist())})
    assert row_of(shown(capsys, copied)[0], name) == ["0.050", "0.250", "0.500", "0.750", "0.950"]


@pytest.mark.parametrize("name", ["run [final]", "[b]run", "x[/b]"])
def test_run_is_told_by_the_name_of_its_folder(capsys: Capture, copied: Path, name: str) -> None:
    folder = copied.parent / name
    folder.parent.mkdir(exist_ok=True)
    copied.rename(folder)
    assert str(folder) in shown(capsys, folder)[0]


def test_generator_that_is_called_as_the_data_has_a_row_of_its_own(
    capsys: Capture, copied: Path
) -> None:
    written(copied, generators={"made data": tuple(np.linspace(0.5, 0.6, 101).tolist())})
    printed, _ = shown(capsys, copied)
    rows = [cells for cells in cells_of(printed) if cells[0].startswith("made data")]
    assert {row[3] for row in rows} == {"0.500", "0.550"}


def test_alignment_is_not_told_of_a_run_that_does_not_predict_it(
    capsys: Capture, copied: Path
) -> None:
    replace(read_run(copied), learned=("quality",)).write(copied)
    written(copied)
    printed, _ = shown(capsys, copied)
    assert row_of(printed, "predicts") == ["quality"]
    assert not [cells for cells in cells_of(printed) if cells[0] == "alignment"]


# Others


def told_of(capsys: Capture, run: Path, record: Run) -> str:
    record.write(run)
    (run / CALIBRATION).unlink(missing_ok=True)
    printed, said = shown(capsys, run)
    assert said == ""
    return printed


def test_run_that_was_never_calibrated_says_what_to_do(
    capsys: Capture, uncalibrated_run: Path
) -> None:
    printed, _ = shown(capsys, uncalibrated_run)
    assert row_of(printed, "state")[0].startswith("finished, ")
    assert printed.splitlines()[-1] == (
        "Scores have no MOS units and no labels: it was not calibrated (dcmpl train --resume does "
        "that)."
    )
    assert "percentiles" not in printed


def test_imported_run_has_nothing_to_be_calibrated_on(capsys: Capture, copied: Path) -> None:
    imported = replace(
        read_run(copied), source=None, split_sha256="", history=(), best_epoch=0, preset="other"
    )
    printed = told_of(capsys, copied, imported)
    assert row_of(printed, "data") == ["imported, not known"]
    assert row_of(printed, "MOS scale") == ["not known"]
    assert row_of(printed, "validation") == [""]
    assert printed.splitlines()[-1] == (
        "Scores have no MOS units and no labels: it was imported, so there is no validation part "
        "to calibrate on."
    )


def test_unfinished_run_is_told_to_be_so(capsys: Capture, copied: Path) -> None:
    begun = replace(read_run(copied), finished=False, best_epoch=0, history=(), weights_sha256="")
    (copied / "model.safetensors").unlink()
    printed = told_of(capsys, copied, begun)
    assert row_of(printed, "state") == ["not finished"]
    assert row_of(printed, "weights") == [""]
    assert "no MOS units" in printed


def test_run_that_reads_prompts_is_told_to_read_them(capsys: Capture, copied: Path) -> None:
    run = read_run(copied)
    reading = replace(run, model=replace(run.model, reads_prompt=True))
    printed = told_of(capsys, copied, reading)
    assert row_of(printed, "alignment") == ["reads the prompt"]


def test_run_on_the_embedded_backbone_is_told_to_be_a_floor(capsys: Capture, copied: Path) -> None:
    replace(read_run(copied), backbone="small").write(copied)
    assert shown(capsys, copied)[1].startswith("note: small is a small backbone")


def test_folder_that_is_no_run_is_refused(capsys: Capture, tmp_path: Path) -> None:
    assert refused(capsys, 1, "info", tmp_path) == (
        f"expected a run folder made by dcmpl train at {tmp_path}, got no run.json in it"
    )


def test_folder_that_is_not_there_is_wrong_usage(capsys: Capture, tmp_path: Path) -> None:
    assert refused(capsys, 2, "info", tmp_path / "x") == (
        f"expected a run folder made by dcmpl train, got none at {tmp_path / 'x'}"
    )


def test_file_in_place_of_a_run_is_wrong_usage(capsys: Capture, calibrated_run: Path) -> None:
    refused(capsys, 2, "info", calibrated_run / "run.json")


def test_changed_record_of_a_run_is_refused(capsys: Capture, copied: Path) -> None:
    record = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**record, "best_epoch": 9}))
    assert "got one that its digest says was changed since" in refused(capsys, 1, "info", copied)


def test_calibration_that_is_a_folder_is_none(capsys: Capture, copied: Path) -> None:
    (copied / CALIBRATION).unlink()
    (copied / CALIBRATION).mkdir()
    assert "no MOS units" in shown(capsys, copied)[0]


def test_presets_are_listed_with_what_they_learn(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["presets"]) == 0
    told = capsys.readouterr().out
    listed = {line.strip("│ ").split(" ")[0] for line in told.splitlines()}
    assert set(PRESETS) <= listed
    assert "25,588,224" in told
    assert "train.patience" in told
