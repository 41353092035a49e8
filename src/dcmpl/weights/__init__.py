"""Pretrained backbones: found, checked, loaded strictly; and those that come with the package.

Imports no torch: what a command is told of a backbone is checked before any work begins.
"""

import re
from pathlib import Path

from dcmpl.errors import UsageError
from dcmpl.progress import say

__all__ = ["EMBEDDED", "check_backbone", "warn_of_floor"]

EMBEDDED = {"tiny": Path(__file__).parent / "tiny"}
"""Backbones that come with the package."""


def check_backbone(name: str) -> str:
    """``name`` itself where it may be a backbone's; raises :class:`UsageError` where not."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    is_file = Path(name).suffix in (".pt", ".pth") and Path(name).is_file()
    if not (name in EMBEDDED or is_id or Path(name).is_dir() or is_file):
        raise UsageError(
            f"expected a backbone ({', '.join(EMBEDDED)}), a folder, a .pt file of OpenAI's or a "
            f"Hugging Face id such as openai/clip-vit-base-patch32, got {name!r}"
        )
    return name


def warn_of_floor(backbone: str) -> None:
    """Say what the embedded backbone's scores are worth."""
    if backbone in EMBEDDED:
        say(
            f"note: {backbone} is a small backbone trained on drawings; its scores of real "
            "pictures are a floor, a pretrained CLIP (--backbone) judges better"
        )
