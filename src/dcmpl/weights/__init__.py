"""Pretrained backbones: found, checked, loaded strictly; and those that come with the package.

Imports no torch: the name of a backbone is checked before any work begins.
"""

import re
from pathlib import Path

from dcmpl.errors import UsageError
from dcmpl.progress import say

__all__ = ["EMBEDDED", "check_backbone", "warn_of_embedded"]

EMBEDDED = {"tiny": Path(__file__).parent / "tiny"}
"""Backbones that come with the package."""


def check_backbone(name: str) -> str:
    """Check the name of a backbone; raises :class:`UsageError`."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    is_file = Path(name).suffix in (".pt", ".pth") and Path(name).is_file()
    if not (name in EMBEDDED or is_id or Path(name).is_dir() or is_file):
        raise UsageError(
            f"a backbone ({', '.join(EMBEDDED)}), a folder, a .pt file of OpenAI's or a "
            "Hugging Face id such as openai/clip-vit-base-patch32",
            f"{name!r}",
        )
    return name


def warn_of_embedded(backbone: str) -> None:
    """Print how far scores of the embedded backbone can be trusted."""
    if backbone in EMBEDDED:
        say(
            f"note: {backbone} is a small backbone trained on drawings; a pretrained CLIP "
            "(--backbone) judges real images better"
        )
