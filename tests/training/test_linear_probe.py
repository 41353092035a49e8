"""The linear probe: ridge regression on frozen embeddings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.images.decode import read_image
from dcmpl.images.windows import windows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.stem import to_unit_range
from dcmpl.training.features import freeze_table
from dcmpl.training.linear_probe import STRENGTHS, fit_ridge

Build = Callable[..., DCMPL]


@pytest.fixture
def parts(image_data: Path) -> tuple[ImageTable, ImageTable]:
    """36 images to fit on, 12 to choose the penalty by."""
    table = load_table(image_data, MosScale(1, 5))
    first = table.frame.index.to_series() < 36
    return table.select(first), table.select(~first)


def fitted(build: Build, training: ImageTable, validation: ImageTable) -> DCMPL:
    model = build("linear-probe", fresh=True)
    frozen = freeze_table(model, training.joined(validation), "center", "fp32")
    fit_ridge(model, training, validation, frozen)
    return model


def test_ridge_is_the_closed_form(build: Build, parts: tuple[ImageTable, ImageTable]) -> None:
    """The stored map minimises the penalised squares for one of the tried penalties."""
    model, rows = fitted(build, *parts), parts[0]
    with torch.inference_mode():
        cut = [np.stack([*windows(read_image(p), 32, "center")]) for p in rows.frame["image"]]
        means = [model.frozen(to_unit_range(torch.from_numpy(c))).mean(0) for c in cut]
        x = torch.stack(means).double()
    scale = x.std(0, correction=0)
    standard = (x - x.mean(0)) / scale
    y = torch.from_numpy(rows.targets()[:, 0]).double()
    found = model.linear.weight[0].double().detach() * scale
    residual = standard.T @ (y - y.mean() - standard @ found)
    # At the minimum the gradient of the squares is the penalty times the weights.
    penalty = (residual @ found) / (found @ found)
    torch.testing.assert_close(residual, penalty * found, atol=1e-4, rtol=1e-3)
    assert any(abs(penalty.item() / strength - 1) < 0.02 for strength in STRENGTHS)


def test_task_without_opinions_is_left_as_it_was(
    build: Build, parts: tuple[ImageTable, ImageTable]
) -> None:
    for part in parts:
        part.frame["mos_alignment"] = np.nan
    before = build("linear-probe", fresh=True).linear.weight.clone()
    after = fitted(build, *parts).linear.weight
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])
