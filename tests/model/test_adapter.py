"""The image adapter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dcmpl.config import AdapterConfig
from dcmpl.model.adapter import Dropout, ImageAdapter


@pytest.fixture
def embedding() -> Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


def adapter(**options: Any) -> ImageAdapter:
    return ImageAdapter(16, AdapterConfig(**options))


def test_ratio_zero_is_identity(embedding: Tensor) -> None:
    embedding[0, 0] = torch.inf  # zero times this would be nan: the adapter must not run
    assert torch.equal(adapter(ratio=0.0)(embedding), embedding)


@pytest.mark.parametrize("ratio", [0.2, 0.6])
@pytest.mark.parametrize("final_relu", [True, False])
@pytest.mark.parametrize("learnable", [True, False])
def test_adapter_follows_the_equation(
    embedding: Tensor, ratio: float, final_relu: bool, learnable: bool
) -> None:
    module = adapter(ratio=ratio, final_relu=final_relu, learnable_ratio=learnable)
    hidden = (embedding @ module.down.weight.T).clamp(min=0)
    refined = hidden @ module.up.weight.T
    assert refined.min() < 0  # so that the second ReLU shows
    if final_relu:
        refined = refined.clamp(min=0)
    # the same float32 sums by another kernel, on values of order 1
    torch.testing.assert_close(
        module(embedding), ratio * refined + (1 - ratio) * embedding, rtol=0, atol=1e-6
    )


def test_ratio_one_is_never_negative(embedding: Tensor) -> None:
    out = adapter(ratio=1.0)(embedding)
    assert out.min() == 0
    assert out.max() > 0


@pytest.mark.parametrize(("reduction", "hidden"), [(1, 16), (4, 4), (16, 1), (99, 1)])
def test_reduction_divides_the_width(reduction: int, hidden: int) -> None:
    module = adapter(reduction=reduction)
    assert module.down.weight.shape == (hidden, 16)
    assert module.up.weight.shape == (16, hidden)


def test_adapter_has_no_bias() -> None:
    assert set(adapter().state_dict()) == {"down.weight", "up.weight"}


def test_learnable_ratio_is_one_more_number_that_starts_as_given() -> None:
    module = adapter(learnable_ratio=True, ratio=0.3)
    assert set(module.state_dict()) == {"down.weight", "up.weight", "ratio"}
    assert module.state_dict()["ratio"] == torch.tensor(0.3)


@pytest.mark.parametrize("ratio", [0, 1])
def test_learnable_ratio_may_be_given_as_a_whole_number(ratio: int) -> None:
    assert adapter(learnable_ratio=True, ratio=ratio).state_dict()["ratio"] == ratio


@pytest.mark.parametrize("start", [0.0, 0.2, 1.0])
def test_learnable_ratio_learns_from_wherever_it_starts(embedding: Tensor, start: float) -> None:
    module = adapter(learnable_ratio=True, ratio=start)
    module(embedding).sum().backward()
    assert isinstance(module.ratio, Tensor)
    assert module.ratio.grad is not None
    assert module.ratio.grad != 0


@pytest.mark.parametrize(("learned", "kept"), [(-0.5, 0.0), (0.4, 0.4), (1.5, 1.0)])
def test_learned_ratio_is_kept_in_0_to_1(embedding: Tensor, learned: float, kept: float) -> None:
    module, fixed = adapter(learnable_ratio=True), adapter(ratio=kept)
    fixed.load_state_dict({n: t for n, t in module.state_dict().items() if n != "ratio"})
    assert isinstance(module.ratio, Tensor)
    with torch.no_grad():
        module.ratio.fill_(learned)
    # the ratio is rounded to float32 in one of them
    torch.testing.assert_close(module(embedding), fixed(embedding), rtol=0, atol=1e-6)


def test_adapter_takes_any_leading_axes(embedding: Tensor) -> None:
    module = adapter()
    # kernels differ with the number of axes, by a rounding
    torch.testing.assert_close(module(embedding[None])[0], module(embedding), rtol=0, atol=1e-6)


def test_adapter_reads_the_summary_behind_the_embedding(embedding: Tensor) -> None:
    module = ImageAdapter(16, AdapterConfig(), numbers=3)
    summary = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert module.down.weight.shape == (4, 19)
    both = torch.cat([embedding, summary], dim=1)
    refined = ((both @ module.down.weight.T).relu() @ module.up.weight.T).relu()
    # the same float32 sums by another kernel, on values of order 1
    torch.testing.assert_close(
        module(embedding, summary), 0.2 * refined + 0.8 * embedding, atol=1e-6, rtol=0
    )


def test_dropout_leaves_out_a_share_and_keeps_the_mean() -> None:
    found = Dropout(0.7, torch.Generator().manual_seed(0))(torch.ones(200, 500))
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.3])
    # 100,000 draws: the share's standard error is 0.0015
    assert (found == 0).float().mean().item() == pytest.approx(0.7, abs=0.006)


def test_dropout_is_drawn_from_its_dice_alone() -> None:
    first, again, other = (
        Dropout(0.5, torch.Generator().manual_seed(seed))(torch.ones(9, 9)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_dropout_draws_nothing(embedding: Tensor) -> None:
    dice = torch.Generator().manual_seed(0)
    before = dice.get_state()
    assert Dropout(0.0, dice)(embedding) is embedding
    assert torch.equal(dice.get_state(), before)


def test_dropout_reaches_the_bottleneck(embedding: Tensor) -> None:
    module, shares = adapter(ratio=1.0), []
    for seed in range(50):
        dice = torch.Generator().manual_seed(seed)
        shares.append(module(embedding, None, Dropout(0.5, dice)))
    mean = torch.stack(shares).mean(0)
    assert (torch.stack(shares).std(0) > 0).any()
    assert not torch.equal(mean, module(embedding))


def test_dropout_is_on_the_device_of_what_it_drops() -> None:
    elsewhere = torch.ones(3, 4, device="meta")
    found = Dropout(0.5, torch.Generator().manual_seed(0))(elsewhere)
    assert found.device == elsewhere.device


def test_dropout_of_a_part_of_a_batch_is_that_of_the_batch() -> None:
    numbers = torch.rand(7, 20)
    whole = Dropout(0.5, torch.Generator().manual_seed(3))(numbers)
    for places in (torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5])):
        dice = torch.Generator().manual_seed(3)
        assert torch.equal(Dropout(0.5, dice, (7, places))(numbers[places]), whole[places])
