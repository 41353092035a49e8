"""Procedural images with captions: what ``small`` is trained on.

A scene is two textured objects on a background, described by a caption. The defects are in
``defects.py``. Everything comes from the random generator given.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy import ndimage

Pixels = np.ndarray
"""float32 RGB in [0, 1], (size, size, 3)."""

COLOURS = {
    "red": (0.85, 0.15, 0.13),
    "green": (0.15, 0.6, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.95, 0.85, 0.2),
    "purple": (0.55, 0.2, 0.65),
    "orange": (0.95, 0.55, 0.12),
    "white": (0.95, 0.95, 0.93),
    "black": (0.07, 0.07, 0.08),
    "gray": (0.5, 0.5, 0.5),
    "brown": (0.45, 0.28, 0.15),
}
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "star", "bar")
TEXTURES = ("solid", "striped", "dotted", "checkered", "rough")
SIZES = {"small": 0.16, "medium": 0.23, "large": 0.31}
OF_THING: dict[str, Iterable[str]] = {
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    texture: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.texture} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says and an image shows."""

    first: Thing
    relation: str
    second: Thing
    background: str
    tint: str

    def caption(self) -> str:
        return (
            f"a {self.first} {self.relation} a {self.second} "
            f"on a {self.background} {self.tint} background"
        )


def _pick(rng: Generator, options: Iterable[str]) -> str:
    names = list(options)
    return str(names[rng.integers(len(names))])


def draw_thing(rng: Generator) -> Thing:
    return Thing(*(_pick(rng, o) for o in (SIZES, TEXTURES, COLOURS, SHAPES)))


def draw_scene(rng: Generator) -> Scene:
    """A scene whose two objects and background differ in colour."""
    while True:
        scene = Scene(
            draw_thing(rng),
            _pick(rng, RELATIONS),
            draw_thing(rng),
            _pick(rng, BACKGROUNDS),
            _pick(rng, COLOURS),
        )
        if len({scene.first.colour, scene.second.colour, scene.tint}) == 3:
            return scene


def corrupted(scene: Scene, rng: Generator) -> Scene:
    """A scene that differs in one thing a caption says: the hard negative."""
    kind = rng.integers(6)
    if kind == 0:
        opposite = {"above": "below", "below": "above", "left of": "right of"}
        return replace(scene, relation=opposite.get(scene.relation, "left of"))
    if kind == 1:
        return replace(scene, first=scene.second, second=scene.first)
    if kind == 2:
        first, second = scene.first, scene.second
        return replace(
            scene,
            first=replace(first, colour=second.colour),
            second=replace(second, colour=first.colour),
        )
    if kind == 3:
        other = _pick(rng, [b for b in BACKGROUNDS if b != scene.background])
        return replace(scene, background=other)
    part = str(rng.choice(list(OF_THING)))
    return _changed(scene, f"{'first' if kind == 4 else 'second'}.{part}", rng)


PARTS = (
    *(f"{thing}.{part}" for thing in ("first", "second") for part in OF_THING),
    *("relation", "background", "tint"),
)
"""The eleven things that a caption says."""


def with_faults(scene: Scene, count: int, rng: Generator) -> Scene:
    """A scene that differs in ``count`` of ``PARTS``, to be told in the place of the right one."""
    for place in rng.permutation(len(PARTS))[:count]:
        scene = _changed(scene, PARTS[place], rng)
    return scene


def _changed(scene: Scene, part: str, rng: Generator) -> Scene:
    if "." not in part:
        of_scene: dict[str, Iterable[str]] = {
            "relation": RELATIONS,
            "background": BACKGROUNDS,
            "tint": COLOURS,
        }
        changed: Any = {part: _pick(rng, [o for o in of_scene[part] if o != getattr(scene, part)])}
        return replace(scene, **changed)
    which, part = part.split(".")
    thing = getattr(scene, which)
    other = _pick(rng, [o for o in OF_THING[part] if o != getattr(thing, part)])
    return replace(scene, **{which: replace(thing, **{part: other})})


