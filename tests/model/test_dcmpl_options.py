"""Every option of a model does what its name says; prompt attention and fusion stand apart.

Normalization is in the tests of the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcmpl.config import AdapterConfig, FusionConfig
from dcmpl.errors import UsageError
from dcmpl.model.clip import as_tensors
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.weights.backbones import Backbone
from naive import (
    close,
    image_embedding,
    image_embeddings,
    leave_gradients,
    linear,
    score,
    text_embeddings,
)

Build = Callable[..., DCMPL]
LAYERS = 3
GOOD, SHARP = ("good photo", "bad photo"), ("sharp photo", "blurry photo")
ALIGNED = ("aligned photo", "misaligned photo")
NO_ADAPTER, NO_FUSION = AdapterConfig(where="none"), FusionConfig(on=False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def by_hand(random_backbone: Backbone, images: Tensor) -> Callable[..., Tensor]:
    """Scores of the images with one pair of words and given prompts, written out plainly."""

    def task(
        model: DCMPL, words: Sequence[str], text: Sequence[Tensor], visual: Sequence[Tensor]
    ) -> Tensor:
        vectors = text_embeddings(model, random_backbone.tokenizer, words, text)
        return score(model, image_embedding(model, images, visual), vectors)

    return task


def adapter(**options: Any) -> AdapterConfig:
    return AdapterConfig(**options)


def adapted(module: Any, x: Tensor, ratio: float, final_relu: bool = True) -> Tensor:
    """What an adapter makes of embeddings, written out plainly."""
    refined = (x @ module.down.weight.T).relu() @ module.up.weight.T
    mixed: Tensor = ratio * (refined.relu() if final_relu else refined) + (1 - ratio) * x
    return mixed


def embeddings(model: DCMPL, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of both tasks: those the model reads scores from, and those behind the image tower."""
    condition = model.condition()
    raw = [image_embedding(model, images, visual) for visual in condition.visual]
    return image_embeddings(model, model.frozen(images), condition), raw


@pytest.mark.parametrize(
    ("where", "tasks"),
    [
        ("both", ["quality", "alignment"]),
        ("main", ["quality"]),
        ("aux", ["alignment"]),
        ("none", []),
    ],
)
def test_adapter_where_names_the_tasks_that_have_one(
    build: Build, images: Tensor, where: str, tasks: list[str]
) -> None:
    model = build(adapter=adapter(where=where))
    assert list(model.adapters) == tasks
    found, raw = embeddings(model, images)
    for index, task in enumerate(("quality", "alignment")):
        plain = raw[index]
        expected = adapted(model.adapters[task], plain, 0.2) if task in tasks else plain
        close(found[index], expected)
        assert (expected - plain).abs().max() > 1e-2 or task not in tasks


def test_adapter_shared_is_one_for_both_tasks(build: Build, images: Tensor) -> None:
    model = build(adapter=adapter(shared=True))
    (one,) = model.adapters.values()
    for found, plain in zip(*embeddings(model, images), strict=True):
        close(found, adapted(one, plain, 0.2))
    names = {name for name in trainable_parameters(model) if name.startswith("adapters")}
    assert len(names) == 2
    for task in range(2):
        assert names <= leave_gradients(model, model(images).values[task])


@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
def test_adapter_ratio_is_its_share_of_the_embedding(
    build: Build, images: Tensor, ratio: float
) -> None:
    model = build(adapter=adapter(ratio=ratio))
    for task, found, plain in zip(model.config.tasks, *embeddings(model, images), strict=True):
        close(found, adapted(model.adapters[task], plain, ratio))
    if ratio == 0:  # bit for bit as without any
        bare = build(adapter=NO_ADAPTER)
        assert torch.equal(model(images).values, bare(images).values)


def test_adapter_learnable_ratio_is_learned_and_kept_in_0_to_1(
    build: Build, images: Tensor
) -> None:
    model: Any = build(adapter=adapter(learnable_ratio=True))
    ratios = [model.adapters.quality.ratio, model.adapters.alignment.ratio]

    def scores_at(value: float) -> Tensor:
        with torch.no_grad():
            for ratio in ratios:
                ratio.fill_(value)
        values: Tensor = model(images).values
        return values

    reached = leave_gradients(model, scores_at(0.2))
    assert {"adapters.quality.ratio", "adapters.alignment.ratio"} <= reached
    for task, found, plain in zip(model.config.tasks, *embeddings(model, images), strict=True):
        close(found, adapted(model.adapters[task], plain, 0.2))
    assert torch.equal(scores_at(7.0), scores_at(1.0))
    assert torch.equal(scores_at(-7.0), scores_at(0.0))
    assert not torch.equal(scores_at(1.0), scores_at(0.0))


