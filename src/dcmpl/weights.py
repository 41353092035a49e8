"""Pretrained CLIP backbones: find, check, load strictly.

A backbone is a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` as
Hugging Face lays it out: a folder's path, an id on the hub, or ``tiny``, which comes with
the package. Tensors are read as tensors; nothing in these files is ever executed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcmpl.clip import ACTIVATIONS, Clip, ClipConfig, TowerConfig
from dcmpl.config import EMBEDDED, check_backbone
from dcmpl.errors import WeightsError
from dcmpl.tokenizer import Tokenizer

__all__ = ["Backbone", "load_backbone"]

FILES = ("config.json", "model.safetensors", "tokenizer.json")
MOST_LAYERS, MOST_WIDTH = 200, 20_000


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, its tokenizer, and the SHA-256 of its weights file."""

    name: str
    clip: Clip
    tokenizer: Tokenizer
    sha256: str

    @property
    def image_size(self) -> int:
        """Side of a window in pixels."""
        return self.clip.config.image_size


def load_backbone(name: str) -> Backbone:
    """The backbone called ``name``; raises :class:`WeightsError` naming what is missing."""
    folder = _find(name)
    for file in FILES:
        if not (folder / file).is_file():
            raise WeightsError(
                f"expected a CLIP backbone in {folder} ({', '.join(FILES)}), {file} is missing"
            )
    config = read_config(folder / "config.json")
    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in Clip(config).state_dict().items()}
    state = read_tensors(folder / "model.safetensors", expected)
    with torch.random.fork_rng(devices=[]):  # what it is filled with is overwritten
        clip = Clip(config)
    clip.load_state_dict(state, strict=True)
    clip.eval().requires_grad_(False)
    tokenizer = Tokenizer(folder / "tokenizer.json", config.context_length)
    if tokenizer.size > config.vocab_size:
        raise WeightsError(
            f"expected a tokenizer of at most {config.vocab_size} entries in {folder}, got "
            f"{tokenizer.size}: tokenizer.json belongs to another backbone"
        )
    return Backbone(name, clip, tokenizer, _sha256(folder / "model.safetensors"))


def _find(name: str) -> Path:
    """The folder that holds a backbone; the hub's cache where ``name`` is an id."""
    if check_backbone(name) in EMBEDDED:
        return EMBEDDED[name]
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # slow to import, and only needed here

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # network, hub and cache raise a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"expected to find the backbone {name} in the local cache or on the hub, got: "
            f"{reason}: download it once or give the path of its folder"
        ) from error


def read_config(path: Path) -> ClipConfig:
    """Sizes from Hugging Face's ``config.json``, whose absent entries have known defaults."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        vision, text = record["vision_config"], record["text_config"]
        stem = vision.get("stem", "patch")
        if stem not in ("patch", "statistics"):
            raise ValueError(f"stem {stem!r} is neither patch nor statistics")
        config = ClipConfig(
            vision=_tower(vision, width=768, heads=12),
            text=_tower(text, width=512, heads=8),
            embed_dim=_size(record, "projection_dim", 512),
            image_size=_size(vision, "image_size", 224),
            patch_size=_size(vision, "patch_size", 32),
            vocab_size=_size(text, "vocab_size", 49408, most=2_000_000),
            context_length=_size(text, "max_position_embeddings", 77),
            stem=stem,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"expected the configuration of a CLIP at {path}, got: {error}"
        ) from error
    if config.image_size % config.patch_size:
        raise WeightsError(f"expected patch_size to divide image_size in {path}")
    if config.stem == "statistics" and (config.patch_size % 8 or config.image_size < 128):
        raise WeightsError(
            f"expected cells of a multiple of 8 pixels and windows of at least 128 in {path}, "
            f"got {config.patch_size} and {config.image_size}"
        )
    return config


def _tower(record: Mapping[str, Any], width: int, heads: int) -> TowerConfig:
    width = _size(record, "hidden_size", width)
    heads = _size(record, "num_attention_heads", heads)
    if width % heads:
        raise ValueError(f"width {width} is no multiple of {heads} heads")
    activation = record.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    eps = float(record.get("layer_norm_eps", 1e-5))
    if not 0 < eps < 1:
        raise ValueError(f"layer_norm_eps is {eps}")
    return TowerConfig(
        width=width,
        layers=_size(record, "num_hidden_layers", 12, most=MOST_LAYERS),
        heads=heads,
        hidden=_size(record, "intermediate_size", 4 * width),
        activation=activation,
        layer_norm_eps=eps,
    )


def _size(record: Mapping[str, Any], key: str, default: int, most: int = MOST_WIDTH) -> int:
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{key} is {value!r}, not a whole number from 1 to {most}")
    return value


def read_tensors(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a backbone in float32 under our names, all of them and no others."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Sizes first: a file that does not fit is refused before it is read.
            total = sum(torch.Size(file.get_slice(n).get_shape()).numel() for n in names)
            if total > 2 * sum(shape.numel() for shape in expected.values()):
                raise WeightsError(f"expected the weights config.json describes, {path} has more")
            state = ours({name: file.get_tensor(name).float() for name in names})
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"expected a readable safetensors file at {path}, got: {error}"
        ) from error
    missing, extra = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or extra:
        raise WeightsError(
            f"expected the tensors of a CLIP in {path}, "
            f"{len(missing)} are missing ({', '.join(missing[:3])}) and "
            f"{len(extra)} are unknown ({', '.join(extra[:3])})"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise WeightsError(
                f"expected {name} of shape {tuple(shape)} in {path}, got {tuple(state[name].shape)}"
            )
    return state


HUGGING_FACE = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.stem.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names; those of Hugging Face are renamed, q, k and v fused."""
    if not any(name.startswith("vision_model.") for name in state):
        return state
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue  # an index that older files carry
        if re.sub(r"\.self_attn\.[kv]_proj\.", ".self_attn.q_proj.", name) in state.keys() - {name}:
            continue  # k and v are taken with their q
        if match := re.search(r"\.self_attn\.q_proj\.(weight|bias)$", name):
            parts = [state.get(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
            fitting = [p for p in parts if p is not None and p.ndim and p.shape == tensor.shape]
            if len(fitting) < 3:
                raise WeightsError(
                    f"expected q, k and v projections of shape {tuple(tensor.shape)} beside "
                    f"{name}, one is missing or differs"
                )
            tensor = torch.cat(fitting)
            name = f"{name[: match.start()]}.attn.in_proj_{match[1]}"
        for pattern, replacement in HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        if name in ("visual_projection.weight", "text_projection.weight"):
            tensor = tensor.T.contiguous()
            name = {"v": "visual.proj", "t": "text.text_projection"}[name[0]]
        out[name] = tensor
    return out


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
