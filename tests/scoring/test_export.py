"""``dcmpl export``: models that give torch's scores, and a record that says how nearly."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from re import fullmatch
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed
from dcmpl.runs import read_run
from dcmpl.scoring import export
from dcmpl.scoring.engines import Engine, open_variant, read_export
from dcmpl.scoring.scorer import Scorer
from exported import VARIANTS, Made

pytest_plugins = ("exported",)

FILES = {file for *_, file in VARIANTS}
FILES |= {file.replace(".xml", ".bin") for file in FILES}


@pytest.fixture(scope="module")
def record(made: Made) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.folder / "export.json").read_text())
    return found


@pytest.fixture(scope="module")
def engines(made: Made) -> dict[tuple[str, str], Engine]:
    """All variants, opened."""
    exported = read_export(made.folder)
    return {
        (v["engine"], v["precision"]): open_variant(exported, v, 1)
        for v in exported.record["variants"]
    }


def variants_of(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(v["engine"], v["precision"], v["file"]) for v in record["variants"]]


# What is written


def test_folder_holds_the_models_and_their_record(made: Made) -> None:
    assert {path.name for path in made.folder.iterdir()} == {*FILES, "export.json"}


def test_record_tells_files_variants_and_what_they_are_of(
    record: dict[str, Any], made: Made, trained_run: Path
) -> None:
    run = read_run(trained_run)
    assert variants_of(record) == VARIANTS
    assert record["kind"] == "dcmpl export"
    assert (record["tasks"], record["size"]) == (["quality", "alignment"], 32)
    assert record["views"] == run.train.views == "center"
    assert record["about"] == run.about()
    assert record["left_out"] == {}
    digests = {name: sha256((made.folder / name).read_bytes()).hexdigest() for name in FILES}
    assert record["files"] == digests
    packages = ("torch", "onnx", "onnxruntime", "openvino")
    assert record["made_with"] == {name: version(name) for name in packages}


def test_onnx_model_takes_any_number_of_byte_windows_and_gives_scores(made: Made) -> None:
    for file in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(made.folder / file)
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape[1:]) == (
            "windows",
            "tensor(uint8)",
            [32, 32, 3],
        )
        assert isinstance(taken.shape[0], str)  # a name: any number
        assert (given.name, given.type) == ("scores", "tensor(float)")


def test_int8_is_in_the_blocks_alone(made: Made) -> None:
    tensors = onnx.load(made.folder / "model.int8.onnx").graph.initializer
    shapes = {tuple(t.dims) for t in tensors if t.data_type == onnx.TensorProto.INT8}
    two = {shape for shape in shapes if len(shape) == 2}
    output, mlp = {(64, 64)}, {(64, 96), (96, 64)}
    assert output | mlp <= two <= output | mlp | {(64, 192), (64, 128)}  # query, key, value
    floats = {tuple(t.dims) for t in tensors if t.data_type == onnx.TensorProto.FLOAT}
    assert {(192, 64), (64, 24)} <= floats  # patches, and the way out of the tower


def test_drift_and_ranks_of_every_variant_are_stored_and_said(
    record: dict[str, Any], made: Made
) -> None:
    lines = made.said.splitlines()
    for variant, line in zip(record["variants"], lines, strict=False):
        ranks = variant["srcc"]
        assert list(ranks) == ["quality", "alignment"]
        assert all(-1 <= rank <= 1 for rank in ranks.values())
        assert line == (
            f"{variant['engine']} {variant['precision']}: scores drift by at most "
            f"{variant['drift']:.1e}, SRCC to torch fp32: "
            f"quality {ranks['quality']:.5f}, alignment {ranks['alignment']:.5f}"
        )
        bound = 1e-5 if variant["precision"] == "fp32" else 5e-3
        assert 0 < variant["drift"] <= bound
    exact = [variant for variant in record["variants"] if variant["precision"] == "fp32"]
    assert all(rank == pytest.approx(1) for v in exact for rank in v["srcc"].values())
    assert record["compared_on"] == "the middle of 4 images"  # the validation part


# Torch's scores


@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize(("engine", "precision"), [variant[:2] for variant in VARIANTS])
def test_variants_give_the_scores_of_torch(
    engines: dict[tuple[str, str], Engine],
    by_torch: np.ndarray,
    many_windows: np.ndarray,
    engine: str,
    precision: str,
    count: int,
) -> None:
    found = engines[engine, precision](many_windows[:count])
    assert (found.shape, found.dtype) == ((count, 2), np.float64)
    assert np.ptp(by_torch, axis=0).min() > 0.01
    bound = 1e-5 if precision == "fp32" else 4e-3
    np.testing.assert_allclose(found, by_torch[:count], rtol=0, atol=bound)
    if precision != "fp32" and count == 33:
        assert abs(found - by_torch).max() > 1e-5  # it is not fp32 by another name


# Other exports


@pytest.fixture(scope="module")
def of_moved(trained_run: Path, image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One target of a run whose data is no longer where it was; there is no OpenVINO either."""
    folder = tmp_path_factory.mktemp("moved")
    copy = Path(shutil.copytree(trained_run, folder / "run"))
    run = read_run(copy)
    assert run.source is not None
    gone = str(image_data.with_name("gone.csv"))
    replace(run, source=replace(run.source, path=gone)).write(copy)
    with pytest.MonkeyPatch.context() as patch:
        found = export.find_spec
        patch.setattr(export, "find_spec", lambda name: None if name == "openvino" else found(name))
        return Made.by(copy, "--targets", "alignment", "-o", folder / "export")