@pytest.mark.parametrize(("reduction", "hidden"), [(1, 24), (4, 6), (5, 4), (4096, 1)])
def test_adapter_reduction_divides_the_joint_width(
    build: Build, reduction: int, hidden: int
) -> None:
    model: Any = build("clip-adapter", adapter=adapter(where="main", reduction=reduction))
    assert model.adapters.quality.down.weight.shape == (hidden, 24)


def test_adapter_final_relu_may_be_left_out(build: Build, images: Tensor) -> None:
    model = build(adapter=adapter(final_relu=False, ratio=1.0))
    for task, found, plain in zip(model.config.tasks, *embeddings(model, images), strict=True):
        close(found, adapted(model.adapters[task], plain, 1.0, final_relu=False))
        assert found.min() < 0


@pytest.mark.parametrize("count", [1, 3, 20])
def test_n_context_is_the_number_of_slots(
    build: Build, images: Tensor, by_hand: Callable[..., Tensor], count: int
) -> None:
    model = build(n_context=count, adapter=NO_ADAPTER)
    main, auxiliary = model.prompts()
    every = [*main.text, *main.visual, *auxiliary.text, *auxiliary.visual]
    assert {len(prompt) for prompt in every} == {count}
    close(model(images).quality, by_hand(model, GOOD, main.text, main.visual))
    close(model(images).alignment, by_hand(model, ALIGNED, auxiliary.text, auxiliary.visual))


def test_n_context_that_leaves_no_room_for_a_text_is_told(build: Build) -> None:
    with pytest.raises(UsageError, match="at most 38 prompt tokens, got 39"):
        build(n_context=39)
    assert build("vpt-deep", n_context=39).prompts()[0].visual[0].shape == (39, 64)


@pytest.mark.parametrize("depth", [0, 1, 2, None, 99])
@pytest.mark.parametrize("side", ["text", "vision"])
def test_depth_of_free_prompts_leaves_later_slots_to_the_blocks(
    build: Build, images: Tensor, by_hand: Callable[..., Tensor], side: str, depth: int | None
) -> None:
    model = build("ivlp", **{f"{side}_depth": depth})
    (prompts,) = model.prompts()
    layers = {"text": LAYERS, "vision": LAYERS, side: LAYERS if depth in (None, 99) else depth}
    assert [len(prompts.text), len(prompts.visual)] == [layers["text"], layers["vision"]]
    close(model(images).quality, by_hand(model, GOOD, prompts.text, prompts.visual))


@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa"])
@pytest.mark.parametrize(
    ("options", "main_depths"),
    [
        ({"text_depth": 0}, (0, 3)),
        ({"vision_depth": 1}, (3, 1)),
        ({"vision_depth": 0, "fusion": NO_FUSION}, (3, 0)),
    ],
)
def test_depths_of_free_prompts_concern_the_free_ones_of_both_branches(
    build: Build,
    images: Tensor,
    by_hand: Callable[..., Tensor],
    preset: str,
    options: dict[str, Any],
    main_depths: tuple[int, int],
) -> None:
    model = build(preset, adapter=NO_ADAPTER, **options)
    main, auxiliary = model.prompts()
    assert (len(main.text), len(main.visual)) == main_depths
    # what prompt attention makes goes on in all layers
    expected = (LAYERS, LAYERS) if preset == "dcmpl" else main_depths
    assert (len(auxiliary.text), len(auxiliary.visual)) == expected
    close(model(images).quality, by_hand(model, GOOD, main.text, main.visual))
    close(model(images).alignment, by_hand(model, ALIGNED, auxiliary.text, auxiliary.visual))


def test_text_depth_zero_leaves_the_text_without_slots(
    build: Build, random_backbone: Backbone
) -> None:
    model: Any = build("vpt-deep")
    plain = random_backbone.tokenizer([f"{word}." for word in GOOD])
    assert torch.equal(model.quality_ids, torch.from_numpy(plain.ids))
    clip = random_backbone.clip
    expected = F.normalize(clip.text(*as_tensors(plain)), dim=-1)
    assert torch.equal(model.condition().words[0], expected)
    shallow: Any = build("vpt-deep", text_depth=1)
    assert shallow.quality_ids.shape[1] == plain.ids.shape[1] + 8


