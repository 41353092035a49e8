"""A model of CLIP-AGIQA's kind and its two files, as the script saves them; loaded as a plugin."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.weights.backbones import Backbone, load_backbone
from torch_files import save_clip_agiqa

Randomise = Callable[[nn.Module, int], None]


@pytest.fixture(scope="module")
def backbone(small_backbone: Path) -> Backbone:
    return load_backbone(str(small_backbone))


@pytest.fixture(scope="module")
def learned(backbone: Backbone, randomise: Randomise) -> DCMPL:
    """What the script learned, far from its start."""
    config = replace(PRESETS["clip-agiqa"].model, round_prompts=True)
    model = DCMPL(backbone.clip, backbone.tokenizer, config, seed=1)
    for index, (name, part) in enumerate(model.named_children()):
        if name != "clip":
            randomise(part, index)
    return model.eval()


@pytest.fixture
def files(learned: DCMPL, backbone: Backbone, tmp_path: Path) -> tuple[Path, Path]:
    """The auxiliary and the main file."""
    return save_clip_agiqa(learned, backbone.tokenizer, tmp_path)
