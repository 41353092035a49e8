"""DCMPL as a whole: against the method written out plainly, and what must not happen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.errors import UsageError
from dcmpl.model.clip import as_tensors
from dcmpl.model.dcmpl import DCMPL, is_trainable, trainable_parameters
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.weights.backbones import Backbone

Build = Callable[..., DCMPL]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_CONTEXT = 4


@pytest.fixture
def model(build: Build) -> DCMPL:
    return build(n_context=N_CONTEXT)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def naive_task(
    model: DCMPL,
    images: Tensor,
    words: list[str],
    text_prompts: list[Tensor],
    visual_prompts: list[Tensor],
    adapter: Any,
    tokenizer: Tokenizer,
) -> Tensor:
    """One task by itself: the softmax weight of the first of two texts."""
    tokens = tokenizer(words, N_CONTEXT)
    text = model.clip.text(*as_tensors(tokens), text_prompts)
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    image = model.clip.visual(normalised, visual_prompts)
    refined = F.relu(F.relu(image @ adapter.down.weight.T) @ adapter.up.weight.T)
    image = 0.2 * refined + 0.8 * image
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    positive, negative = (model.clip.logit_scale.exp() * cosine).T.exp()
    score: Tensor = positive / (positive + negative)
    return score


def naive_scores(model: Any, images: Tensor, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Quality and alignment as the method says it, one pass after the other."""
    auxiliary, main = model.auxiliary, model.main
    text, visual = [auxiliary.text[0]], [auxiliary.visual[0]]
    for layer in range(2):
        old_text, old_visual = text[layer], visual[layer]
        text.append(auxiliary.attention[0].text(old_text, old_visual))
        visual.append(auxiliary.attention[0].visual(old_visual, old_text))
    fused = [
        torch.cat([own, guide], dim=-1) @ layer.weight.T + layer.bias
        for layer, own, guide in zip(model.fusion.layers, main.visual, visual, strict=True)
    ]
    quality = naive_task(
        model,
        images,
        ["good photo.", "bad photo."],
        list(main.text),
        fused,
        model.adapters.quality,
        tokenizer,
    )
    alignment = naive_task(
        model,
        images,
        ["aligned photo.", "misaligned photo."],
        text,
        visual,
        model.adapters.alignment,
        tokenizer,
    )
    return quality, alignment


def test_scores_equal_the_method_written_out(
    model: DCMPL, images: Tensor, random_backbone: Backbone
) -> None:
    scores = model(images)
    quality, alignment = naive_scores(model, images, random_backbone.tokenizer)
    assert quality.std() > 1e-3  # images differ, by far more than the tolerance
    assert alignment.std() > 1e-3
    # float32 sums in another order, behind a softmax of slope at most 1/4
    torch.testing.assert_close(scores.quality, quality, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.alignment, alignment, rtol=0, atol=1e-6)
    assert scores.tasks == ("quality", "alignment")
    assert torch.equal(scores.values, torch.stack([scores.quality, scores.alignment]))


def test_score_of_a_task_that_the_model_has_not_is_told(build: Build, images: Tensor) -> None:
    scores = build("dcmpl-no-aux")(images)
    assert torch.equal(scores["quality"], scores.values[0])
    with pytest.raises(UsageError, match=r"expected one of .* \(quality\), got alignment"):
        _ = scores.alignment


@pytest.mark.parametrize("count", [1, 4])
def test_there_is_one_score_per_image_and_task(model: DCMPL, images: Tensor, count: int) -> None:
    scores = model(images[:count])
    assert scores.quality.shape == scores.alignment.shape == (count,)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scores_of_extreme_images_lie_in_0_to_1(model: DCMPL, value: float) -> None:
    scores = model(torch.full((1, 3, 32, 32), value))
    for score in (scores.quality, scores.alignment):
        assert 0 <= score.item() <= 1


@pytest.mark.parametrize("preset", ["dcmpl", "coop", "linear-probe"])
def test_a_given_condition_and_frozen_part_change_nothing(
    build: Build, images: Tensor, preset: str
) -> None:
    model = build(preset)
    computed = model(images).values
    assert torch.equal(model(images, model.condition()).values, computed)
    assert torch.equal(model(model.frozen(images), frozen=True).values, computed)


def test_the_order_of_the_batch_does_not_matter(model: DCMPL, images: Tensor) -> None:
    order = [2, 0, 3, 1]
    shuffled, plain = model(images[order]), model(images)
    # float32 sums may be blocked by another row of the batch
    torch.testing.assert_close(shuffled.values, plain.values[:, order], rtol=0, atol=1e-6)


