"""The published variants: what each is, how much it learns, and what holds for all."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TOKENIZER
from dcmpl.config import AdapterConfig, FusionConfig, ModelConfig, MpaConfig
from dcmpl.model.clip import VIT_B_32, Clip, ClipConfig, TowerConfig
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.model.prompt_reader import Texts
from dcmpl.model.tokenizer import Tokenizer, Tokens
from dcmpl.presets import PRESETS, differences
from naive import leave_gradients

Build = Callable[..., DCMPL]
ALL = list(PRESETS)
DCMPL_MODEL, CLIP_AGIQA = PRESETS["dcmpl"].model, PRESETS["clip-agiqa"].model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def test_every_preset_says_what_it_is_and_where_it_comes_from() -> None:
    assert len({preset.about for preset in PRESETS.values()}) == len(PRESETS)
    assert all(preset.paper for preset in PRESETS.values())
    configurations = [preset.model for preset in PRESETS.values()]
    assert not any(a == b for i, a in enumerate(configurations) for b in configurations[:i])


def test_the_default_configuration_is_dcmpl() -> None:
    assert ModelConfig() == DCMPL_MODEL


def test_dcmpl_without_attention_and_adapters_is_clip_agiqa() -> None:
    stripped = replace(DCMPL_MODEL, mpa=MpaConfig("none"), adapter=AdapterConfig("none"))
    assert stripped == CLIP_AGIQA


def test_clip_agiqa_without_fusion_and_with_quality_alone_is_ivlp() -> None:
    quality = {"quality": CLIP_AGIQA.words["quality"]}
    stripped = replace(CLIP_AGIQA, words=quality, fusion=FusionConfig(on=False))
    assert stripped == PRESETS["ivlp"].model


def test_dcmpl_of_quality_alone_is_ivlp_with_an_adapter() -> None:
    stripped = replace(PRESETS["dcmpl-no-aux"].model, adapter=AdapterConfig("none"))
    assert stripped == PRESETS["ivlp"].model


@pytest.mark.parametrize(
    ("preset", "base", "found"),
    [
        ("dcmpl", "dcmpl", {}),
        ("dcmpl-no-mpa", "dcmpl", {"mpa.form": "none"}),
        ("dcmpl-no-adapter", "dcmpl", {"adapter.where": "none"}),
        ("dcmpl-no-fusion", "dcmpl", {"fusion.on": False}),
        ("clip-agiqa", "dcmpl", {"mpa.form": "none", "adapter.where": "none"}),
        ("clip-agiqa", "dcmpl-no-mpa", {"adapter.where": "none"}),
        ("maple", "ivlp", {"vision_source": "text"}),
        ("coop-deep", "ivlp", {"vision_depth": 0}),
        ("coop", "coop-deep", {"text_depth": 1}),
        ("vpt-deep", "ivlp", {"text_depth": 0}),
        ("vpt-shallow", "vpt-deep", {"vision_depth": 1}),
        ("dcmpl-no-aux", "ivlp", {"adapter.where": "main"}),
    ],
)
def test_presets_differ_in_what_their_names_say(
    preset: str, base: str, found: dict[str, Any]
) -> None:
    assert differences(PRESETS[preset].model, PRESETS[base].model) == found


def test_another_main_task_is_a_difference() -> None:
    other = replace(DCMPL_MODEL, words=dict(reversed(DCMPL_MODEL.words.items())))
    assert other.tasks == ("alignment", "quality")
    assert list(differences(other)) == ["words"]


# Sizes of ViT-B/32


class CpuTokenizer(Tokenizer):
    """Real numbers among tensors that have none."""

    def __call__(self, *arguments: Any) -> Tokens:
        with torch.device("cpu"):
            return super().__call__(*arguments)


@pytest.fixture(scope="module")
def vit_b_32() -> Callable[[ModelConfig], int]:
    """Counts what a model of the paper's sizes learns; no memory stands behind it."""
    with torch.device("meta"):
        clip = Clip(VIT_B_32)

    def learned(config: ModelConfig) -> int:
        with torch.device("meta"):
            tokenizer = CpuTokenizer(TOKENIZER, 77)
            model = DCMPL(clip, tokenizer, config, 0)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    return learned


TEXT, VISION, BOTH = 8 * 512, 8 * 768, 8 * (512 + 768)  # the prompts of one layer
FUSION = 12 * (2 * 768 * 768 + 768)
ADAPTER = 2 * 512 * 128
MPA = 11_027_968  # see the tests of attention
MAPS = 12 * (512 * 768 + 768)  # from text prompts to visual ones
READER = 2  # a share of the cosine and a constant
LEARNED = {
    "dcmpl": BOTH + MPA + 12 * BOTH + FUSION + 2 * ADAPTER,
    "dcmpl-prompted": BOTH + MPA + 12 * BOTH + FUSION + 2 * ADAPTER + READER,
    "dcmpl-no-mpa": 12 * BOTH + 12 * BOTH + FUSION + 2 * ADAPTER,
    "dcmpl-no-adapter": BOTH + MPA + 12 * BOTH + FUSION,
    "dcmpl-no-aux": 12 * BOTH + ADAPTER,
    "dcmpl-no-fusion": BOTH + MPA + 12 * BOTH + 2 * ADAPTER,
    "clip-agiqa": 12 * BOTH + 12 * BOTH + FUSION,
    "maple": 12 * TEXT + MAPS,
    "ivlp": 12 * BOTH,
    "coop": TEXT,
    "coop-deep": 12 * TEXT,
    "vpt-shallow": VISION,
    "vpt-deep": 12 * VISION,
    "clip-adapter": ADAPTER,
    "clip-iqa": 0,
    "linear-probe": 2 * (512 + 1),
}


