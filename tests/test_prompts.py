"""Prompts and their coupling: against torch's attention, and against golden numbers."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcmpl.clip import TowerConfig
from dcmpl.prompts import (
    AuxiliaryPrompts,
    CrossModalBlock,
    Fusion,
    MainPrompts,
    PromptAttention,
    context_tokens,
)

Randomise = Callable[[nn.Module, int], None]
TEXT, VISUAL, SLOTS = 64, 128, 5


def tower(width: int, layers: int) -> TowerConfig:
    return TowerConfig(width, layers, heads=2, hidden=4 * width, activation="quick_gelu")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def attention(randomise: Randomise) -> PromptAttention:
    module = PromptAttention(TEXT, VISUAL)
    randomise(module, 0)
    return module


@pytest.fixture
def prompts() -> tuple[Tensor, Tensor]:
    """Text and visual prompts."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(SLOTS, TEXT, generator=generator),
        torch.randn(SLOTS, VISUAL, generator=generator),
    )


def naive_half(half: CrossModalBlock, own: Tensor, other: Tensor) -> Tensor:
    """own' = own + MHA(LN1(W other), LN1(own)); own' + MLP(LN2(own')), by torch's own attention."""
    width = own.shape[-1]
    mha = nn.MultiheadAttention(width, width // 64, batch_first=True)
    mha.load_state_dict(half.attn.state_dict())
    ln_1, ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    ln_1.load_state_dict(half.ln_1.state_dict())
    ln_2.load_state_dict(half.ln_2.state_dict())
    query = ln_1(other @ half.proj.weight.T + half.proj.bias)
    keys = ln_1(own)
    own = own + mha(query, keys, keys, need_weights=False)[0]
    hidden = ln_2(own) @ half.mlp.c_fc.weight.T + half.mlp.c_fc.bias
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return own + hidden @ half.mlp.c_proj.weight.T + half.mlp.c_proj.bias


@pytest.mark.parametrize("side", ["text", "visual"])
def test_prompt_attention_equals_torch_attention(
    attention: PromptAttention, prompts: tuple[Tensor, Tensor], side: str
) -> None:
    own, other = prompts if side == "text" else prompts[::-1]
    half = getattr(attention, side)
    # float32 sums in another order, on values of order 1
    torch.testing.assert_close(half(own, other), naive_half(half, own, other), rtol=0, atol=1e-5)


def test_both_halves_read_the_old_prompts(
    attention: PromptAttention, prompts: tuple[Tensor, Tensor]
) -> None:
    text, visual = prompts
    new_text, new_visual = attention(text, visual)
    assert torch.equal(new_text, attention.text(text, visual))
    assert torch.equal(new_visual, attention.visual(visual, text))
    # far above rounding: reading the new ones would give something else
    assert (new_text - attention.text(text, new_visual)).abs().max() > 1e-3
    assert (new_visual - attention.visual(visual, new_text)).abs().max() > 1e-3


def test_prompt_attention_of_vit_b_has_11027968_parameters() -> None:
    with torch.device("meta"):
        assert count(PromptAttention(512, 768)) == 11_027_968


def test_fusion_of_vit_b_has_14164992_parameters() -> None:
    with torch.device("meta"):
        assert count(Fusion(12, 768)) == 14_164_992


def test_context_tokens_are_drawn_with_deviation_002() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.stack(list(context_tokens(12, 8, 768)))
    assert tokens.shape == (12, 8, 768)
    # 73,728 numbers: the deviation is known to 0.3 %, the mean to 8e-5
    assert tokens.std().item() == pytest.approx(0.02, rel=0.015)
    assert tokens.mean().item() == pytest.approx(0, abs=4e-4)


@pytest.mark.parametrize("depths", [(3, 3), (2, 4), (4, 2)])
def test_auxiliary_prompts_reach_every_layer_of_either_tower(depths: tuple[int, int]) -> None:
    text, visual = AuxiliaryPrompts(tower(TEXT, depths[0]), tower(VISUAL, depths[1]), SLOTS)()
    assert [t.shape for t in text] == [(SLOTS, TEXT)] * depths[0]
    assert [v.shape for v in visual] == [(SLOTS, VISUAL)] * depths[1]


def test_auxiliary_prompts_start_free_and_go_through_one_attention(randomise: Randomise) -> None:
    auxiliary = AuxiliaryPrompts(tower(TEXT, 4), tower(VISUAL, 4), SLOTS)
    randomise(auxiliary, 2)
    text, visual = auxiliary()
    assert text[0] is auxiliary.text[0]
    assert visual[0] is auxiliary.visual[0]
    for layer in range(3):
        expected = auxiliary.attention(text[layer], visual[layer])
        assert torch.equal(text[layer + 1], expected[0])
        assert torch.equal(visual[layer + 1], expected[1])


def test_auxiliary_prompts_have_two_free_tensors_and_the_attention() -> None:
    auxiliary = AuxiliaryPrompts(tower(TEXT, 4), tower(VISUAL, 4), SLOTS)
    free = {name for name, _ in auxiliary.named_parameters() if not name.startswith("attention.")}
    assert free == {"text.0", "visual.0"}


def test_fusion_is_one_linear_map_of_main_and_auxiliary(randomise: Randomise) -> None:
    fusion = Fusion(3, VISUAL)
    randomise(fusion, 3)
    generator = torch.Generator().manual_seed(4)
    main, auxiliary = torch.randn(2, 3, SLOTS, VISUAL, generator=generator)
    for layer, fused in enumerate(fusion(list(main), list(auxiliary))):
        weight, bias = fusion.layers[layer].weight, fusion.layers[layer].bias
        expected = main[layer] @ weight[:, :VISUAL].T + auxiliary[layer] @ weight[:, VISUAL:].T
        # two sums of 128 for one of 256, on values of order 1
        torch.testing.assert_close(fused, expected + bias, rtol=0, atol=1e-5)


def test_fusion_layers_start_equal_and_are_no_shared_tensors() -> None:
    fusion = Fusion(3, VISUAL)
    for layer in fusion.layers[1:]:
        assert torch.equal(layer.weight, fusion.layers[0].weight)
        assert torch.equal(layer.bias, fusion.layers[0].bias)
    assert len({parameter.data_ptr() for parameter in fusion.parameters()}) == 6


def test_fusion_detaches_nothing() -> None:
    auxiliary = [torch.ones(SLOTS, VISUAL, requires_grad=True)]
    Fusion(1, VISUAL)([torch.ones(SLOTS, VISUAL)], auxiliary)[0].sum().backward()
    assert auxiliary[0].grad is not None
    assert auxiliary[0].grad.abs().min() > 0


def test_main_prompts_are_free_text_and_fused_visual_ones(randomise: Randomise) -> None:
    main = MainPrompts(tower(TEXT, 2), tower(VISUAL, 3), SLOTS)
    randomise(main, 5)
    auxiliary = [torch.full((SLOTS, VISUAL), float(layer)) for layer in range(3)]
    text, visual = main(auxiliary)
    assert all(given is own for given, own in zip(text, main.text, strict=True))
    for given, expected in zip(visual, main.fusion(list(main.visual), auxiliary), strict=True):
        assert torch.equal(given, expected)


GOLDEN = Path(__file__).parents[2] / "shared/golden/prompt_attention_768_512.npz"


def golden_draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name as the golden numbers were made with."""
    base = 0.0
    if "ln_" in name:
        base, std = float(name.endswith(".weight")), 0.05
    elif name.endswith("bias"):
        std = 0.02
    elif name.endswith("_prompt"):
        std = 0.05
    else:
        std = shape[-1] ** -0.5
    generator = np.random.Generator(np.random.PCG64([1, zlib.crc32(name.encode())]))
    noise = (generator.standard_normal(shape) * std).astype(np.float16).astype(np.float32)
    return torch.from_numpy((base + noise).astype(np.float16).astype(np.float32))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    if not GOLDEN.is_file():
        pytest.skip("the golden numbers (shared/golden) are not beside this repository")
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden_attention() -> PromptAttention:
    module = PromptAttention(512, 768)
    for side, proj in (("text", "proj_v2t"), ("visual", "proj_t2v")):
        theirs = {
            "proj": proj,
            "attn": f"promt_attention_{side}",
            "ln_1": f"ln_pa_1_{side}",
            "ln_2": f"ln_pa_2_{side}",
            "mlp": f"mlp_pa_{side}",
        }
        half = getattr(module, side)
        state = {}
        for name, tensor in half.state_dict().items():
            first, rest = name.split(".", 1)
            state[name] = golden_draw(f"{theirs[first]}.{rest}", tuple(tensor.shape))
        half.load_state_dict(state)
    return module


@pytest.mark.parametrize(("applications", "suffix"), [(1, "out"), (11, "after_11")])
def test_prompt_attention_equals_the_golden_numbers(
    golden: dict[str, np.ndarray],
    golden_attention: PromptAttention,
    applications: int,
    suffix: str,
) -> None:
    text, visual = golden_draw("text_prompt", (8, 512)), golden_draw("visual_prompt", (8, 768))
    with torch.no_grad():
        for _ in range(applications):
            text, visual = golden_attention(text, visual)
    for name, ours in (("text", text), ("visual", visual)):
        expected = torch.from_numpy(golden[f"{name}_prompt_{suffix}"])
        # relative to the largest entry: float32 sums in another order, a few 1e-7 each time
        error = (ours - expected).abs().max() / expected.abs().max()
        assert error < 1e-5
