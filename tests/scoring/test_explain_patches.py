"""How each patch looks: damage that is pasted in, the fit, and where scores and maps lie."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
import torch

from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.scoring.calibration import Calibration, PatchReadout
from dcmpl.scoring.explain import (
    BATCH,
    RIDGE,
    _box,
    damaged,
    fit_patches,
    patch_features,
    patch_map,
    patch_scores,
)

Build = Callable[..., DCMPL]
Box = tuple[int, int, int, int]

SIZES = [(32, 32), (40, 44), (47, 33), (32, 200), (203, 39), (64, 96)]
"""Heights and widths: one window, no multiples of 8, long and thin."""

SIZE, CELLS = 32, 4
"""Of the small backbone's windows: pixels, and patches in a row."""

KINDS = [("blur", 4.0), ("noise", 60.0)]
BOXES = [(8, 8, 24, 24), (0, 0, 10, 12), (22, 19, 32, 32), (3, 11, 29, 16), (0, 0, 32, 32)]


@pytest.fixture(scope="module")
def network(build: Build) -> Folded:
    return Folded(build(), ["quality"])


@pytest.fixture(scope="module")
def both(build: Build) -> Folded:
    """The same model, but alignment comes first; it has a branch of its own."""
    return Folded(build(), ["alignment", "quality"])