def test_text_vectors_are_unit_vectors(model: DCMPL) -> None:
    norms = torch.stack(model.condition().words).norm(dim=-1)
    # float32 rounding
    torch.testing.assert_close(norms, torch.ones(2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalization", ["imagenet", "clip"])
def test_images_are_normalised_as_configured(
    build: Build, images: Tensor, normalization: str
) -> None:
    mean, std = {
        "imagenet": (MEAN, STD),
        "clip": (
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    }[normalization]
    normalised = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for preset in ("dcmpl", "coop"):  # with and without learned visual prompts
        model = build(preset, normalization=normalization)
        expected = model.clip.visual.embed(normalised)
        if preset == "coop":
            expected = model.clip.visual.encode(expected)
        assert torch.equal(model.frozen(images), expected)


def test_without_anything_learned_the_towers_are_plain_clip_bit_for_bit(
    build: Build, images: Tensor, random_backbone: Backbone
) -> None:
    clip, pair = random_backbone.clip, (("good photo", "bad photo"),)
    model = build("clip-iqa", words={"quality": pair})
    tokens = random_backbone.tokenizer(["good photo.", "bad photo."])
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    text, image = (
        clip.text(*as_tensors(tokens)),
        clip.visual(normalised),
    )
    assert torch.equal(model.frozen(images), image)
    assert torch.equal(model.condition().words[0], F.normalize(text, dim=-1))
    cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    expected = (clip.logit_scale.exp() * cosine).softmax(dim=-1)[:, 0]
    assert torch.equal(model(images).quality, expected)


def test_same_seed_same_weights(build: Build) -> None:
    first = trainable_parameters(build(seed=3, fresh=True))
    torch.rand(1)  # what else is drawn between must not matter
    second = trainable_parameters(build(seed=3, fresh=True))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(build: Build) -> None:
    first = trainable_parameters(build(seed=3, fresh=True))
    second = trainable_parameters(build(seed=4, fresh=True))
    equal = {name for name in first if torch.equal(first[name], second[name])}
    constant = {name for name in first if first[name].unique().numel() == 1}
    assert equal == constant  # layer norms and biases that start at one or zero
    assert {name.split(".")[1] for name in equal} == {"attention"}


def test_gradients_reach_every_learned_tensor_and_no_other(model: DCMPL, images: Tensor) -> None:
    model(images).values.sum().backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.any().item()
        assert reached == is_trainable(name), name


def test_quality_alone_trains_the_auxiliary_prompts(model: DCMPL, images: Tensor) -> None:
    model(images).quality.sum().backward()
    assert model.auxiliary is not None
    for name, parameter in model.auxiliary.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_alignment_alone_trains_nothing_of_quality(model: DCMPL, images: Tensor) -> None:
    model(images).alignment.sum().backward()
    reached = {
        ".".join(name.split(".")[:2])
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    auxiliary = {"auxiliary.attention", "auxiliary.text", "auxiliary.visual"}
    assert reached == {*auxiliary, "adapters.alignment"}


def remembered(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module; tensors, lists and dictionaries by identity."""
    return {
        name: {key: id(value) for key, value in vars(module).items()}
        | {f"_buffers.{key}": id(value) for key, value in module._buffers.items()}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("preset", ["dcmpl", "maple", "linear-probe"])
def test_a_forward_leaves_nothing_behind_in_any_module(
    build: Build, images: Tensor, preset: str
) -> None:
    model = build(preset)
    attributes = remembered(model)
    tensors = {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    model(images)
    assert remembered(model) == attributes
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)


def test_exactly_these_parts_are_learned(model: DCMPL) -> None:
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in learned} == {
        "adapters.alignment",
        "adapters.quality",
        "auxiliary.attention",
        "auxiliary.text",
        "auxiliary.visual",
        "fusion.layers",
        "main.text",
        "main.visual",
    }
    assert learned == trainable_parameters(model).keys()


def test_nothing_of_clip_requires_gradients(model: DCMPL) -> None:
    frozen = [p.requires_grad for name, p in model.named_parameters() if name.startswith("clip.")]
    assert len(frozen) > 72  # 6 blocks of 12 tensors, and the rest
    assert not any(frozen)


def test_scores_under_autocast_are_the_float32_function_of_the_embedding(
    model: DCMPL, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The towers may run in bfloat16; what follows them keeps all its digits."""
    embedding = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    for adapter in model.adapters.values():
        monkeypatch.setattr(adapter, "forward", lambda x, *_: x)
    condition = model.condition()
    monkeypatch.setattr(model.clip.visual, "encode", lambda *_: embedding)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.score(torch.zeros(4, 1, 64), condition)
    for task, own in enumerate((embedding[:4], embedding[4:])):
        cosine = F.normalize(own.float(), dim=-1) @ condition.words[task].T
        wanted = (model.clip.logit_scale.exp() * cosine).softmax(dim=-1)[:, 0]
        assert found.values.dtype == torch.float32
        torch.testing.assert_close(found.values[task], wanted, atol=1e-6, rtol=0)
