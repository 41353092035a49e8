"""Stand-ins for missing alignment opinions.

AGIQA-1K has one score an image and no alignment, and its auxiliary task then has nothing to
learn from. What DCMPL's authors put in its place is not known; these are the choices.
Only training sees them: validation and test know nothing but opinions.
"""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from dcmpl.config import TrainConfig
from dcmpl.data.table import ImageTable
from dcmpl.model.clip import as_tensors
from dcmpl.model.dcmpl import DCMPL
from dcmpl.training.features import FrozenTable, freeze_table

__all__ = ["with_alignment"]

SPREAD = (0.01, 0.99)
"""Quantiles of the similarities that become the ends of the scale."""


def with_alignment(
    table: ImageTable,
    config: TrainConfig,
    model: DCMPL,
    frozen: FrozenTable | None,
) -> ImageTable:
    """Fill missing opinions on alignment as ``config.missing_alignment`` names."""
    missing = table.frame["mos_alignment"].isna()
    if config.missing_alignment == "none" or "alignment" not in model.config.tasks:
        return table
    if not missing.any():
        return table
    filled = table.frame["mos_quality"].to_numpy(float)
    if config.missing_alignment == "clip_similarity":
        scale, similarity = table.scale, _similarity(table, config, model, frozen)
        filled = scale.low + (scale.high - scale.low) * similarity
    alignment = table.frame["mos_alignment"].where(~missing, filled)
    return replace(table, frame=table.frame.assign(mos_alignment=alignment))


def _similarity(
    table: ImageTable,
    config: TrainConfig,
    model: DCMPL,
    frozen: FrozenTable | None,
) -> np.ndarray:
    """CLIP similarity of image and prompt, (rows,), stretched to [0, 1]."""
    known = frozen or freeze_table(model, table, config.views, config.precision)
    clip, device = model.clip, model.mean.device
    known = known.mapped(lambda batch: model.plain_embedding(batch.float().to(device)))
    images = torch.stack([known[path].float().mean(0) for path in table.frame["image"]])
    prompts = list(table.frame["prompt"].unique())
    with torch.inference_mode():
        texts = [
            clip.text(*as_tensors(tokens, device))[0]
            for tokens in (model.tokenizer([prompt]) for prompt in prompts)
        ]
    rows = [prompts.index(prompt) for prompt in table.frame["prompt"]]
    cosine = F.cosine_similarity(images.cpu(), torch.stack(texts)[rows].cpu(), dim=-1).numpy()
    low, high = np.quantile(cosine, SPREAD)
    stretched: np.ndarray = np.clip((cosine - low) / max(high - low, 1e-12), 0, 1)
    return stretched