def noise_field(rng: Generator, size: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls as 1 / frequency^slope, scaled to 0..1."""
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * size
    radius[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field = np.fft.irfft2(spectrum / radius**slope, s=(size, size))
    low, high = np.quantile(field, [0.01, 0.99])
    return np.clip((field - low) / (high - low + 1e-9), 0, 1).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    return y, x


def _waves(rng: Generator, size: int, count: int) -> np.ndarray:
    y, x = _grid(size)
    field = np.zeros((size, size), np.float32)
    for _ in range(count):
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(2, 14)
        phase = 2 * np.pi * pitch * (x * np.cos(angle) + y * np.sin(angle))
        field += np.sin(phase + rng.uniform(0, 6)) / count
    return field / 2 + 0.5


def _leaves(rng: Generator, size: int) -> np.ndarray:
    """Dead leaves: opaque discs whose sizes follow a power law."""
    y, x = _grid(size)
    field = np.full((size, size), rng.random(), np.float32)
    for _ in range(90):
        cy, cx, radius = rng.random(), rng.random(), 0.02 / rng.uniform(0.08, 1) ** 0.9
        field[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.random()
    return field


def _cells(rng: Generator, size: int) -> np.ndarray:
    points = rng.random((rng.integers(12, 60), 2)).astype(np.float32)
    y, x = _grid(size // 2)
    distance = np.sort(
        (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2, axis=-1
    )
    edge = np.sqrt(distance[..., 1]) - np.sqrt(distance[..., 0])
    return np.asarray(ndimage.zoom(np.clip(edge * 12, 0, 1), 2, order=1))


def _hills(rng: Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    field = 1 - y
    for level in np.sort(rng.uniform(0.25, 0.9, 4)):
        ridge = level + sum(
            rng.uniform(0.01, 0.06) * np.sin(2 * np.pi * f * x + rng.uniform(0, 6))
            for f in (1, 2, 5, 11)
        )
        field = np.where(y > ridge, rng.uniform(0, 0.8), field)
    return field.astype(np.float32)


def _woven(rng: Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    pitch = rng.integers(50, 240)
    over = np.sin(x * pitch) * np.sin(y * pitch)
    return 0.5 + 0.3 * over + 0.2 * (noise_field(rng, size, 1) - 0.5)


def _tiled(rng: Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    pitch = rng.uniform(3, 13)
    joint = np.minimum((x * pitch) % 1, (y * pitch) % 1) < 0.1
    return np.where(joint, 0.2, 0.5 + 0.4 * noise_field(rng, size, 1.6))


def _starry(rng: Generator, size: int) -> np.ndarray:
    stars = (rng.random((size, size), dtype=np.float32) > 0.997) * 4.0
    return np.clip(0.15 * noise_field(rng, size, 2) + ndimage.gaussian_filter(stars, 0.8), 0, 1)


def _gradient(rng: Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    return (ramp - ramp.min()) / np.ptp(ramp)


BACKGROUNDS: dict[str, Callable[[Generator, int], np.ndarray]] = {
    "plain": lambda rng, size: 0.6 + 0.05 * noise_field(rng, size, 1.5),
    "cloudy": lambda rng, size: noise_field(rng, size, rng.uniform(1.2, 2.2)),
    "leafy": _leaves,
    "cellular": _cells,
    "wavy": lambda rng, size: _waves(rng, size, int(rng.integers(1, 5))),
    "hilly": _hills,
    "gradient": _gradient,
    "grainy": lambda rng, size: 0.3 + 0.4 * noise_field(rng, size, rng.uniform(0.2, 0.9)),
    "woven": _woven,
    "tiled": _tiled,
    "starry": _starry,
}
"""Brightness of each kind of background, 0..1."""


def _distance(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of radius 1 about the origin; negative inside."""
    radius, box = np.hypot(x, y), np.maximum(abs(x), abs(y))
    angle = np.arctan2(y, x)
    distances: dict[str, Callable[[], np.ndarray]] = {
        "circle": lambda: radius - 0.9,
        "square": lambda: box - 0.8,
        "triangle": lambda: np.maximum(y - 0.7, 2 * abs(x) - y - 0.9),
        "diamond": lambda: abs(x) + abs(y) - 1,
        "ring": lambda: abs(radius - 0.7) - 0.22,
        "cross": lambda: np.minimum(
            np.maximum(abs(x) - 0.28, abs(y) - 0.95), np.maximum(abs(y) - 0.28, abs(x) - 0.95)
        ),
        "star": lambda: radius - 0.6 - 0.35 * np.cos(5 * angle),
        "bar": lambda: np.maximum(abs(x) - 0.95, abs(y) - 0.3),
    }
    return distances[shape]()


def _paint(canvas: Pixels, thing: Thing, cy: float, cx: float, rng: Generator) -> None:
    size = len(canvas)
    y, x = _grid(size)
    radius = SIZES[thing.size] * rng.uniform(0.9, 1.1)
    turn = rng.uniform(-0.3, 0.3)
    v, u = (y - cy) / radius, (x - cx) / radius
    v, u = v * np.cos(turn) - u * np.sin(turn), v * np.sin(turn) + u * np.cos(turn)
    sharp = radius * size / 1.2
    cover = np.clip(0.5 - _distance(thing.shape, v, u) * sharp, 0, 1)[..., None]
    pitch = rng.uniform(5, 9)
    shades: dict[str, Callable[[], np.ndarray]] = {
        "solid": lambda: np.zeros_like(u),
        "striped": lambda: (np.sin(pitch * 2 * u) > 0) * 1.0,
        "dotted": lambda: (np.sin(pitch * u) * np.sin(pitch * v) > 0.35) * 1.0,
        "checkered": lambda: (np.floor(u * pitch / 3) + np.floor(v * pitch / 3)) % 2,
        "rough": lambda: noise_field(rng, size, 0.8),
    }
    shade = shades[thing.texture]()
    base = np.asarray(COLOURS[thing.colour], np.float32)
    ink = np.where(base.mean() > 0.5, base * 0.45, base * 0.5 + 0.45)
    body = base + shade[..., None] * (ink - base)
    light = 1 + 0.25 * rng.uniform(0, 1) * (-u - v)[..., None]
    if rng.random() < 0.6:  # a soft shadow under it
        shadow = ndimage.shift(cover[..., 0], (0.02 * size, 0.02 * size), order=1)
        canvas *= 1 - 0.5 * ndimage.gaussian_filter(shadow, 0.015 * size)[..., None]
    canvas += cover * (np.clip(body * light, 0, 1) - canvas)


def render(scene: Scene, rng: Generator, size: int) -> Pixels:
    """The clean image of a scene."""
    tint = np.asarray(COLOURS[scene.tint], np.float32)
    brightness = BACKGROUNDS[scene.background](rng, size)[..., None]
    depth = rng.uniform(0.4, 1.0)
    canvas = tint * (1 - depth / 2 + depth * (brightness - 0.5))
    if rng.random() < 0.5:
        other = np.asarray(COLOURS[_pick(rng, COLOURS)], np.float32)
        canvas += 0.3 * noise_field(rng, size, 2)[..., None] * (other - canvas)
    canvas = np.clip(canvas, 0, 1).astype(np.float32)
    dx, dy = RELATIONS[scene.relation]
    gap = rng.uniform(0.2, 0.27)
    jitter = rng.uniform(-0.06, 0.06, 4)
    _paint(canvas, scene.second, 0.5 - dy * gap + jitter[0], 0.5 - dx * gap + jitter[1], rng)
    _paint(canvas, scene.first, 0.5 + dy * gap + jitter[2], 0.5 + dx * gap + jitter[3], rng)
    canvas = canvas ** rng.uniform(0.75, 1.35)
    y, x = _grid(size)
    canvas *= 1 - rng.uniform(0, 0.35) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)[..., None]
    canvas += rng.normal(0, rng.choice([0.0, 0.004, 0.012]), canvas.shape)
    return np.clip(canvas, 0, 1).astype(np.float32)


def to_bytes(image: Pixels) -> np.ndarray:
    """uint8 RGB, (size, size, 3)."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
