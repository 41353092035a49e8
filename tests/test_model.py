"""DCMPL as a whole: against the method written out plainly, and what must not happen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.clip import Clip, ClipConfig, TowerConfig
from dcmpl.config import EMBEDDED, ModelConfig
from dcmpl.model import DCMPL, is_trainable, trainable_parameters
from dcmpl.tokenizer import Tokenizer
from dcmpl.weights import Backbone, load_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_CONTEXT = 4


@pytest.fixture(scope="module")
def backbone(small_backbone: Path, randomise: Callable[[nn.Module, int], None]) -> Backbone:
    """The small backbone with nothing left at one or zero."""
    backbone = load_backbone(str(small_backbone))
    randomise(backbone.clip, 6)
    return backbone


def build(backbone: Backbone, seed: int = 0, **options: Any) -> DCMPL:
    config = ModelConfig(**{"n_context": N_CONTEXT, **options})
    return DCMPL(backbone.clip, backbone.tokenizer, config, seed)


@pytest.fixture
def model(backbone: Backbone, randomise: Callable[[nn.Module, int], None]) -> DCMPL:
    """A model far from its start, where small mistakes would show."""
    model = build(backbone)
    for seed, (name, module) in enumerate(model.named_children()):
        if name != "clip":
            randomise(module, seed)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def vit_b_32() -> DCMPL:
    """The paper's sizes; the frozen part without memory behind it."""
    sizes = ClipConfig(
        vision=TowerConfig(768, 12, 12, 3072, "quick_gelu"),
        text=TowerConfig(512, 12, 8, 2048, "quick_gelu"),
        embed_dim=512,
        image_size=224,
        patch_size=32,
        vocab_size=49408,
        context_length=77,
    )
    with torch.device("meta"):
        clip = Clip(sizes)
    return DCMPL(clip, Tokenizer(EMBEDDED["tiny"] / "tokenizer.json", 77), ModelConfig(), 0)


def naive_task(
    model: DCMPL,
    images: Tensor,
    words: list[str],
    text_prompts: list[Tensor],
    visual_prompts: list[Tensor],
    adapter: nn.Module,
    tokenizer: Tokenizer,
) -> Tensor:
    """One task by itself: the softmax weight of the first of two texts."""
    tokens = tokenizer(words, N_CONTEXT)
    text = model.clip.text(tokens.ids, tokens.end, text_prompts)
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    image = model.clip.visual(normalised, visual_prompts)
    refined = F.relu(F.relu(image @ adapter.down.weight.T) @ adapter.up.weight.T)
    image = 0.2 * refined + 0.8 * image
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    positive, negative = (model.clip.logit_scale.exp() * cosine).T.exp()
    return positive / (positive + negative)


