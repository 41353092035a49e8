"""Files of CLIP-AGIQA's training script, made here under its names, as runs of ours."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmpl.cli.main import main
from dcmpl.metrics import bootstrap
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.presets import PRESETS
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine
from dcmpl.weights.backbones import Backbone, load_backbone
from dcmpl.weights.clip_agiqa import read_clip_agiqa
from torch_files import save_clip_agiqa

State = dict[str, Tensor]
Randomise = Callable[[nn.Module, int], None]


@pytest.fixture(scope="module")
def backbone(small_backbone: Path) -> Backbone:
    return load_backbone(str(small_backbone))


@pytest.fixture(scope="module")
def learned(backbone: Backbone, randomise: Randomise) -> DCMPL:
    """What the script learned, far from its start."""
    config = replace(PRESETS["clip-agiqa"].model, round_prompts=True)
    model = DCMPL(backbone.clip, backbone.tokenizer, config, seed=1)
    for index, (name, part) in enumerate(model.named_children()):
        if name != "clip":
            randomise(part, index)
    return model.eval()


@pytest.fixture
def files(learned: DCMPL, backbone: Backbone, tmp_path: Path) -> tuple[Path, Path]:
    """The auxiliary and the main file."""
    return save_clip_agiqa(learned, backbone.tokenizer, tmp_path)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere; here a few draws do."""
    monkeypatch.setattr(
        "dcmpl.evaluation.results.bootstrap", lambda *given: bootstrap(*given[:4], 5)
    )


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_made_files_have_the_names_and_shapes_of_the_published_one(
    files: tuple[Path, Path],
) -> None:
    """A prompt less in the list of the text than in that of the images, 3 layers here."""
    auxiliary, tar = (torch.load(file, weights_only=True) for file in files)
    names = ["ctx", "prompts_text.0", "prompts_text.1"]
    names += ["prompts_vis.0", "prompts_vis.1", "prompts_vis.2", "token_prefix", "token_suffix"]
    shapes = [(8, 32), (8, 32), (8, 32), (8, 64), (8, 64), (8, 64), (2, 1, 32), (2, 31, 32)]
    assert {n: tuple(t.shape) for n, t in auxiliary.items()} == dict(
        zip(names, shapes, strict=True)
    )
    more = {n: tuple(tar[n].shape) for n in tar.keys() - set(names)}
    layers = ("proj", "compound_prompt_projections.0", "compound_prompt_projections.1")
    weights = {f"{layer}.weight": (64, 128) for layer in layers}
    assert more == weights | {f"{layer}.bias": (64,) for layer in layers}


