"""What stands in for alignment that nobody judged, and where it may not reach."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcmpl.config import TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.training.features import freeze_table
from dcmpl.training.labels import with_alignment
from dcmpl.weights.backbones import load_backbone

CONFIG = TrainConfig(views="center")


@pytest.fixture
def table(image_data: Path) -> ImageTable:
    """Alignment is missing in all rows but the first three."""
    table = load_table(image_data, MosScale(1, 5))
    judged = table.frame["mos_alignment"].where(table.frame.index < 3)
    return replace(table, frame=table.frame.assign(mos_alignment=judged))


def build(folder: Path, preset: str = "dcmpl") -> DCMPL:
    backbone = load_backbone(str(folder))
    return DCMPL(backbone.clip, backbone.tokenizer, PRESETS[preset].model, 0)


def filled(table: ImageTable, model: DCMPL, how: str) -> np.ndarray:
    config = replace(CONFIG, missing_alignment=how)  # type: ignore[arg-type]
    found = with_alignment(table, config, model, None).frame["mos_alignment"]
    values: np.ndarray = found.to_numpy(float)
    return values


def test_nothing_stands_in_unless_asked_for(table: ImageTable, small_backbone: Path) -> None:
    assert np.isnan(filled(table, build(small_backbone), "none")).sum() == len(table) - 3


def test_quality_stands_in_where_alignment_is_missing(
    table: ImageTable, small_backbone: Path
) -> None:
    found = filled(table, build(small_backbone), "quality")
    frame = table.frame
    assert found[:3].tolist() == frame["mos_alignment"][:3].tolist()
    assert found[3:].tolist() == frame["mos_quality"][3:].tolist()


def test_similarity_is_on_the_scale_and_keeps_opinions(
    table: ImageTable, small_backbone: Path
) -> None:
    found = filled(table, build(small_backbone), "clip_similarity")
    assert found[:3].tolist() == table.frame["mos_alignment"][:3].tolist()
    assert found.min() >= 1
    assert found.max() <= 5
    assert np.ptp(found[3:]) > 3  # stretched to the ends


def test_similarity_reads_the_prompt(table: ImageTable, small_backbone: Path) -> None:
    model = build(small_backbone)
    prompts = ["something else entirely", *table.frame["prompt"][1:]]
    other = replace(table, frame=table.frame.assign(prompt=prompts, mos_alignment=np.nan))
    plain = replace(table, frame=table.frame.assign(mos_alignment=np.nan))
    one, two = (filled(t, model, "clip_similarity") for t in (plain, other))
    assert one[0] != two[0]


@pytest.mark.parametrize("preset", ["dcmpl", "linear-probe"])
def test_similarity_from_the_frozen_part_is_the_same(
    table: ImageTable, small_backbone: Path, preset: str
) -> None:
    model = build(small_backbone, preset)
    config = replace(CONFIG, missing_alignment="clip_similarity")
    frozen = freeze_table(model, table, config.views, config.precision)
    one, two = (with_alignment(table, config, model, known) for known in (None, frozen))
    np.testing.assert_allclose(
        one.frame["mos_alignment"].to_numpy(), two.frame["mos_alignment"].to_numpy(), atol=1e-4
    )


def test_model_without_that_task_is_left_alone(table: ImageTable, small_backbone: Path) -> None:
    model = build(small_backbone, "ivlp")
    assert np.isnan(filled(table, model, "quality")).sum() == len(table) - 3
