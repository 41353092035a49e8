"""``dcmpl score --new``: rows that stand are kept where nothing that decides them changed."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.scoring.files import read_manifest, read_scores
from dcmpl.scoring.scorer import Scorer

pytest_plugins = ("calibrated",)

KEPT = "of {} images are as they were: their rows are kept"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for i in range(5):
        draw(place / f"{i}.png", i)
    (place / "broken.png").write_bytes(b"no image")
    return place


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 44, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def score(calibrated_run: Path, capsys: Capture) -> Callable[..., str]:
    """Score with ``--new``; gives what is said."""

    def run(*words: object, code: int = 3) -> str:
        given = ["score", *words, "--model", calibrated_run, "--new"]
        assert main([str(word) for word in given]) == code
        return capsys.readouterr().err

    return run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are scored."""
    names: list[str] = []
    read = Scorer._read

    def watched(self: Scorer, source: Any) -> Any:
        names.append(Path(source.name).name)
        return read(self, source)

    monkeypatch.setattr(Scorer, "_read", watched)
    return names


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {Path(row["image"]).name: dict(row) for row in read_scores(out)}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_only_new_and_changed_images_are_scored(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path, suffix: str
) -> None:
    out, whole = tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    score(images, "-o", out)
    assert sorted(decoded) == [*(f"{i}.png" for i in range(5)), "broken.png"]
    first = out.read_bytes()
    decoded.clear()
    assert KEPT.format(6) in score(images, "-o", out)
    assert decoded == []
    assert out.read_bytes() == first
    draw(images / "1.png", 100)
    draw(images / "new.png", 101)
    (images / "3.png").unlink()
    shutil.copy(images / "0.png", images / "renamed.png")
    said = score(images, "-o", out)
    assert f"4 {KEPT.format(7)}" in said
    assert sorted(decoded) == ["1.png", "new.png", "renamed.png"]
    score(images, "-o", whole)
    assert read_manifest(out) == read_manifest(whole)
    # Windows of other images in a batch may change the last digit of a small window's score.
    found, wanted = (pd.DataFrame(read_scores(path)) for path in (out, whole))
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)


def test_row_has_the_hash_of_its_file(
    images: Path, score: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    score(images, images / "gone.png", "-o", out)
    found = rows_of(out)
    for path in images.iterdir():
        assert found[path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not found["gone.png"]["sha256"]


def test_hash_is_there_on_request_and_not_else(
    images: Path, calibrated_run: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "out.csv", ["score", str(images), "--model", str(calibrated_run)]
    assert main([*words, "-o", str(out)]) == 3
    assert "sha256" not in rows_of(out)["0.png"]
    assert main([*words, "-o", str(out), "--sha256"]) == 3
    assert len(rows_of(out)["0.png"]["sha256"]) == 64


def test_image_that_was_missing_is_looked_for_again(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    score(images / "0.png", images / "late.png", "-o", out)
    draw(images / "late.png", 7)
    decoded.clear()
    score(images / "0.png", images / "late.png", "-o", out, code=0)
    assert decoded == ["late.png"]


def test_other_prompt_is_another_row(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "list.csv").write_text("image,prompt\nimages/0.png,a fox\nimages/1.png,a cat\n")
    score(tmp_path / "list.csv", "-o", out, code=0)
    (tmp_path / "list.csv").write_text("image,prompt\nimages/0.png,a fox\nimages/1.png,a dog\n")
    decoded.clear()
    score(tmp_path / "list.csv", "-o", out, code=0)
    assert decoded == ["1.png"]
    assert rows_of(out)["1.png"]["prompt"] == "a dog"


def test_prompt_within_a_file_is_as_new_as_the_file(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path
) -> None:
    out, words = tmp_path / "out.csv", ["--prompt-from", "metadata"]
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", "a red fox\nSteps: 20, Seed: 1")
    Image.open(images / "0.png").save(images / "0.png", pnginfo=about)
    score(images, *words, "-o", out)
    decoded.clear()
    assert f"6 {KEPT.format(6)}" in score(images, *words, "-o", out)
    assert decoded == []
    assert rows_of(out)["0.png"]["prompt"] == "a red fox"


def test_other_views_score_everything_anew(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    score(images, "-o", out)
    decoded.clear()
    said = score(images, "-o", out, "--views", "center")
    assert f"{out} was made with another" in said
    assert len(decoded) == 6


def test_members_of_an_archive_are_known_by_their_content(
    images: Path, score: Callable[..., str], decoded: list[str], tmp_path: Path
) -> None:
    out, archive = tmp_path / "out.csv", tmp_path / "a.zip"
    for seeds in ((0, 1, 2), (0, 5, 2, 3)):
        with zipfile.ZipFile(archive, "w") as file:
            for place, seed in enumerate(seeds):
                draw(tmp_path / "one.png", seed)
                file.write(tmp_path / "one.png", f"{place}.png")
        decoded.clear()
        score(archive, "-o", out, code=0)
    assert decoded == ["1.png", "3.png"]


def test_ranks_are_those_of_all_images(
    images: Path, score: Callable[..., str], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    score(images, "-o", out, "--rank", "--prompt", "a fox")
    draw(images / "9.png", 9)
    score(images, "-o", out, "--rank", "--prompt", "a fox")
    score(images, "-o", whole, "--rank", "--prompt", "a fox")
    found, wanted = (pd.DataFrame(read_scores(path)) for path in (out, whole))
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)


def test_job_that_was_broken_off_goes_on(
    images: Path, score: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcmpl.scoring.journal import Journal

    out = tmp_path / "out.csv"
    score(images, "-o", out)
    before = out.read_bytes()
    draw(images / "2.png", 50)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        score(images, "-o", out, code=1)
    assert out.read_bytes() == before
    score(images, "-o", out, "--resume")
    assert out.read_bytes() != before


def test_rows_without_hashes_are_refused(
    images: Path, calibrated_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, words = tmp_path / "out.csv", ["score", str(images), "--model", str(calibrated_run)]
    assert main([*words, "-o", str(out)]) == 3
    before = out.read_bytes()
    assert main([*words, "-o", str(out), "--new"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected rows with the hash of each image's file in {out}, got rows without: "
        "score it once more with --sha256"
    )
    assert out.read_bytes() == before


def test_changed_rows_are_refused(images: Path, score: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    score(images, "-o", out)
    out.write_text(out.read_text().replace("0.", "9."))
    assert "as dcmpl score wrote it, got one that was changed since" in score(
        images, "-o", out, code=1
    )


def test_new_needs_a_file(images: Path, calibrated_run: Path, capsys: Capture) -> None:
    words = ["score", images, "--model", calibrated_run, "-o", "-", "--new"]
    assert refused(capsys, 2, *words).startswith("expected a file at -o with --resume, --rank and")
