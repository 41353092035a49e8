"""The options of prompt attention and fusion do what their names say, in the whole model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dcmpl.config import AdapterConfig, FusionConfig, MpaConfig
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.model.prompt_attention import prompt_attention
from dcmpl.weights.backbones import Backbone
from naive import all_equal, close, image_embedding, leave_gradients, linear, score, text_embeddings

Build = Callable[..., DCMPL]
LAYERS, N = 3, 8
ALIGNMENT = ["aligned photo", "misaligned photo"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def mpa(**options: Any) -> MpaConfig:
    return MpaConfig(**options)


def fusion(**options: Any) -> FusionConfig:
    return FusionConfig(**options)


@pytest.mark.parametrize("form", ["cmpa", "cmpa_no_mlp", "swapped_query", "joint"])
def test_mpa_form_is_the_block_between_layers(build: Build, form: str) -> None:
    model: Any = build(mpa=mpa(form=form))
    block = prompt_attention(32, 64, mpa(form=form))
    block.load_state_dict(model.auxiliary.attention[0].state_dict())
    prompts = model.prompts()[1]
    for layer in range(LAYERS - 1):
        made = block(prompts.text[layer], prompts.visual[layer])
        assert all_equal(made, (prompts.text[layer + 1], prompts.visual[layer + 1]))


def test_mpa_form_none_leaves_the_auxiliary_prompts_free_in_every_layer(build: Build) -> None:
    model: Any = build(mpa=mpa(form="none"))
    prompts = model.prompts()[1]
    assert not hasattr(model.auxiliary, "attention")
    assert len(prompts.text) == len(prompts.visual) == LAYERS
    assert all(a is b for a, b in zip(prompts.text, model.auxiliary.text, strict=True))
    assert all(a is b for a, b in zip(prompts.visual, model.auxiliary.visual, strict=True))


@pytest.mark.parametrize(("share", "changed_from"), [("shared", 2), ("per_layer", 3)])
def test_mpa_share_says_which_layers_the_last_block_makes(
    build: Build, share: str, changed_from: int
) -> None:
    model: Any = build(mpa=mpa(share=share))
    before = model.prompts()[1].visual
    with torch.no_grad():
        model.auxiliary.attention[-1].visual.mlp.c_proj.bias += 1.0
    after = model.prompts()[1].visual
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [layer >= changed_from for layer in (1, 2, 3)]


@pytest.mark.parametrize(
    ("deep", "needed"),
    [("generated", [0]), ("generated_plus_free", [0, 1, 2]), ("independent", [2])],
)
def test_mpa_deep_says_which_free_prompts_the_last_layer_comes_from(
    build: Build, deep: str, needed: list[int]
) -> None:
    model = build(mpa=mpa(deep=deep))
    prompts = model.prompts()[1]
    reached = leave_gradients(model, prompts.text[-1].sum() + prompts.visual[-1].sum())
    free = {f"auxiliary.{kind}.{layer}" for kind in ("text", "visual") for layer in needed}
    assert {name for name in reached if ".attention." not in name} == free


@pytest.mark.parametrize("form", ["cmpa", "joint"])
def test_mpa_depth_leaves_later_slots_to_the_blocks(
    build: Build, images: Tensor, random_backbone: Backbone, form: str
) -> None:
    model = build(mpa=mpa(form=form, depth=2), adapter=AdapterConfig(where="none"))
    main, auxiliary = model.prompts()
    assert (len(auxiliary.text), len(auxiliary.visual), len(main.visual)) == (2, 2, LAYERS)
    text = text_embeddings(model, random_backbone.tokenizer, ALIGNMENT, auxiliary.text)
    expected = score(model, image_embedding(model, images, auxiliary.visual), text)
    close(model(images).alignment, expected)


def test_mpa_identity_start_repeats_the_first_prompts_in_every_layer(build: Build) -> None:
    prompts = build(fresh=True, mpa=mpa(identity_start=True)).prompts()[1]
    assert all_equal(prompts.text, prompts.text[:1] * LAYERS)
    assert all_equal(prompts.visual, prompts.visual[:1] * LAYERS)
    plain = build(fresh=True).prompts()[1]
    assert not torch.equal(plain.text[1], plain.text[0])


@pytest.mark.parametrize("directions", ["text_to_vision", "vision_to_text"])
def test_mpa_directions_change_one_modality(build: Build, directions: str) -> None:
    prompts = build(mpa=mpa(directions=directions)).prompts()[1]
    text_stays = all_equal(prompts.text, prompts.text[:1] * LAYERS)
    visual_stays = all_equal(prompts.visual, prompts.visual[:1] * LAYERS)
    assert (text_stays, visual_stays) == (
        directions == "text_to_vision",
        directions == "vision_to_text",
    )


# Fusion: fusion.*


def test_fusion_off_leaves_the_main_prompts_to_themselves(build: Build, images: Tensor) -> None:
    model: Any = build(fusion=fusion(on=False))
    prompts = model.prompts()[0]
    assert all(a is b for a, b in zip(prompts.visual, model.main.visual, strict=True))
    reached = leave_gradients(model, model(images).quality)
    assert {name.split(".")[0] for name in reached} == {"main", "adapters"}


def test_fusion_depth_leaves_later_main_prompts_as_they_are(build: Build) -> None:
    model: Any = build(fusion=fusion(depth=1))
    main, auxiliary = model.prompts()
    pair = torch.cat([model.main.visual[0], auxiliary.visual[0]], dim=-1)
    close(main.visual[0], linear(model.fusion.layers[0], pair))
    assert main.visual[1] is model.main.visual[1]
    assert main.visual[2] is model.main.visual[2]
    assert len(model.fusion.layers) == 1


@pytest.mark.parametrize("tap", ["same_layer", "first_layer"])
def test_fusion_aux_tap_says_which_auxiliary_prompt_guides(
    build: Build, images: Tensor, tap: str
) -> None:
    model: Any = build("clip-agiqa", fusion=fusion(aux_tap=tap))
    before = model(images)
    with torch.no_grad():
        model.auxiliary.visual[1] += 1.0
    after = model(images)
    assert torch.equal(after.quality, before.quality) == (tap == "first_layer")
    assert not torch.equal(after.alignment, before.alignment)
    with torch.no_grad():
        model.auxiliary.visual[0] += 1.0
    assert not torch.equal(model(images).quality, after.quality)
    guides = [model.auxiliary.visual[0 if tap == "first_layer" else i] for i in range(LAYERS)]
    for layer, fused in enumerate(model.prompts()[0].visual):
        pair = torch.cat([model.main.visual[layer], guides[layer]], dim=-1)
        close(fused, linear(model.fusion.layers[layer], pair))


@pytest.mark.parametrize("clone", [True, False])
def test_fusion_clone_start_makes_all_layers_equal(build: Build, clone: bool) -> None:
    model: Any = build(fresh=True, fusion=fusion(clone_start=clone))
    first, *others = model.fusion.layers
    assert all(torch.equal(first.weight, other.weight) == clone for other in others)


@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa"])
def test_fusion_detach_aux_keeps_the_main_loss_away(
    build: Build, images: Tensor, preset: str
) -> None:
    plain, detached = build(preset), build(preset, fusion=fusion(detach_aux=True))
    assert torch.equal(plain(images).values, detached(images).values)
    auxiliary = {name for name in trainable_parameters(plain) if name.startswith("auxiliary.")}
    visual = {name for name in auxiliary if ".text." not in name or preset == "dcmpl"}
    reached = leave_gradients(plain, plain(images).quality)
    assert reached & auxiliary >= {name for name in visual if ".visual." in name}
    assert not leave_gradients(detached, detached(images).quality) & auxiliary
    assert leave_gradients(detached, detached(images).alignment) >= auxiliary
