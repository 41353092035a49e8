"""Write what open_clip makes of small CLIPs of drawn weights: tests/golden/open_clip.npz.

    python -m venv .openclip
    .openclip/bin/pip install torch==2.13.0
    .openclip/bin/pip install --no-deps open_clip_torch
    .openclip/bin/pip install ftfy regex tqdm huggingface_hub safetensors
    .openclip/bin/python tools/golden_open_clip.py

Weights, images and the vocabulary are drawn or made up, so that a test can make them again
without open_clip; ``tests/golden/README.md`` has the rules.
"""

import gzip
import importlib
import math
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "open_clip.npz"

MERGES = """\
g o
go o
goo d</w>
p h
o t
ph ot
phot o</w>
b a
ba d</w>
a d</w>
a l
i g
al ig
n e
alig ne
aligne d</w>
m i
mi s
mis aligne
' s</w>
l l</w>
. .
! !</w>
1 2
c a
f Ã©</w>
Ã ©</w>
Ã ©
ca f"""
"""A vocabulary in the form of OpenAI's list, without the line of its version."""

SENTENCES = (
    "good photo.",
    "bad photo.",
    "Misaligned\n\tPHOTO  !!",
    "goodphoto bad12's we'll... #1",
    "caf\u00e9 cafe\u0301 \u2728 \u4e2d",
    "",
)
"""Case, blanks, digits, apostrophes, points, letters of several bytes, of two forms, none."""

VOCABULARY = 512 + len(MERGES.splitlines()) + 2

SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "width": 64,
        "head_width": 16,
        "layers": 2,
        "mlp_ratio": 2.5,
    },
    "text_cfg": {
        "context_length": 40,
        "vocab_size": VOCABULARY,
        "width": 48,
        "heads": 3,
        "layers": 3,
    },
}
CASES = {"gelu": {}, "quick_gelu": {"quick_gelu": True}}
"""What each case adds to the sizes; both have the same weights."""


def noise(name: str, shape: tuple[int, ...]) -> Any:
    generator = np.random.Generator(np.random.PCG64([1, zlib.crc32(name.encode())]))
    return generator.standard_normal(shape)


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that open_clip calls ``name``, by the rules of the README."""
    if name == "logit_scale":
        return torch.tensor(3.0)
    if "ln_" in name:
        values = noise(name, shape) * 0.05
        values = values.astype(np.float16).astype(np.float32) + float(name.endswith("weight"))
    elif name.endswith("bias") or "embedding" in name:
        values = noise(name, shape) * 0.02
    elif name in ("text_projection", "visual.proj"):
        values = noise(name, shape) * shape[0] ** -0.5
    else:
        values = noise(name, shape) * math.prod(shape[1:]) ** -0.5
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def images() -> torch.Tensor:
    """Four of them, not normalised."""
    return torch.from_numpy(noise("images", (4, 3, 32, 32))).float()


def write_merges(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(f"#version: made up\n{MERGES}")


def _open_clip(module: str) -> Any:
    # open_clip imports torchvision for images and ResNets, timm for other towers. Neither is
    # of use here, and a torchvision without CUDA's libraries cannot be imported.
    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = MagicMock()
    sys.modules["timm"] = None  # type: ignore[assignment]
    return importlib.import_module(f"open_clip.{module}")


def main() -> None:
    numbers: dict[str, Any] = {"sentences": np.array(SENTENCES)}
    with tempfile.TemporaryDirectory() as folder:
        write_merges(Path(folder) / "merges.txt.gz")
        tokenizer = _open_clip("tokenizer").SimpleTokenizer(str(Path(folder) / "merges.txt.gz"))
    ids = tokenizer(list(SENTENCES), context_length=SIZES["text_cfg"]["context_length"])
    numbers["ids"] = ids.numpy()
    for case, more in CASES.items():
        clip = _open_clip("model").CLIP(**SIZES, **more).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()}
        clip.load_state_dict({name: draw(name, shape) for name, shape in shapes.items()})
        with torch.no_grad():
            numbers[f"{case}/image_embedding"] = clip.encode_image(images()).numpy()
            numbers[f"{case}/text_embedding"] = clip.encode_text(ids).numpy()
    numbers["names"] = np.array(sorted(f"{n} {'x'.join(map(str, s))}" for n, s in shapes.items()))
    np.savez(GOLDEN, **numbers)
    print(f"{GOLDEN}: {', '.join(f'{n} {a.shape}' for n, a in numbers.items())}")


if __name__ == "__main__":
    main()
