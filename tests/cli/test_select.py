"""``dcmpl select``: the best of a file of scores, printed, written, copied, moved, in bins."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.cli.select import move
from dcmpl.scoring.files import columns_of, read_manifest, read_scores, write_scores

pytest_plugins = ("calibrated",)

QUALITY = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.5, "e": None}
LABELS = {"a": "poor", "b": "excellent", "c": "fair", "d": "fair", "e": None}


def row(image: Path, quality: float | None, label: str | None) -> dict[str, object]:
    return {
        "image": str(image),
        "prompt": "",
        "quality": quality,
        "alignment": None if quality is None else 1 - quality,
        "authenticity": None,
        "quality_label": label,
        "status": "ok" if quality is not None else "error",
        "reason": "" if quality is not None else "broken",
        "note": "",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images; the last could not be scored."""
    place = tmp_path / "in"
    place.mkdir()
    for i, name in enumerate(QUALITY):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(place / f"{name}.png")
    return place


@pytest.fixture(params=[".csv", ".jsonl", ".parquet"])
def scores(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    out = tmp_path / f"scores{request.param}"
    rows = [row(folder / f"{n}.png", QUALITY[n], LABELS[n]) for n in QUALITY]
    write_scores(out, rows, {"columns": list(columns_of(["quality_label"]))}, {})
    return out


@pytest.fixture
def one(folder: Path, tmp_path: Path) -> Path:
    """The same in CSV alone."""
    out = tmp_path / "one.csv"
    rows = [row(folder / f"{n}.png", QUALITY[n], LABELS[n]) for n in QUALITY]
    write_scores(out, rows, {"columns": list(columns_of(["quality_label"]))}, {})
    return out


def written(out: Path, rows: list[dict[str, object]]) -> None:
    """A file of scores without labels."""
    plain = [{k: v for k, v in r.items() if k != "quality_label"} for r in rows]
    write_scores(out, plain, {}, {})


def select(*words: object) -> int:
    return main(["select", *(str(word) for word in words)])


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_best_come_first_equal_ones_as_they_stand_and_errors_not(
    scores: Path, capsys: Capture
) -> None:
    assert select(scores) == 0
    told = capsys.readouterr()
    assert [Path(line).stem for line in told.out.splitlines()] == ["b", "c", "d", "a"]
    assert "1 of 5 rows have no quality" in told.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--top", 1], ["b"]),
        (["--top", 99], ["b", "c", "d", "a"]),
        (["--above", 0.5], ["b", "c", "d"]),
        (["--below", 0.5], ["a"]),
        (["--above", 0.3, "--below", 0.6, "--top", 1], ["c"]),
        (["--by", "alignment", "--top", 1], ["a"]),
        (["--above", 2], []),
    ],
)
def test_rows_are_chosen_by_number_and_value(
    one: Path, capsys: Capture, words: list[object], wanted: list[str]
) -> None:
    assert select(one, *words) == 0
    assert [Path(line).stem for line in capsys.readouterr().out.split()] == wanted


