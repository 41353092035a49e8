"""Copies of an image look the same whatever was done to the file, other images do not."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import made_table
from dcmpl.data.leaks import ALIKE_BITS, ImageFacts, check_images, look_of, survey
from dcmpl.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "agiqa-3k-dev" / "img"
BITS = 255
SHOWN = range(6)


def drawn(seed: int, height: int = 160, width: int = 208) -> Image.Image:
    """An image with the spectrum of photographs: amplitude falls with frequency."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    fall = 1 / np.maximum(np.hypot(y, x), 1 / width) ** 1.3
    grey = np.fft.ifft2(fall * np.fft.fft2(rng.normal(size=(height, width)))).real
    grey = 128 + 45 * (grey - grey.mean()) / grey.std()
    tint = rng.uniform(0.7, 1.0, 3)
    return Image.fromarray((grey[..., None] * tint).clip(0, 255).astype(np.uint8))


def differing(ours: ImageFacts, theirs: ImageFacts) -> int:
    """How many of the 255 bits are not the same."""
    a, b = (int.from_bytes(facts.look, "big") for facts in (ours, theirs))
    return (a ^ b).bit_count()


def jpeg(quality: int) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: image.save(path, "JPEG", quality=quality)


def webp(quality: int) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: image.save(path, "WEBP", quality=quality)


def scaled(times: float) -> Callable[[Image.Image, Path], None]:
    def save(image: Image.Image, path: Path) -> None:
        sides = tuple(round(times * side) for side in image.size)
        image.resize(sides, Image.Resampling.BICUBIC).save(path, "PNG")

    return save


COPIES = {
    **{f"JPEG {quality}": jpeg(quality) for quality in (30, 50, 75, 95)},
    **{f"WebP {quality}": webp(quality) for quality in (30, 80)},
    **{f"scaled {times}": scaled(times) for times in (0.5, 0.75, 1.5, 2)},
}


@pytest.mark.parametrize("name", COPIES)
def test_copy_is_a_near_duplicate(tmp_path: Path, name: str) -> None:
    for seed in SHOWN:
        drawn(seed).save(tmp_path / f"{seed}.png")
        COPIES[name](drawn(seed), tmp_path / f"{seed}.copy")
    facts = survey(str(path) for path in tmp_path.iterdir())
    for seed in SHOWN:
        one, other = (facts[str(tmp_path / f"{seed}.{end}")] for end in ("png", "copy"))
        assert one.sha256 != other.sha256
        assert differing(one, other) <= ALIKE_BITS


def test_different_images_are_no_near_duplicates(tmp_path: Path) -> None:
    for seed in range(40):
        drawn(seed, 64, 80).save(tmp_path / f"{seed}.png")
    facts = list(survey(str(path) for path in sorted(tmp_path.iterdir())).values())
    pairs = [differing(a, b) for i, a in enumerate(facts) for b in facts[:i]]
    assert min(pairs) > ALIKE_BITS
    # Half of the bits on average; the deviation of the mean is far below one bit.
    assert np.mean(pairs) == pytest.approx(BITS / 2, abs=3)


@pytest.mark.parametrize("change", ["mirrored", "upside down", "negative"])
def test_turned_or_inverted_image_is_another(change: str) -> None:
    pixels = np.array(drawn(0))
    other = {"mirrored": pixels[:, ::-1], "upside down": pixels[::-1], "negative": 255 - pixels}
    pair = pixels, np.ascontiguousarray(other[change])
    looks = (ImageFacts(look=look_of(image)) for image in pair)
    assert differing(*looks) > ALIKE_BITS


def test_real_images_are_known_again_and_told_apart(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not beside this repository")
    names = sorted(path.name for path in REAL.iterdir())[5::170]
    for name in names:
        with Image.open(REAL / name) as image:
            image.save(tmp_path / f"{name}.png", compress_level=1)
            jpeg(30)(image, tmp_path / f"{name}.low")
            webp(60)(image, tmp_path / f"{name}.webp")
            scaled(0.5)(image, tmp_path / f"{name}.half")
    facts = survey(str(path) for path in tmp_path.iterdir())
    whole = [facts[str(tmp_path / f"{name}.png")] for name in names]
    assert not any(f.flat or f.fault for f in whole)
    for end in ("low", "webp", "half"):
        copies = [facts[str(tmp_path / f"{name}.{end}")] for name in names]
        assert max(map(differing, whole, copies)) <= ALIKE_BITS
        assert (
            min(differing(a, b) for a in whole for b in copies if b is not copies[whole.index(a)])
            > ALIKE_BITS
        )


def cosines(length: int, count: int) -> np.ndarray:
    """The first ``count`` rows of the orthonormal cosine transform."""
    rows, columns = np.arange(count)[:, None], np.arange(length)
    scale = np.where(rows == 0, 1, 2**0.5) / length**0.5
    return scale * np.cos(np.pi * (columns + 0.5) * rows / length)


def test_look_is_the_signs_of_the_lowest_frequencies_about_their_median() -> None:
    image = np.array(drawn(3, 128, 192))
    cells = image.mean(2).reshape(64, 2, 64, 3).mean((1, 3))
    low = (cosines(64, 16) @ cells @ cosines(64, 16).T).ravel()[1:]
    expected = np.packbits(low > np.median(low)).tobytes()
    assert look_of(image) == expected
    assert len(expected) == 32


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (63, 65), (64, 64)])
def test_look_of_any_size_is_32_bytes(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert len(look_of(noise)) == 32


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    drawn(1, 50, 70).save(path)
    (found,) = survey([str(path)]).values()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.fault, found.flat, found.width, found.height) == (None, False, 70, 50)
    assert found.look == look_of(np.array(drawn(1, 50, 70)))