def noisy(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def dark(seed: int, height: int = 48, width: int = 56) -> np.ndarray:
    """Near black, where noise can but brighten."""
    rng = np.random.default_rng(seed)
    return rng.integers(4, 12, (height, width, 3), dtype=np.uint8)


def grey(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image of grey blocks of 8; what is left over at its sides goes on as the last."""
    rows, columns = (np.minimum(np.arange(side) // 8, side // 8 - 1) for side in (height, width))
    return np.repeat(levels[np.ix_(rows, columns)][..., None], 3, axis=2).astype(np.uint8)


def brightness(network: Folded) -> PatchReadout:
    """A readout that says of a grey patch how bright it is, but for a constant."""
    black, white = (np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 255))
    low, high = (features[0] for features in patch_features(network, [black, white]))
    width = network.positions.shape[1]
    rise = np.where(np.arange(len(low)) < width, high - low, 0)
    return PatchReadout(tuple((255 * rise / (rise @ rise)).tolist()))


@dataclass
class Pasted:
    """What was damaged: how, and what came of it."""

    boxes: list[Box] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    windows: list[np.ndarray] = field(default_factory=list)

    def __call__(
        self, image: np.ndarray, box: Box, kind: str, strength: float, seed: int
    ) -> np.ndarray:
        self.boxes.append(box)
        self.kinds.append(kind)
        self.windows.append(damaged(image, box, kind, strength, seed))
        return self.windows[-1]


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> Pasted:
    found = Pasted()
    monkeypatch.setattr("dcmpl.scoring.explain.damaged", found)
    return found


# Damage


@pytest.mark.parametrize(("kind", "strength"), KINDS)
@pytest.mark.parametrize("box", BOXES)
def test_damage_changes_the_box_and_nothing_else(box: Box, kind: str, strength: float) -> None:
    image = noisy(0)
    before = image.copy()
    found = damaged(image, box, kind, strength, 3)
    changed = (found != image).any(-1)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[box[0] : box[2], box[1] : box[3]] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.9
    assert (image == before).all()
    assert (found.shape, found.dtype) == (image.shape, image.dtype)


def test_blur_smooths_and_takes_nothing_from_outside_of_the_box() -> None:
    image, other = noisy(0), noisy(1)
    box = (8, 4, 24, 28)
    other[8:24, 4:28] = image[8:24, 4:28]
    one, two = (damaged(p, box, "blur", 3.0, 0)[8:24, 4:28] for p in (image, other))
    assert (one == two).all()
    assert one.std() < image.std() / 3


def test_noise_is_as_strong_as_asked_and_drawn_from_the_seed() -> None:
    image, box = np.full((200, 200, 3), 128, np.uint8), (0, 0, 200, 200)
    one, same, other = (damaged(image, box, "noise", 20.0, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).mean() > 0.9
    assert (one.astype(float) - 128).std() == pytest.approx(20, rel=0.02)


def test_noise_on_white_and_black_does_not_wrap_around() -> None:
    for level in (0, 255):
        image = np.full((SIZE, SIZE, 3), level, np.uint8)
        found = damaged(image, (0, 0, SIZE, SIZE), "noise", 30.0, 0)
        assert np.abs(found.astype(int) - level).max() < 200
        assert (found == level).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("kind", "strength"), KINDS)
def test_damage_makes_a_piece_no_darker(kind: str, strength: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(118, 139, (400, 400, 3), dtype=np.uint8)
    found = damaged(image, (0, 0, 400, 400), kind, min(strength, 20.0), 0)
    assert found.mean() == pytest.approx(image.mean(), abs=0.25)


# Features


def seen(network: Folded, windows: list[np.ndarray]) -> np.ndarray:
    """The features of patches, caught as the network scores the windows."""
    caught: dict[str, list[torch.Tensor]] = {"stem": [], "last": []}
    hooks = [
        network.stem.register_forward_hook(lambda *a: caught["stem"].append(a[2][1])),
        network.blocks[-1].register_forward_pre_hook(lambda *a: caught["last"].append(a[1][0])),
    ]
    with torch.no_grad():
        network(torch.from_numpy(np.stack(windows)))
    for hook in hooks:
        hook.remove()
    stem, last = caught["stem"][0], caught["last"][network.branch_of[0]]
    return torch.cat([stem, last[:, 1 : 1 + CELLS**2]], dim=-1).double().numpy()


@pytest.mark.parametrize("name", ["network", "both"])
def test_features_are_what_the_scoring_of_the_first_task_makes_of_patches(
    request: pytest.FixtureRequest, name: str
) -> None:
    network = request.getfixturevalue(name)
    windows = [noisy(seed) for seed in range(3)]
    found = np.stack(list(patch_features(network, windows)))
    assert found.shape == (3, CELLS**2, 2 * network.positions.shape[1])
    np.testing.assert_allclose(found, seen(network, windows), atol=1e-5)


def test_branches_of_tasks_differ(both: Folded) -> None:
    """Or the test above would say nothing of which is taken."""
    assert both.branch_of[0] == 1


def test_features_do_not_depend_on_what_shares_a_batch(network: Folded) -> None:
    windows = [noisy(seed) for seed in range(BATCH + 1)]
    together = list(patch_features(network, windows))
    assert len(together) == len(windows)
    for place in (0, BATCH - 1, BATCH):
        (alone,) = patch_features(network, [windows[place]])
        np.testing.assert_allclose(together[place], alone, atol=1e-5)


# Scores of patches


def test_patch_scores_lie_in_rows_as_the_patches_do(network: Folded) -> None:
    levels = np.arange(CELLS**2).reshape(CELLS, CELLS) * 13 + 20
    (found,) = patch_scores(network, brightness(network), [grey(levels, SIZE, SIZE)])
    np.testing.assert_allclose(found - found.mean(), levels - levels.mean(), atol=0.01)


def test_patch_scores_are_the_weights_times_the_features(network: Folded) -> None:
    windows = [noisy(seed) for seed in range(2)]
    weights = np.random.default_rng(0).normal(size=2 * network.positions.shape[1])
    found = patch_scores(network, PatchReadout(tuple(weights.tolist())), windows)
    assert found.shape == (2, CELLS, CELLS)
    features = seen(network, windows)
    for window, row, column in np.ndindex(2, CELLS, CELLS):
        own = float(weights @ features[window, row * CELLS + column])
        assert found[window, row, column] == pytest.approx(own, abs=1e-3)


# The map of patches


def calibration_of(network: Folded, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """One by which patches are as good as they are bright."""

    def bright(network: Folded, _: PatchReadout, windows: list[np.ndarray]) -> np.ndarray:
        assert {window.shape for window in windows} == {(32, 32, 3)}
        return np.stack([w.reshape(4, 8, 4, 8, 3).mean((1, 3, 4)) for w in windows])

    monkeypatch.setattr("dcmpl.scoring.explain.patch_scores", bright)
    return Calibration("made", "center", "0" * 64, {}, PatchReadout((0.0,)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_patch_map_has_each_block_at_its_place(
    network: Folded, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (height // 8, width // 8)).astype(float)
    image = grey(levels, height, width)
    found = patch_map(network, calibration_of(network, monkeypatch), image)
    np.testing.assert_allclose(found, levels - levels.mean(), atol=1e-9)


@pytest.mark.parametrize("place", [(0, 0), (0, 8), (5, 0), (5, 8), (2, 6), (0, 4), (3, 8)])
def test_patch_map_is_lowest_in_the_dark_block(
    network: Folded, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]
) -> None:
    levels = np.full((6, 9), 200.0)
    levels[place] = 10
    found = patch_map(network, calibration_of(network, monkeypatch), grey(levels, 48, 72))
    assert np.unravel_index(int(np.argmin(found)), found.shape) == place


# The fit


IMAGES = [noisy(seed, 40 + 8 * (seed % 3), 56) for seed in range(12)]
OPINIONS = np.random.default_rng(5).random(len(IMAGES))


def test_fit_is_the_same_for_the_same_seed_and_another_for_another(network: Folded) -> None:
    one, same, other = (fit_patches(network, IMAGES, OPINIONS, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert np.isfinite(one.weights).all()


def test_other_numbers_of_images_and_opinions_are_refused(network: Folded) -> None:
    with pytest.raises(ValueError, match="zip"):
        fit_patches(network, IMAGES, OPINIONS[:-1], 0)


def test_damage_is_of_both_kinds_inside_the_window_and_of_many_sizes(
    network: Folded, pasted: Pasted
) -> None:
    count = 60
    fit_patches(network, [noisy(0)] * count, np.ones(count), 0)
    boxes = np.array(pasted.boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() == 0
    assert boxes.max() == SIZE
    assert 1 <= sides.min() < sides.max() <= 5 * SIZE // 8
    assert len(set(map(tuple, sides))) > 20
    assert sorted(pasted.kinds) == ["blur"] * (count // 2) + ["noise"] * (count // 2)


def test_no_place_is_damaged_more_often_than_another() -> None:
    """Or the readout would learn where damage lies, and not how it looks."""
    rng, count = np.random.default_rng(0), 6000
    covered = np.zeros((SIZE, SIZE))
    for _ in range(count):
        top, left, bottom, right = _box(SIZE, rng)
        covered[top:bottom, left:right] += 1
    assert covered.min() > 0.85 * covered.mean()
    assert covered.max() < 1.15 * covered.mean()


def test_fit_is_the_ridge_of_centred_features(network: Folded, pasted: Pasted) -> None:
    found = np.array(fit_patches(network, IMAGES, OPINIONS, 4).weights)
    features, wanted = seen(network, pasted.windows), []
    for box, opinion in zip(pasted.boxes, OPINIONS, strict=True):
        covered = np.zeros(CELLS**2)
        for y, x in product(range(box[0], box[2]), range(box[1], box[3])):
            covered[y // 8 * CELLS + x // 8] += 1
        of_patches = opinion * (1 - covered / 64)
        wanted.append(of_patches - of_patches.mean())
    x = (features - features.mean(1, keepdims=True)).reshape(-1, features.shape[2])
    scale = x.std(0)
    # Least squares with a row for each weight is the ridge.
    rows = np.concatenate([x / scale, np.sqrt(RIDGE) * np.eye(len(scale))])
    aims = np.concatenate([*wanted, np.zeros(len(scale))])
    naive = np.linalg.lstsq(rows, aims, rcond=None)[0] / scale
    np.testing.assert_allclose(found * scale, naive * scale, atol=1e-5)


def test_opinions_of_whole_images_alone_teach_nothing(
    network: Folded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright images are good and dark ones bad, but nothing is damaged."""
    monkeypatch.setattr("dcmpl.scoring.explain._box", lambda *_: (0, 0, 0, 0))
    levels = np.linspace(20, 230, 8)
    images = [(noisy(i, 40, 40) // 10 + level).astype(np.uint8) for i, level in enumerate(levels)]
    found = fit_patches(network, images, levels / 255, 0)
    assert np.abs(found.weights).max() < 1e-9


def test_weights_grow_with_opinions(network: Folded) -> None:
    one, half = (np.array(fit_patches(network, IMAGES, OPINIONS / d, 0).weights) for d in (1, 2))
    np.testing.assert_allclose(one, 2 * half, atol=1e-9)
    nothing = fit_patches(network, IMAGES, np.zeros(len(IMAGES)), 0)
    assert not np.any(nothing.weights)


def test_fitted_readout_finds_damage_where_it_was_pasted(network: Folded) -> None:
    readout = fit_patches(network, map(dark, range(60)), np.full(60, 0.8), 0)
    hits, corners = 0, [(0, 0), (0, 16), (16, 0), (16, 16), (8, 8)]
    for seed in range(20):
        top, left = corners[seed % len(corners)]
        box = (top, left, top + 16, left + 16)
        window = damaged(dark(100 + seed, SIZE, SIZE), box, "noise", 50.0, 1000 + seed)
        (found,) = patch_scores(network, readout, [window])
        row, column = np.unravel_index(int(np.argmin(found)), found.shape)
        hits += top <= 8 * row < top + 16 and left <= 8 * column < left + 16
    assert hits >= 17  # by chance 5
