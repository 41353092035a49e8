"""How good each patch of a picture looks: a linear readout of what a trained model makes of it.

The score of a picture is read from its class token, which says nothing of where. So patches
of training pictures are fitted to their picture's opinion, and to the worst where a blurred or
noisy piece was pasted over them: a ridge, solved at once when a run is calibrated.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from scipy import ndimage

from dcmpl.calibration import PatchReadout
from dcmpl.images.windows import random_window
from dcmpl.model.folded import Folded

__all__ = ["damaged", "fit_patches", "patch_scores"]

RIDGE, BATCH = 10.0, 32
Window = UInt8[np.ndarray, "height width 3"]


def damaged(
    picture: Window, box: tuple[int, int, int, int], kind: str, strength: float, seed: int
) -> Window:
    """``picture`` with a piece blurred (deviation in pixels) or made noisy (in levels).

    ``box`` is top, left, bottom, right; ``kind`` is blur or noise.
    """
    top, left, bottom, right = box
    piece: np.ndarray = picture[top:bottom, left:right].astype(np.float32)
    if kind == "blur":
        piece = ndimage.gaussian_filter(piece, (strength, strength, 0))
    else:
        piece = piece + np.random.default_rng(seed).normal(0, strength, piece.shape)
    found = picture.copy()
    found[top:bottom, left:right] = piece.round().clip(0, 255).astype(np.uint8)
    return found


@torch.inference_mode()
def patch_features(
    network: Folded, windows: Sequence[Window]
) -> Iterator[Float64[np.ndarray, "patches features"]]:
    """Each patch before the first block and as it enters the last, in the quality branch."""
    branch = network.branch_of[0]
    blocks = list(network.blocks)[:-1]
    for start in range(0, len(windows), BATCH):
        batch = torch.from_numpy(np.stack(windows[start : start + BATCH])).to(network.proj.device)
        summary, patches = network.stem(batch)
        first = (network.start + summary)[:, None]
        x = network.ln_pre(torch.cat([first, patches + network.positions], dim=1))
        count = x.shape[1]
        for block in blocks:
            x = block(x, branch, count, False)
        both = torch.cat([patches, x[:, 1:count]], dim=-1)
        yield from both.cpu().double().numpy()


def fit_patches(
    network: Folded,
    pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    opinions: Float[np.ndarray, " opinions"],
    seed: int,
) -> PatchReadout:
    """The readout of a folded model whose first task is what ``opinions`` in [0, 1] are on.

    One window of each picture, drawn from ``seed``, with a piece of a quarter to five eighths
    of its side damaged, or what of that lies in the window.
    """
    rng = np.random.default_rng(seed)
    windows, wanted = [], []
    cells = round(len(network.positions) ** 0.5)
    cell = network.size // cells
    for number, (picture, opinion) in enumerate(zip(pictures, opinions, strict=True)):
        # Multiples of 8 pixels keep JPEG's blocks in phase.
        window = random_window(picture, network.size, rng, 8)
        box = _box(network.size, rng)
        kind = ("blur", "noise")[number % 2]
        strength = rng.uniform(1.5, 8) if kind == "blur" else rng.uniform(15, 80)
        windows.append(damaged(window, box, kind, float(strength), number))
        cover = np.zeros((network.size, network.size))
        cover[box[0] : box[2], box[1] : box[3]] = 1
        of_cells = cover[: cells * cell, : cells * cell].reshape(cells, cell, cells, cell)
        wanted.append(opinion * (1 - of_cells.mean((1, 3)).ravel()))
    # What a map shows is how patches of one picture differ, so nothing else is fitted.
    features = [f - f.mean(0) for f in patch_features(network, windows)]
    x, y = np.concatenate(features), np.concatenate([w - w.mean() for w in wanted])
    scale = x.std(0) + 1e-9
    z = x / scale
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ y) / scale
    return PatchReadout(tuple(weights.tolist()))


def _box(size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Every pixel is as likely inside as any other, so boxes reach over the edges."""
    height, width = (int(rng.integers(size // 4, 5 * size // 8 + 1)) for _ in range(2))
    top, left = int(rng.integers(1 - height, size)), int(rng.integers(1 - width, size))
    return max(top, 0), max(left, 0), min(top + height, size), min(left + width, size)


def patch_scores(
    network: Folded, readout: PatchReadout, windows: Sequence[Window]
) -> Float64[np.ndarray, "windows cells cells2"]:
    """The scores of the patches of each window, in rows; what counts is how they differ."""
    cells = round(len(network.positions) ** 0.5)
    weights = np.array(readout.weights)
    of_windows = [f @ weights for f in patch_features(network, windows)]
    return np.stack(of_windows).reshape(len(windows), cells, cells)
