"""``dcmpl explain``: maps that lie where they belong, words left out, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibrated import Brightness, plain_meaning
from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.model.folded import Folded
from dcmpl.runs import read_run
from dcmpl.scoring.calibration import read_calibration
from dcmpl.scoring.engines import Question, all_answers
from dcmpl.scoring.explain import patch_map, window_map, word_gains
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine

pytest_plugins = ("calibrated",)

TOLERANCE = 3e-6
"""Other batches add up in another order: a few float32 roundings of a difference."""


@pytest.fixture(scope="module")
def reading_run(tmp_path_factory: pytest.TempPathFactory, calibrated_words: list[str]) -> Path:
    """A calibrated run whose alignment reads the prompt; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "reading"
    words = [*calibrated_words, "--preset", "dcmpl-prompted"]
    words.insert(words.index("--set") + 1, "train.mismatch_weight=3")
    assert main([*words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def scorer(reading_run: Path) -> Scorer:
    return Scorer.from_pretrained(reading_run, device="cpu", workers=1, long_prompts="window")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return saved(tmp_path / "image.png", noisy(0, 48, 72))


def noisy(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def shown(capsys: Capture, image: Path, run: Path, *words: object) -> tuple[list[str], list[str]]:
    """The lines that the command prints and says; its image lies beside ``image``."""
    out = image.with_name("why.png")
    given = ["explain", image, "--model", run, "-o", out, *words]
    code = main([str(word) for word in given])
    told = capsys.readouterr()
    assert code == 0, told.err
    with Image.open(out) as found:
        found.load()
        assert found.format == "PNG"
        assert min(found.size) > 100
        assert max(found.size) < 4000
    return told.out.splitlines(), told.err.splitlines()


def left_out(printed: list[str]) -> list[str]:
    return [line for line in printed if line.startswith("without ")]


# The map of windows


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 21), (17, 90), (95, 16), (40, 56)])
def test_window_map_is_the_mean_of_all_windows_that_show_a_block(height: int, width: int) -> None:
    image, size = noisy(1, height, width), Brightness.size
    total, count = np.zeros((height // 8, width // 8)), np.zeros((height // 8, width // 8))
    for top in range(0, height - size + 1, 8):
        for left in range(0, width - size + 1, 8):
            score = image[top : top + size, left : left + size].mean() / 255
            total[top // 8 : top // 8 + 2, left // 8 : left // 8 + 2] += score
            count[top // 8 : top // 8 + 2, left // 8 : left // 8 + 2] += 1
    found = window_map(Brightness(), image)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, total / count)


# Words


PROMPTS = {
    "several": "a red circle on blue",
    "repeated": "blue blue red blue",
    "punctuation": "a red, round circle . (blue)",
    "another script": "рыжая лиса red",
    "wide": "  a  red\n\ncircle\t",
    "too long": "a red circle " * 12,
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_gain_of_a_word_is_what_the_score_is_more_without_it(scorer: Scorer, prompt: str) -> None:
    pixels, words = noisy(5, 40, 44), prompt.split()
    assert isinstance(scorer.engine, TorchEngine)
    found = word_gains(scorer.engine, pixels, prompt, scorer.views)
    assert [word for word, _ in found] == words
    texts = [words, *(words[:i] + words[i + 1 :] for i in range(len(words)))]
    rows = scorer.score([pixels] * len(texts), [" ".join(text) for text in texts])
    own, *without = (row.alignment for row in rows)
    wanted = [(score or 0) - (own or 0) for score in without]
    assert [gain for _, gain in found] == pytest.approx(wanted, abs=TOLERANCE)
    assert np.ptp(wanted) > 10 * TOLERANCE


def test_only_word_is_left_out_too(scorer: Scorer) -> None:
    pixels, engine = noisy(5, 40, 44), scorer.engine
    assert isinstance(engine, TorchEngine)
    ((word, gain),) = word_gains(engine, pixels, "circle", scorer.views)
    asked = [Question(pixels, engine.parts(text, "window").ids) for text in ("circle", "")]
    own, without = (answer.scores[1] for answer in all_answers(engine, asked, scorer.views))
    assert (word, gain) == ("circle", pytest.approx(without - own, abs=TOLERANCE))


def test_words_are_told_from_the_one_that_is_shown_least(
    capsys: Capture, image: Path, reading_run: Path, scorer: Scorer
) -> None:
    printed, said = shown(capsys, image, reading_run, "--prompt", "a red circle, red")
    lines = left_out(printed)
    gains = [float(line.split()[-1]) for line in lines]
    assert gains == sorted(gains, reverse=True)
    assert sorted(line.split("'")[1] for line in lines) == ["a", "circle,", "red", "red"]
    (row,) = scorer.score([image], "a red circle, red")
    assert printed[0].startswith(f"quality {row.quality:.3f}: ")
    assert printed[1].startswith(f"alignment {row.alignment:.3f}: ")
    assert said == []


@pytest.mark.parametrize("words", [[], ["--prompt", ""], ["--prompt", " \n "]])
def test_without_a_prompt_there_is_a_note_and_no_alignment(
    capsys: Capture, image: Path, reading_run: Path, words: list[str]
) -> None:
    printed, said = shown(capsys, image, reading_run, *words)
    assert "alignment: not judged, there is no prompt" in printed
    assert not left_out(printed)
    assert said == ["note: alignment is judged by the prompt: give one to see which words"]


@pytest.mark.parametrize(
    "prompt",
    [
        *("a $\\oops$ sign", "红色的 狐狸", "a red 🦊", "a \udcff byte"),
        *("рыжая лиса", "<b>a</b> & \\n %s {}", "a_b^c $5", "red " * 50),
    ],
)
def test_words_of_all_kinds_can_be_drawn(
    capsys: Capture, image: Path, reading_run: Path, prompt: str
) -> None:
    printed, said = shown(capsys, image, reading_run, "--prompt", prompt)
    assert len(left_out(printed)) == len(prompt.split())
    in_parts = "note: the prompt was read in 2 parts, as with --long-prompts window"
    assert said == ([in_parts] if len(prompt) > 100 else [])


# Maps that are told


def places(printed: list[str]) -> dict[str, tuple[float, int, int]]:
    """By map: the lowest value, and its x and y."""
    pattern = r"lowest by (\w+): (-?\d+\.\d\d) about x (\d+), y (\d+)"
    lines = [re.fullmatch(pattern, line) for line in printed if line.startswith("lowest")]
    return {m[1]: (float(m[2]), int(m[3]), int(m[4])) for m in lines if m}


def test_both_maps_are_told_in_mos_units(
    capsys: Capture, image: Path, reading_run: Path, scorer: Scorer
) -> None:
    printed, _ = shown(capsys, image, reading_run)
    found = places(printed)
    assert list(found) == ["windows", "patches"]
    assert isinstance(scorer.engine, TorchEngine)
    assert scorer.calibration is not None
    pixels = np.asarray(Image.open(image))
    scores = window_map(scorer.engine, pixels).ravel()
    values = scorer.calibration.targets["quality"].mos(scores)
    assert found["windows"][0] == pytest.approx(values.min(), abs=0.006)
    assert isinstance(scorer.engine.network, Folded)
    patches = patch_map(scorer.engine.network, scorer.calibration, pixels)
    row, column = np.unravel_index(int(np.argmin(patches)), patches.shape)
    low, x, y = found["patches"]
    assert (x, y) == (8 * column + 4, 8 * row + 4)
    assert low == pytest.approx(4 * patches.min(), abs=0.006)


def test_image_of_just_a_window_has_a_map_of_patches_alone(
    capsys: Capture, tmp_path: Path, calibrated_run: Path
) -> None:
    image = saved(tmp_path / "small.png", noisy(6, 39, 33))
    assert list(places(shown(capsys, image, calibrated_run)[0])) == ["patches"]


@pytest.mark.parametrize(("height", "width"), [(31, 60), (60, 31), (8, 8), (1, 1)])
def test_image_smaller_than_a_window_has_a_score_and_no_map(
    capsys: Capture, tmp_path: Path, calibrated_run: Path, height: int, width: int
) -> None:
    image = saved(tmp_path / "small.png", noisy(6, height, width))
    printed, said = shown(capsys, image, calibrated_run)
    assert not places(printed)
    assert re.match(r"quality 0\.\d{3}: ", printed[0])
    told = f"no map: expected an image of at least 32 x 32, got {width} x {height}; "
    assert sum(line.startswith(told) for line in said) == 1


@pytest.mark.parametrize(("height", "width"), [(400, 1), (1200, 32)])
def test_long_thin_image_is_drawn_at_a_sensible_size(
    capsys: Capture, tmp_path: Path, uncalibrated_run: Path, height: int, width: int
) -> None:
    shown(capsys, saved(tmp_path / "thin.png", noisy(6, height, width)), uncalibrated_run)


def test_blocks_are_drawn_over_their_own_pixels(
    capsys: Capture, tmp_path: Path, calibrated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[tuple[int, ...], Any]] = []
    real = Axes.imshow

    def imshow(axes: Axes, values: Any, **words: Any) -> Any:
        drawn.append((np.shape(values), words["extent"]))
        return real(axes, values, **words)

    monkeypatch.setattr(Axes, "imshow", imshow)
    shown(capsys, saved(tmp_path / "odd.png", noisy(6, 47, 39)), calibrated_run)
    images = [extent for shape, extent in drawn if len(shape) == 3]
    maps = [each for each in drawn if len(each[0]) == 2]
    assert set(images) == {(0, 39, 47, 0)}
    assert len(maps) > 0
    assert set(maps) == {((5, 4), (0, 32, 40, 0))}


def test_uncalibrated_run_has_scores_a_map_of_windows_and_a_note(
    capsys: Capture, image: Path, uncalibrated_run: Path
) -> None:
    """As one that reads no prompt says that it does not."""
    printed, said = shown(capsys, image, uncalibrated_run, "--prompt", "a red circle")
    assert not left_out(printed)
    told = "note: this run judges alignment, if at all, from the image alone: no words"
    assert said[1:] == [told]
    assert re.fullmatch(r"quality 0\.\d{3}", printed[0])
    assert list(places(printed)) == ["windows"]
    assert said[0].startswith("note: no MOS units and no map of patches: it was not calibrated")


def test_target_that_was_not_calibrated_has_a_bare_score(
    capsys: Capture, image: Path, copied: Path
) -> None:
    run = read_run(copied)
    known = read_calibration(copied, run.weights_sha256)
    assert known is not None
    replace(known, targets={"alignment": plain_meaning()}).write(copied)
    printed, _ = shown(capsys, image, copied)
    assert re.fullmatch(r"quality 0\.\d{3}", printed[0])
    assert re.match(r"alignment 0\.\d{3}: \w+, MOS \d\.\d\d \[", printed[1])
    assert list(places(printed)) == ["windows"]


def test_image_is_the_same_for_the_same_input(
    capsys: Capture, image: Path, reading_run: Path
) -> None:
    out = image.with_name("why.png")
    first = shown(capsys, image, reading_run, "--prompt", "red circle"), out.read_bytes()
    assert (
        shown(capsys, image, reading_run, "--prompt", "red circle"),
        out.read_bytes(),
    ) == first


# Refusals


def test_what_is_no_image_is_refused(capsys: Capture, tmp_path: Path, calibrated_run: Path) -> None:
    rest = ["--model", calibrated_run, "-o", tmp_path / "why.png"]
    for missing, found in ((tmp_path / "no.png", "no file"), (tmp_path, "a folder")):
        told = refused(capsys, 2, "explain", missing, *rest)
        assert told == f"expected an image at {missing}, got {found}"
    broken = tmp_path / "broken.png"
    broken.write_bytes(saved(tmp_path / "a.png", noisy(0, 40, 40)).read_bytes()[:900])
    for content in (broken.read_bytes(), b"", b"no image"):
        broken.write_bytes(content)
        told = refused(capsys, 1, "explain", broken, *rest)
        assert told.startswith(f"expected an image that can be decoded, got {broken}: ")
    assert not (tmp_path / "why.png").exists()


def test_run_whose_main_task_reads_the_prompt_has_no_map_without_one(
    capsys: Capture, image: Path, reading_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TorchEngine.__init__
    swapped = ("alignment", "quality")
    monkeypatch.setattr(TorchEngine, "__init__", lambda self, model, _: real(self, model, swapped))
    printed, said = shown(capsys, image, reading_run)
    assert not places(printed)
    assert "no map: alignment comes first in this run, and is judged by the prompt" in said
    assert list(places(shown(capsys, image, reading_run, "--prompt", "red")[0]))
