"""Everything that can be chosen, as frozen dataclasses; the command line reads them.

``help`` in a field's metadata is the one place where the field is explained.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcmpl.errors import UsageError

__all__ = [
    "COLUMNS",
    "EMBEDDED",
    "PRESETS",
    "RECIPES",
    "ModelConfig",
    "TrainConfig",
    "WordPair",
    "recipe_for",
]

EMBEDDED = {"tiny": Path(__file__).parent / "backbones" / "tiny"}
"""Backbones that come with the package."""

COLUMNS = ("image", "prompt", "mos_quality", "mos_alignment", "generator")
"""Columns of a table of one's own; ``image``, ``prompt`` and one MOS are needed."""

RECORD, SPLIT, MODEL, LAST = "run.json", "split.json", "model.safetensors", "last.safetensors"
"""The files of a run folder; ``dcmpl.checkpoint`` says what is in them."""


def check_backbone(name: str) -> str:
    """``name`` itself where it may be a backbone's; raises :class:`UsageError` where not."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    if not (name in EMBEDDED or is_id or Path(name).is_dir()):
        raise UsageError(
            f"expected a backbone ({', '.join(EMBEDDED)}), a folder or a Hugging Face id "
            f"such as openai/clip-vit-base-patch32, got {name!r}"
        )
    return name


def check_views(views: str) -> str:
    """``views`` itself where it is valid; raises :class:`UsageError` where not."""
    if views not in ("windows", "center") and not re.fullmatch(r"grid-[1-9]\d?", views):
        raise UsageError(
            f"expected views to be windows, center or grid-N (N x N windows), got {views!r}"
        )
    return views


def option(default: Any, text: str) -> Any:
    """A dataclass field with its explanation."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class WordPair:
    """The two ends of a score, e.g. "good photo" and "bad photo"."""

    positive: str
    negative: str


@dataclass(frozen=True)
class ModelConfig:
    """DCMPL's own sizes; those of the towers are read from the backbone."""

    n_context: int = option(8, "prompt tokens in every block of both towers")
    adapter_reduction: int = option(4, "the adapter's bottleneck is 1/this of the joint width")
    adapter_ratio: float = option(0.2, "share of the adapter in the image embedding, 0 to 1")
    normalization: Literal["imagenet", "clip"] = option(
        "imagenet", "mean and deviation that pictures are normalised with"
    )
    quality_words: WordPair = option(WordPair("good photo", "bad photo"), "ends of quality")
    alignment_words: WordPair = option(
        WordPair("aligned photo", "misaligned photo"), "ends of alignment"
    )

    def __post_init__(self) -> None:
        if self.normalization not in ("imagenet", "clip"):
            raise UsageError(f"expected normalization imagenet or clip, got {self.normalization!r}")
        if not all(type(n) is int and n <= 4096 for n in (self.n_context, self.adapter_reduction)):
            raise UsageError(
                "expected whole numbers of at most 4096 for n_context and adapter_reduction, "
                f"got {self.n_context} and {self.adapter_reduction}"
            )
        if self.n_context < 1 or self.adapter_reduction < 1 or not 0 <= self.adapter_ratio <= 1:
            raise UsageError(
                "expected n_context and adapter_reduction of at least 1 and adapter_ratio from 0 "
                f"to 1, got {self.n_context}, {self.adapter_reduction} and {self.adapter_ratio}"
            )


PRESETS: dict[str, ModelConfig] = {"dcmpl": ModelConfig()}


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's."""

    epochs: int = option(50, "passes over the training pictures, at most")
    batch_size: int = option(64, "windows per step")
    lr: float = option(1e-4, "learning rate of Adam")
    schedule: Literal["constant", "cosine"] = option("constant", "learning rate over time")
    crops: int = option(1, "random windows of each picture per epoch")
    crop_step: int = option(1, "they start at multiples of this; 8 keeps JPEG's blocks in phase")
    alignment_weight: float = option(0.1, "weight of the alignment loss beside quality's 1")
    patience: int | None = option(15, "stop after this many epochs without a better validation")
    views: str = option("windows", "views whose scores are averaged: windows, center, grid-N")
    precision: Literal["fp32", "bf16"] = option("fp32", "number format of the towers")
    seed: int = option(0, "seed of split, initial prompts, crops and order")

    def __post_init__(self) -> None:
        check_views(self.views)
        if self.schedule not in ("constant", "cosine") or self.precision not in ("fp32", "bf16"):
            raise UsageError(
                "expected the schedule constant or cosine and the precision fp32 or bf16, "
                f"got {self.schedule!r} and {self.precision!r}"
            )
        least = {"epochs": 1, "batch_size": 1, "crops": 1, "crop_step": 1, "patience": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"expected {name} of at least {low}, got {value}")
        if not 0 < self.lr < float("inf") or not 0 <= self.alignment_weight < float("inf"):
            raise UsageError(
                "expected a positive lr and an alignment_weight of at least 0, "
                f"got {self.lr} and {self.alignment_weight}"
            )


RECIPES: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "tiny": TrainConfig(
        epochs=10,
        lr=4e-3,
        schedule="cosine",
        crop_step=8,
        alignment_weight=0.5,
        patience=None,
        views="grid-3",
        precision="bf16",
    ),
}
"""By name of the backbone; ``paper`` for all that have none of their own."""


def recipe_for(backbone: str) -> TrainConfig:
    """The recipe a backbone is trained with unless told otherwise."""
    return RECIPES.get(backbone, RECIPES["paper"])