def test_run_whose_data_has_moved_is_exported_without_int8_and_says_so(of_moved: Made) -> None:
    note = "note: no images to compare on: expected .*; name some with --images"
    assert fullmatch(note, of_moved.said.splitlines()[0])
    assert "int8" not in of_moved.printed
    found = read_export(of_moved.folder).record
    assert variants_of(found) == VARIANTS[:1]
    why = "it is calibrated on images, and there were none"
    assert found["left_out"]["onnx int8"] == why
    assert found["compared_on"] == "noise"
    with pytest.raises(UsageError, match="got onnx int8: it is calibrated on images, and there"):
        Scorer.from_pretrained(of_moved.folder, engine="onnx", precision="int8")
    with pytest.raises(UsageError, match=r"how few views are enough .*: name --views"):
        Scorer.from_pretrained(of_moved.folder, engine="onnx", views="auto")


def test_export_without_openvino_says_so(of_moved: Made) -> None:
    left_out = read_export(of_moved.folder).record["left_out"]
    assert left_out["openvino fp32"] == "it was not installed at export"
    with pytest.raises(UsageError, match="got openvino fp32: it was not installed at export"):
        Scorer.from_pretrained(of_moved.folder, engine="openvino")
    assert {path.suffix for path in of_moved.folder.iterdir()} == {".onnx", ".json"}


def test_export_of_one_target_predicts_it_alone(
    of_moved: Made, by_torch: np.ndarray, many_windows: np.ndarray
) -> None:
    scorer = Scorer.from_pretrained(of_moved.folder, engine="onnx")
    assert scorer.targets == ("alignment",)
    (row,) = scorer.score([many_windows[0]])
    assert (row.quality, row.alignment) == (None, pytest.approx(by_torch[0, 1], abs=1e-5))
    with pytest.raises(UsageError, match=r"predicts \(alignment\), got quality"):
        Scorer.from_pretrained(of_moved.folder, targets=["quality"])


def test_images_that_are_named_are_compared_on(
    copied_models: list[int], trained_run: Path, image_data: Path, tmp_path: Path
) -> None:
    paths = [image_data.with_name(f"{i:02}.png") for i in range(3)]
    found = Made.by(trained_run, "--images", *paths, "-o", tmp_path / "export")
    assert copied_models == [3]
    assert read_export(found.folder).record["compared_on"] == "the middle of 3 images"


