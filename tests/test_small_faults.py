"""Faults that were found by use, each with the value it should have had."""

import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl.cli.main import main
from dcmpl.data.sources import MAX_SIDECAR_BYTES, find_sources
from dcmpl.data.splits import Split
from dcmpl.data.table import MosScale
from dcmpl.errors import UsageError
from dcmpl.evaluation.compare import our_rows, paired_rows
from dcmpl.files import as_json
from dcmpl.runs import SPLIT
from dcmpl.scoring.files import read_manifest, read_scores
from dcmpl.scoring.results import Score, Scores
from dcmpl.scoring.scorer import Scorer


def test_two_runs_are_compared_where_one_has_a_target_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(20)], "group": "g"})
    for name in ("opinion_quality", "quality", "opinion_realism", "realism"):
        frame[name] = rng.random(20)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    frame.to_csv(tmp_path / "a" / "predictions.csv", index=False)
    fewer = frame.drop(columns=["opinion_realism", "realism"])
    fewer.to_csv(tmp_path / "b" / "predictions.csv", index=False)
    assert paired_rows([tmp_path / "a", tmp_path / "b"])["task"].tolist() == ["quality"]


@pytest.mark.parametrize("part", ["val", "train", "all"])
def test_results_of_a_part_can_be_compared_and_stand_beside_nothing_published(
    trained_run: Path, tmp_path: Path, part: str
) -> None:
    out = tmp_path / part
    assert main(["evaluate", str(trained_run), "--split", part, "--out", str(out)]) == 0
    kinds = our_rows(out)["protocol"].unique().tolist()
    assert kinds == [f"{part} part of its own data, clean"]


def test_sidecar_that_is_too_long_is_no_prompt_and_the_row_says_so(tmp_path: Path) -> None:
    for name, size in (("long", MAX_SIDECAR_BYTES + 1), ("fits", MAX_SIDECAR_BYTES)):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x" * size)
    with tarfile.open(tmp_path / "both.tar", "w") as archive:
        for file in sorted(tmp_path.glob("*.[pt][nx][gt]")):
            archive.add(file, file.name)
    for path in (str(tmp_path), str(tmp_path / "both.tar")):
        entries = {Path(e.name).stem: e for e in find_sources([path], sidecar=True)}
        assert len(entries["fits"].prompt) == MAX_SIDECAR_BYTES
        assert entries["fits"].note == ""
        assert entries["long"].prompt == ""
        assert "long.txt has more than 65536 bytes" in entries["long"].note


def test_note_of_a_long_sidecar_reaches_the_row(tmp_path: Path, trained_run: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x" * 100_000)
    out = tmp_path / "s.csv"
    words = ["score", str(tmp_path / "a.png"), "--prompt-from", "sidecar", "-o", str(out)]
    assert main([*words, "--model", str(trained_run)]) == 0
    (row,) = read_scores(out)
    assert "a.txt has more than" in row["note"]


@pytest.mark.parametrize("workers", [0, -3])
def test_scorer_refuses_fewer_than_one_worker(trained_run: Path, workers: int) -> None:
    with pytest.raises(UsageError, match="at least one worker"):
        Scorer.from_pretrained(trained_run, workers=workers)


def test_equal_scales_are_written_alike() -> None:
    assert repr(MosScale(1, 5)) == repr(MosScale(1.0, 5.0))


def test_slice_of_scores_is_scores() -> None:
    scores = Scores(Score(f"{i}.png", "", quality=i / 4) for i in range(4))
    assert isinstance(scores[:2], Scores)
    assert scores[:2].to_dataframe()["quality"].tolist() == [0.0, 0.25]
    assert scores[-1].quality == 0.75


def test_array_of_images_is_scored_as_the_list_of_them(trained_run: Path) -> None:
    scorer = Scorer.from_pretrained(trained_run, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 44, 3), dtype=np.uint8)
    assert [s.quality for s in scorer.score(pixels)] == [
        s.quality for s in scorer.score(list(pixels))
    ]


def test_job_is_what_decides_the_rows_and_not_where_it_ran(
    trained_run: Path, tmp_path: Path, image_data: Path
) -> None:
    out = tmp_path / "s.csv"
    image = str(image_data.parent / "00.png")
    assert main(["score", image, "--model", str(trained_run), "-o", str(out)]) == 0
    assert {"python", "model"}.isdisjoint(read_manifest(out))


def test_shards_of_a_run_that_was_renamed_fit_together(
    trained_run: Path, tmp_path: Path, image_data: Path
) -> None:
    shards = []
    for number, name in ((1, "here"), (2, "there")):
        os.symlink(trained_run, tmp_path / name)
        shards.append(str(tmp_path / f"{name}.csv"))
        words = ["score", str(image_data.parent), "--model", str(tmp_path / name)]
        assert main([*words, "--shard", f"{number}/2", "-o", shards[-1]]) == 0
    assert main(["merge", *shards, "-o", str(tmp_path / "whole.csv")]) == 0


def test_kind_of_a_path_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcmpl.data import sources

    for i in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    asked: list[str] = []
    kind = sources._kind
    monkeypatch.setattr(sources, "_kind", lambda path: asked.append(path) or kind(path))
    assert len(find_sources([str(tmp_path)])) == 5
    assert asked == [str(tmp_path)]


def test_a_split_has_one_layout_wherever_it_is_written(trained_run: Path) -> None:
    file = trained_run / SPLIT
    assert file.read_bytes() == as_json(Split.read(file).to_json())


def test_bytes_of_an_image_are_those_of_its_file(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (entry,) = find_sources([str(tmp_path / "a.png")])
    assert entry.file_content() == buffer.getvalue()
