"""Backbones on disk: what loads, and the one sentence for everything that does not."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import refused_backbone
from dcmpl.errors import WeightsError
from dcmpl.weights.backbones import FILES, load_backbone
from dcmpl.weights.layouts import read_config

State = dict[str, Tensor]


@pytest.fixture
def folder(small_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the small backbone, to be damaged."""
    return Path(shutil.copytree(small_backbone, tmp_path / "backbone"))


@pytest.fixture
def hugging_face(folder: Path) -> Path:
    """The same sizes under Hugging Face's names, with other random weights."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**json.loads((folder / "config.json").read_text()))
    save_file(CLIPModel(config).state_dict(), folder / "model.safetensors")
    return folder


def edit_config(folder: Path, section: str, key: str, value: Any) -> None:
    record = json.loads((folder / "config.json").read_text())
    (record[section] if section else record)[key] = value
    (folder / "config.json").write_text(json.dumps(record))


def edit_tensors(folder: Path, change: Callable[[State], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_the_embedded_backbone_loads_without_any_file_of_the_user() -> None:
    backbone = load_backbone("small")
    assert backbone.name == "small"
    assert backbone.image_size == backbone.clip.config.image_size


def test_a_backbone_that_is_gone_is_refused_with_what_took_its_place() -> None:
    assert refused_backbone("tiny").endswith(
        "got 'tiny': small took its place in 0.3: train the run anew on it"
    )


def test_a_loaded_backbone_is_frozen_and_evaluating(small_backbone: Path) -> None:
    clip = load_backbone(str(small_backbone)).clip
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())


def test_a_loaded_backbone_has_the_tensors_of_the_file(small_backbone: Path) -> None:
    expected = load_file(small_backbone / "model.safetensors")
    state = load_backbone(str(small_backbone)).clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_digest_is_the_sha256_of_the_weights_file(small_backbone: Path) -> None:
    expected = hashlib.sha256((small_backbone / "model.safetensors").read_bytes()).hexdigest()
    assert load_backbone(str(small_backbone)).sha256 == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_to_float32(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    stored = load_file(folder / "model.safetensors")
    state = load_backbone(str(folder)).clip.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert all(torch.equal(state[name], stored[name].float()) for name in state)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert f"got no {file}" in refused_backbone(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_truncated_weights_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"a readable safetensors file at {path}" in refused_backbone(folder)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_executes_nothing(
    folder: Path, write: Callable[[Any, Any], None]
) -> None:
    trap = folder / "sprung"
    with (folder / "model.safetensors").open("wb") as file:
        write(Trap(trap), file)
    assert "a readable safetensors file" in refused_backbone(folder)
    assert not trap.exists()


def test_the_trap_of_the_test_above_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.pop("visual.proj"))
    assert "got 1 missing (visual.proj) and 0 unknown ()" in refused_backbone(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.update(surplus=torch.zeros(2)))
    assert "got 0 missing () and 1 unknown (surplus)" in refused_backbone(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.update({"visual.proj": torch.zeros(64, 23)}))
    assert "expected visual.proj of shape (64, 24)" in refused_backbone(folder)
    assert "got (64, 23)" in refused_backbone(folder)


def test_weights_far_larger_than_the_config_are_refused(folder: Path) -> None:
    edit_tensors(folder, lambda state: state.update({"visual.proj": torch.zeros(2**20)}))
    assert f"got more in {folder / 'model.safetensors'}" in refused_backbone(folder)


def test_a_config_far_larger_than_the_weights_is_refused(folder: Path) -> None:
    """Such a model would take terabytes: it must be refused before it is built."""
    for section in ("vision_config", "text_config"):
        edit_config(folder, section, "num_hidden_layers", 200)
        edit_config(folder, section, "hidden_size", 20_000)
    assert re.search(r"got [1-9]\d* missing \(", refused_backbone(folder))


def test_hugging_face_names_load(hugging_face: Path) -> None:
    stored = load_file(hugging_face / "model.safetensors")
    clip = load_backbone(str(hugging_face)).clip
    prefix = "text_model.encoder.layers.1.self_attn"
    fused = torch.cat([stored[f"{prefix}.{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(clip.text.transformer.resblocks[1].attn.in_proj_weight, fused)
    assert torch.equal(clip.visual.proj, stored["visual_projection.weight"].T)


def test_position_ids_of_older_files_are_no_extra_tensors(hugging_face: Path) -> None:
    ids = torch.arange(17)[None]
    edit_tensors(
        hugging_face, lambda state: state.update({"vision_model.embeddings.position_ids": ids})
    )
    assert load_backbone(str(hugging_face)).image_size == 32


@pytest.mark.parametrize("projection", "qkv")
def test_a_missing_projection_of_hugging_face_is_refused(
    hugging_face: Path, projection: str
) -> None:
    name = f"vision_model.encoder.layers.0.self_attn.{projection}_proj.weight"
    edit_tensors(hugging_face, lambda state: state.pop(name))
    assert "missing" in refused_backbone(hugging_face)


def test_a_projection_of_hugging_face_of_another_shape_is_refused(hugging_face: Path) -> None:
    name = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    edit_tensors(hugging_face, lambda state: state.update({name: torch.zeros(64, 63)}))
    assert "of shape" in refused_backbone(hugging_face)


def test_a_surplus_projection_of_hugging_face_is_refused(hugging_face: Path) -> None:
    name = "vision_model.encoder.layers.7.self_attn.k_proj.weight"
    edit_tensors(hugging_face, lambda state: state.update({name: torch.zeros(64, 64)}))
    assert "unknown" in refused_backbone(hugging_face)


@pytest.mark.parametrize("value", [10**30, 20_001, 0, -1, 1.0, "64", True, None, [64]])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("", "projection_dim"),
        ("vision_config", "hidden_size"),
        ("vision_config", "image_size"),
        ("vision_config", "patch_size"),
        ("text_config", "num_attention_heads"),
        ("text_config", "intermediate_size"),
        ("text_config", "max_position_embeddings"),
    ],
)
def test_an_absurd_size_is_refused_by_the_config(
    folder: Path, section: str, key: str, value: Any
) -> None:
    edit_config(folder, section, key, value)
    with pytest.raises(
        WeightsError, match=r"^expected the configuration of a CLIP at .*"
    ) as caught:
        read_config(folder / "config.json")
    assert key in str(caught.value)


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_more_than_200_layers_are_refused(folder: Path, section: str) -> None:
    edit_config(folder, section, "num_hidden_layers", 201)
    assert "num_hidden_layers is 201, not a whole number from 1 to 200" in refused_backbone(folder)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_config", "num_attention_heads", 5, "width 64 is no multiple of 5 heads"),
        ("vision_config", "patch_size", 7, "expected patch_size to divide image_size"),
        ("vision_config", "stem", "tiles", "is none of patch, hybrid"),
        ("text_config", "hidden_act", "relu", "activation 'relu' is none of gelu, quick_gelu"),
        ("text_config", "hidden_act", ["gelu"], "expected the configuration of a CLIP"),
        ("text_config", "layer_norm_eps", "small", "expected the configuration of a CLIP"),
    ],
)
def test_a_config_that_fits_no_clip_is_refused(
    folder: Path, section: str, key: str, value: Any, message: str
) -> None:
    edit_config(folder, section, key, value)
    assert message in refused_backbone(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"1", b"{}", b'{"vision_config": null}', b"[" * 100_000],
    ids=["empty", "open", "bytes", "list", "number", "nothing", "null", "deep"],
)
def test_a_config_that_is_no_record_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert f"the configuration of a CLIP at {folder / 'config.json'}" in refused_backbone(folder)


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "tokenizer.json").read_text())
    change(record)
    (folder / "tokenizer.json").write_text(json.dumps(record))


def test_a_tokenizer_with_its_end_token_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    def move_end(record: dict[str, Any]) -> None:
        record["model"]["vocab"]["<|endoftext|>"] = 640
        record["added_tokens"][2]["id"] = 640

    edit_tokenizer(folder, move_end)
    assert "tokenizer of at most 640 entries" in refused_backbone(folder)


def test_a_tokenizer_with_words_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    """Its end token is number 2, which tells nothing; a word past the end would crash later."""
    edit_config(folder, "text_config", "vocab_size", 100)
    name = "text.token_embedding.weight"
    edit_tensors(folder, lambda state: state.update({name: state[name][:100].clone()}))
    assert "tokenizer of at most 100 entries" in refused_backbone(folder)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "a readable tokenizer" in refused_backbone(folder)


@pytest.mark.parametrize("name", ["no such folder", "clip", "a/b/c", "../a", "/no/such", "a\0b"])
def test_a_name_that_is_neither_folder_nor_id_is_refused(name: str) -> None:
    assert f"got {name!r}" in refused_backbone(name)


@pytest.mark.parametrize(
    "error",
    [OSError("no route\nto host"), TimeoutError(), ValueError(" ")],
    ids=["two lines", "no text", "blank"],
)
def test_whatever_the_hub_raises_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "expected to find the backbone some/clip" in refused_backbone("some/clip")


def test_an_id_that_is_not_cached_is_refused_offline(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads the environment once."""
    code = (
        "from dcmpl.errors import UsageError, WeightsError\n"
        "from dcmpl.weights.backbones import load_backbone\n"
        "try:\n"
        "    load_backbone('some/clip')\n"
        "except WeightsError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("expected to find the backbone some/clip in the local cache")
