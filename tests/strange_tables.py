"""What the tests of readers share: folders as data sets lay them out, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError, UsageError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def refusal(call: Callable[[], object]) -> str:
    """The one short sentence with which something is refused."""
    with pytest.raises((DataError, UsageError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500, f"{len(message)} characters"
    return message


def told(folder: Path, scale: MosScale | None = None) -> str:
    """The one sentence with which ``folder`` is refused as a data set."""
    return refusal(lambda: load_table(folder, scale))


def real(name: str) -> Path:
    """A folder of real labels, or a skip that says what is missing."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"shared/data/{name} is not beside this repository")
    return folder


def sheet(file: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    """A CSV or an XLSX, by the ending; without ``columns`` there is no header."""
    frame = pd.DataFrame(rows, columns=columns or None)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False, header=bool(columns))
    else:
        frame.to_excel(file, index=False, header=bool(columns))
    return file


def image(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(file)
    return file
