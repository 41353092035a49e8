"""The short run as ``dcmpl export`` makes it, once for all tests; loaded as a plugin.

PYTEST_DONT_REWRITE: tests import it as well.
"""

import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Factory, shared

VARIANTS = [
    ("onnx", "fp32", "model.onnx"),
    ("onnx", "int8", "model.int8.onnx"),
    ("openvino", "fp32", "model.xml"),
    ("openvino", "int8", "model.int8.xml"),
    ("openvino", "bf16", "model.bf16.xml"),
]
"""Engine, precision and file of all that an export holds."""


@dataclass(frozen=True)
class Made:
    """An export: its folder, and what the command printed and said."""

    folder: Path
    printed: str
    said: str

    @staticmethod
    def by(*words: object) -> "Made":
        """``dcmpl export``, which must succeed; ``-o`` is the last of the words."""
        from dcmpl.cli.main import main

        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["export", *(str(word) for word in words)])
        assert code == 0, err.getvalue()
        return Made(Path(str(words[-1])), out.getvalue(), err.getvalue())

    def copied(self, place: Path) -> Path:
        """A copy of the folder, to be changed."""
        return Path(shutil.copytree(self.folder, place))


@pytest.fixture(scope="session")
def made(tmp_path_factory: Factory, trained_run: Path, image_data: Path) -> Made:
    """The whole export, with all variants; copy it before changing it.

    Ranks of 4 images that a run of three epochs hardly tells apart are no reason to leave out
    8 bits here, as they would be on one processor and not on another.
    """
    from dcmpl.scoring import export

    def write(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "INT8_SRCC", -1.0)
            found = Made.by(trained_run, "-o", folder)
        for name in ("printed", "said"):
            folder.with_name(f"export {name}").write_text(getattr(found, name))

    folder = shared(tmp_path_factory, "export", write)
    printed, said = (folder.with_name(f"export {name}").read_text() for name in ("printed", "said"))
    return Made(folder, printed, said)


@pytest.fixture(scope="session")
def many_windows() -> np.ndarray:
    """Windows of 32 pixels of all kinds of noise, (33, 32, 32, 3)."""
    rng = np.random.default_rng(5)
    strength = rng.uniform(2, 120, (33, 1, 1, 3))
    noise = rng.normal(size=(33, 32, 32, 3))
    pixels: np.ndarray = 128 + strength * noise
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def by_torch(trained_run: Path, many_windows: np.ndarray) -> np.ndarray:
    """What torch says of them, (33, 2)."""
    from dcmpl.scoring.torch_engine import TorchEngine, load_model

    run, model = load_model(trained_run, device="cpu")
    return TorchEngine(model, run.learned)(many_windows)


@pytest.fixture
def copied_models(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nothing is computed for a while: models are copied. Returns how many calibrate int8."""
    from dcmpl.scoring import export

    calibrated: list[int] = []

    def write_onnx(network: object, path: Path, size: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made.folder / "model.onnx", path))

    def write_int8(fp32: Path, path: Path, size: int, views: str, images: Any) -> Path:
        calibrated.append(len(images))
        return Path(shutil.copy(made.folder / path.name, path))

    def write_openvino(path: Path) -> list[Path]:
        files = [path.with_suffix(".xml"), path.with_suffix(".bin")]
        return [Path(shutil.copy(made.folder / file.name, file)) for file in files]

    for name, function in (
        ("onnx", write_onnx),
        ("int8", write_int8),
        ("openvino", write_openvino),
    ):
        monkeypatch.setattr(export, f"_write_{name}", function)
    monkeypatch.setattr(export, "INT8_SRCC", -1.0)
    return calibrated
