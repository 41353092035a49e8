"""The score as a loss: the scorer's own number, with a gradient that means something."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Capture
from dcmpl.errors import UsageError
from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine, has_bfloat16
from dcmpl.weights.backbones import load_backbone
from exported import Made

pytest_plugins = ("exported",)

Build = Callable[..., DCMPL]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def scorer_of(build: Build) -> Callable[..., Scorer]:
    def scorer_of(views: str = "center", preset: str = "dcmpl", **fields: Any) -> Scorer:
        model = build(preset, **fields)
        return Scorer(TorchEngine(model, model.config.tasks), views, ScoringOptions(workers=1))

    return scorer_of


@pytest.fixture(scope="module")
def embedded() -> Scorer:
    """The embedded backbone, with its trunk."""
    backbone = load_backbone("small")
    model = DCMPL(backbone.clip, backbone.tokenizer, PRESETS["dcmpl"].model, 0)
    return Scorer(TorchEngine(model, model.config.tasks), "center", ScoringOptions(workers=1))


def of_bytes(*shape: int, seed: int = 0) -> Tensor:
    """Floats k/255, as of images that were read."""
    noise = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))
    return noise.float() / 255


def gradient(scorer: Scorer, images: Tensor, target: str = "quality") -> Tensor:
    leaf = images.clone().requires_grad_()
    scorer.as_loss(target)(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


# Its value


@pytest.mark.parametrize("views", ["center", "windows", "grid-2", "grid-3"])
@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa"])
@pytest.mark.parametrize("target", ["quality", "alignment"])
def test_loss_is_one_less_the_score(
    scorer_of: Callable[..., Scorer], views: str, preset: str, target: str
) -> None:
    scorer = scorer_of(views, preset)
    images = of_bytes(3, 3, 47, 60)
    loss = scorer.as_loss(target)(images)
    scores = [score[target] for score in scorer.score(images)]
    assert loss.shape == (3,)
    assert np.ptp(scores) > 1e-3
    assert (1 - loss).tolist() == pytest.approx(scores, abs=TOLERANCE)


def test_loss_of_the_embedded_backbone_is_one_less_the_score(embedded: Scorer) -> None:
    images = of_bytes(2, 3, 520, 600)
    images[1] = (images[1] / 8 + 0.5).mul(255).round() / 255
    scores = [score.quality for score in embedded.score(images)]
    assert (1 - embedded.as_loss()(images)).tolist() == pytest.approx(scores, abs=TOLERANCE)


def test_loss_of_resized_images_is_near_one_less_the_score(
    scorer_of: Callable[..., Scorer],
) -> None:
    scorer = scorer_of("resize")
    images = torch.nn.functional.interpolate(of_bytes(2, 3, 7, 8), (50, 64), mode="bilinear")
    scores = [score.quality for score in scorer.score(images)]
    assert (1 - scorer.as_loss()(images)).tolist() == pytest.approx(scores, abs=0.02)
    small = scorer.as_loss()(of_bytes(1, 3, 9, 9))  # smaller than a window
    assert small.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_images_may_be_floats_of_any_precision(
    scorer_of: Callable[..., Scorer], kind: torch.dtype
) -> None:
    scorer = scorer_of()
    images = torch.tensor([0.25, 0.5, 0.75])[:, None, None, None].expand(3, 3, 32, 32)  # exact
    expected = scorer.as_loss()(images)
    leaf = images.to(kind).requires_grad_()
    found = scorer.as_loss()(leaf)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=TOLERANCE)
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == kind
    assert leaf.grad.any()


def test_loss_of_an_image_does_not_depend_on_its_neighbours(
    scorer_of: Callable[..., Scorer],
) -> None:
    loss, images = scorer_of("windows").as_loss(), of_bytes(3, 3, 40, 48)
    together = loss(images).tolist()
    alone = [loss(image[None]).item() for image in images]
    assert together == pytest.approx(alone, abs=TOLERANCE)


# Its gradient


@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa", "clip-iqa", "vpt-shallow"])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_agrees_with_finite_differences(
    scorer_of: Callable[..., Scorer], preset: str, seed: int
) -> None:
    scorer = scorer_of("center", preset)
    images = 0.3 + 0.4 * of_bytes(1, 3, 32, 32, seed=seed)
    slope = gradient(scorer, images)
    direction = slope / slope.norm() + of_bytes(1, 3, 32, 32, seed=9).sub(0.5) / 16
    loss, step = scorer.as_loss(), 0.02
    with torch.no_grad():
        ahead, behind = loss(images + step * direction), loss(images - step * direction)
    measured = ((ahead - behind).double() / (2 * step)).item()
    assert measured > 1e-3  # far more than float32 rounds a loss by, over the step
    assert measured == pytest.approx((slope * direction).sum().item(), rel=0.05)


@pytest.mark.parametrize(
    ("views", "covered"),
    [
        ("center", [(8, 8)]),
        ("grid-2", [(0, 0), (0, 24), (16, 0), (16, 24)]),
        ("windows", [(top, left) for top in (0, 8, 16) for left in (0, 8, 16, 24)]),
    ],
)
def test_gradient_reaches_all_pixels_that_windows_cover_and_no_others(
    scorer_of: Callable[..., Scorer], views: str, covered: list[tuple[int, int]]
) -> None:
    slope = gradient(scorer_of(views), of_bytes(2, 3, 50, 60))
    seen = torch.zeros(50, 60, dtype=torch.bool)
    for top, left in covered:
        seen[top : top + 32, left : left + 32] = True
    assert slope.isfinite().all()
    assert torch.equal((slope != 0).all(1), seen.expand(2, -1, -1))


def test_gradient_of_resized_images_reaches_their_middle_square(
    scorer_of: Callable[..., Scorer],
) -> None:
    reached = (gradient(scorer_of("resize"), 0.3 + of_bytes(1, 3, 40, 60) / 4) != 0).all(1)[0]
    assert reached[:, 10:50].all()
    assert not reached[:, :10].any()
    assert not reached[:, 50:].any()


def test_each_image_has_a_gradient_of_its_own(scorer_of: Callable[..., Scorer]) -> None:
    scorer, images = scorer_of(), of_bytes(2, 3, 32, 32)
    leaf = images.clone().requires_grad_()
    scorer.as_loss()(leaf)[1].backward()
    assert leaf.grad is not None
    assert not leaf.grad[0].any()
    assert leaf.grad[1].all()


@pytest.mark.parametrize("target", ["quality", "alignment"])
def test_steps_along_the_gradient_lower_the_loss(
    scorer_of: Callable[..., Scorer], target: str
) -> None:
    scorer = scorer_of("windows")
    images, loss = 0.25 + of_bytes(1, 3, 40, 40) / 2, scorer.as_loss(target)
    values = [loss(images).item()]
    for _ in range(5):
        slope = gradient(scorer, images, target)
        images = (images - 0.5 * slope / slope.norm()).clamp(0, 1)
        values.append(loss(images).item())
    assert all(after < before for before, after in pairwise(values))
    assert values[0] - values[-1] > 0.01


def test_steps_along_the_gradient_lower_the_loss_of_the_embedded_backbone(embedded: Scorer) -> None:
    images, loss = 0.4 + of_bytes(1, 3, 512, 512) / 5, embedded.as_loss()
    before, slope = loss(images).item(), gradient(embedded, images)
    assert slope.isfinite().all()
    assert (slope != 0).float().mean() > 0.99
    after = loss((images - 0.5 * slope / slope.norm()).clamp(0, 1)).item()
    assert after < before - 1e-4


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images_have_finite_gradients(
    scorer_of: Callable[..., Scorer], embedded: Scorer, value: float
) -> None:
    for scorer in (scorer_of(), embedded):
        for target in ("quality", "alignment"):
            slope = gradient(
                scorer, torch.full((1, 3, scorer.engine.size, scorer.engine.size), value), target
            )
            assert slope.isfinite().all()
            assert slope.any()


def test_weights_of_the_model_get_no_gradient(scorer_of: Callable[..., Scorer]) -> None:
    loss = scorer_of().as_loss()
    assert len(list(loss.parameters())) > 10
    loss(of_bytes(1, 3, 32, 32).requires_grad_()).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())


def test_images_without_gradient_make_a_loss_without_one(scorer_of: Callable[..., Scorer]) -> None:
    assert not scorer_of().as_loss()(of_bytes(1, 3, 32, 32)).requires_grad


def test_loss_leaves_images_and_later_scores_as_they_were(
    scorer_of: Callable[..., Scorer],
) -> None:
    scorer, images = scorer_of("windows"), of_bytes(2, 3, 40, 40)
    before, copy = scorer.score(images), images.clone()
    gradient(scorer, images)
    assert torch.equal(images, copy)
    assert scorer.score(images) == before
    gradient(scorer, images)  # also behind scoring, which infers without gradients


# What is refused


def test_exported_model_has_no_loss(made: Made) -> None:
    scorer = Scorer.from_pretrained(made.folder, engine="onnx")
    with pytest.raises(UsageError) as caught:
        scorer.as_loss()
    assert str(caught.value) == "expected a run folder for a loss, got an exported model"


def test_target_the_scorer_has_not_has_no_loss(trained_run: Path) -> None:
    scorer = Scorer.from_pretrained(trained_run, device="cpu", targets=["alignment"])
    assert scorer.as_loss("alignment")(of_bytes(1, 3, 40, 40)).shape == (1,)
    with pytest.raises(UsageError, match=r"predicts \(alignment\), got quality"):
        scorer.as_loss()


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.full((1, 3, 32, 32), 1.01), "expected images in [0, 1], got 1.01 to 1.01: clamp"),
        (torch.full((1, 3, 32, 32), -0.01), "expected images in [0, 1], got -0.01 to -0.01"),
        (torch.full((1, 3, 32, 32), 255.0), "expected images in [0, 1], got 255 to 255"),
        (torch.full((1, 3, 32, 32), float("nan")), "expected images in [0, 1], got nan to nan"),
        (torch.full((1, 3, 32, 32), float("inf")), "expected images in [0, 1], got inf to inf"),
        (torch.zeros(1, 3, 31, 40), "expected images of at least 32 x 32, got 31 x 40"),
        (torch.zeros(1, 3, 40, 31), "expected images of at least 32 x 32, got 40 x 31"),
    ],
)
def test_images_that_are_none_are_refused(
    scorer_of: Callable[..., Scorer], images: Tensor, told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        scorer_of().as_loss()(images)
    assert str(caught.value).startswith(told)


def test_one_pixel_out_of_range_is_enough(scorer_of: Callable[..., Scorer]) -> None:
    images = of_bytes(2, 3, 32, 32)
    images[1, 2, 31, 31] = 1.5
    with pytest.raises(UsageError, match=r"got 0 to 1\.5: clamp them"):
        scorer_of().as_loss()(images)


def test_units_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bfloat16(torch.device("cuda"))
    assert asked == [False]
    assert has_bfloat16(torch.device("mps"))
    assert isinstance(has_bfloat16(torch.device("cpu")), bool)
    assert asked == [False]


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_without_units_has_a_note(
    build: Callable[..., DCMPL],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    has_units: bool,
) -> None:
    monkeypatch.setattr("dcmpl.scoring.torch_engine.has_bfloat16", lambda device: has_units)
    TorchEngine(build("dcmpl"), ["quality"], "bf16")
    note = "note: cpu has no units for bfloat16 here; fp32 is faster\n"
    assert capsys.readouterr().err == ("" if has_units else note)
