"""Prompt attention in all its forms: against torch's own attention, written out plainly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmpl.config import MpaConfig
from dcmpl.model.prompt_attention import CrossModalBlock, prompt_attention

Randomise = Callable[[nn.Module, int], None]
Prompts = tuple[Tensor, Tensor]
TEXT, VISUAL, SLOTS = 64, 128, 5
FORMS = ["cmpa", "cmpa_no_mlp", "swapped_query", "joint"]
HALVES = FORMS[:-1]


@pytest.fixture
def prompts() -> Prompts:
    """Text and visual prompts."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(SLOTS, TEXT, generator=generator),
        torch.randn(SLOTS, VISUAL, generator=generator),
    )


def start(text: int = TEXT, visual: int = VISUAL, **options: Any) -> nn.Module:
    return prompt_attention(text, visual, MpaConfig(**options))


@pytest.fixture
def block(randomise: Randomise) -> Callable[..., Any]:
    """A block of a form, far from its start."""

    def make(**options: Any) -> nn.Module:
        module = start(**options)
        randomise(module, 0)
        return module

    return make


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def torch_attention(attention: Any, query: Tensor, keys: Tensor) -> Tensor:
    """What torch's multi-head attention makes of the same weights, keys as values."""
    width = query.shape[-1]
    mha = nn.MultiheadAttention(width, width // 64, batch_first=True)
    mha.load_state_dict(attention.state_dict())
    mixed: Tensor = mha(query, keys, keys, need_weights=False)[0]
    return mixed


def norm(layer: Any, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scaled: Tensor = x * layer.weight + layer.bias
    return scaled


def linear(layer: Any, x: Tensor) -> Tensor:
    mapped: Tensor = x @ layer.weight.T + layer.bias
    return mapped


def mlp(layer: Any, x: Tensor) -> Tensor:
    hidden = linear(layer.c_fc, x)
    return linear(layer.c_proj, hidden * torch.sigmoid(1.702 * hidden))


def naive_half(half: Any, form: str, own: Tensor, other: Tensor) -> Tensor:
    """own' = own + MHA(q, kv) of the two normed prompts; own' + MLP(LN2(own'))."""
    asking, asked = norm(half.ln_1, linear(half.proj, other)), norm(half.ln_1, own)
    if form == "swapped_query":
        own = own + torch_attention(half.attn, asked, asking)
    else:
        own = own + torch_attention(half.attn, asking, asked)
    return own if form == "cmpa_no_mlp" else own + mlp(half.mlp, norm(half.ln_2, own))


def naive_joint(block: Any, text: Tensor, visual: Tensor) -> Prompts:
    """Self-attention and MLP over the text prompts, mapped to the visual width, and the visual."""
    x = torch.cat([linear(block.proj_in, text), visual])
    normed = norm(block.ln_1, x)
    x = x + torch_attention(block.attn, normed, normed)
    x = x + mlp(block.mlp, norm(block.ln_2, x))
    return text + linear(block.proj_out, x[:SLOTS]), x[SLOTS:]


@pytest.mark.parametrize("form", HALVES)
def test_halves_equal_torch_attention(
    block: Callable[..., Any], prompts: Prompts, form: str
) -> None:
    attention, (text, visual) = block(form=form), prompts
    new_text, new_visual = attention(text, visual)
    # both halves are given the old prompts; float32 sums in another order, values of order 1
    expected = naive_half(attention.text, form, text, visual)
    torch.testing.assert_close(new_text, expected, rtol=0, atol=1e-5)
    expected = naive_half(attention.visual, form, visual, text)
    torch.testing.assert_close(new_visual, expected, rtol=0, atol=1e-5)
    # far above rounding: reading the new prompts would give something else
    assert (new_text - attention.text(text, new_visual)).abs().max() > 1e-3
    assert (new_visual - attention.visual(visual, new_text)).abs().max() > 1e-3


def test_joint_form_equals_torch_attention(block: Callable[..., Any], prompts: Prompts) -> None:
    attention = block(form="joint")
    for found, expected in zip(attention(*prompts), naive_joint(attention, *prompts), strict=True):
        # float32 sums in another order, values of order 1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_forms_compute_four_different_things(block: Callable[..., Any], prompts: Prompts) -> None:
    found = [block(form=form)(*prompts) for form in FORMS]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert all((a - b).abs().max() > 1e-2 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("form", "query_is_own"), [("cmpa", False), ("swapped_query", True)])
def test_order_of_the_other_prompts_matters_only_where_they_ask(
    block: Callable[..., Any], prompts: Prompts, form: str, query_is_own: bool
) -> None:
    # What is asked is a set: attention sums over it.
    attention, (text, visual) = block(form=form), prompts
    moved = (attention.text(text, visual.flip(0)) - attention.text(text, visual)).abs().max()
    assert (moved < 1e-5) == query_is_own  # float32 sums in another order


@pytest.mark.parametrize("form", HALVES)
@pytest.mark.parametrize(
    ("directions", "changed"), [("text_to_vision", "visual"), ("vision_to_text", "text")]
)
def test_modality_that_is_left_out_passes_and_has_no_parameters(
    block: Callable[..., Any], prompts: Prompts, form: str, directions: str, changed: str
) -> None:
    attention = block(form=form, directions=directions)
    assert {name.split(".")[0] for name, _ in attention.named_parameters()} == {changed}
    for name, old, new in zip(("text", "visual"), prompts, attention(*prompts), strict=True):
        if name == changed:
            other = prompts[1] if name == "text" else prompts[0]
            expected = naive_half(getattr(attention, name), form, old, other)
            # float32 sums in another order, values of order 1
            torch.testing.assert_close(new, expected, rtol=0, atol=1e-5)
        else:
            assert new is old


DIRECTED = [(form, d) for form in HALVES for d in ("both", "text_to_vision", "vision_to_text")]


@pytest.mark.parametrize(("form", "directions"), [*DIRECTED, ("joint", "both")])
def test_identity_start_changes_nothing_and_learns(
    prompts: Prompts, form: str, directions: str
) -> None:
    attention = start(form=form, directions=directions, identity_start=True)
    assert all(torch.equal(new, old) for new, old in zip(attention(*prompts), prompts, strict=True))

    def reached() -> set[str]:
        """Names of tensors that a loss reaches; one that weighs all entries unequally."""
        attention.zero_grad()
        sum((x * x.detach().roll(1)).sum() for x in attention(*prompts)).backward()
        return {n for n, p in attention.named_parameters() if p.grad is not None and p.grad.any()}

    # At first what is zero alone, as it stops all gradients before it; after one step, all.
    ends = ("out_proj.weight", "c_proj.weight", "out_proj.bias", "c_proj.bias")
    joint_ends = ("proj_out.weight", "proj_out.bias")
    every = {name for name, _ in attention.named_parameters()}
    assert reached() == {name for name in every if name.endswith(ends + joint_ends)}
    with torch.no_grad():
        for parameter in attention.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.01)
    assert reached() == every


@pytest.mark.parametrize("form", FORMS)
def test_plain_start_changes_the_prompts(prompts: Prompts, form: str) -> None:
    attention = start(form=form)
    for new, old in zip(attention(*prompts), prompts, strict=True):
        assert (new - old).abs().max() > 1e-2


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 1), (100, 1), (128, 2), (768, 12)])
def test_heads_are_64_wide_where_they_can_be(width: int, heads: int) -> None:
    with torch.device("meta"):
        assert CrossModalBlock(width, 32).attn.heads == heads


