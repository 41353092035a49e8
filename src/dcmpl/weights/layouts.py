"""Layouts of CLIP checkpoints: sizes and names of Hugging Face, OpenAI and open_clip."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dcmpl.errors import WeightsError
from dcmpl.files import read_most
from dcmpl.model.clip import ACTIVATIONS, Activation, ClipConfig, Stem, TowerConfig
from dcmpl.model.trunk import TRUNKS

__all__ = ["ours", "read_config", "read_open_clip_config", "sizes_of"]

MOST_LAYERS, MOST_WIDTH = 200, 20_000
MAX_CONFIG_BYTES = 2**20
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
    *(IndexError, OverflowError, ZeroDivisionError),
)


def read_config(path: Path) -> ClipConfig:
    """Sizes from Hugging Face's ``config.json``, whose absent entries have known defaults."""
    try:
        record = json.loads(read_most(path, MAX_CONFIG_BYTES))
        vision, text = record["vision_config"], record["text_config"]
        stem = vision.get("stem", "patch")
        if stem not in get_args(Stem):
            raise ValueError(f"stem {stem!r} is none of {', '.join(get_args(Stem))}")
        trunk = vision.get("trunk", "lite0")
        if trunk not in TRUNKS:
            raise ValueError(f"trunk {trunk!r} is none of {', '.join(TRUNKS)}")
        config = ClipConfig(
            vision=_tower(vision, width=768, heads=12),
            text=_tower(text, width=512, heads=8),
            embed_dim=_size(record, "projection_dim", 512),
            image_size=_size(vision, "image_size", 224),
            patch_size=_size(vision, "patch_size", 32),
            vocab_size=_size(text, "vocab_size", 49408, most=2_000_000),
            context_length=_size(text, "max_position_embeddings", 77),
            stem=stem,
            trunk=trunk,
        )
    except UNREADABLE as error:
        raise WeightsError(f"the configuration of a CLIP at {path}", reason=error) from error
    if config.image_size % config.patch_size:
        raise WeightsError(
            f"patch_size to divide image_size in {path}",
            f"{config.patch_size} and {config.image_size}",
        )
    least = {"patch": 1, "hybrid": 32}[config.stem]
    if config.patch_size % least or (config.stem != "patch" and config.image_size < 128):
        raise WeightsError(
            f"cells of a multiple of {least} pixels and windows of at least 128 in {path}",
            f"{config.patch_size} and {config.image_size}",
        )
    return config


def _tower(record: Mapping[str, Any], width: int, heads: int) -> TowerConfig:
    width = _size(record, "hidden_size", width)
    heads = _size(record, "num_attention_heads", heads)
    activation = record.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    eps = float(record.get("layer_norm_eps", 1e-5))
    if not 0 < eps < 1:
        raise ValueError(f"layer_norm_eps is {eps}")
    return TowerConfig(
        width=width,
        layers=_size(record, "num_hidden_layers", 12, most=MOST_LAYERS),
        heads=_dividing(heads, width),
        hidden=_size(record, "intermediate_size", 4 * width),
        activation=activation,
        layer_norm_eps=eps,
    )


def _dividing(heads: int, width: int) -> int:
    if width % heads:
        raise ValueError(f"width {width} is no multiple of {heads} heads")
    return heads


def _size(record: Mapping[str, Any], key: str, default: int, most: int = MOST_WIDTH) -> int:
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{key} is {value!r}, not a whole number from 1 to {most}")
    return value


OPEN_CLIP_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
OPEN_CLIP_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def read_open_clip_config(path: Path) -> ClipConfig:
    """Sizes from ``open_clip_config.json``; models of another build are refused."""
    try:
        record = json.loads(read_most(path, MAX_CONFIG_BYTES))
        record = record.get("model_cfg", record)
        vision, text = record["vision_cfg"], record["text_cfg"]
        strange = sorted((set(vision) - OPEN_CLIP_VISION) | (set(text) - OPEN_CLIP_TEXT))
        if strange:
            raise ValueError(f"{', '.join(strange)} ask for another architecture than ViT CLIP's")
        activation: Activation = "quick_gelu" if record.get("quick_gelu") else "gelu"

        def tower(sizes: Mapping[str, Any], heads: int) -> TowerConfig:
            width = _size(sizes, "width", 512)
            hidden = int(width * float(sizes.get("mlp_ratio", 4.0)))
            hidden = _size({"mlp_ratio": hidden}, "mlp_ratio", hidden)
            layers = _size(sizes, "layers", 12, most=MOST_LAYERS)
            return TowerConfig(width, layers, _dividing(heads, width), hidden, activation)

        return ClipConfig(
            vision=tower(vision, vision["width"] // _size(vision, "head_width", 64)),
            text=tower(text, _size(text, "heads", 8)),
            embed_dim=_size(record, "embed_dim", 512),
            image_size=_size(vision, "image_size", 224),
            patch_size=_size(vision, "patch_size", 32),
            vocab_size=_size(text, "vocab_size", 49408, most=2_000_000),
            context_length=_size(text, "context_length", 77),
        )
    except UNREADABLE as error:
        raise WeightsError(
            f"the configuration of an open_clip ViT at {path}", reason=error
        ) from error


def sizes_of(state: Mapping[str, Tensor], path: Path) -> ClipConfig:
    """Sizes of OpenAI's CLIP from its tensors alone, under our names.

    All of OpenAI's towers have heads of 64 channels and QuickGELU.
    """

    def tower(prefix: str, width: int) -> TowerConfig:
        blocks = {
            name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)
        }
        hidden = state[f"{prefix}0.mlp.c_fc.weight"].shape[0]
        if not hidden:
            raise ValueError("an MLP of no channels")
        if not width or width % 64:
            raise ValueError(f"a tower {width} wide, which heads of 64 do not divide")
        return TowerConfig(width, len(blocks), width // 64, hidden, "quick_gelu")

    try:
        patches, vocabulary = (
            state["visual.stem.conv1.weight"],
            state["text.token_embedding.weight"],
        )
        grid = max(0, state["visual.positional_embedding"].shape[0] - 1) ** 0.5
        if grid < 1 or grid % 1 or not patches.shape[-1]:
            raise ValueError("positions that are no square of patches")
        return ClipConfig(
            vision=tower("visual.transformer.resblocks.", patches.shape[0]),
            text=tower("text.transformer.resblocks.", vocabulary.shape[1]),
            embed_dim=state["text.text_projection"].shape[1],
            image_size=patches.shape[-1] * round(grid),
            patch_size=patches.shape[-1],
            vocab_size=vocabulary.shape[0],
            context_length=state["text.positional_embedding"].shape[0],
        )
    except UNREADABLE as error:
        raise WeightsError(
            f"the tensors of a ViT CLIP of OpenAI's in {path}", "others", reason=error
        ) from error


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

OPENAI = (
    (r"^visual\.conv1\.", "visual.stem.conv1."),
    (r"^(transformer|token_embedding|ln_final)\.", r"text.\1."),
    (r"^(positional_embedding|text_projection)$", r"text.\1"),
)
NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""What OpenAI's and open_clip's files may hold beside the weights."""


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of any known layout to ours."""
    if any(name.startswith("vision_model.") for name in state):
        return _from_hugging_face(state)
    if "token_embedding.weight" in state:
        renamed = {}
        for name, tensor in state.items():
            for pattern, replacement in OPENAI:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        return {name: tensor for name, tensor in renamed.items() if name not in NOT_WEIGHTS}
    return state


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's tensors and fuse q, k and v."""
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
                    f"q, k and v projections of shape {tuple(tensor.shape)} beside {name}",
                    "one that is missing or differs",
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
