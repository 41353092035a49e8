"""What the tests of readers share: tables and folders of data sets, and refusals; a plugin.

PYTEST_DONT_REWRITE: tests import it as well.
"""

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


OneTable = Callable[..., Path]


@pytest.fixture
def one_table(tmp_path: Path) -> OneTable:
    """Write a CSV of one's own from its lines."""

    def write(*lines: str, encoding: str = "utf-8") -> Path:
        file = tmp_path / "mine.csv"
        file.write_bytes("\n".join(lines).encode(encoding) + b"\n")
        return file

    return write


def refusal(call: Callable[[], object]) -> str:
    """The one short sentence with which something is refused."""
    with pytest.raises((DataError, UsageError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500, f"{len(message)} characters"
    return message


def fault(path: Path, scale: MosScale | None = None, **columns: str) -> str:
    """The one sentence with which a table with these columns is refused."""
    return refusal(lambda: load_table(path, scale, columns))


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