def noisy(deviation: float) -> np.ndarray:
    """Grey of just this deviation: the half above the middle, the half below it."""
    signs = np.random.default_rng(0).permutation(np.repeat([-1.0, 1.0], 2048)).reshape(64, 64)
    return np.repeat((128 + signs * deviation)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "flat"),
    [
        (np.zeros((64, 64, 3), np.uint8), True),
        (np.full((64, 64, 3), 200, np.uint8), True),
        (np.full((1, 1, 3), 90, np.uint8), True),
        (np.pad(np.full((1, 1, 3), 40, np.uint8), ((0, 63), (0, 63), (0, 0))), True),
        (noisy(2.0), False),
        (np.array(drawn(0)), False),
    ],
    ids=["black", "grey", "one pixel", "a speck", "faint noise", "an image"],
)
def test_image_that_shows_nothing_is_flat(tmp_path: Path, pixels: np.ndarray, flat: bool) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = survey([str(tmp_path / "a.png")]).values()
    assert found.flat is flat
    assert found.fault is None


BROKEN: dict[str, Callable[[Path], None]] = {
    "no file": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an image"),
    "a folder": lambda path: path.mkdir(),
    "cut off": lambda path: path.write_bytes(_png()[:-200]),
}


def _png() -> bytes:
    import io

    file = io.BytesIO()
    drawn(0, 64, 64).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_image_is_a_fault_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.png"
    BROKEN[kind](path)
    (found,) = survey([str(path)]).values()
    assert str(found.fault).startswith(("expected an image", "expected a file at "))
    assert str(path) in str(found.fault)
    assert found == ImageFacts(fault=found.fault)


def test_one_bad_image_among_many_leaves_the_facts_of_the_others(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i:02}.png") for i in range(30)]
    for i, path in enumerate(paths):
        drawn(i, 40, 40).save(path)
    alone = survey(paths)
    Path(paths[17]).write_text("broken since")
    found = survey(paths)
    assert [path for path, facts in found.items() if facts.fault] == [paths[17]]
    assert {p: f for p, f in found.items() if p != paths[17]} == {
        p: f for p, f in alone.items() if p != paths[17]
    }


def test_facts_come_in_the_order_of_the_paths_and_once_each(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        drawn(i, 24, 24).save(path)
    asked = [*paths[::-1], *paths]
    assert list(survey(asked)) == paths[::-1]


def test_no_images_have_no_facts() -> None:
    assert survey([]) == {}


def test_survey_leaves_the_number_of_threads(tmp_path: Path) -> None:
    drawn(0, 24, 24).save(tmp_path / "a.png")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        survey([str(tmp_path / "a.png")])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_checking_names_every_unreadable_image(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i in (0, 2, 4):
        drawn(i, 24, 24).save(paths[i])
    Path(paths[3]).write_bytes(b"GIF89a")
    with pytest.raises(DataError) as caught:
        check_images(made_table(image=paths))
    first, *named = str(caught.value).splitlines()
    advice = "mend them or take their rows out:"
    assert first == f"expected 5 readable images, got 2 that are not: {advice}"
    assert named[0] == f"  expected an image at {paths[1]}, got no file"
    assert named[1].startswith(f"  expected an image that can be decoded, got {paths[3]}: ")
    assert len(named) == 2


def test_checking_readable_images_gives_what_the_survey_gives(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        drawn(i, 24, 24).save(path)
    assert check_images(made_table(image=paths)) == survey(paths)


def test_links_to_one_file_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    looked: list[str] = []
    facts = ImageFacts(sha256="x")
    monkeypatch.setattr("dcmpl.data.leaks._facts", lambda path: looked.append(path) or facts)
    paths = [str(tmp_path / name) for name in ("b.png", "a.png")]
    assert survey(paths) == dict.fromkeys(paths, facts)
    assert looked == [paths[0]]


def test_links_to_a_missing_file_are_each_named(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.symlink_to("nowhere.png")
    for path, facts in survey(map(str, paths)).items():
        assert path in str(facts.fault)