@pytest.mark.parametrize("preset", ALL)
def test_learned_parameters_of_vit_b_32(
    vit_b_32: Callable[[ModelConfig], int], preset: str
) -> None:
    assert vit_b_32(PRESETS[preset].model) == LEARNED[preset]


def test_learned_parameters_are_those_of_the_papers() -> None:
    assert LEARNED["dcmpl"] == 25_588_224
    assert LEARNED["clip-agiqa"] == 14_410_752
    assert FUSION == 14_164_992


@pytest.mark.parametrize(
    ("mpa", "more"),
    [
        (MpaConfig(share="per_layer"), 10 * MPA),
        (MpaConfig(form="cmpa_no_mlp"), 4_203_264 - MPA),
        (MpaConfig(deep="generated_plus_free"), 11 * BOTH),
        (MpaConfig(deep="independent"), 11 * BOTH),
        (MpaConfig(identity_start=True), 0),
        (MpaConfig(form="swapped_query"), 0),
    ],
)
def test_options_of_attention_cost_what_they_name(
    vit_b_32: Callable[[ModelConfig], int], mpa: MpaConfig, more: int
) -> None:
    assert vit_b_32(replace(DCMPL_MODEL, mpa=mpa)) == LEARNED["dcmpl"] + more


# What holds for all


def spread(model: DCMPL) -> DCMPL:
    """A linear readout far from its start puts most scores at the ends: bring it between."""
    if model.config.readout == "linear":
        with torch.no_grad():
            model.linear.weight.mul_(0.05)
            model.linear.bias.fill_(0.5)
    return model


@pytest.mark.parametrize("fresh", [False, True], ids=["far", "fresh"])
@pytest.mark.parametrize("preset", ALL)
def test_scores_are_numbers_from_0_to_1_for_every_task_and_image(
    build: Build, images: Tensor, preset: str, fresh: bool
) -> None:
    model = build(preset, fresh=fresh)
    for batch in (images, images[:1], torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)):
        values = model(batch).values
        assert values.shape == (len(model.config.words), len(batch))
        assert values.isfinite().all()
        assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("preset", ALL)
def test_an_image_scores_the_same_alone(build: Build, images: Tensor, preset: str) -> None:
    model = spread(build(preset))
    together = model(images).values
    alone = torch.cat([model(image[None]).values for image in images], dim=1)
    assert together.std(dim=1).min() > 1e-4  # images differ, by more than the tolerance
    # float32 sums of another batch size
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fresh", [False, True], ids=["far", "fresh"])
@pytest.mark.parametrize("preset", ALL)
def test_a_loss_on_all_tasks_reaches_all_that_is_learned_and_no_tower(
    build: Build, images: Tensor, preset: str, fresh: bool
) -> None:
    model = build(preset, fresh=fresh)
    learned = trainable_parameters(model).keys()
    if preset == "clip-iqa":
        assert not learned
        assert not model(images).values.requires_grad
        return
    tokens = model.tokens_of([f"a red circle {i}" for i in range(len(images))])
    texts = Texts(tokens, torch.arange(len(images))) if model.reads_prompt else None
    reached = leave_gradients(model, (spread(model)(images, texts=texts).values - 0.25).square())
    assert reached == learned
    assert all(p.grad is None and not p.requires_grad for p in model.clip.parameters())


@pytest.mark.parametrize("preset", ALL)
def test_equal_seeds_make_equal_models(build: Build, images: Tensor, preset: str) -> None:
    first = build(preset, seed=3, fresh=True)
    torch.rand(1)  # what else is drawn between must not matter
    second = build(preset, seed=3, fresh=True)
    assert torch.equal(first(images).values, second(images).values)
    tensors, others = trainable_parameters(first), trainable_parameters(second)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    third = trainable_parameters(build(preset, seed=4, fresh=True))
    if preset not in ("clip-iqa", "linear-probe"):  # nothing in these is drawn
        assert any(not torch.equal(tensors[name], third[name]) for name in tensors)


@pytest.mark.parametrize("preset", ALL)
def test_building_leaves_the_global_generator_alone(build: Build, preset: str) -> None:
    before = torch.get_rng_state()
    build(preset, fresh=True)
    assert torch.equal(torch.get_rng_state(), before)


def unequal_clip(text: int, vision: int) -> Clip:
    sizes = ClipConfig(
        vision=TowerConfig(64, vision, 2, 64, "quick_gelu"),
        text=TowerConfig(32, text, 2, 64, "quick_gelu"),
        embed_dim=24,
        image_size=32,
        patch_size=16,
        vocab_size=640,
        context_length=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Clip(sizes)


BARE = PRESETS["dcmpl-no-adapter"].model
UNEQUAL = {
    "dcmpl": BARE,
    "clip-agiqa": CLIP_AGIQA,
    "maple": PRESETS["maple"].model,
    "first layer": replace(BARE, fusion=FusionConfig(aux_tap="first_layer")),
    "per layer": replace(BARE, mpa=MpaConfig(share="per_layer")),
    "plus free": replace(BARE, mpa=MpaConfig(deep="generated_plus_free")),
    "independent": replace(BARE, mpa=MpaConfig(deep="independent")),
}


@pytest.mark.parametrize("name", UNEQUAL)
@pytest.mark.parametrize(("text", "vision"), [(2, 4), (4, 2)])
def test_nothing_is_learned_in_vain_where_one_tower_is_deeper(
    images: Tensor, name: str, text: int, vision: int
) -> None:
    # As in ViT-L/14, with 12 layers of text and 24 of vision.
    tokenizer = Tokenizer(TOKENIZER, 40)
    model = DCMPL(unequal_clip(text, vision), tokenizer, UNEQUAL[name], 0)
    reached = leave_gradients(model, model(images).values)
    assert sorted(trainable_parameters(model).keys() - reached) == []
