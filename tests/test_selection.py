"""Best first, the best copied, the worst moved; no file is ever written over."""

import csv
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli import main
from dcmpl.data.sources import Entry
from dcmpl.selection import move


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture
def folder(picture_data: Path, tmp_path: Path) -> Path:
    """Eight pictures to score, of which the fifth is the second once more, and a bad one."""
    found = tmp_path / "in"
    found.mkdir()
    for i in range(8):
        shutil.copy(picture_data.parent / f"{i:02}.png", found)
    shutil.copy(found / "01.png", found / "04.png")
    (found / "03.png").write_text("no picture")
    return found


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def names_of(file: Path) -> list[str]:
    return [Path(row["image"]).name for row in rows_of(file)]


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def best(folder: Path, trained_run: Path, out: Path) -> list[str]:
    """Names of the good pictures, the best first, equal ones as they came: by an own sort."""
    score(folder, "--model", trained_run, "-o", out)
    rows = [row for row in rows_of(out) if row["status"] == "ok"]
    out.unlink()
    ordered = sorted(rows, key=lambda row: float(row["quality"]), reverse=True)
    return [Path(row["image"]).name for row in ordered]


def test_sorted_rows_are_best_first_with_errors_last(
    folder: Path, trained_run: Path, out: Path, best: list[str]
) -> None:
    assert score(folder, "--model", trained_run, "-o", out, "--sort") == 3
    assert names_of(out) == [*best, "03.png"]
    assert best.index("04.png") == best.index("01.png") + 1  # equal ones as they came


def test_equal_scores_keep_the_order_they_were_named_in(
    folder: Path, trained_run: Path, out: Path
) -> None:
    twice = [folder / "04.png", folder / "01.png"]
    score(*twice, "--model", trained_run, "-o", out, "--sort")
    assert names_of(out) == ["04.png", "01.png"]


def test_sorting_by_another_target_orders_by_that(
    folder: Path, trained_run: Path, out: Path
) -> None:
    score(folder, "--model", trained_run, "-o", out, "--sort", "--by", "alignment")
    values = [float(row["alignment"]) for row in rows_of(out)[:-1]]
    assert values == sorted(values, reverse=True)
    qualities = [float(row["quality"]) for row in rows_of(out)[:-1]]
    assert qualities != sorted(qualities, reverse=True)  # the pictures tell the two apart


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_top_keeps_the_best_and_no_errors(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, best: list[str], count: int
) -> None:
    capsys.readouterr()
    assert score(folder, "--model", trained_run, "-o", out, "--top", count) == 3
    assert names_of(out) == best[:count]
    told = capsys.readouterr()
    assert f"; the best {min(count, 7)} are kept" in told.out
    assert "not scored: " in told.err


def test_top_of_nothing_but_errors_is_empty(
    capsys: Capture, folder: Path, trained_run: Path, out: Path
) -> None:
    assert score(folder / "03.png", "--model", trained_run, "-o", out, "--top", 2) == 3
    assert rows_of(out) == []
    assert capsys.readouterr().out.startswith("0 of 1 pictures scored; the best 0 are kept: ")


def test_best_pictures_are_copied_and_stay_where_they_are(
    folder: Path, trained_run: Path, out: Path, best: list[str], tmp_path: Path
) -> None:
    before, place = contents(folder), tmp_path / "best"
    assert score(folder, "--model", trained_run, "-o", out, "--copy-top", 3, place) == 3
    assert contents(place) == {name: before[name] for name in best[:3]}
    assert contents(folder) == before
    assert len(rows_of(out)) == 8