def half_parameters(width: int, other: int, with_mlp: bool) -> int:
    """The map of the other, a norm, four width x width matrices; a norm and an MLP of 4 width."""
    attention = other * width + width + 2 * width + 4 * (width * width + width)
    perceptron = 2 * width + 4 * width * width + 4 * width + 4 * width * width + width
    return attention + with_mlp * perceptron


PARAMETERS = {
    "cmpa": half_parameters(512, 768, True) + half_parameters(768, 512, True),
    "swapped_query": half_parameters(512, 768, True) + half_parameters(768, 512, True),
    "cmpa_no_mlp": half_parameters(512, 768, False) + half_parameters(768, 512, False),
    "joint": (512 * 768 + 768) + (768 * 512 + 512) + half_parameters(768, 0, True) - 768,
}
"""For ViT-B: text is 512 wide, vision 768. The joint form has two maps, and none of an other."""


@pytest.mark.parametrize("form", FORMS)
def test_parameters_of_vit_b(form: str) -> None:
    with torch.device("meta"):
        assert count(start(512, 768, form=form)) == PARAMETERS[form]


def test_parameters_of_vit_b_are_those_of_the_papers() -> None:
    assert PARAMETERS["cmpa"] == 11_027_968
    assert PARAMETERS["cmpa_no_mlp"] == 4_203_264  # CMPA's 4.20 M


@pytest.mark.parametrize(
    ("directions", "parameters"),
    [
        ("vision_to_text", half_parameters(512, 768, True)),
        ("text_to_vision", half_parameters(768, 512, True)),
    ],
)
def test_one_direction_has_one_half(directions: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(start(512, 768, directions=directions)) == parameters
