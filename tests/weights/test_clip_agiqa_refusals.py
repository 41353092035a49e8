"""Files that are none of CLIP-AGIQA's, or fit no backbone: one line, and nothing left behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcmpl.cli.main import main
from dcmpl.model.clip import Clip
from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.weights.backbones import load_backbone
from dcmpl.weights.layouts import read_config
from torch_files import Trap, save_clip_agiqa


@pytest.fixture
def files(small_backbone: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The auxiliary and the main file of a model that was not trained."""
    backbone = load_backbone(str(small_backbone))
    config = replace(PRESETS["clip-agiqa"].model, round_prompts=True)
    model = DCMPL(backbone.clip, backbone.tokenizer, config, seed=1)
    return save_clip_agiqa(model, backbone.tokenizer, tmp_path)


Refused = Callable[..., str]


@pytest.fixture
def refused(
    files: tuple[Path, Path],
    small_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """The one line that the import of ``files`` ends with."""

    def refused(backbone: Path = small_backbone, alone: bool = False, code: int = 1) -> str:
        out = tmp_path / "new" / "run"
        words = ["import", "--aux", str(files[0]), "--backbone", str(backbone), "--out", str(out)]
        assert main([*words, *([] if alone else ["--main", str(files[1])])]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dcmpl: expected ")
        assert not out.parent.exists()
        return line

    return refused


def change(file: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of a file, or take them out."""
    state = torch.load(file, weights_only=True) | {
        name.replace("__", "."): tensor for name, tensor in tensors.items()
    }
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, file)


def test_another_backbone_is_told_by_its_token_vectors(
    refused: Refused, small_backbone: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(small_backbone, tmp_path / "other"))
    state = load_file(other / "model.safetensors")
    state["text.token_embedding.weight"] += 1e-3
    save_file(state, other / "model.safetensors")
    assert "the token vectors of 'aligned photo'" in refused(other)
    assert "give the backbone the prompts were learned on" in refused(other, alone=True)


def test_one_other_token_vector_is_enough(refused: Refused, files: tuple[Path, Path]) -> None:
    suffix = torch.load(files[1], weights_only=True)["token_suffix"]
    suffix[1, 0] += 1e-3
    change(files[1], token_suffix=suffix)
    assert "the token vectors of 'bad photo'" in refused()


@pytest.mark.parametrize(("section", "width"), [("text_config", 48), ("vision_config", 32)])
def test_a_backbone_of_another_width_or_depth_is_refused(
    refused: Refused, small_backbone: Path, tmp_path: Path, section: str, width: int
) -> None:
    for key, value in (("hidden_size", width), ("num_hidden_layers", 2), ("num_hidden_layers", 4)):
        other = tmp_path / f"{key}{value}"
        other.mkdir()
        shutil.copy(small_backbone / "tokenizer.json", other)
        record = json.loads((small_backbone / "config.json").read_text())
        record[section][key] = value
        (other / "config.json").write_text(json.dumps(record))
        clip = Clip(read_config(other / "config.json"))
        kept = load_file(small_backbone / "model.safetensors")["text.token_embedding.weight"]
        if kept.shape == clip.text.token_embedding.weight.shape:
            clip.text.token_embedding.weight.data = kept
        save_file(clip.state_dict(), other / "model.safetensors")
        refused(other)
        refused(other, alone=True)


NAMES = ["ctx", "token_prefix", "token_suffix", "prompts_text.1", "prompts_vis.2"]
LINEAR = ["proj.weight", "proj.bias", "compound_prompt_projections.1.bias"]
CASES = [(0, name) for name in NAMES] + [(1, name) for name in [*NAMES, *LINEAR]]


@pytest.mark.parametrize(("which", "name"), CASES)
def test_a_tensor_that_does_not_fit_is_refused(
    refused: Refused, files: tuple[Path, Path], which: int, name: str
) -> None:
    content = files[which].read_bytes()
    right = torch.load(files[which], weights_only=True)[name]
    nan, huge = right.clone(), right.clone()
    nan.view(-1)[-1], huge.view(-1)[-1] = float("nan"), float("inf")
    wrong = [None, nan, huge, right.long(), right[:0], right[..., :-1], right[None], right.sum()]
    for tensor in [*wrong, torch.cat([right, right]), right.bool()]:
        change(files[which], **{name.replace(".", "__"): tensor})
        refused()
        files[which].write_bytes(content)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["surplus", "prompts_vis__3", "prompts_text__" + "9" * 5000])
def test_a_tensor_too_many_is_refused(
    refused: Refused, files: tuple[Path, Path], which: int, name: str
) -> None:
    change(files[which], **{name: torch.zeros(8, 64)})
    refused()


@pytest.mark.parametrize("count", [0, 7, 9, 39, 5000])
def test_another_number_of_prompts_than_the_other_tensors_say_is_refused(
    refused: Refused, files: tuple[Path, Path], count: int
) -> None:
    change(files[0], ctx=torch.zeros(count, 32))
    refused()


def test_swapped_files_are_refused(refused: Refused, files: tuple[Path, Path]) -> None:
    auxiliary, tar = (file.read_bytes() for file in files)
    files[0].write_bytes(tar)
    files[1].write_bytes(auxiliary)
    refused()
    refused(alone=True)


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_checkpoint_is_refused_and_executes_nothing(
    refused: Refused, files: tuple[Path, Path], which: int, tmp_path: Path
) -> None:
    content = files[which].read_bytes()
    for keep in (0, 100, len(content) // 2, -1):
        files[which].write_bytes(content[:keep])
        refused()
    for value in (Trap(tmp_path / "sprung"), {"ctx": Trap(tmp_path / "sprung")}, [], {}):
        torch.save(value, files[which])
        refused()
    assert not (tmp_path / "sprung").exists()
    files[which].unlink()
    assert "got no file" in refused(code=2)