@pytest.mark.parametrize("preset", ["ivlp", "clip-agiqa", "dcmpl"])
def test_vision_source_text_makes_visual_prompts_of_the_text_prompts(
    build: Build, images: Tensor, preset: str
) -> None:
    model: Any = build(preset, vision_source="text", fusion=NO_FUSION)
    main = model.prompts()[0]
    assert len(main.visual) == LAYERS
    for own, made, layer in zip(main.text, main.visual, model.main.from_text, strict=True):
        close(made, linear(layer, own))
    assert not any(name.startswith("main.visual") for name in trainable_parameters(model))
    reached = leave_gradients(model, model._encoded(model.frozen(images), [main.visual])[0])
    assert {f"main.text.{layer}" for layer in range(LAYERS)} <= reached


def test_round_prompts_rounds_all_but_the_first_text_prompt(build: Build, images: Tensor) -> None:
    def rounded(prompt: Tensor) -> Tensor:
        return torch.from_numpy(prompt.detach().numpy().astype(np.float16).astype(np.float32))

    model: Any = build("clip-agiqa", round_prompts=True)
    condition, tasks = model.condition(), ("quality", "alignment")
    for task, prompts, visual, words in zip(
        tasks, model.prompts(), condition.visual, condition.words, strict=True
    ):
        for layer, own in zip(visual, prompts.visual, strict=True):
            assert torch.equal(layer, rounded(own))
            assert not torch.equal(layer, own)
        first, *deep = prompts.text
        for start, same in ((first, True), (rounded(first), False)):
            given = [start, *map(rounded, deep)]
            ids, end = getattr(model, f"{task}_ids"), getattr(model, f"{task}_end")
            expected = F.normalize(model.clip.text(ids, end, given), dim=-1)
            assert torch.equal(words, expected) == same
    reached = leave_gradients(model, model(images).values)
    assert reached == trainable_parameters(model).keys()  # rounding stops no gradient


def test_readout_linear_is_a_clamped_linear_map_of_the_frozen_embedding(
    build: Build, images: Tensor
) -> None:
    model: Any = build("linear-probe")
    assert trainable_parameters(model).keys() == {"linear.weight", "linear.bias"}
    embedding = image_embedding(model, images, [])
    with torch.no_grad():
        model.linear.bias += 0.5
    close(model(images).values, linear(model.linear, embedding).T.clamp(0, 1))
    with torch.no_grad():
        model.linear.bias.copy_(torch.tensor([99.0, -99.0]))
    assert torch.equal(model(images).values, torch.tensor([[1.0] * 3, [0.0] * 3]))
    fresh = build("linear-probe", fresh=True)
    assert not any(parameter.any() for parameter in trainable_parameters(fresh).values())


@pytest.mark.parametrize("preset", ["dcmpl", "ivlp", "clip-iqa"])
def test_words_of_several_pairs_give_the_mean_of_their_scores(
    build: Build, images: Tensor, preset: str
) -> None:
    others = {"alignment": (ALIGNED,)} if preset == "dcmpl" else {}

    def quality(*pairs: tuple[str, str]) -> Tensor:
        scores: Tensor = build(preset, words={"quality": pairs, **others})(images).quality
        return scores

    good, sharp = quality(GOOD), quality(SHARP)
    assert (good - sharp).abs().min() > 1e-4
    close(quality(GOOD, SHARP), (good + sharp) / 2)
    close(quality(GOOD[::-1]), 1 - good)  # the positive word stands first


def test_words_have_the_main_task_first(
    build: Build, images: Tensor, by_hand: Callable[..., Tensor]
) -> None:
    words = {"alignment": (ALIGNED,), "quality": (GOOD,)}
    model = build(words=words, adapter=NO_ADAPTER)
    main, auxiliary = model.prompts()
    found = model(images)
    assert found.tasks == ("alignment", "quality")
    close(found.alignment, by_hand(model, ALIGNED, main.text, main.visual))
    close(found.quality, by_hand(model, GOOD, auxiliary.text, auxiliary.visual))


def test_words_of_one_task_make_a_model_of_that_task(build: Build, images: Tensor) -> None:
    found = build("ivlp", words={"alignment": (ALIGNED,)})(images)
    assert found.tasks == ("alignment",)
    assert found.values.shape == (1, 3)
    with pytest.raises(UsageError, match=r"this model's tasks \(alignment\), got quality"):
        _ = found.quality
