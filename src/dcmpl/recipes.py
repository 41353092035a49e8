"""How a model is trained, and the recipe of each backbone."""

import re
from dataclasses import dataclass
from typing import Literal

from dcmpl.config import check_choices, option
from dcmpl.errors import UsageError

__all__ = ["RECIPES", "TrainConfig", "check_views", "recipe_for"]


def check_views(views: str) -> str:
    """``views`` itself where it is valid; raises :class:`UsageError` where not."""
    named = ("windows", "center", "resize")
    if views not in named and not re.fullmatch(r"grid-[1-9]\d?", views):
        raise UsageError(
            f"expected views to be windows, center, resize or grid-N (N x N windows), got {views!r}"
        )
    return views


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's."""

    epochs: int = option(50, "passes over the training pictures, at most")
    batch_size: int = option(64, "windows per step")
    lr: float = option(1e-4, "learning rate of Adam")
    schedule: Literal["constant", "cosine"] = option("constant", "learning rate over time")
    windows: Literal["auto", "random", "views"] = option(
        "auto",
        "windows to train on: random, anew in every epoch, or those of the views, whose "
        "frozen part is computed once; auto: the views where nothing visual is learned",
    )
    crops: int = option(1, "windows of each picture per epoch")
    crop_step: int = option(
        1, "random ones start at multiples of this; 8 keeps JPEG's blocks in phase"
    )
    alignment_weight: float = option(0.1, "weight of the alignment loss beside quality's 1")
    mismatch_weight: float = option(
        0.1,
        "weight of telling a picture's own prompt from another's, where alignment reads it",
    )
    missing_alignment: Literal["none", "quality", "clip_similarity"] = option(
        "none",
        "what stands in for alignment that nobody judged: nothing, the opinion on quality, "
        "or the frozen CLIP's similarity of picture and prompt",
    )
    patience: int | None = option(15, "stop after this many epochs without a better validation")
    views: str = option("windows", "views whose scores are averaged: windows, center, grid-N")
    precision: Literal["fp32", "bf16"] = option("fp32", "number format of the towers")
    seed: int = option(0, "seed of split, initial prompts, crops and order")

    def __post_init__(self) -> None:
        check_views(self.views)
        check_choices(self)
        least = {"epochs": 1, "batch_size": 1, "crops": 1, "crop_step": 1, "patience": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"expected {name} of at least {low}, got {value}")
        weights = self.alignment_weight, self.mismatch_weight
        if not 0 < self.lr < float("inf") or not all(0 <= w < float("inf") for w in weights):
            raise UsageError(
                "expected a positive lr, an alignment_weight and a mismatch_weight of at least 0, "
                f"got {self.lr}, {weights[0]} and {weights[1]}"
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
