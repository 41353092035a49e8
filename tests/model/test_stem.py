"""Images to tokens: the fixed statistics against plain loops, and what they survive."""

import math

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch import Tensor

from dcmpl.images.coats import encoded
from dcmpl.model import stem as stem_module
from dcmpl.model.clip import Clip, ClipConfig, TowerConfig
from dcmpl.model.stem import (
    BLOCK_STRIDES,
    FLOOR,
    LIMIT,
    STATISTICS,
    HybridStem,
    PatchStem,
    cell_statistics,
    dct_kernels,
    to_unit_range,
)
from dcmpl.model.trunk import TRUNKS


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise on ramps, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.2, 0.8, size).expand(count, 3, size, size)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return (ramp + 0.1 * noise).clamp(0, 1)


def statistics(batch: Tensor, cells: int) -> Tensor:
    return cell_statistics(batch, cells, dct_kernels(8), dct_kernels(4))


@pytest.mark.parametrize("size", [4, 8])
def test_kernels_are_orthonormal(size: int) -> None:
    flat = dct_kernels(size).flatten(1)
    # float32 rounding of products that sum to one
    torch.testing.assert_close(flat @ flat.T, torch.eye(size**2 - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [4, 8])
def test_kernels_have_zero_mean(size: int) -> None:
    # float32 rounding of entries of at most 1/4
    assert dct_kernels(size).mean(dim=(1, 2, 3)).abs().max() < 1e-7


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_image_has_finite_statistics(value: float) -> None:
    assert statistics(torch.full((1, 3, 64, 64), value), 2).isfinite().all()


def test_there_are_693_statistics_per_cell() -> None:
    assert statistics(images(2, 96), 3).shape == (2, 9, STATISTICS)


@pytest.mark.parametrize("cell", [(0, 0), (1, 0), (1, 1)])
def test_luma_statistics_equal_a_loop_over_blocks(cell: tuple[int, int]) -> None:
    batch = images(1, 80)
    red, green, blue = batch[0].double().numpy()
    luma = np.pad(0.299 * red + 0.587 * green + 0.114 * blue, (0, 7), mode="reflect")
    sizes = []
    for y in range(8):  # of 16 blocks to a side, 8 lie in a cell of 40 pixels
        for x in range(8):
            top, left = (5 * (8 * of_cell + at) for of_cell, at in zip(cell, (y, x), strict=True))
            block = fft.dctn(luma[top : top + 8, left : left + 8], norm="ortho")
            sizes.append(np.abs(block).ravel()[1:])
    mean_log = np.mean(np.log(np.stack(sizes) + FLOOR), axis=0)
    peaked = 0.5 * np.log(np.mean(np.square(sizes), axis=0) + FLOOR**2) - mean_log
    ours = statistics(batch, 2)[0, 2 * cell[0] + cell[1]]
    # float32 errors of 1e-7 in coefficients, divided by the floor of 4e-3 in the logarithm
    np.testing.assert_allclose(ours[:63], mean_log, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours[63:126], peaked, rtol=0, atol=1e-4)


def test_blocks_stand_in_all_places_of_jpeg_s_grid_alike() -> None:
    for scale, stride in enumerate(BLOCK_STRIDES):
        period = max(1, 8 >> scale)  # of the grid, in pixels of this scale
        assert math.gcd(stride, period) == 1


@pytest.mark.parametrize("moved", [(3, 5), (1, 0), (4, 4)])
def test_statistics_hardly_change_where_jpeg_s_grid_lies(
    moved: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    down, right = moved
    noise = np.random.default_rng(0).normal(0, 20, (272, 272, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0)) * 6 + 128
    coded = encoded(smooth.clip(0, 255).astype(np.uint8), "JPEG", 40)
    crops = coded[:256, :256], coded[down : 256 + down, right : 256 + right]

    def change() -> float:
        one, other = (
            statistics(to_unit_range(torch.from_numpy(crop[None].copy())), 4).mean(1)
            for crop in crops
        )
        return float((one - other).abs().mean())

    ours = change()
    monkeypatch.setattr(stem_module, "BLOCK_STRIDES", (8, 4, 2, 1))  # in step with the grid
    assert ours < 0.5 * change()


def test_colour_statistics_equal_plain_means() -> None:
    batch = images(1, 64)
    cell = batch[0, :, 32:, :32].double()  # row 1, column 0 of 2 x 2
    high, low = cell.amax(0), cell.amin(0)
    expected = [
        *cell.mean(dim=(1, 2)),
        *cell.var(dim=(1, 2), correction=0),
        (high - low).mean(),
        low.mean(),
        high.mean(),
    ]
    # float32 means of values in [0, 1]; the variance is a difference of two of them
    torch.testing.assert_close(
        statistics(batch, 2)[0, 2, -9:], torch.stack(expected).float(), rtol=0, atol=1e-5
    )


def test_a_flat_image_is_not_peaked() -> None:
    flat = statistics(torch.full((1, 3, 64, 64), 0.5), 1)[0, 0, 63:126]
    assert flat.abs().max() < 0.01


def test_a_mirrored_image_changes_little() -> None:
    batch = images(4, 128)
    mean = statistics(batch, 4).mean(1)
    mirrored = statistics(batch.flip(-1), 4).mean(1)
    blurred = torch.nn.functional.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
    change = (mirrored - mean).abs().mean()
    # a slight blur, which people do see, is the measure
    assert change < 0.1 * (statistics(blurred, 4).mean(1) - mean).abs().mean()


def test_patch_stem_has_no_summary() -> None:
    first, patches, summary = PatchStem(64, 32, 16)(images(2, 64))
    assert torch.equal(first, torch.zeros(2, 16))
    assert summary.shape == (2, PatchStem.numbers) == (2, 0)
    assert patches.shape == (2, 4, 16)


def test_patches_run_row_by_row() -> None:
    stem = PatchStem(8, 4, 3)
    image = torch.arange(4.0).reshape(1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        stem.conv1.weight.fill_(1 / 48)
        _, patches, _ = stem(image.expand(1, 3, 8, 8))
    # means of 48 equal numbers
    torch.testing.assert_close(patches[0, :, 0], torch.arange(4.0), rtol=0, atol=1e-5)


def test_unit_range_ends_at_zero_and_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    scaled = to_unit_range(pixels).flatten()
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)  # float32


def test_unit_range_has_colours_first() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    scaled = to_unit_range(pixels)
    assert scaled.shape == (2, 3, 3, 4)
    assert scaled[1, 2, 0, 3].item() == pytest.approx(pixels[1, 0, 3, 2].item() / 255, abs=1e-7)


@pytest.fixture
def stem() -> HybridStem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HybridStem(128, 64, 16, TRUNKS["lite0"])


def test_standardised_cells_are_clamped(stem: HybridStem) -> None:
    raw = torch.zeros(1, 4, len(stem.center))
    raw[0, 0, 0], raw[0, 1, 1], raw[0, 2, 2] = 1e6, -1e6, 3.0
    _, cells = stem.standardised(raw)
    assert (cells[0, 0, 0], cells[0, 1, 1], cells[0, 2, 2]) == (LIMIT, -LIMIT, 3.0)


def test_standardised_summary_is_clamped(stem: HybridStem) -> None:
    stem.summary_scale.fill_(1e-3)
    count = len(stem.center)
    raw = torch.ones(1, 4, count)
    raw[0, :, 1] = -1
    summary, _ = stem.standardised(raw)
    assert (summary[0, 0], summary[0, 1], summary[0, count]) == (LIMIT, -LIMIT, 0)


def test_standardised_counts_deviations_from_the_center(stem: HybridStem) -> None:
    stem.center.fill_(2)
    stem.scale.fill_(4)
    count = len(stem.center)
    raw = torch.full((1, 4, count), 6.0)
    raw[0, :2, 0] = -2
    summary, cells = stem.standardised(raw)
    assert cells[0, :, 0].tolist() == [-1, -1, 1, 1]
    assert (summary[0, 0], summary[0, 1]) == (0, 1)  # means over the cells
    assert (summary[0, count], summary[0, count + 1]) == (1, 0)  # deviations over the cells


def test_tokens_are_linear_maps_of_the_standardised_statistics(stem: HybridStem) -> None:
    batch = images(2, 128)
    summary, cells = stem.standardised(stem.statistics(batch))
    token, patches, read = stem(batch)
    assert torch.equal(read, summary)
    assert read.shape == (2, stem.numbers)
    assert token.shape == (2, 16)
    assert patches.shape == (2, 4, 16)
    assert torch.equal(token, stem.summary_map(summary))
    assert torch.equal(patches, stem.cell_map(cells))


def test_tokens_are_made_in_float32_under_autocast(stem: HybridStem) -> None:
    batch = images(1, 128)
    with torch.autocast("cpu", torch.bfloat16):
        under = stem(batch)
    for ours, expected in zip(under, stem(batch), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)


@pytest.fixture(scope="module")
def hybrid() -> HybridStem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = HybridStem(128, 64, 24, TRUNKS["lite0"])
    with torch.inference_mode():
        found = stem.statistics(images(8, 128))
        stem.center.copy_(found.mean((0, 1)))
        stem.scale.copy_(found.std((0, 1)) + 1e-3)
    return stem.eval()


@torch.inference_mode()
def test_numbers_of_a_hybrid_stem_are_means_and_deviations_of_the_trunk_s_maps(
    hybrid: HybridStem,
) -> None:
    batch = images(2, 128)
    found, at = hybrid.statistics(batch), 0
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
    pixels = torch.stack(
        [batch[:, channel] * deviation[channel] + mean[channel] for channel in range(3)], dim=1
    )
    for made in hybrid.trunk((pixels * 255 - 127) / 128):
        half = made.shape[2] // 2
        cell = made[:, :, :half, half:]  # the upper right of four
        for wanted in (cell.mean((2, 3)), cell.var((2, 3), correction=0).clamp(min=1e-6).sqrt()):
            part = found[:, 1, at : at + made.shape[1]]
            torch.testing.assert_close(part, wanted, rtol=1e-3, atol=1e-3)
            at += made.shape[1]
    torch.testing.assert_close(found[..., at:], statistics(pixels, 2), rtol=0, atol=1e-3)
    assert at == found.shape[2] - STATISTICS


@torch.inference_mode()
def test_numbers_of_an_image_do_not_depend_on_its_batch(hybrid: HybridStem) -> None:
    batch = images(3, 128)
    found = hybrid.statistics(batch)
    assert found.shape[0] == 3
    for index in range(3):
        assert torch.equal(found[index : index + 1], hybrid.statistics(batch[index : index + 1]))
    together = hybrid._numbers(batch)  # as exported models and GPUs compute them
    torch.testing.assert_close(together, found, rtol=1e-3, atol=1e-3)
    assert hybrid.statistics(batch[:0]).shape == (0, *found.shape[1:])


def test_deviations_are_left_out_where_a_cell_is_one_place() -> None:
    stem = HybridStem(128, 32, 24, TRUNKS["lite0"])
    assert stem.fine == [True] * 5 + [False] * 3
    assert len(stem.center) == sum(stem.trunk.widths) + sum(stem.trunk.widths[:5]) + STATISTICS


@torch.inference_mode()
def test_clip_may_have_a_hybrid_stem() -> None:
    embedding = hybrid_clip().visual(images(2, 128))
    assert embedding.shape == (2, 20)
    assert embedding.isfinite().all()


def hybrid_clip() -> Clip:
    towers = TowerConfig(24, 2, 2, 48, "quick_gelu"), TowerConfig(16, 2, 2, 32, "quick_gelu")
    return Clip(ClipConfig(*towers, 20, 128, 64, 640, 40, "hybrid", "lite0"))