def test_chosen_rows_are_written_best_first_with_a_manifest(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / f"best{scores.suffix}"
    assert select(scores, "--top", 2, "-o", out) == 0
    rows = list(read_scores(out))
    assert [Path(r["image"]).stem for r in rows] == ["b", "c"]
    assert rows[0]["quality_label"] == "excellent"
    assert read_manifest(out)["count"] == 2


def test_best_are_copied_and_stay_and_copying_again_changes_nothing(
    one: Path, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "best"
    for _ in range(2):
        assert select(one, "--top", 2, "--copy", place) == 0
        assert names(place) == ["b.png", "c.png"]
    assert (place / "b.png").read_bytes() == (folder / "b.png").read_bytes()
    assert len(names(folder)) == 5


def test_copy_does_not_write_over_another_file_of_that_name(one: Path, tmp_path: Path) -> None:
    place = tmp_path / "best"
    place.mkdir()
    (place / "b.png").write_text("mine")
    assert select(one, "--top", 1, "--copy", place) == 0
    assert names(place) == ["b-2.png", "b.png"]
    assert (place / "b.png").read_text() == "mine"


def test_members_of_an_archive_are_copied_out_of_it_and_not_moved(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    archive = tmp_path / "in.tar"
    with tarfile.open(archive, "w") as file:
        file.add(folder / "b.png", "sub/b.png")
    out = tmp_path / "s.csv"
    written(out, [row(archive / "sub/b.png", 0.5, None)])
    assert select(out, "--copy", tmp_path / "best") == 0
    assert (tmp_path / "best" / "b.png").read_bytes() == (folder / "b.png").read_bytes()
    assert select(out, "--move", tmp_path / "moved") == 3
    assert "expected a file to move" in capsys.readouterr().err


def test_worst_are_moved_and_those_that_are_gone_are_passed_over(
    one: Path, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "worst"
    for _ in range(2):
        assert select(one, "--below", 0.6, "--move", place) == 0
        assert names(place) == ["a.png", "c.png", "d.png"]
    assert names(folder) == ["b.png", "e.png"]


def test_move_does_not_write_over_another_file_of_that_name(one: Path, tmp_path: Path) -> None:
    place = tmp_path / "worst"
    place.mkdir()
    (place / "a.png").write_text("mine")
    assert select(one, "--below", 0.3, "--move", place) == 0
    assert names(place) == ["a-2.png", "a.png"]


def test_image_that_stands_in_two_rows_is_moved_once(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    written(out, [row(folder / "a.png", 0.1, None), row(folder / "a.png", 0.1, None)])
    assert select(out, "--move", tmp_path / "x") == 0
    assert names(tmp_path / "x") == ["a.png"]


def test_image_that_cannot_be_moved_is_told_and_the_others_are_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def refuse(source: str, place: Path) -> None:
        if source.endswith("a.png"):
            raise PermissionError(1, "not permitted")
        rename(source, place)

    monkeypatch.setattr(os, "rename", refuse)
    images = [str(folder / f"{name}.png") for name in "ab"]
    moved, faults = move(images, tmp_path / "x")
    assert (moved, names(tmp_path / "x")) == (1, ["b.png"])
    assert faults == [f"expected to move {images[0]}, got: not permitted"]


@pytest.mark.parametrize("flag", ["--copy", "--move"])
def test_each_label_has_a_folder(one: Path, tmp_path: Path, flag: str) -> None:
    place = tmp_path / "bins"
    assert select(one, "--bins", flag, place) == 0
    assert {p.name: names(p) for p in place.iterdir()} == {
        "excellent": ["b.png"],
        "fair": ["c.png", "d.png"],
        "poor": ["a.png"],
    }


def test_bins_of_a_calibrated_run_are_its_labels(
    calibrated_run: Path, judged_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    images = [str(judged_data.parent / f"{i:03}.png") for i in range(8)]
    assert main(["score", *images, "--model", str(calibrated_run), "-o", str(out)]) == 0
    assert select(out, "--by", "quality_mos", "--bins", "--copy", tmp_path / "bins") == 0
    wanted = {(r["quality_label"], Path(r["image"]).name) for r in read_scores(out)}
    found = {(p.parent.name, p.name) for p in (tmp_path / "bins").glob("*/*")}
    assert found == wanted


def test_bins_without_labels_are_refused(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "s.csv"
    written(out, [row(folder / "a.png", 0.1, None)])
    told = refused(capsys, 2, "select", out, "--bins", "--copy", tmp_path / "x")
    assert told.startswith("expected rows with a label for quality with --bins")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--by", "qualty"], "did you mean quality?"),
        (["--by", "authenticity"], "got authenticity"),
        (["--by", "image"], "got image"),
        (["--top", "0"], "expected --top of at least 1, got 0"),
        (["--copy", "x", "--move", "y"], "expected --copy or --move, got both: leave one out"),
        (["--bins"], "expected --copy DIR or --move DIR with --bins, got neither"),
        (["-o", "x.txt"], "expected -o to be a file that ends in .csv, .jsonl, .parquet"),
        (["--below", "low"], "expected a finite number for --below, got low"),
    ],
)
def test_choice_that_makes_no_sense_is_wrong_usage(
    one: Path, capsys: Capture, words: list[str], told: str
) -> None:
    assert told in refused(capsys, 2, "select", one, *words)


def test_places_that_cannot_be_are_wrong_usage(one: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "got a file at" in refused(capsys, 2, "select", one, "--copy", tmp_path / "file")
    assert "which is to be read" in refused(capsys, 2, "select", one, "-o", one)
    assert "expected a file of scores" in refused(capsys, 2, "select", tmp_path / "no.csv")


@pytest.mark.parametrize("text", ["", "image\na.png\n", json.dumps({"a": 1})])
def test_file_of_other_content_is_refused(capsys: Capture, tmp_path: Path, text: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    told = refused(capsys, 1, "select", tmp_path / "s.csv")
    assert told.startswith(
        f"expected scores that dcmpl wrote at {tmp_path / 's.csv'}, got: no column"
    )


@pytest.mark.parametrize("label", ["../outside", "/tmp/outside", "good/..", "Good", "."])
def test_label_that_is_none_of_the_five_names_no_folder(
    folder: Path, tmp_path: Path, capsys: Capture, label: str
) -> None:
    """A file of scores may come from anybody, and its labels become folders."""
    file, place = tmp_path / "made.jsonl", tmp_path / "bins"
    file.write_text(json.dumps(row(folder / "a.png", 0.5, label)) + "\n")
    told = refused(capsys, 2, "select", file, "--bins", "--move", place)
    assert told.startswith("expected rows with a label for quality with --bins")
    assert names(folder) == [f"{name}.png" for name in sorted(QUALITY)]
    assert not place.exists()


def test_file_that_is_read_is_not_written_over_by_any_path(
    one: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = one.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.csv").symlink_to(one)
    for out in (one, tmp_path / "sub" / ".." / one.name, tmp_path / "link.csv"):
        told = refused(capsys, 2, "select", one, "--top", 1, "-o", out)
        assert told == f"expected a new file at -o, got {out}, which is to be read"
    assert one.read_bytes() == before


def test_scores_that_are_no_finite_numbers_are_counted_as_missing(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "edited.csv"
    rows = [row(folder / f"{name}.png", value, None) for name, value in QUALITY.items()]
    written(file, rows)
    file.write_text(file.read_text().replace(",0.2,", ",nan,").replace(",0.5,", ",inf,", 1))
    assert select(file, "--top", 2) == 0
    printed, told = capsys.readouterr()
    assert [Path(line).stem for line in printed.splitlines()] == ["b", "d"]
    assert "3 of 5 rows have no quality" in told


def test_nothing_chosen_is_nothing_printed(one: Path, capsys: Capture) -> None:
    assert select(one, "--above", 0.99) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["--copy", "--move"])
def test_empty_folder_name_is_wrong_usage(one: Path, capsys: Capture, flag: str) -> None:
    told = refused(capsys, 2, "select", one, flag, "")
    assert told == "expected a folder for the images, got an empty path"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("quality", "0.5"),
        ("quality", [1]),
        ("quality", True),
        ("image", None),
        ("image", 7),
        ("status", "weird"),
        ("note", {}),
    ],
)
def test_cell_of_another_kind_is_named_with_its_column_and_row(
    folder: Path, tmp_path: Path, capsys: Capture, column: str, value: object
) -> None:
    good = row(folder / "a.png", 0.5, "fair")
    file = tmp_path / "made.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (good, {**good, column: value})))
    told = refused(capsys, 1, "select", file)
    assert told.startswith(f"expected scores that dcmpl wrote at {file}, got: ")
    assert column in told
    assert told.endswith("row 2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\x01binary",
        "image,prompt,quality\n",
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_file_that_is_no_scores_is_one_sentence(
    tmp_path: Path, capsys: Capture, text: str, suffix: str
) -> None:
    file = tmp_path / f"made{suffix}"
    file.write_text(text)
    if not text and suffix == ".jsonl":  # no row, as of no image
        assert select(file) == 0
        assert capsys.readouterr().out == ""
        return
    told = refused(capsys, 1, "select", file)
    assert told.startswith(f"expected scores that dcmpl wrote at {file}, got: ")


def test_table_with_a_byte_order_mark_or_a_row_too_long(
    one: Path, tmp_path: Path, capsys: Capture
) -> None:
    marked, long = tmp_path / "marked.csv", tmp_path / "long.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + one.read_bytes())
    assert [*read_scores(marked)] == [*read_scores(one)]
    long.write_text(one.read_text().rstrip() + ",one,more\n")
    assert "more cells than there are columns" in refused(capsys, 1, "select", long)
