"""Backbones as OpenAI, open_clip and Hugging Face lay them out, against the same in our folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import golden_open_clip
from conftest import TOKENIZER, refused_backbone
from dcmpl.files import sha256_of
from dcmpl.model.clip import Clip, as_tensors
from dcmpl.weights.backbones import Backbone, load_backbone
from dcmpl.weights.layouts import read_config
from dcmpl.weights.torch_files import OPENAI
from torch_files import Trap, save_torchscript

State = dict[str, Tensor]

SIZES = {
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": 24,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "intermediate_size": 96,
        "vocab_size": 640,
        "max_position_embeddings": 20,
    },
}
"""Heads of 64 channels, the only ones that OpenAI's files can mean."""

TEXTS = ["good photo.", "a very bad photo of nothing"]


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, randomise: Callable[[torch.nn.Module, int], None]
) -> Path:
    """A folder as our other tests have it; its numbers are exact in float16."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "config.json").write_text(json.dumps(SIZES))
    shutil.copy(TOKENIZER, folder)
    clip = Clip(read_config(folder / "config.json"))
    randomise(clip, 3)
    save_file(clip.half().float().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def openai(plain: Path) -> State:
    """Its weights under OpenAI's names, with the sizes that OpenAI stores beside them."""
    state = {
        name.removeprefix("text.").replace("visual.stem.", "visual."): tensor
        for name, tensor in load_file(plain / "model.safetensors").items()
    }
    sizes = {"input_resolution": 24, "context_length": 20, "vocab_size": 640}
    return state | {name: torch.tensor(size) for name, size in sizes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but a tokenizer."""
    shutil.copy(TOKENIZER, tmp_path)
    return tmp_path


def embeddings(backbone: Backbone) -> Tensor:
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenizer(TEXTS)
    with torch.no_grad():
        return torch.cat([backbone.clip.visual(images), backbone.clip.text(*as_tensors(tokens))])


def halved(state: State) -> State:
    return {n: t.half() if t.is_floating_point() else t for n, t in state.items()}


@pytest.mark.parametrize("convert", [dict, halved], ids=["float32", "float16"])
@pytest.mark.parametrize("save", [torch.save, save_torchscript])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_file_of_openai_equals_our_folder(
    plain: Path,
    folder: Path,
    openai: State,
    convert: Callable[[State], State],
    save: Callable[[State, Path], object],
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = (folder / "ViT").with_suffix(suffix)
    save(convert(openai), file)
    monkeypatch.setitem(OPENAI, sha256_of(file), "made")
    expected, found = load_backbone(str(plain)), load_backbone(str(file))
    assert torch.equal(embeddings(found), embeddings(expected))
    assert found.image_size == 24
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in found.clip.parameters())


def test_the_place_of_a_file_is_recorded_in_full(
    folder: Path, openai: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run could be used only from where it was trained."""
    torch.save(openai, folder / "ViT.pt")
    monkeypatch.chdir(folder)
    assert load_backbone("ViT.pt").name == str(folder / "ViT.pt")


def test_a_file_of_openai_needs_a_tokenizer_beside_it(folder: Path, openai: State) -> None:
    torch.save(openai, folder / "ViT.pt")
    (folder / "tokenizer.json").unlink()
    assert "got no tokenizer.json" in refused_backbone(folder / "ViT.pt")


def test_a_tokenizer_of_another_backbone_is_refused(folder: Path, openai: State) -> None:
    openai["token_embedding.weight"] = openai["token_embedding.weight"][:500].clone()
    torch.save(openai, folder / "ViT.pt")
    assert "tokenizer of at most 500 entries" in refused_backbone(folder / "ViT.pt")


def test_a_file_that_is_no_torch_file_is_no_backbone(folder: Path, openai: State) -> None:
    torch.save(openai, folder / "ViT.bin")
    assert "a .pt file of OpenAI's" in refused_backbone(folder / "ViT.bin")


@pytest.mark.parametrize(
    "name",
    [
        "visual.class_embedding",
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.1.ln_1.bias",
        "transformer.resblocks.2.attn.in_proj_bias",
        "text_projection",
        "positional_embedding",
        "token_embedding.weight",
        "ln_final.bias",
        "logit_scale",
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(
    folder: Path, openai: State, name: str
) -> None:
    shapes = [(), (0,), (3,), (0, 0), (7, 5), (200, 9), (64, 0, 8, 8), (64, 3, 0, 0), (64, 3, 2, 8)]
    for tensor in (None, *(torch.zeros(shape) for shape in shapes)):
        if tensor is not None and tensor.shape == openai[name].shape:
            continue
        state = {n: t for n, t in openai.items() if n != name}
        state |= {} if tensor is None else {name: tensor}
        torch.save(state, folder / "ViT.pt")
        refused_backbone(folder / "ViT.pt")


def test_an_extra_tensor_is_named(folder: Path, openai: State) -> None:
    torch.save(openai | {"surplus": torch.zeros(2)}, folder / "ViT.pt")
    assert "1 unknown (surplus)" in refused_backbone(folder / "ViT.pt")


def test_a_width_that_heads_of_64_do_not_divide_is_refused(
    folder: Path, plain: Path, tmp_path: Path
) -> None:
    """It would load, and fail with the first image."""
    record = json.loads(json.dumps(SIZES))
    record["vision_config"] |= {"hidden_size": 200, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(record))
    state = Clip(read_config(tmp_path / "config.json")).state_dict()
    names = {n: n.removeprefix("text.").replace("visual.stem.", "visual.") for n in state}
    torch.save({names[n]: tensor for n, tensor in state.items()}, folder / "ViT.pt")
    assert "200" in refused_backbone(folder / "ViT.pt")


def test_a_pickle_with_code_is_refused_and_executes_nothing(folder: Path, plain: Path) -> None:
    shutil.copy(plain / "config.json", folder)
    for file, name in (("ViT.pt", folder / "ViT.pt"), ("pytorch_model.bin", folder)):
        torch.save({"logit_scale": Trap(folder / "sprung")}, folder / file)
        refused_backbone(name)
    assert not (folder / "sprung").exists()


# Hugging Face's own names, which transformers writes.


@pytest.fixture
def hugging_face(folder: Path, plain: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    shutil.copy(plain / "config.json", folder)
    model = CLIPModel(CLIPConfig(**SIZES))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_pytorch_model_bin_equals_model_safetensors(hugging_face: Path) -> None:
    expected = load_backbone(str(hugging_face))
    state = load_file(hugging_face / "model.safetensors")
    (hugging_face / "model.safetensors").unlink()
    state["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(state, hugging_face / "pytorch_model.bin")
    assert torch.equal(embeddings(load_backbone(str(hugging_face))), embeddings(expected))


def test_model_safetensors_is_preferred(hugging_face: Path) -> None:
    (hugging_face / "pytorch_model.bin").write_bytes(b"nothing that can be read")
    load_backbone(str(hugging_face))


# open_clip, held against its own numbers.


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(golden_open_clip.GOLDEN) as numbers:
        return {name: numbers[name] for name in numbers.files}


@pytest.fixture(params=golden_open_clip.CASES)
def open_clip(request: pytest.FixtureRequest, tmp_path: Path, golden: dict[str, Any]) -> Path:
    """A folder with the files of open_clip's uploads, and OpenAI's kind of vocabulary."""
    state = {}
    for line in golden["names"]:
        name, _, shape = line.partition(" ")
        state[name] = golden_open_clip.draw(
            name, tuple(map(int, shape.split("x"))) if shape else ()
        )
    place = tmp_path / request.param
    place.mkdir()
    save_file(state, place / "open_clip_model.safetensors")
    record = {**golden_open_clip.SIZES, **golden_open_clip.CASES[request.param]}
    record = {"model_cfg": record, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (place / "open_clip_config.json").write_text(json.dumps(record))
    golden_open_clip.write_merges(place / "bpe_simple_vocab_16e6.txt.gz")
    return place


def assert_golden(folder: Path, golden: dict[str, Any]) -> None:
    backbone = load_backbone(str(folder))
    tokens = backbone.tokenizer([str(sentence) for sentence in golden["sentences"]])
    with torch.no_grad():
        found = {
            "image_embedding": backbone.clip.visual(golden_open_clip.images()),
            "text_embedding": backbone.clip.text(*as_tensors(tokens)),
        }
    for name, ours in found.items():
        theirs = torch.from_numpy(golden[f"{folder.name}/{name}"])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_open_clip_computes_the_same_of_images_and_sentences(
    open_clip: Path, golden: dict[str, Any]
) -> None:
    assert_golden(open_clip, golden)


def test_the_two_activations_are_far_apart(golden: dict[str, Any]) -> None:
    """Or the test above would not tell them."""
    for name in ("image_embedding", "text_embedding"):
        assert abs(golden[f"gelu/{name}"] - golden[f"quick_gelu/{name}"]).max() > 1e-3


def test_other_files_of_open_clip_load_as_well(open_clip: Path, golden: dict[str, Any]) -> None:
    state = load_file(open_clip / "open_clip_model.safetensors")
    (open_clip / "open_clip_model.safetensors").unlink()
    torch.save(state, open_clip / "open_clip_pytorch_model.bin")
    assert_golden(open_clip, golden)
    save_file(state, open_clip / "model.safetensors")
    (open_clip / "open_clip_pytorch_model.bin").write_bytes(b"")
    assert_golden(open_clip, golden)


BAD: list[tuple[str, str, Any]] = [
    ("vision_cfg", "timm_model_name", "vit_base"),
    ("vision_cfg", "ls_init_value", 1e-4),
    ("vision_cfg", "attentional_pool", True),
    ("vision_cfg", "layers", [3, 4, 6, 3]),
    ("vision_cfg", "head_width", 128),
    ("vision_cfg", "head_width", 0),
    ("vision_cfg", "width", 0),
    ("vision_cfg", "width", "64"),
    ("vision_cfg", "width", 72),
    ("vision_cfg", "patch_size", 64),
    ("vision_cfg", "image_size", [32, 32]),
    *(("vision_cfg", "mlp_ratio", ratio) for ratio in (0, -1, 1e300, 1e-9, "4", None)),
    *(("text_cfg", "mlp_ratio", float(ratio)) for ratio in ("inf", "nan", "1e9")),
    ("text_cfg", "hf_model_name", "roberta-base"),
    ("text_cfg", "no_causal_mask", True),
    ("text_cfg", "heads", 5),
    ("text_cfg", "layers", 201),
    ("text_cfg", "vocab_size", 10**9),
]


@pytest.mark.parametrize("open_clip", ["gelu"], indirect=True)
@pytest.mark.parametrize(("section", "key", "value"), BAD)
def test_an_open_clip_of_another_build_or_size_is_refused(
    open_clip: Path, section: str, key: str, value: Any
) -> None:
    record = json.loads((open_clip / "open_clip_config.json").read_text())
    record["model_cfg"][section][key] = value
    (open_clip / "open_clip_config.json").write_text(json.dumps(record))
    refused_backbone(open_clip)


@pytest.mark.parametrize("open_clip", ["gelu"], indirect=True)
def test_an_open_clip_without_weights_is_refused(open_clip: Path) -> None:
    (open_clip / "open_clip_model.safetensors").unlink()
    assert "got no model.safetensors" in refused_backbone(open_clip)