def test_both_files_make_the_model_they_were_written_of(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)
    theirs = trainable_parameters(learned)
    ours = trainable_parameters(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        found, expected = model.eval()(images), learned(images)
    assert found.tasks == expected.tasks == ("quality", "alignment")
    assert torch.equal(found.values, expected.values)


def test_prompts_are_rounded_as_the_script_does(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)
    plain = replace(learned.config, round_prompts=False)
    unrounded = DCMPL(backbone.clip, backbone.tokenizer, plain, seed=1)
    unrounded.load_state_dict(learned.state_dict())
    with torch.no_grad():
        found, other = model.eval()(images).values, unrounded.eval()(images).values
    assert not torch.equal(found, other)
    torch.testing.assert_close(found, other, rtol=0, atol=1e-2)


def test_the_auxiliary_file_alone_predicts_alignment(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(files[0], None, backbone.clip, backbone.tokenizer)
    with torch.no_grad():
        found, expected = model.eval()(images), learned(images)
    assert found.tasks == ("alignment",)
    torch.testing.assert_close(found.alignment, expected.alignment, rtol=0, atol=1e-6)


def test_token_vectors_may_be_of_half_precision(
    files: tuple[Path, Path], backbone: Backbone
) -> None:
    """A script on a GPU writes them so; it is what tells one backbone from another."""
    state = torch.load(files[0], weights_only=True)
    torch.save({n: t.half() if "token" in n else t for n, t in state.items()}, files[0])
    read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)


# The command.


def words_of(files: tuple[Path, Path | None], small_backbone: Path, out: Path) -> list[str]:
    words = ["import", "--aux", str(files[0]), "--backbone", str(small_backbone)]
    return [*words, *(["--main", str(files[1])] if files[1] else []), "--out", str(out)]


@pytest.fixture
def imported(files: tuple[Path, Path], small_backbone: Path, tmp_path: Path) -> Path:
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
    return tmp_path / "run"


@pytest.fixture
def alone(files: tuple[Path, Path], small_backbone: Path, tmp_path: Path) -> Path:
    """A run of the auxiliary file."""
    assert main(words_of((files[0], None), small_backbone, tmp_path / "alone")) == 0
    return tmp_path / "alone"


def test_the_import_says_what_the_run_predicts(
    files: tuple[Path, Path],
    small_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
    told = capsys.readouterr()
    assert "predicts quality and alignment\n" in told.out
    assert told.err == ""
    assert main(words_of((files[0], None), small_backbone, tmp_path / "alone")) == 0
    told = capsys.readouterr()
    assert "predicts alignment\n" in told.out
    assert "quality is not there" in told.err


def test_an_imported_run_scores_as_the_model_does(
    imported: Path, learned: DCMPL, image_data: Path
) -> None:
    assert sorted(file.name for file in imported.iterdir()) == ["model.safetensors", "run.json"]
    images = sorted(image_data.parent.glob("*.png"))[:3]
    scorer = Scorer.from_pretrained(imported)
    found = scorer.score(images)
    engine = TorchEngine(learned, ("quality", "alignment"))
    expected = Scorer(engine, scorer.views).score(images)
    assert [(s.quality, s.alignment) for s in found] == [(s.quality, s.alignment) for s in expected]


def metrics_of(run: Path, image_data: Path, out: Path) -> dict[str, Any]:
    words = ["evaluate", str(run), "--data", str(image_data), "--mos-scale", "1", "5"]
    assert main([*words, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_an_imported_run_is_measured_on_given_data(
    imported: Path, image_data: Path, tmp_path: Path
) -> None:
    metrics = metrics_of(imported, image_data, tmp_path / "results")
    assert {"quality", "alignment"} <= metrics.keys()


def test_an_imported_run_has_no_data_of_its_own(
    imported: Path, image_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(imported)]
    assert main(words) == 2
    assert "expected --data PATH" in capsys.readouterr().err
    data = ["--data", str(image_data), "--mos-scale", "1", "5"]
    assert main([*words, *data, "--split", "test"]) == 2
    assert "expected --split all for an imported run" in capsys.readouterr().err


def test_an_imported_run_cannot_be_resumed(
    imported: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in imported.iterdir()}
    assert main([*train_words, "--out", str(imported), "--resume"]) == 1
    assert capsys.readouterr().err.startswith("dcmpl: expected ")
    assert {file.name: file.read_bytes() for file in imported.iterdir()} == before


def test_a_run_of_the_auxiliary_file_leaves_quality_empty(
    alone: Path, image_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_data.parent / "00.png"
    assert main(["score", str(image), "--model", str(alone), "-o", str(tmp_path / "s.csv")]) == 0
    assert "does not predict quality" in capsys.readouterr().err
    with (tmp_path / "s.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["quality"], row["status"], row["reason"]) == ("", "ok", "")
    assert 0 < float(row["alignment"]) < 1


def test_a_run_of_the_auxiliary_file_is_measured_for_alignment(
    alone: Path, image_data: Path, tmp_path: Path
) -> None:
    metrics = metrics_of(alone, image_data, tmp_path / "results")
    assert "alignment" in metrics
    assert "quality" not in metrics


def test_a_folder_in_use_is_left_as_it_is(
    files: tuple[Path, Path], small_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 2
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "run" / "notes.txt").unlink()
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
