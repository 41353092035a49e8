"""Pretrained backbones: found, checked, loaded strictly; and those that come with the package.

Imports no torch: the name of a backbone is checked before any work begins.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcmpl.errors import RunError, UsageError, WeightsError
from dcmpl.progress import say
from dcmpl.storage import fetched, is_url

__all__ = [
    "DEFAULT",
    "EMBEDDED",
    "as_installed",
    "check_backbone",
    "model_folder",
    "warn_of_embedded",
    "warn_of_model",
]

EMBEDDED = {"small": Path(__file__).parent / "small"}
"""Backbones that come with the package."""

DEFAULT = Path(__file__).parent / "default"
"""Run folder of the model that comes with the package."""

GONE = {"tiny": "small took its place in 0.3: train the run anew on it"}
"""Backbones that came with the package once, and what to do."""


def check_backbone(name: str) -> str:
    """Check the name of a backbone; raises :class:`UsageError`."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    is_file = Path(name).suffix in (".pt", ".pth") and Path(name).is_file()
    if not (name in EMBEDDED or is_id or Path(name).is_dir() or is_file):
        raise UsageError(
            f"a backbone ({', '.join(EMBEDDED)}), a folder, a .pt file of OpenAI's or a "
            "Hugging Face id such as openai/clip-vit-base-patch32",
            f"{name!r}",
            GONE.get(name, ""),
        )
    return name


def model_folder(name: str | Path | None) -> Path:
    """Folder of a model: that of the package where none or ``default`` is named.

    A folder called ``default`` that exists is meant itself; what a URL names is copied here
    first. Raises :class:`RunError` where it names none.
    """
    if name is not None and is_url(name):
        return fetched(str(name))
    if name is None or (str(name) == "default" and not Path(name).is_dir()):
        return DEFAULT
    return Path(name)


@contextmanager
def as_installed(folder: Path) -> Iterator[None]:
    """Say of faults in the package's own model that it is to be installed again."""
    try:
        yield
    except (RunError, WeightsError) as error:
        if folder != DEFAULT:
            raise
        hint = "install dcmpl again: a file of its own is damaged"
        raise type(error)(error.expected, error.got, hint, error.reason) from error


def warn_of_embedded(backbone: str) -> None:
    """Print how far scores of the embedded backbone can be trusted."""
    if backbone in EMBEDDED:
        say(
            f"note: {backbone} is a small backbone; a pretrained CLIP (--backbone) judges images "
            "of more kinds"
        )


def warn_of_model(folder: Path, backbone: str) -> None:
    """Print how far scores of the model in ``folder`` can be trusted."""
    if folder == DEFAULT:
        say(
            "note: the model of the package knows AGIQA-3K, images of six generators of 2021 to "
            "2023; of others trust the order of its scores more than their height"
        )
    else:
        warn_of_embedded(backbone)
