"""Prompts of every layer and how they are coupled: against the recursion written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmpl.config import FusionConfig, ModelConfig, MpaConfig
from dcmpl.model.clip import TowerConfig
from dcmpl.model.prompts import CoupledPrompts, FreePrompts, Fusion, context_tokens

Randomise = Callable[[nn.Module, int], None]
TEXT, VISUAL, SLOTS = 64, 128, 5
DEPTHS = [(3, 3), (2, 4), (4, 2)]


def tower(width: int, layers: int) -> TowerConfig:
    return TowerConfig(width, layers, heads=2, hidden=4 * width, activation="quick_gelu")


def towers(depths: tuple[int, int]) -> tuple[TowerConfig, TowerConfig]:
    return tower(TEXT, depths[0]), tower(VISUAL, depths[1])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linears(layers: nn.ModuleList | None) -> list[nn.Linear]:
    return [layer for layer in layers or () if isinstance(layer, nn.Linear)]


def free(depths: tuple[int, int] = (3, 3), **options: Any) -> FreePrompts:
    return FreePrompts(*towers(depths), ModelConfig(n_context=SLOTS, **options))


def coupled(depths: tuple[int, int] = (4, 4), **options: Any) -> CoupledPrompts:
    config = ModelConfig(n_context=SLOTS, mpa=MpaConfig(**options))
    return CoupledPrompts(*towers(depths), config)


def fusion(main: int, auxiliary: int, width: int = VISUAL, **options: Any) -> Fusion:
    return Fusion(main, auxiliary, width, FusionConfig(**options))


def some_prompts(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, SLOTS, VISUAL, generator=generator))


def free_names(prompts: CoupledPrompts) -> set[str]:
    return {name for name, _ in prompts.named_parameters() if not name.startswith("attention.")}


def test_context_tokens_are_drawn_with_deviation_002() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.stack(list(context_tokens(12, 8, 768)))
    assert tokens.shape == (12, 8, 768)
    # 73,728 numbers: the deviation is known to 0.3 %, the mean to 8e-5
    assert tokens.std().item() == pytest.approx(0.02, rel=0.015)
    assert tokens.mean().item() == pytest.approx(0, abs=4e-4)


@pytest.mark.parametrize("depths", DEPTHS)
def test_coupled_prompts_reach_every_layer_of_either_tower(depths: tuple[int, int]) -> None:
    prompts = coupled(depths)()
    assert [t.shape for t in prompts.text] == [(SLOTS, TEXT)] * depths[0]
    assert [v.shape for v in prompts.visual] == [(SLOTS, VISUAL)] * depths[1]


@pytest.mark.parametrize("depths", DEPTHS)
def test_coupled_prompts_stop_at_their_depth_or_at_the_last_layer(depths: tuple[int, int]) -> None:
    prompts = coupled(depths, depth=3)()
    assert [len(prompts.text), len(prompts.visual)] == [min(3, layers) for layers in depths]
    every = coupled(depths, depth=99)()
    assert (len(every.text), len(every.visual)) == depths


@pytest.mark.parametrize("depths", [(4, 4), (2, 4), (4, 2)])
def test_coupled_prompts_start_free_and_go_through_one_attention(
    randomise: Randomise, depths: tuple[int, int]
) -> None:
    auxiliary = coupled(depths)
    randomise(auxiliary, 2)
    (attention,) = auxiliary.attention
    text, visual = [auxiliary.text[0]], [auxiliary.visual[0]]
    for layer in range(3):  # also beyond the end of the shallower tower
        made = attention(text[layer], visual[layer])
        text.append(made[0])
        visual.append(made[1])
    found = auxiliary()
    assert found.text[0] is auxiliary.text[0]
    assert found.visual[0] is auxiliary.visual[0]
    for ours, expected in ((found.text, text), (found.visual, visual)):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=False))


def test_coupled_prompts_have_two_free_tensors_and_the_attention() -> None:
    assert free_names(coupled()) == {"text.0", "visual.0"}


@pytest.mark.parametrize(
    ("share", "depth"),
    [("shared", 1), ("shared", 2), ("shared", 4), ("per_layer", 2), ("per_layer", 4)],
)
def test_there_is_one_attention_or_one_between_each_two_layers(share: str, depth: int) -> None:
    expected = depth - 1 if share == "per_layer" else min(1, depth - 1)
    assert len(coupled(share=share, depth=depth).attention) == expected


def test_attentions_per_layer_are_taken_in_their_order(randomise: Randomise) -> None:
    auxiliary = coupled(share="per_layer")
    randomise(auxiliary, 3)
    found = auxiliary()
    for layer, attention in enumerate(auxiliary.attention):
        text, visual = attention(found.text[layer], found.visual[layer])
        assert torch.equal(found.text[layer + 1], text)
        assert torch.equal(found.visual[layer + 1], visual)


def test_generated_plus_free_adds_a_free_prompt_of_each_layer(randomise: Randomise) -> None:
    auxiliary = coupled(deep="generated_plus_free")
    randomise(auxiliary, 4)
    found, (attention,) = auxiliary(), auxiliary.attention
    assert len(free_names(auxiliary)) == 8
    for layer in range(1, 4):
        text, visual = attention(found.text[layer - 1], found.visual[layer - 1])
        assert torch.equal(found.text[layer], text + auxiliary.text[layer])
        assert torch.equal(found.visual[layer], visual + auxiliary.visual[layer])


def test_independent_prompts_of_a_layer_are_made_of_its_own_free_ones(
    randomise: Randomise,
) -> None:
    auxiliary = coupled(deep="independent")
    randomise(auxiliary, 5)
    found, (attention,) = auxiliary(), auxiliary.attention
    assert len(free_names(auxiliary)) == 8
    assert found.text[0] is auxiliary.text[0]
    for layer in range(1, 4):
        text, visual = attention(auxiliary.text[layer], auxiliary.visual[layer])
        assert torch.equal(found.text[layer], text)
        assert torch.equal(found.visual[layer], visual)


MPA = 11_027_968
"""Parameters of one attention of ViT-B: see the tests of attention."""


@pytest.mark.parametrize(
    ("options", "attentions", "layers"),
    [
        ({}, 1, 1),
        ({"share": "per_layer"}, 11, 1),
        ({"share": "per_layer", "depth": 9}, 8, 1),
        ({"deep": "generated_plus_free"}, 1, 12),
        ({"deep": "independent", "depth": 9}, 1, 9),
        ({"depth": 1}, 0, 1),
    ],
)
def test_coupled_parameters_of_vit_b(options: dict[str, Any], attentions: int, layers: int) -> None:
    with torch.device("meta"):
        config = ModelConfig(mpa=MpaConfig(**options))
        prompts = CoupledPrompts(tower(512, 12), tower(768, 12), config)
    assert count(prompts) == attentions * MPA + layers * 8 * (512 + 768)


@pytest.mark.parametrize("depths", DEPTHS)
@pytest.mark.parametrize(("text", "vision"), [(None, None), (0, 2), (1, 3), (99, 0)])
def test_free_prompts_are_the_parameters_of_the_layers_that_have_some(
    depths: tuple[int, int], text: int | None, vision: int | None
) -> None:
    options = {} if vision != 0 else {"fusion": FusionConfig(on=False)}
    prompts = free(depths, text_depth=text, vision_depth=vision, **options)
    found = prompts()
    wanted = [99 if text is None else text, 99 if vision is None else vision]
    assert prompts.depths == tuple(min(w, layers) for w, layers in zip(wanted, depths, strict=True))
    assert (len(found.text), len(found.visual)) == prompts.depths
    own = {id(parameter) for parameter in prompts.parameters()}
    assert {id(prompt) for prompt in [*found.text, *found.visual]} == own


@pytest.mark.parametrize(
    ("text", "vision", "depths", "visual_layers"),
    [(None, None, (3, 3), 3), (2, None, (3, 3), 2), (None, 1, (3, 3), 1), (None, None, (2, 4), 2)],
)
def test_visual_prompts_from_text_are_linear_maps_layer_by_layer(
    randomise: Randomise,
    text: int | None,
    vision: int | None,
    depths: tuple[int, int],
    visual_layers: int,
) -> None:
    prompts = free(depths, vision_source="text", text_depth=text, vision_depth=vision)
    maps = linears(prompts.from_text)
    assert all(torch.equal(each.weight, maps[0].weight) for each in maps)
    randomise(prompts, 6)
    found = prompts()
    assert len(prompts.visual) == 0
    assert len(found.visual) == len(maps) == prompts.depths[1] == visual_layers
    for own, made, each in zip(found.text, found.visual, maps, strict=False):
        # the same float32 sums by another kernel, on values of order 1
        expected = own @ each.weight.T + each.bias
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_fusion_of_vit_b_has_14164992_parameters() -> None:
    with torch.device("meta"):
        assert count(fusion(12, 12, 768)) == 12 * (2 * 768 * 768 + 768) == 14_164_992


@pytest.mark.parametrize(
    ("main", "auxiliary", "options", "layers"),
    [
        (3, 3, {}, 3),
        (3, 3, {"depth": 1}, 1),
        (3, 3, {"depth": 99}, 3),
        (3, 2, {}, 2),
        (2, 3, {}, 2),
        (3, 2, {"aux_tap": "first_layer"}, 3),  # the first one guides them all
        (3, 1, {"aux_tap": "first_layer", "depth": 2}, 2),
    ],
)
def test_layers_are_fused_that_have_something_to_fuse(
    randomise: Randomise, main: int, auxiliary: int, options: dict[str, Any], layers: int
) -> None:
    module = fusion(main, auxiliary, **options)
    randomise(module, 7)
    own, guide = some_prompts(main, 8), some_prompts(auxiliary, 9)
    found = module(own, guide)
    assert len(module.layers) == layers
    assert len(found) == main
    assert all(a is b for a, b in zip(found[layers:], own[layers:], strict=True))
    for layer, each in enumerate(linears(module.layers)):
        weight, bias = each.weight, each.bias
        guiding = guide[0 if "aux_tap" in options else layer]
        expected = own[layer] @ weight[:, :VISUAL].T + guiding @ weight[:, VISUAL:].T
        # two sums of 128 for one of 256, on values of order 1
        torch.testing.assert_close(found[layer], expected + bias, rtol=0, atol=1e-5)


def test_fusion_layers_start_equal_and_are_no_shared_tensors() -> None:
    module = fusion(3, 3)
    first, *others = linears(module.layers)
    for layer in others:
        assert torch.equal(layer.weight, first.weight)
        assert torch.equal(layer.bias, first.bias)
    assert len({parameter.data_ptr() for parameter in module.parameters()}) == 6


def test_fusion_layers_without_clone_start_differ() -> None:
    first, *others = linears(fusion(3, 3, clone_start=False).layers)
    assert not any(torch.equal(first.weight, other.weight) for other in others)


@pytest.mark.parametrize("detached", [False, True])
def test_fusion_detaches_the_guide_only_where_told(detached: bool) -> None:
    own = [torch.ones(SLOTS, VISUAL, requires_grad=True)]
    guide = [torch.ones(SLOTS, VISUAL, requires_grad=True)]
    fusion(1, 1, detach_aux=detached)(own, guide)[0].sum().backward()
    assert own[0].grad is not None
    assert own[0].grad.abs().min() > 0
    assert (guide[0].grad is None) == detached
    assert guide[0].grad is None or guide[0].grad.abs().min() > 0