def naive_scores(model: DCMPL, images: Tensor, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Quality and alignment as the method says it, one pass after the other."""
    auxiliary, main = model.alignment_prompts, model.quality_prompts
    text, visual = [auxiliary.text[0]], [auxiliary.visual[0]]
    for layer in range(2):
        old_text, old_visual = text[layer], visual[layer]
        text.append(auxiliary.attention.text(old_text, old_visual))
        visual.append(auxiliary.attention.visual(old_visual, old_text))
    fused = [
        torch.cat([own, guide], dim=-1) @ layer.weight.T + layer.bias
        for layer, own, guide in zip(main.fusion.layers, main.visual, visual, strict=True)
    ]
    quality = naive_task(
        model,
        images,
        ["good photo.", "bad photo."],
        list(main.text),
        fused,
        model.quality_adapter,
        tokenizer,
    )
    alignment = naive_task(
        model,
        images,
        ["aligned photo.", "misaligned photo."],
        text,
        visual,
        model.alignment_adapter,
        tokenizer,
    )
    return quality, alignment


def test_scores_equal_the_method_written_out(
    model: DCMPL, images: Tensor, backbone: Backbone
) -> None:
    scores = model(images)
    quality, alignment = naive_scores(model, images, backbone.tokenizer)
    assert quality.std() > 1e-3  # pictures differ, by far more than the tolerance
    assert alignment.std() > 1e-3
    # float32 sums in another order, behind a softmax of slope at most 1/4
    torch.testing.assert_close(scores.quality, quality, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.alignment, alignment, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_there_is_one_score_per_picture_and_task(model: DCMPL, images: Tensor, count: int) -> None:
    scores = model(images[:count])
    assert scores.quality.shape == scores.alignment.shape == (count,)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scores_of_extreme_pictures_lie_in_0_to_1(model: DCMPL, value: float) -> None:
    scores = model(torch.full((1, 3, 32, 32), value))
    for score in (scores.quality, scores.alignment):
        assert 0 <= score.item() <= 1


def test_a_given_condition_changes_nothing(model: DCMPL, images: Tensor) -> None:
    given, computed = model(images, model.condition()), model(images)
    assert torch.equal(given.quality, computed.quality)
    assert torch.equal(given.alignment, computed.alignment)


def test_the_order_of_the_batch_does_not_matter(model: DCMPL, images: Tensor) -> None:
    order = [2, 0, 3, 1]
    shuffled, plain = model(images[order]), model(images)
    # float32 sums may be blocked by another row of the batch
    torch.testing.assert_close(shuffled.quality, plain.quality[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled.alignment, plain.alignment[order], rtol=0, atol=1e-6)


def test_a_picture_scores_the_same_alone(model: DCMPL, images: Tensor) -> None:
    # float32 sums of another batch size
    torch.testing.assert_close(
        model(images[:1]).quality, model(images).quality[:1], rtol=0, atol=1e-6
    )


def test_text_features_are_unit_vectors(model: DCMPL) -> None:
    norms = model.condition().text_features.norm(dim=-1)
    # float32 rounding
    torch.testing.assert_close(norms, torch.ones(2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalization", ["imagenet", "clip"])
def test_pictures_are_normalised_as_configured(
    backbone: Backbone, images: Tensor, normalization: str
) -> None:
    model = build(backbone, normalization=normalization)
    mean, std = {
        "imagenet": (MEAN, STD),
        "clip": (
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    }[normalization]
    normalised = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(model.embed(images), backbone.clip.visual.embed(normalised))


def test_same_seed_same_weights(backbone: Backbone) -> None:
    first = trainable_parameters(build(backbone, seed=3))
    torch.rand(1)  # what else is drawn between must not matter
    second = trainable_parameters(build(backbone, seed=3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(backbone: Backbone) -> None:
    first = trainable_parameters(build(backbone, seed=3))
    second = trainable_parameters(build(backbone, seed=4))
    equal = {name for name in first if torch.equal(first[name], second[name])}
    constant = {name for name in first if first[name].unique().numel() == 1}
    assert equal == constant  # layer norms and biases that start at one or zero
    assert not any(name.split(".")[1] in ("text", "visual", "fusion") for name in equal)


def test_construction_leaves_the_global_generator_alone(backbone: Backbone) -> None:
    before = torch.get_rng_state()
    build(backbone, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_every_learned_tensor_and_no_other(model: DCMPL, images: Tensor) -> None:
    scores = model(images)
    (scores.quality.sum() + scores.alignment.sum()).backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.any().item()
        assert reached == is_trainable(name), name
    model.zero_grad(set_to_none=True)


def test_quality_alone_trains_the_auxiliary_prompts(model: DCMPL, images: Tensor) -> None:
    model(images).quality.sum().backward()
    for name, parameter in model.alignment_prompts.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_alignment_alone_trains_nothing_of_quality(model: DCMPL, images: Tensor) -> None:
    model(images).alignment.sum().backward()
    reached = {
        name.split("_")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert reached == {"alignment"}


def remembered(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module; tensors, lists and dictionaries by identity."""
    return {
        name: {key: id(value) for key, value in vars(module).items()}
        | {f"_buffers.{key}": id(value) for key, value in module._buffers.items()}
        for name, module in model.named_modules()
    }


def test_a_forward_leaves_nothing_behind_in_any_module(model: DCMPL, images: Tensor) -> None:
    attributes = remembered(model)
    tensors = {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    model(images)
    assert remembered(model) == attributes
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)


def test_vit_b_32_has_25588224_learned_parameters(vit_b_32: DCMPL) -> None:
    learned = [p.numel() for p in vit_b_32.parameters() if p.requires_grad]
    assert sum(learned) == 25_588_224


def test_exactly_these_parts_are_learned(vit_b_32: DCMPL) -> None:
    learned = {name for name, p in vit_b_32.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in learned} == {
        "alignment_adapter.down",
        "alignment_adapter.up",
        "alignment_prompts.attention",
        "alignment_prompts.text",
        "alignment_prompts.visual",
        "quality_adapter.down",
        "quality_adapter.up",
        "quality_prompts.fusion",
        "quality_prompts.text",
        "quality_prompts.visual",
    }
    assert learned == trainable_parameters(vit_b_32).keys()


def test_nothing_of_clip_requires_gradients(vit_b_32: DCMPL) -> None:
    frozen = [
        p.requires_grad for name, p in vit_b_32.named_parameters() if name.startswith("clip.")
    ]
    assert len(frozen) > 300  # 24 blocks of 12 tensors, and the rest
    assert not any(frozen)


def test_scores_under_autocast_are_the_float32_function_of_the_embedding(
    model: DCMPL, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The towers may run in bfloat16; what follows them keeps all its digits."""
    embedding = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    for adapter in (model.quality_adapter, model.alignment_adapter):
        monkeypatch.setattr(adapter, "forward", lambda x: x)
    condition = model.condition()
    monkeypatch.setattr(model.clip.visual, "encode", lambda *_: embedding)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.score_tokens(torch.zeros(4, 1, 64), condition)
    cosine = F.normalize(embedding[:4].float(), dim=-1) @ condition.text_features[0].T
    wanted = (model.clip.logit_scale.exp() * cosine).softmax(dim=-1)[:, 0]
    assert found.quality.dtype == torch.float32
    torch.testing.assert_close(found.quality, wanted, atol=1e-6, rtol=0)