@pytest.mark.parametrize(
    ("bound", "value", "lacking", "why"),
    [
        ("BF16_DRIFT", 0.0, "bf16", "a drift of at most 0 is asked for"),
        ("INT8_SRCC", 2.0, "int8", "an SRCC of at least 2 is asked for"),
    ],
)
@pytest.mark.usefixtures("copied_models")
def test_variant_that_is_too_far_from_torch_is_left_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
    trained_run: Path,
    tmp_path: Path,
    bound: str,
    value: float,
    lacking: str,
    why: str,
) -> None:
    monkeypatch.setattr(export, bound, value)
    found = Made.by(trained_run, "-o", tmp_path / "export")
    record = read_export(found.folder).record
    assert variants_of(record) == [variant for variant in VARIANTS if variant[1] != lacking]
    assert why in str(record["left_out"])
    (line,) = (li for li in found.said.splitlines() if li.startswith(f"openvino {lacking}:"))
    assert line.endswith(f"; left out, {why}")
    assert f"openvino {lacking}" not in found.printed
    with pytest.raises(UsageError, match=f"got openvino {lacking}: .*{why}"):
        Scorer.from_pretrained(found.folder, engine="openvino", precision=lacking)


@pytest.mark.usefixtures("copied_models")
def test_export_that_does_not_give_the_scores_of_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch, trained_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr(export, "FP32_DRIFT", -1.0)
    assert main(["export", str(trained_run), "-o", str(tmp_path / "export")]) == 1
    told = capsys.readouterr()
    last = told.err.splitlines()[-1]
    assert last.startswith("dcmpl: expected onnx to give torch's scores to -1, got a drift of ")
    assert told.out == ""
    assert not (tmp_path / "export" / "export.json").exists()


# What was changed


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("engine", "precision", "file"), VARIANTS)
@pytest.mark.parametrize("place", [0, -1, 5000])
def test_model_of_which_a_byte_was_changed_is_refused(
    made: Made, tmp_path: Path, engine: str, precision: str, file: str, place: int
) -> None:
    for name in {file, file.replace(".xml", ".bin")}:
        folder = made.copied(tmp_path / name)
        flip(folder / name, place)
        with pytest.raises(RunError) as caught:
            Scorer.from_pretrained(folder, engine=engine, precision=precision)
        assert str(caught.value) == (
            f"expected {folder / name} as dcmpl export wrote it, got one of another SHA-256 "
            "than export.json names: the file was changed, export again"
        )
        (folder / name).unlink()
        with pytest.raises(RunError, match=f"expected an exported model at .*{name}, got: "):
            Scorer.from_pretrained(folder, engine=engine, precision=precision)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.62, 0.8, 0.97])
def test_record_of_which_a_byte_was_changed_is_refused(
    made: Made, tmp_path: Path, capsys: Capture, image_data: Path, share: float
) -> None:
    folder = made.copied(tmp_path / "copy")
    path = folder / "export.json"
    content = path.read_text()
    place = int(share * len(content))
    while content[place] in " \n":
        place += 1
    flip(path, place)
    image, out = image_data.with_name("00.png"), tmp_path / "x.csv"
    words = ["score", image, "--model", folder, "-o", out]
    assert refused(capsys, 1, *words).startswith("expected ")


def test_record_of_a_later_version_asks_for_an_upgrade(
    made: Made, tmp_path: Path, record: dict[str, Any]
) -> None:
    folder = made.copied(tmp_path / "copy")
    later = {k: v for k, v in record.items() if k != "digest"} | {"version": "9.0.0", "new": 1}
    (folder / "export.json").write_bytes(sealed(later))
    with pytest.raises(RunError, match=r"later version, 9\.0\.0: pip install --upgrade"):
        Scorer.from_pretrained(folder)


# What cannot be exported
