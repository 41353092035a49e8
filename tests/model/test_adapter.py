"""The image adapter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dcmpl.config import AdapterConfig
from dcmpl.model.adapter import ImageAdapter


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
