"""The trunk against the package its weights come from, and its maps on images of any size."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from dcmpl.model.trunk import STRIDES, TRUNKS, Trunk, fold_lite


def oracle(name: str, size: int) -> nn.Module:
    """The package's network of random weights and statistics, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = EfficientNet.from_name(f"efficientnet-{name}", image_size=size)
        for part in found.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor, low, high in (
                    (part.weight.data, 0.5, 1.5),
                    (part.bias.data, -0.5, 0.5),
                    (part.running_mean, -0.5, 0.5),
                    (part.running_var, 0.5, 2.0),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high)
    network: nn.Module = found.double().eval()
    return network


def pixels(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def trunk_of(name: str, state: dict[str, Tensor]) -> Trunk:
    trunk = Trunk(TRUNKS[name])
    trunk.load_state_dict(fold_lite(state))  # strictly
    return trunk.double().eval()


@pytest.mark.parametrize(("name", "size"), [("lite0", 96), ("lite1", 96), ("lite2", 97)])
@torch.inference_mode()
def test_head_equals_the_package_on_the_same_weights(name: str, size: int) -> None:
    known = oracle(name, size)
    wanted = known.extract_features(pixels(size, size))  # type: ignore[operator]
    found = trunk_of(name, known.state_dict())(pixels(size, size))[-1]
    assert wanted.std() > 0.1
    # The folded weights were rounded to float32.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 130), (1, 1), (33, 512)])
@torch.inference_mode()
def test_maps_have_the_sides_of_the_image_divided_by_their_strides(height: int, width: int) -> None:
    trunk = Trunk(TRUNKS["lite0"]).double()
    maps = trunk(pixels(height, width))
    assert [found.shape[1] for found in maps] == trunk.widths
    assert [tuple(found.shape[2:]) for found in maps] == [
        (-(-height // stride), -(-width // stride)) for stride in STRIDES
    ]


def test_missing_tensor_is_named() -> None:
    state = oracle("lite0", 64).state_dict()
    del state["_blocks.3._bn2.running_var"]
    with pytest.raises(KeyError, match=r"_blocks\.3\._bn2\.running_var"):
        fold_lite(state)


@pytest.mark.parametrize(
    ("name", "numbers", "millions"), [("lite0", 16, 3.35), ("lite1", 21, 4.11), ("lite2", 21, 4.78)]
)
def test_size_is_that_of_the_published_network(name: str, numbers: int, millions: float) -> None:
    """Without the classifier of 1,281,000; measured on the published weights."""
    trunk = Trunk(TRUNKS[name])
    count = sum(p.numel() for p in trunk.parameters())
    assert len(trunk.blocks) == numbers
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
