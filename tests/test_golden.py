"""Against the numbers of two reference implementations; ``golden/README.md`` explains them."""

import json
import math
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmpl.attention import prompt_attention
from dcmpl.clip import Clip, ClipConfig, TowerConfig
from dcmpl.config import ModelConfig, MpaConfig
from dcmpl.model import DCMPL, Scores, trainable_parameters
from dcmpl.presets import PRESETS
from dcmpl.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"

VIT_B_32 = ClipConfig(
    vision=TowerConfig(768, 12, 12, 3072, "quick_gelu"),
    text=TowerConfig(512, 12, 8, 2048, "quick_gelu"),
    embed_dim=512,
    image_size=224,
    patch_size=32,
    vocab_size=49408,
    context_length=77,
)

IDS = {
    "good": 886,
    "bad": 2103,
    "photo": 1125,
    ".": 269,
    "mis": 866,
    "aligned": 29292,
    "<|startoftext|>": 49406,
    "<|endoftext|>": 49407,
}
"""What CLIP's vocabulary has of the words in the references' texts."""

CLIP_AGIQA, IVLP = PRESETS["clip-agiqa"].model, PRESETS["ivlp"].model
CASES: dict[str, ModelConfig] = {
    "full": replace(CLIP_AGIQA, round_prompts=True),
    "full_unrounded": CLIP_AGIQA,
    "no_aux": IVLP,
    "text_only": replace(IVLP, vision_depth=0),
    "vision_only": replace(IVLP, text_depth=1),  # the reference always learns its first text prompt
}

SCORES, EMBEDDINGS, GRADIENTS = 1e-5, 1e-4, 1e-4
"""Bounds. Ours measured: 4e-7, 5e-6, 3e-5; what is left is float32 sums in another order."""


def golden_numbers(file: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as numbers:
        return {name: torch.from_numpy(numbers[name]) for name in numbers.files}


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([1, zlib.crc32(name.encode())])).standard_normal(shape)


def half(values: np.ndarray) -> np.ndarray:
    """Rounded once; torch would round to float32 on the way to float16."""
    return values.astype(np.float16).astype(np.float32)


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that a reference calls ``name``, by the rules of the README."""
    if name == "logit_scale":
        return torch.tensor(3.0)
    if "ln_" in name:
        ends = half(noise(name, shape) * 0.05) + float(name.endswith(".weight"))
        return torch.from_numpy(half(ends))
    if name.endswith("bias") or "embedding" in name:
        std = 0.02
    elif re.search(r"(ctx|prompts_(text|vis)\.\d+|^(visual|text)_prompt)$", name):
        std = 0.05
    elif name in ("text_projection", "visual.proj"):
        std = shape[0] ** -0.5
    else:
        std = math.prod(shape[1:]) ** -0.5
    return torch.from_numpy(half(noise(name, shape) * std))


def fill(module: nn.Module, names: dict[str, str]) -> None:
    """Draw every tensor of ``module`` under the name that ``names`` has for it."""
    shapes = {ours: tuple(tensor.shape) for ours, tensor in module.state_dict().items()}
    state = {ours: draw(names[ours], shape) for ours, shape in shapes.items()}
    module.load_state_dict(state, assign=True)


def in_openai(name: str) -> str:
    """OpenAI's name of a tensor of our :class:`Clip`."""
    return name.removeprefix("text.").replace("visual.stem.", "visual.")


def in_clip_agiqa(name: str) -> str:
    """CLIP-AGIQA's name of a learned tensor of ours: what is first in a list is by itself."""
    part, kind, index, *rest = name.split(".")
    learner = f"prompt_learner_{'aux' if part == 'auxiliary' else 'tar'}"
    if kind == "visual":
        return f"{learner}.prompts_vis.{index}"
    first, others = {
        "text": ("ctx", "prompts_text"),
        "layers": ("proj", "compound_prompt_projections"),
    }[kind]
    own = first if index == "0" else f"{others}.{int(index) - 1}"
    return ".".join([learner, own, *rest])


@pytest.fixture(scope="module")
def clip() -> Clip:
    with torch.device("meta"):
        clip = Clip(VIT_B_32)
    fill(clip, {name: in_openai(name) for name in clip.state_dict()})
    return clip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """CLIP's ids for the few words that are needed, found from the longest piece on."""
    pieces = {
        "type": "WordPiece",
        "unk_token": ".",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 100,
        "vocab": IDS,
    }
    path = tmp_path_factory.mktemp("golden") / "tokenizer.json"
    path.write_text(json.dumps({"pre_tokenizer": {"type": "Whitespace"}, "model": pieces}))
    return Tokenizer(path, VIT_B_32.context_length)


@dataclass(frozen=True)
class Found:
    """What a case of ours gives, under the names of the golden numbers."""

    scores: Scores
    embeddings: dict[str, Tensor]
    loss: Tensor
    gradients: dict[str, float]


def run(model: DCMPL) -> Found:
    targets = {"quality": torch.linspace(0.1, 0.9, 4), "alignment": torch.linspace(0.8, 0.2, 4)}
    names = [f"{branch}_{kind}_embedding" for kind in ("text", "image") for branch in ("main", "aux")]
    texts: list[Tensor] = []  # as the tower gives them: a condition has unit vectors
    hook = model.clip.text.register_forward_hook(lambda *call: texts.append(call[-1].detach()))
    frozen, condition = model.frozen(torch.from_numpy(noise("images", (4, 3, 224, 224))).float()), model.condition()
    hook.remove()
    scores = model.score(frozen, condition)
    weights = {"quality": 1.0, "alignment": 0.1}
    loss = sum(weights[task] * (scores[task] - targets[task]).square().mean() for task in scores.tasks)
    loss.backward()
    with torch.no_grad():
        images = model.image_embeddings(frozen, condition)
    tasks = len(scores.tasks)
    embeddings = dict(zip([*names[:tasks], *names[2 : 2 + tasks]], [*texts, *images], strict=True))
    gradients = {
        in_clip_agiqa(name): parameter.grad.norm().item()
        for name, parameter in trainable_parameters(model).items()
        if parameter.grad is not None
    }
    return Found(scores, embeddings, loss.detach(), gradients)


@pytest.fixture(scope="module")
def found(clip: Clip, tokenizer: Tokenizer) -> dict[str, Found]:
    """All cases, one after the other on the same towers."""
    results = {}
    for case, config in CASES.items():
        model = DCMPL(clip, tokenizer, config, seed=0)
        for name, part in model.named_children():
            if name != "clip":
                fill(part, {n: in_clip_agiqa(f"{name}.{n}") for n in part.state_dict()})
        model.mean.zero_()  # the references were given their pictures as they are
        model.std.fill_(1)
        results[case] = run(model)
    return results
