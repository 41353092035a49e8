"""Explanations: quality maps of an image, and the prompt words that it does not show.

Two maps, drawn over the image: the score of every window, which is what the image's score
is the mean of, and the patches as the run's readout of them has them. For a run whose alignment
reads the prompt, what the score gains when a word is left out.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from scipy import ndimage

from dcmpl.errors import UsageError
from dcmpl.images.decode import cores
from dcmpl.images.windows import random_window
from dcmpl.model.folded import Folded
from dcmpl.pages import figure_png
from dcmpl.progress import track
from dcmpl.scoring.batching import ahead
from dcmpl.scoring.calibration import Calibration, PatchReadout
from dcmpl.scoring.engines import BATCH, Answer, Engine, Question, all_answers, batch_of
from dcmpl.scoring.torch_engine import TorchEngine, core_lanes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Explanation",
    "QualityMap",
    "damaged",
    "explain",
    "fit_patches",
    "patch_map",
    "patch_scores",
    "window_map",
    "word_gains",
]


RIDGE = 10.0
Window = UInt8[np.ndarray, "height width 3"]


def damaged(
    image: Window, box: tuple[int, int, int, int], kind: str, strength: float, seed: int
) -> Window:
    """Damage a piece of ``image``: blur (deviation in pixels) or noise (in levels).

    ``box`` is top, left, bottom, right; ``kind`` is blur or noise.
    """
    top, left, bottom, right = box
    piece: np.ndarray = image[top:bottom, left:right].astype(np.float32)
    if kind == "blur":
        piece = ndimage.gaussian_filter(piece, (strength, strength, 0))
    else:
        piece = piece + np.random.default_rng(seed).normal(0, strength, piece.shape)
    found = image.copy()
    found[top:bottom, left:right] = piece.round().clip(0, 255).astype(np.uint8)
    return found


def patch_features(
    network: Folded, windows: Sequence[Window]
) -> Iterator[Float64[np.ndarray, "patches features"]]:
    """Features of patches: tokens before the first and the last block, quality branch."""
    size = batch_of(network.size) if network.proj.device.type == "cpu" else BATCH
    batches = (np.stack(windows[i : i + size]) for i in range(0, len(windows), size))
    count = cores()
    with core_lanes(count) as pool:  # as scoring does: threads within a product wait for each other
        for found in ahead(batches, partial(_patch_features, network), pool, count):
            yield from found


@torch.inference_mode()
def _patch_features(
    network: Folded, windows: UInt8[np.ndarray, "batch size size 3"]
) -> Float64[np.ndarray, "batch patches features"]:
    branch, blocks = network.branch_of[0], list(network.blocks)[:-1]
    first, patches, _ = network.stem(torch.from_numpy(windows).to(network.proj.device))
    class_token = (network.start + first)[:, None]
    x = network.ln_pre(torch.cat([class_token, patches + network.positions], dim=1))
    count = x.shape[1]
    for block in blocks:
        x = block(x, branch, count, False)
    found: np.ndarray = torch.cat([patches, x[:, 1:count]], dim=-1).cpu().double().numpy()
    return found


def fit_patches(
    network: Folded,
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    opinions: Float[np.ndarray, " opinions"],
    seed: int,
) -> PatchReadout:
    """Fit the patch readout of a folded model, whose first task ``opinions`` in [0, 1] are on.

    One window of each image, drawn from ``seed``, with a piece of a quarter to five eighths
    of its side damaged, or what of that lies in the window.
    """
    rng = np.random.default_rng(seed)
    windows, wanted = [], []
    cells = round(len(network.positions) ** 0.5)
    cell = network.size // cells
    for number, (image, opinion) in enumerate(zip(images, opinions, strict=True)):
        window = random_window(image, network.size, rng)
        box = _box(network.size, rng)
        kind = ("blur", "noise")[number % 2]
        strength = rng.uniform(1.5, 8) if kind == "blur" else rng.uniform(15, 80)
        windows.append(damaged(window, box, kind, float(strength), number))
        cover = np.zeros((network.size, network.size))
        cover[box[0] : box[2], box[1] : box[3]] = 1
        of_cells = cover[: cells * cell, : cells * cell].reshape(cells, cell, cells, cell)
        wanted.append(opinion * (1 - of_cells.mean((1, 3)).ravel()))
    # What a map shows is how patches of one image differ, so nothing else is fitted.
    features = [f - f.mean(0) for f in patch_features(network, windows)]
    x, y = np.concatenate(features), np.concatenate([w - w.mean() for w in wanted])
    from sklearn.linear_model import Ridge  # slow to import, and only calibration fits

    scale = x.std(0) + 1e-9
    ridge = Ridge(alpha=RIDGE, fit_intercept=False, solver="cholesky").fit(x / scale, y)
    return PatchReadout(tuple((ridge.coef_ / scale).tolist()))


def _box(size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box that may reach over the edges, so that all pixels are equally likely inside."""
    height, width = (int(rng.integers(size // 4, 5 * size // 8 + 1)) for _ in range(2))
    top, left = int(rng.integers(1 - height, size)), int(rng.integers(1 - width, size))
    return max(top, 0), max(left, 0), min(top + height, size), min(left + width, size)


def patch_scores(
    network: Folded, readout: PatchReadout, windows: Sequence[Window]
) -> Float64[np.ndarray, "windows cells cells2"]:
    """Patch scores of each window, (windows, patches); only their differences have a meaning."""
    cells = round(len(network.positions) ** 0.5)
    weights = np.array(readout.weights)
    of_windows = [f @ weights for f in patch_features(network, windows)]
    return np.stack(of_windows).reshape(len(windows), cells, cells)


GRID = 8
"""Pixels: the maps have one value for each block of so many, JPEG's."""

MOST_DRAWN, LONGEST_DRAWN, TALLEST = 40, 40, 12.0
"""Words that are drawn, their letters, and inches of an image."""

Image = UInt8[np.ndarray, "height width 3"]
Values = Float64[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class QualityMap:
    """One value for every ``GRID`` x ``GRID`` pixels, in ``units``."""

    values: Values
    name: str
    units: str
    relative: bool = False

    @property
    def worst(self) -> tuple[int, int]:
        """Row and column of the pixel in the middle of the lowest block."""
        row, column = np.unravel_index(int(np.argmin(self.values)), self.values.shape)
        return int(row) * GRID + GRID // 2, int(column) * GRID + GRID // 2


@dataclass(frozen=True)
class Explanation:
    """Explanation of an image: sentences, maps of the first task, gains of words.

    ``notes`` say what could not be explained, and why.
    """

    sentences: tuple[str, ...]
    maps: tuple[QualityMap, ...]
    words: tuple[tuple[str, float], ...]
    task: str
    notes: tuple[str, ...] = ()

    def figure(self, image: Image) -> bytes:
        """Figure of the explanation as PNG; needs matplotlib."""
        return _figure(image, self.maps, self.words, self.sentences, self.task)


def window_map(engine: Engine, image: Image, text: Sequence[int] = ()) -> Values:
    """Map of the first task: mean score of all windows over a block, in steps of an eighth."""
    corners = _corners(image, engine.size, engine.size // 8)
    cut = [_window(image, corner, engine.size) for corner in corners]
    questions = (Question(window, (tuple(text),)) for window in cut)
    scores = [answer.scores[0] for answer in all_answers(engine, questions, "center")]
    side = engine.size // GRID
    return _averaged(image, corners, [np.full((side, side), score) for score in scores])


def patch_map(network: Folded, calibration: Calibration, image: Image) -> Values:
    """Map of patch scores relative to the image's mean, in [-1, 1].

    Windows are at most two and a half patches apart, five or more in a row, and the image is
    continued by a patch of its mirror image: so even one of a window's size is seen at several
    places.
    """
    if calibration.patches is None:
        raise UsageError(
            "a calibrated run whose model can be folded, for a map of patches",
            "a run without such a calibration",
        )
    size, cells = network.size, round(len(network.positions) ** 0.5)
    edge = -(-size // cells // GRID)
    sides = ((edge * GRID, edge * GRID),) * 2
    # Without the outermost pixels twice: that would be a blur.
    wide = np.pad(image, (*sides, (0, 0)), mode="reflect")
    corners = _corners(wide, size, 5 * size // (2 * cells), least=5)
    cut = [_window(wide, corner, size) for corner in corners]
    scores = patch_scores(network, calibration.patches, cut)
    of_block = (np.arange(size // GRID) * GRID + GRID // 2) * cells // size
    found = _averaged(wide, corners, [s[np.ix_(of_block, of_block)] for s in scores])
    found = found[edge : edge + image.shape[0] // GRID, edge : edge + image.shape[1] // GRID]
    relative: Values = found - found.mean()
    return relative


def _corners(image: Image, size: int, step: int, least: int = 2) -> list[tuple[int, int]]:
    """Corners of windows from edge to edge, at most ``step`` apart, at multiples of ``GRID``.

    As many as ``least`` in a row, where there is room.
    """
    spares = [(side - size) // GRID * GRID for side in image.shape[:2]]
    steps = [max(GRID, min(step, spare // (least - 1)) // GRID * GRID) for spare in spares]
    rows, columns = ([*range(0, spare, s), spare] for spare, s in zip(spares, steps, strict=True))
    return [(top, left) for top in rows for left in columns]


def _window(image: Image, corner: tuple[int, int], size: int) -> UInt8[np.ndarray, "size size 3"]:
    top, left = corner
    return image[top : top + size, left : left + size]


def _averaged(
    image: Image, corners: Sequence[tuple[int, int]], pieces: Sequence[np.ndarray]
) -> Values:
    height, width = (side // GRID for side in image.shape[:2])
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), piece in zip(corners, pieces, strict=True):
        rows = slice(top // GRID, top // GRID + piece.shape[0])
        columns = slice(left // GRID, left // GRID + piece.shape[1])
        total[rows, columns] += piece
        count[rows, columns] += 1
    found: Values = total / np.maximum(count, 1)
    # What no window reaches is the last few pixels of a side: as its neighbour.
    found[:, count.max(0) == 0] = found[:, count.max(0) > 0][:, -1:]
    found[count.max(1) == 0] = found[count.max(1) > 0][-1:]
    return found


def word_gains(
    engine: TorchEngine, image: Image, prompt: str, views: str
) -> list[tuple[str, float]]:
    """Gain of each word of a prompt: the rise of alignment when it is left out."""
    words = prompt.split()
    column = engine.tasks.index(str(engine.reads))
    prompts = [prompt, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    tracked = track(prompts, "leaving words out")
    asked = (Question(image, engine.parts(p, "window").ids) for p in tracked)
    own, *without = (answer.scores[column] for answer in all_answers(engine, asked, views))
    return [(word, float(score - own)) for word, score in zip(words, without, strict=True)]


def explain(
    engine: TorchEngine,
    calibration: Calibration | None,
    image: Image,
    prompt: str,
    views: str,
) -> Explanation:
    """Explain one image; its score is the mean over ``views``."""
    question = Question(image, engine.parts(prompt, "window").ids)
    (answer,) = all_answers(engine, [question], views)
    sentences = [
        _sentence_on(engine, calibration, answer, i, prompt) for i in range(len(engine.tasks))
    ]
    maps, words, notes = list[QualityMap](), [], list[str]()
    if engine.tasks[0] == engine.reads and not prompt.strip():
        notes.append(f"no map: {engine.reads} comes first in this run, and is judged by the prompt")
    else:
        maps, notes = _maps(engine, calibration, image, question.texts[0])
    if len(question.texts) > 1:
        notes.append(
            f"note: the prompt was read in {len(question.texts)} parts, as with "
            "--long-prompts window"
        )
    if engine.reads is None:
        notes.append("note: this run judges alignment, if at all, from the image alone: no words")
    elif not prompt.strip():
        notes.append(f"note: {engine.reads} is judged by the prompt: give one to see which words")
    else:
        words = word_gains(engine, image, prompt, views)
    task = engine.tasks[0]
    return Explanation(tuple(sentences), tuple(maps), tuple(words), task, tuple(notes))


def _maps(
    engine: TorchEngine, calibration: Calibration | None, image: Image, text: Sequence[int]
) -> tuple[list[QualityMap], list[str]]:
    """Maps of an image, and why there are no more."""
    if min(image.shape[:2]) < engine.size:
        return [], [
            f"no map: expected an image of at least {engine.size} x {engine.size}, got "
            f"{image.shape[1]} x {image.shape[0]}; its score is of the image as a whole"
        ]
    values, maps = window_map(engine, image, text), list[QualityMap]()
    varies = np.ptp(values) > 0  # an image of a window's size has one window
    meaning = calibration.targets.get(engine.tasks[0]) if calibration else None
    if calibration is None or meaning is None:
        maps = [QualityMap(values, "windows", "score")] if varies else []
        told = f"note: {engine.tasks[0]} is not calibrated: no MOS units and no map of patches"
        return maps, [told] if calibration is not None else []
    if varies:
        mos = meaning.mos(values.ravel()).reshape(values.shape)
        maps.append(QualityMap(mos, "windows", "MOS units"))
    if calibration.patches is not None and isinstance(engine.network, Folded):
        patches = patch_map(engine.network, calibration, image)
        scaled = patches * (meaning.high - meaning.low)
        maps.append(QualityMap(scaled, "patches", "MOS units from the mean", relative=True))
    return maps, []


def _sentence_on(
    engine: TorchEngine, calibration: Calibration | None, answer: Answer, task: int, prompt: str
) -> str:
    """Sentence on a score and its calibration."""
    name, score = engine.tasks[task], np.array([answer.scores[task]])
    if name == engine.reads and not prompt.strip():
        return f"{name}: not judged, there is no prompt"
    meaning = calibration.targets.get(name) if calibration else None
    if calibration is None or meaning is None:
        return f"{name} {score[0]:.3f}"
    low, high = meaning.interval(score, np.array([answer.spread[task]]))
    return (
        f"{name} {score[0]:.3f}: {meaning.labels(score)[0]}, MOS {meaning.mos(score)[0]:.2f} "
        f"[{low[0]:.2f}, {high[0]:.2f}], above {meaning.percentile(score)[0]:.0f} % of "
        f"{calibration.data}'s training images"
    )


def _figure(
    image: Image,
    maps: Sequence[QualityMap],
    words: Sequence[tuple[str, float]],
    sentences: Sequence[str],
    task: str,
) -> bytes:
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    panels = 1 + len(maps)
    strongest = sorted(range(len(words)), key=lambda place: -abs(words[place][1]))[:MOST_DRAWN]
    words = [words[place] for place in sorted(strongest)]
    ratios = [min(4.2 * height / width, TALLEST), *([0.22 * len(words) + 0.3] if words else [])]
    figure = Figure(figsize=(4.2 * panels, sum(ratios) + 1.1), dpi=110, layout="constrained")
    figure.suptitle("\n".join(sentences), fontsize=9, parse_math=False)
    grid = figure.add_gridspec(len(ratios), panels, height_ratios=ratios)
    for index, drawn in enumerate([None, *maps]):
        axes = figure.add_subplot(grid[0, index])
        axes.imshow(image, extent=(0, width, height, 0))
        axes.set_axis_off()
        if drawn is None:
            axes.set_title("the image", fontsize=9)
            continue
        most = float(np.abs(drawn.values).max()) if drawn.relative else None
        shown = axes.imshow(
            drawn.values,
            cmap="RdYlBu",
            alpha=0.6,
            extent=(0, GRID * drawn.values.shape[1], GRID * drawn.values.shape[0], 0),
            vmin=None if most is None else -most,
            vmax=most,
            zorder=2,
        )
        figure.colorbar(shown, ax=axes, shrink=0.8, label=f"{task}, {drawn.units}")
        row, column = drawn.worst
        axes.plot(column, row, "kx", markersize=9, markeredgewidth=2, zorder=3)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_title(f"by {drawn.name}; x marks the lowest", fontsize=9)
    if words:
        _draw_words(figure.add_subplot(grid[1, :]), words)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that no font here has
        return figure_png(figure)


def _draw_words(axes: "Axes", words: Sequence[tuple[str, float]]) -> None:
    """Bars of the gains of words."""
    names, gains = zip(*((_drawable(word), gain) for word, gain in words), strict=True)
    places = range(len(words))
    axes.barh(places, gains, color=["#b2182b" if gain > 0 else "#2166ac" for gain in gains])
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    most = max(0.05, *(abs(gain) for gain in gains)) * 1.05  # trifles should look like such
    axes.set_xlim(-most, most)
    axes.set_xlabel("what leaving the word out adds to alignment; red: not shown", fontsize=8)


def _drawable(word: str) -> str:
    """Word for a plot: printable and not too long."""
    return word.encode("utf-8", "replace").decode()[:LONGEST_DRAWN]
