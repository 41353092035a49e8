"""What many tests share: a small CLIP on disk, small images with opinions, a short run."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

if TYPE_CHECKING:  # the rest of the package is imported late, or its shapes go unchecked
    from dcmpl.data.table import ImageTable
    from dcmpl.model.dcmpl import DCMPL
    from dcmpl.weights.backbones import Backbone

# Small tensors gain nothing from a second thread, and on a busy machine two wait for one another.
torch.set_num_threads(1)

FEW_DRAWS = 5
"""Samples for an interval, of which an evaluation takes 1000, or 100 where it fits a curve."""


@pytest.fixture(scope="session", autouse=True)
def _few_draws() -> Iterator[None]:
    """Evaluations here are of a dozen images; intervals themselves are tested with metrics."""
    from dcmpl.evaluation import results

    bootstrap = results.bootstrap

    def quick(*given: Any) -> Any:
        return bootstrap(*given[:4], min(given[4], FEW_DRAWS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "bootstrap", quick)
        yield


def evaluate_bare(patch: pytest.MonkeyPatch) -> None:
    """Leave plots and baselines out of evaluations; those of runs have tests with them."""
    from dcmpl.evaluation import results

    patch.setattr(results, "write_plots", lambda *_: True)
    patch.setattr(results, "statistics_of", lambda *_: {})
    patch.setattr(results, "predict_baselines", lambda *_: {})


SMALL = {
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 640,
        "max_position_embeddings": 40,
        "hidden_act": "quick_gelu",
    },
}
"""A CLIP of 3 layers that trains in seconds; windows of 32 pixels."""


TOKENIZER = Path(__file__).with_name("tokenizer.json")
"""640 byte pairs of drawn scenes' captions."""

Capture = pytest.CaptureFixture[str]
Factory = pytest.TempPathFactory


def shared(factory: Factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills once for all processes of the test run; leave it as it is."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    place.parent.mkdir(exist_ok=True)
    done = place.with_name(f"{name} is made")
    with FileLock(place.with_name(f"{name}.lock")):
        if not done.exists():
            make(place)
            done.touch()
    return place


def refused(capsys: Capture, code: int, *words: object) -> str:
    """Run a command that ends with ``code``; returns the sentence it ends with."""
    from dcmpl.cli.main import main

    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dcmpl: ")
    assert "Traceback" not in line
    return line.removeprefix("dcmpl: ")


def refused_backbone(name: Path | str) -> str:
    """The message ``name`` is refused with, which must be one line in the house's form."""
    from dcmpl.errors import UsageError, WeightsError
    from dcmpl.weights.backbones import load_backbone

    with pytest.raises((WeightsError, UsageError)) as caught:
        load_backbone(str(name))
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    return message


def made_table(*, mos_scale: tuple[float, float] = (1, 5), **columns: Any) -> "ImageTable":
    """A table of these columns; what is not given is empty, and nobody was asked.

    Without ``prompt`` every row has its own, or that of its ``group``.
    """
    import pandas as pd

    from dcmpl.config import TARGETS
    from dcmpl.data.table import ImageTable, MosScale, as_group

    frame = pd.DataFrame(columns)
    prompts = frame.get("group", pd.Series([f"prompt {i}" for i in frame.index], dtype=str))
    names = pd.Series([f"{i}.png" for i in frame.index], dtype=str)
    plain: dict[str, Any] = {"name": names, "prompt": prompts, "generator": "", "part": ""}
    plain |= {f"{kind}_{target}": np.nan for kind in ("mos", "std") for target in TARGETS}
    frame = frame.assign(**{name: plain[name] for name in plain if name not in frame})
    derived = {"image": "/made/" + frame["name"], "group": as_group(frame["prompt"])}
    frame = frame.assign(**{name: derived[name] for name in derived if name not in frame})
    return ImageTable("made", MosScale(*mos_scale), frame)


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: Factory) -> Path:
    """A folder with a random small CLIP, from a seed, as ``dcmpl.weights.backbones`` loads it."""
    return shared(tmp_path_factory, "small-clip", _write_small_backbone)


def _write_small_backbone(folder: Path) -> None:
    from safetensors.torch import save_file

    from dcmpl.model.clip import Clip
    from dcmpl.weights.layouts import read_config

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = Clip(read_config(folder / "config.json"))
    save_file(clip.state_dict(), folder / "model.safetensors")


@pytest.fixture(scope="session")
def image_data(tmp_path_factory: Factory) -> Path:
    """A CSV of 48 images of 12 prompts; noise lowers the MOS (1 to 5)."""
    return shared(tmp_path_factory, "images", _write_images) / "scores.csv"


def _write_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "mos_quality", "mos_alignment", "generator"])
        for i in range(48):
            noise = rng.random()
            pixels = 128 + rng.normal(0, 5 + 90 * noise, (40, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
            row = [
                f"{i:02}.png",
                f"prompt {i % 12}",
                f"{5 - 4 * noise:.3f}",
                f"{1 + 4 * rng.random():.3f}",
            ]
            writer.writerow([*row, "ab"[i % 2]])


@pytest.fixture(scope="session")
def randomise() -> Callable[[torch.nn.Module, int], None]:
    """Fill every parameter from a seed, so that no bias is zero and no scale is one.

    Matrices keep the size of what passes through them, so outputs stay of order 1.
    """

    def fill(module: torch.nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
                elif name.endswith("logit_scale"):
                    parameter.copy_(2 + 0.1 * noise)
                else:
                    is_scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
                    parameter.copy_(float(is_scale) + 0.1 * noise)

    return fill


@pytest.fixture(scope="session")
def random_backbone(
    small_backbone: Path, randomise: Callable[[torch.nn.Module, int], None]
) -> "Backbone":
    """The small backbone with nothing left at one or zero."""
    from dcmpl.weights.backbones import load_backbone

    backbone = load_backbone(str(small_backbone))
    randomise(backbone.clip, 6)
    return backbone


@pytest.fixture(scope="session")
def build(
    random_backbone: "Backbone", randomise: Callable[[torch.nn.Module, int], None]
) -> Callable[..., "DCMPL"]:
    """A preset on the small backbone, with fields of its configuration replaced.

    It is far from its start, where small mistakes would show, unless ``fresh``.
    """
    from dcmpl.model.dcmpl import DCMPL
    from dcmpl.presets import PRESETS

    def build(preset: str = "dcmpl", seed: int = 0, fresh: bool = False, **fields: Any) -> DCMPL:
        config = replace(PRESETS[preset].model, **fields)
        model = DCMPL(random_backbone.clip, random_backbone.tokenizer, config, seed)
        for index, (name, module) in enumerate(model.named_children()):
            if name != "clip" and not fresh:
                randomise(module, 10 * seed + index)
        return model

    return build


@pytest.fixture(scope="session")
def train_words(small_backbone: Path, image_data: Path) -> list[str]:
    """The words of a ``dcmpl train`` of three quick epochs, all but ``--out``."""
    words = f"train --data {image_data} --mos-scale 1 5 --backbone {small_backbone}"
    return [
        *words.split(),
        *["--epochs", "3", "--batch-size", "16", "--lr", "0.003", "--set", "train.views=center"],
    ]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: Factory, train_words: list[str]) -> Path:
    """A finished run of :func:`train_words`; copy it before changing it."""
    from dcmpl.cli.main import main

    def train(folder: Path) -> None:
        assert main([*train_words, "--out", str(folder)]) == 0

    return shared(tmp_path_factory, "short", train)
