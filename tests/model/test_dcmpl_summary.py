"""The stem's summary on its way to the image adapters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TOKENIZER
from dcmpl.config import AdapterConfig, ModelConfig
from dcmpl.model.clip import Clip, ClipConfig, TowerConfig
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.presets import PRESETS

WHOLE = PRESETS["dcmpl"].model
NOTHING_VISUAL = PRESETS["clip-adapter"].model


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A small random CLIP with a trunk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers = TowerConfig(24, 3, 2, 48, "quick_gelu"), TowerConfig(16, 3, 2, 32, "quick_gelu")
        return Clip(ClipConfig(*towers, 20, 128, 64, 640, 40, "hybrid", "lite0")).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def build(clip: Clip, config: ModelConfig) -> Any:
    return DCMPL(clip, Tokenizer(TOKENIZER, 40), config, 0)


@pytest.fixture(params=[WHOLE, NOTHING_VISUAL], ids=["tokens", "embedding"])
def model(clip: Clip, request: pytest.FixtureRequest) -> Any:
    return build(clip, request.param)


def test_frozen_features_hold_the_summary_behind_the_rest(model: Any, images: Tensor) -> None:
    visual = model.clip.visual
    with torch.no_grad():
        seen = visual.stem((images - model.mean) / model.std)
        first = visual.join(seen)
        if model.config is NOTHING_VISUAL:
            first = visual.encode(first)
        wanted = torch.cat([first.flatten(1), seen.summary], dim=1)
    assert torch.equal(model.frozen(images), wanted)
    assert torch.equal(model.frozen_of(model.tokens_seen(seen)), wanted)


def test_plain_embedding_leaves_the_summary_out(model: Any, images: Tensor) -> None:
    with torch.no_grad():
        wanted = model.clip.visual((images - model.mean) / model.std)
        assert torch.equal(model.plain_embedding(model.frozen(images)), wanted)


def test_scores_depend_on_the_summary_where_adapters_read_it(clip: Clip, images: Tensor) -> None:
    read, not_read = (
        build(clip, replace(WHOLE, adapter=AdapterConfig(reads_summary=reads)))
        for reads in (True, False)
    )
    frozen = read.frozen(images)
    other = frozen.clone()
    other[:, -clip.visual.stem.numbers :].neg_()
    with torch.no_grad():
        assert not torch.equal(read(frozen, frozen=True).values, read(other, frozen=True).values)
        assert torch.equal(
            not_read(frozen, frozen=True).values, not_read(other, frozen=True).values
        )


def test_adapters_of_a_clip_without_a_trunk_read_the_embedding_alone(clip: Clip) -> None:
    config = replace(clip.config, stem="patch")
    model = build(Clip(config).eval(), WHOLE)
    assert model.adapters.quality.down.weight.shape == (5, 20)
    assert build(clip, WHOLE).adapters.quality.down.weight.shape == (
        5,
        20 + clip.visual.stem.numbers,
    )
