"""Files of scores and their manifests: whole, alike in every format, joined from shards."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.config import TARGETS
from dcmpl.scoring.files import COLUMNS, Row, manifest_of, read_manifest, read_scores, write_scores
from dcmpl.scoring.journal import Journal

SUFFIXES = [".csv", ".jsonl", ".parquet"]
COUNT = 200  # three whole chunks and a part of one


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture(scope="module")
def many(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of images with prompts; the tenth is missing, the last is no image."""
    folder = tmp_path_factory.mktemp("many")
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt"])
        for i in range(COUNT):
            name = image_data.parent / f"{i % 48:02}.png"
            writer.writerow([folder / "gone.png" if i == 9 else name, f'"{i}", a\nfox, \xe9'])
        writer.writerow([image_data, "no image"])
    return folder / "list.csv"


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(many: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The scores of ``many`` in one go, by suffix."""
    folder = tmp_path_factory.mktemp("whole")

    def scored(suffix: str) -> Path:
        file = folder / f"whole{suffix}"
        if not file.exists():
            assert score(many, "--model", trained_run, "-o", file) == 3
        return file

    return scored


def test_csv_has_a_line_for_each_image_under_these_columns(whole: Whole) -> None:
    rows = rows_of(whole(".csv"))
    assert tuple(rows[0]) == COLUMNS
    assert (*("image", "prompt"), *TARGETS, *("status", "reason", "note")) == COLUMNS
    assert len(rows) == COUNT + 1
    assert rows[3]["prompt"] == '"3", a\nfox, \xe9'
    assert [i for i, row in enumerate(rows) if row["status"] == "error"] == [9, COUNT]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_format_holds_the_same_rows(whole: Whole, suffix: str) -> None:
    file = whole(suffix)
    if suffix == ".jsonl":
        found = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        frame = pd.read_parquet(file).astype(object)
        found = frame.where(frame.notna(), None).to_dict("records")
    numbers = dict.fromkeys(TARGETS, float)
    expected = [
        {k: v if k not in numbers else float(v) if v else None for k, v in row.items()}
        for row in rows_of(whole(".csv"))
    ]
    assert found == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_scores_read_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    rows: list[Row] = [
        dict.fromkeys(COLUMNS, "") | {"quality": 0.1 + 0.2, "alignment": None, "status": "ok"},
        dict.fromkeys(COLUMNS, "")
        | dict.fromkeys(TARGETS)
        | {"status": "error", "reason": "\r\n" * 10**5},
    ]
    rows = [{**row, "authenticity": None, "image": 'a"\r\n,\t\x01'} for row in rows]
    assert write_scores(tmp_path / f"x{suffix}", iter(rows), {}, {}) == {"ok": 1, "error": 1}
    assert list(read_scores(tmp_path / f"x{suffix}")) == rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_manifest_holds_the_sha_256_of_the_scores(whole: Whole, suffix: str) -> None:
    file = whole(suffix)
    record = json.loads(Path(f"{file}.manifest.json").read_text())
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["rows"] == {"ok": COUNT - 1, "error": 2}


def test_manifest_names_all_that_decided_the_scores(whole: Whole, trained_run: Path) -> None:
    job = json.loads(Path(f"{whole('.csv')}.manifest.json").read_text())["job"]
    weights = (trained_run / "model.safetensors").read_bytes()
    assert job["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    run = json.loads((trained_run / "run.json").read_text())
    assert job["backbone_sha256"] == run["backbone_sha256"]
    assert (job["engine"], job["precision"], job["views"]) == ("torch", "fp32", "center")
    assert (job["targets"], job["images"]) == (["quality", "alignment"], COUNT + 1)
    assert {name: job[name] for name in ("torch", "numpy", "pillow")} == {
        name: version(name) for name in ("torch", "numpy", "pillow")
    }


def test_manifest_names_precision_and_views_that_were_asked_for(
    image_data: Path, trained_run: Path, out: Path
) -> None:
    words = [image_data.parent / "00.png", "--model", trained_run, "-o", out]
    assert score(*words, "--precision", "bf16", "--views", "grid-2", "--targets", "quality") == 0
    job = read_manifest(out)
    found = job["precision"], job["views"], job["targets"]
    assert found == ("bf16", "grid-2", ["quality"])
    assert rows_of(out)[0]["alignment"] == ""


def test_nothing_is_left_beside_the_scores_and_their_manifest(
    image_data: Path, trained_run: Path, out: Path
) -> None:
    assert score(image_data.parent, "--model", trained_run, "-o", out) == 0
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.manifest.json"}


def test_standard_output_gets_nothing_but_rows(
    capsys: Capture, many: Path, trained_run: Path, whole: Whole
) -> None:
    expected = whole(".jsonl").read_text()
    capsys.readouterr()
    assert score(many, "--model", trained_run, "-o", "-") == 3
    told = capsys.readouterr()
    assert told.out == expected
    lines = told.err.splitlines()
    assert json.loads(lines[-1])["manifest"] == read_manifest(whole(".jsonl"))
    assert not Path("-").exists()


@pytest.mark.parametrize("flag", ["resume", "rank"])
def test_flags_that_need_a_file_are_wrong_usage_with_standard_output(
    capsys: Capture, many: Path, trained_run: Path, flag: str
) -> None:
    words = ["score", many, "--model", trained_run, "-o", "-", *f"--{flag}".split()]
    assert refused(capsys, 2, *words).startswith(
        "expected a file at -o with --resume, --rank and --new, "
    )


def test_folder_in_place_of_the_scores_is_wrong_usage(
    capsys: Capture, many: Path, trained_run: Path, out: Path
) -> None:
    out.mkdir()
    assert refused(capsys, 2, "score", many, "--model", trained_run, "-o", out) == (
        f"expected a file at -o {out}, got a folder"
    )
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("place", ["{data}/x.csv", "/sys/deep/er/x.csv"])
def test_place_that_cannot_be_written_fails_before_anything_is_scored(
    capsys: Capture, image_data: Path, trained_run: Path, place: str
) -> None:
    out = place.format(data=image_data)
    words = ["score", image_data.parent / "00.png", "--model", trained_run, "-o", out]
    assert refused(capsys, 1, *words).startswith(f"expected to write {out}, got: ")


def test_folder_made_at_the_place_of_the_scores_meanwhile_costs_no_rows(
    capsys: Capture, image_data: Path, trained_run: Path, out: Path, monkeypatch: Any
) -> None:
    write = Journal.write

    def meanwhile(self: Journal, row: Row) -> None:
        out.mkdir(exist_ok=True)
        write(self, row)

    words = ["score", image_data.parent, "--model", trained_run, "-o", out]
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", meanwhile)
        assert score(*words[1:]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to write {out}, got: {out} is a folder: "
        f"the rows scored so far are in {out}.part, --resume goes on with them"
    )
    out.rmdir()
    assert main([*map(str, words), "--resume"]) == 0
    assert len(rows_of(out)) == 48


def test_scores_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    row: Row = dict.fromkeys(COLUMNS, "") | dict.fromkeys(TARGETS) | {"status": "ok"}

    def broken() -> Iterator[Row]:
        yield row
        raise OSError(28, "No space left on device")

    out = tmp_path / "x.csv"
    write_scores(out, [row], {"a": 1}, {})
    before = out.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_scores(out, broken(), {"a": 2}, {})
    assert out.read_bytes() == before
    assert read_manifest(out) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 2


Shards = Callable[[str, int], list[Path]]


@pytest.fixture(scope="module")
def shards(many: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """All shards of ``many``, by suffix and number."""
    folder = tmp_path_factory.mktemp("shards")

    def scored(suffix: str, total: int) -> list[Path]:
        files = [folder / f"{i}-of-{total}{suffix}" for i in range(1, total + 1)]
        for i, file in enumerate(files, 1):
            if not file.exists():
                words = many, "--model", trained_run, "-o", file, "--shard", f"{i}/{total}"
                assert score(*words) in (0, 3)
        return files

    return scored


def merge(*words: object) -> int:
    return main(["merge", *(str(word) for word in words)])


CASES = [(".csv", 1), (".csv", 2), (".csv", 3), (".csv", 6), (".jsonl", 3), (".parquet", 3)]


@pytest.mark.parametrize(("suffix", "total"), CASES)
def test_merged_shards_are_the_bytes_of_the_whole_job(
    capsys: Capture, whole: Whole, shards: Shards, tmp_path: Path, suffix: str, total: int
) -> None:
    out = tmp_path / f"merged{suffix}"
    paths = shards(suffix, total)
    capsys.readouterr()
    assert merge(*reversed(paths), "-o", out) == 3
    assert out.read_bytes() == whole(suffix).read_bytes()
    assert manifest_of(out).read_bytes() == manifest_of(whole(suffix)).read_bytes()
    assert capsys.readouterr().out == (
        f"{COUNT + 1} rows of {total} shards: {out} and its manifest\n"
    )


def test_shards_beyond_the_chunks_are_empty_and_none_is_lost(shards: Shards) -> None:
    counts = [len(rows_of(path)) for path in shards(".csv", 6)]
    assert sum(counts) == COUNT + 1
    assert counts.count(0) == 2  # four chunks in six shards


def _without_one(paths: list[Path]) -> list[Path]:
    return paths[:-1]


def _one_twice(paths: list[Path]) -> list[Path]:
    return [*paths, paths[0]]


def _one_in_place_of_another(paths: list[Path]) -> list[Path]:
    return [paths[0], *paths[:-1]]


def _with_a_byte_changed(paths: list[Path]) -> list[Path]:
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 2] ^= 1
    paths[1].write_bytes(bytes(content))
    return paths


def _with_the_manifest_changed(paths: list[Path]) -> list[Path]:
    manifest = Path(f"{paths[1]}.manifest.json")
    manifest.write_text(manifest.read_text().replace('"center"', '"centre"'))
    return paths


def _without_a_manifest(paths: list[Path]) -> list[Path]:
    Path(f"{paths[1]}.manifest.json").unlink()
    return paths


REFUSALS: dict[str, tuple[Callable[[list[Path]], list[Path]], str]] = {
    "missing": (_without_one, "got 1/3, 2/3"),
    "doubled": (_one_twice, "got 1/3, 2/3, 3/3, 1/3"),
    "in place of another": (_one_in_place_of_another, "got 1/3, 1/3, 2/3"),
    "a byte changed": (_with_a_byte_changed, "got one that was changed since"),
    "manifest changed": (
        _with_the_manifest_changed,
        "one that its digest says was changed since",
    ),
    "no manifest": (_without_a_manifest, "No such file or directory"),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_shards_that_are_not_all_as_written_are_refused(
    capsys: Capture, shards: Shards, tmp_path: Path, suffix: str, kind: str
) -> None:
    copies = []
    for path in shards(suffix, 3):
        shutil.copy(f"{path}.manifest.json", tmp_path)
        copies.append(Path(shutil.copy(path, tmp_path)))
    capsys.readouterr()
    change, told = REFUSALS[kind]
    out = tmp_path / f"merged{suffix}"
    assert told in refused(capsys, 1, "merge", *change(copies), "-o", out)
    assert not out.exists()


@pytest.mark.parametrize("flags", ["--views resize", "--prompt x", "--targets quality"])
def test_shards_of_another_job_are_refused(
    capsys: Capture, image_data: Path, trained_run: Path, tmp_path: Path, flags: str
) -> None:
    files = [tmp_path / "1.csv", tmp_path / "2.csv"]
    words = [image_data.parent, "--model", trained_run]
    score(*words, "-o", files[0], "--shard", "1/2")
    score(*words, "-o", files[1], "--shard", "2/2", *flags.split())
    capsys.readouterr()
    told = refused(capsys, 1, "merge", *files, "-o", tmp_path / "merged.csv")
    assert told.startswith(
        f"expected shards of one job, got {files[1]} and {files[0]}, which differ in "
    )


@pytest.mark.parametrize("flag", ["--rank", "--by=quality"])
def test_scores_of_a_whole_job_are_no_shards(
    capsys: Capture, image_data: Path, trained_run: Path, out: Path, tmp_path: Path, flag: str
) -> None:
    score(image_data.parent, "--model", trained_run, "-o", out, flag)
    capsys.readouterr()
    refused(capsys, 1, "merge", out, "-o", tmp_path / "merged.csv")
    assert not (tmp_path / "merged.csv").exists()


def test_shard_is_not_written_over_by_any_path(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "sub").mkdir()
    shard, same = tmp_path / "1.csv", tmp_path / "sub" / ".." / "1.csv"
    shard.write_text("rows")
    told = refused(capsys, 2, "merge", shard, "-o", same)
    assert told == f"expected a new file at -o, got {same}, which is to be read"
    assert shard.read_text() == "rows"
