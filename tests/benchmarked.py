"""A benchmark of three protocols on the small images; loaded as a plugin.

PYTEST_DONT_REWRITE: tests import it as well.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from conftest import Factory, shared

QUICK = ["--epochs", "3", "--batch-size", "16", "--lr", "0.003", "--set", "train.views=center"]


NAMES = ["--protocols", "image-level", "clip-agiqa", "--repeats", "2"]


@pytest.fixture(scope="session")
def agiqa(tmp_path_factory: Factory, image_data: Path) -> Path:
    """The small images as AGIQA-3K lays them out."""
    return shared(tmp_path_factory, "AGIQA-3K", lambda folder: _write_agiqa(folder, image_data))


def _write_agiqa(folder: Path, image_data: Path) -> None:
    (folder / "img").mkdir(parents=True)
    frame = pd.read_csv(image_data)
    for image in frame["image"]:
        shutil.copy(image_data.parent / image, folder / "img" / f"glide_{image}")
    frame["image"] = "glide_" + frame["image"]
    frame = frame.rename(columns={"image": "name", "mos_alignment": "mos_align"})
    frame.drop(columns="generator").to_csv(folder / "data.csv", index=False)


@pytest.fixture(scope="session")
def words(agiqa: Path, small_backbone: Path) -> list[str]:
    """Words of a quick benchmark, all but ``--out``."""
    return ["--data", str(agiqa), "--backbone", str(small_backbone), *QUICK]


@pytest.fixture(scope="session")
def protocols(tmp_path_factory: Factory, words: list[str]) -> Path:
    """Two repeats of three protocols; copy the folder before changing it."""
    from dcmpl.cli.main import main

    def run(out: Path) -> None:
        assert main(["benchmark", *NAMES, *words, "--out", str(out)]) == 0

    return shared(tmp_path_factory, "protocols", run)


def rows(out: Path, **wanted: str) -> pd.DataFrame:
    frame = pd.read_csv(out / "summary.csv")
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def folder_of(out: Path, protocol: str, repeat: int) -> Path:
    return out / "AGIQA-3K" / "dcmpl" / protocol / f"repeat{repeat}"