def test_copying_again_with_the_same_words_changes_nothing(
    folder: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    place = tmp_path / "best"
    words = [folder, "--model", trained_run, "-o", out, "--copy-top", 3, place]
    score(*words)
    before, scores = contents(place), out.read_bytes()
    score(*words)
    assert (contents(place), out.read_bytes()) == (before, scores)


def test_copying_more_than_there_are_leaves_errors_out(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, best: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "best"
    assert score(folder, "--model", trained_run, "-o", out, "--copy-top", 50, place) == 3
    assert sorted(contents(place)) == sorted(best)
    assert f"7 copied to {place}" in capsys.readouterr().err


def test_copy_does_not_write_over_another_file_of_that_name(
    folder: Path, trained_run: Path, out: Path, best: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "best"
    place.mkdir()
    (place / best[0]).write_text("mine")
    taken = best[0].replace(".png", "-2.png")
    (place / taken).write_text("mine as well")
    score(folder, "--model", trained_run, "-o", out, "--copy-top", 1, place)
    assert contents(place) == {
        best[0]: b"mine",
        taken: b"mine as well",
        best[0].replace(".png", "-3.png"): (folder / best[0]).read_bytes(),
    }


def test_best_of_an_archive_are_copied_out_of_it(
    folder: Path, trained_run: Path, out: Path, best: list[str], tmp_path: Path
) -> None:
    before, place = contents(folder), tmp_path / "best"
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, content in before.items():
            archive.writestr(f"deep/../../{name}", content)  # must not lead out of the folder
    words = [tmp_path / "in.zip", "--model", trained_run, "-o", out, "--copy-top", 3, place]
    assert score(*words) == 3
    assert contents(place) == {name: before[name] for name in best[:3]}


def test_pictures_below_a_score_are_moved_and_errors_stay(
    folder: Path, trained_run: Path, out: Path, best: list[str], tmp_path: Path, capsys: Capture
) -> None:
    before, place = contents(folder), tmp_path / "worst"
    score(folder, "--model", trained_run, "-o", out)
    values = {Path(row["image"]).name: row["quality"] for row in rows_of(out)}
    threshold = values[best[3]]  # a picture that has just this score is not below it
    words = [folder, "--model", trained_run, "-o", out, "--move-below", threshold, place]
    assert score(*words) == 3
    worst = {name for name in best if float(values[name]) < float(threshold)}
    assert best[3] not in worst
    assert contents(place) == {name: before[name] for name in worst}
    assert contents(folder) == {name: before[name] for name in before.keys() - worst}
    assert len(rows_of(out)) == 8
    assert f"{len(worst)} moved to {place}" in capsys.readouterr().err


def test_moving_again_with_the_same_words_moves_nothing_more(
    folder: Path, trained_run: Path, out: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = tmp_path / "worst"
    names = sorted(folder.iterdir())
    words = [*names, "--model", trained_run, "-o", out, "--move-below", 1, place]
    score(*words)
    before = contents(place)
    assert len(before) == 7
    capsys.readouterr()
    assert score(*words) == 3
    assert contents(place) == before
    assert [row["status"] for row in rows_of(out)] == ["error"] * 8
    assert f"0 moved to {place}" in capsys.readouterr().err


def test_move_does_not_write_over_another_file_of_that_name(
    folder: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    moved, place = (folder / "00.png").read_bytes(), tmp_path / "worst"
    place.mkdir()
    (place / "00.png").write_text("mine")
    score(folder / "00.png", "--model", trained_run, "-o", out, "--move-below", 1, place)
    assert contents(place) == {"00.png": b"mine", "00-2.png": moved}
    assert not (folder / "00.png").exists()


def test_picture_that_a_list_names_twice_is_moved_once(
    folder: Path, trained_run: Path, out: Path, tmp_path: Path, capsys: Capture
) -> None:
    (folder / "list.csv").write_text("image\n00.png\n00.png\n")
    place = tmp_path / "worst"
    words = [folder / "list.csv", "--model", trained_run, "-o", out, "--move-below", 1, place]
    assert score(*words) == 0
    assert [row["status"] for row in rows_of(out)] == ["ok", "ok"]
    assert list(contents(place)) == ["00.png"]
    assert f"1 moved to {place}" in capsys.readouterr().err


def test_picture_that_cannot_be_moved_is_told_and_the_others_are_moved(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    names = [str(folder / f"{i:02}.png") for i in range(3)]
    move_one = os.rename

    def failing(source: str, place: Path) -> object:
        if source == names[1]:
            raise OSError(28, "No space left on device")
        return move_one(source, place)

    monkeypatch.setattr(os, "rename", failing)
    moved, faults = move([Entry(name, name) for name in names], tmp_path / "worst")
    assert (moved, faults) == (2, [f"expected to move {names[1]}, got: No space left on device"])
    assert sorted(contents(tmp_path / "worst")) == ["00.png", "02.png"]
    assert Path(names[1]).exists()


def test_pictures_of_an_archive_cannot_be_moved(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(folder / "00.png", "00.png")
    words = ["score", tmp_path / "in.zip", "--model", trained_run, "-o", out]
    assert refused(capsys, 2, *words, "--move-below", 0.5, tmp_path / "worst") == (
        "expected files for --move-below, got an archive: its pictures stay in it"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--top", "0"],
        ["--copy-top", "x", "best"],
        ["--copy-top", "-1", "best"],
        ["--copy-top", "1.5", "best"],
        ["--move-below", "nan", "worst"],
        ["--move-below", "inf", "worst"],
        ["--by", "beauty"],
        ["--prompt-from", "exif"],
        ["--sort", "--shard", "1/2"],
        ["--top", "1", "--shard", "1/2"],
        ["--top", "1", "--move-below", "1", "worst"],
    ],
)
def test_choice_that_makes_no_sense_is_wrong_usage(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, words: list[str]
) -> None:
    told = refused(capsys, 2, "score", folder, "--model", trained_run, "-o", out, *words)
    assert told.startswith("expected ")
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--copy-top", "--move-below"])
def test_file_in_place_of_a_folder_is_wrong_usage(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["score", folder, "--model", trained_run, "-o", out, flag, 1, tmp_path / "file"]
    assert refused(capsys, 2, *words) == (
        f"expected a folder for {flag}, found a file at {tmp_path / 'file'}"
    )
    assert (tmp_path / "file").read_text() == "mine"


FLAGS = ["--sort", "--top 1", "--copy-top 1 {place}", "--move-below 1 {place}"]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("targets", ["--targets alignment", "--by authenticity"])
def test_choice_by_what_is_not_predicted_is_wrong_usage(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, flag: str, targets: str
) -> None:
    place = out.parent / "place"
    words = ["score", folder, "--model", trained_run, "-o", out, *targets.split()]
    told = refused(capsys, 2, *words, *flag.format(place=place).split())
    assert told.startswith(f"expected targets that {trained_run.name} predicts (")
    assert {*out.parent.iterdir()} == {folder}


def test_target_that_is_not_predicted_may_go_unused(
    folder: Path, trained_run: Path, out: Path
) -> None:
    words = [folder, "--model", trained_run, "-o", out, "--targets", "alignment"]
    assert score(*words, "--sort", "--by", "alignment") == 3
    assert score(*words) == 3


@pytest.mark.parametrize("place", ["in", "in/deep/er", "link/best", "in/../in/best"])
@pytest.mark.parametrize("flag", ["--copy-top", "--move-below"])
def test_place_within_what_is_scored_is_wrong_usage(
    capsys: Capture, folder: Path, trained_run: Path, out: Path, flag: str, place: str
) -> None:
    (folder.parent / "link").symlink_to(folder)
    before = contents(folder)
    words = ["score", folder, "--model", trained_run, "-o", out, flag, 1, folder.parent / place]
    assert refused(capsys, 2, *words) == (
        f"expected a folder outside of {folder} for {flag}, got {folder.parent / place}: it "
        "would be scored the next time"
    )
    assert contents(folder) == before


@pytest.mark.parametrize("spelled", ["list.csv", "in/../list.csv"])
@pytest.mark.parametrize("prompts", [False, True])
def test_scores_do_not_take_the_place_of_what_is_read(
    capsys: Capture, folder: Path, trained_run: Path, tmp_path: Path, spelled: str, prompts: bool
) -> None:
    table = tmp_path / "list.csv"
    table.write_text("image,prompt\nin/00.png,a fox\n")
    named = [folder, "--prompts", table] if prompts else [table]
    words = ["score", *named, "--model", trained_run, "-o", tmp_path / spelled]
    told = refused(capsys, 2, *words)
    assert told == f"expected a new file at -o, got {table}, which is to be read"
    assert table.read_text() == "image,prompt\nin/00.png,a fox\n"


@pytest.mark.parametrize("flag", ["--copy-top", "--move-below"])
def test_place_that_can_be_no_folder_is_told_and_the_scores_are_there(
    folder: Path, trained_run: Path, out: Path, capsys: Capture, flag: str
) -> None:
    place = out.parent / "file" / "x"
    place.parent.write_text("mine")
    assert score(folder, "--model", trained_run, "-o", out, flag, 1, place) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected a folder at {place}, got: Not a directory; all scores are in {out}"
    )
    assert len(rows_of(out)) == 8
