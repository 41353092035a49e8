"""The image adapter."""

import pytest
import torch
from torch import Tensor

from dcmpl.adapter import ImageAdapter


@pytest.fixture
def embedding() -> Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


def test_ratio_zero_is_identity(embedding: Tensor) -> None:
    embedding[0, 0] = torch.inf  # zero times this would be nan: the adapter must not run
    assert torch.equal(ImageAdapter(16, 4, 0.0)(embedding), embedding)


def test_adapter_follows_the_equation(embedding: Tensor) -> None:
    adapter = ImageAdapter(16, 4, 0.2)
    hidden = (embedding @ adapter.down.weight.T).clamp(min=0)
    refined = (hidden @ adapter.up.weight.T).clamp(min=0)
    # the same float32 sums by another kernel, on values of order 1
    torch.testing.assert_close(
        adapter(embedding), 0.2 * refined + 0.8 * embedding, rtol=0, atol=1e-6
    )


def test_ratio_one_is_never_negative(embedding: Tensor) -> None:
    out = ImageAdapter(16, 4, 1.0)(embedding)
    assert out.min() == 0
    assert out.max() > 0


@pytest.mark.parametrize(("reduction", "hidden"), [(1, 16), (4, 4), (16, 1)])
def test_reduction_divides_the_width(reduction: int, hidden: int) -> None:
    adapter = ImageAdapter(16, reduction, 0.2)
    assert adapter.down.weight.shape == (hidden, 16)
    assert adapter.up.weight.shape == (16, hidden)


def test_adapter_has_no_bias() -> None:
    assert set(ImageAdapter(16, 4, 0.2).state_dict()) == {"down.weight", "up.weight"}


def test_adapter_takes_any_leading_axes(embedding: Tensor) -> None:
    adapter = ImageAdapter(16, 4, 0.2)
    # kernels differ with the number of axes, by a rounding
    torch.testing.assert_close(adapter(embedding[None])[0], adapter(embedding), rtol=0, atol=1e-6)
