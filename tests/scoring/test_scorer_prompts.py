"""A run whose alignment reads the prompt: trained, resumed, scored, measured and exported."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import Capture, evaluate_bare, refused
from dcmpl.cli.main import main
from dcmpl.config import TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import UsageError
from dcmpl.evaluation.results import prompts_matter
from dcmpl.images.decode import read_image
from dcmpl.metrics import srcc
from dcmpl.model.prompt_reader import Reader
from dcmpl.model.tokenizer import Parts
from dcmpl.runs import read_run
from dcmpl.scoring.files import Row
from dcmpl.scoring.job import Journal
from dcmpl.scoring.scorer import Scorer, ScoringOptions, of_prompt
from dcmpl.scoring.torch_engine import TorchEngine, load_model, predict_table
from dcmpl.training.batches import EpochWindows, epoch_loader
from dcmpl.training.calibrate import judged
from dcmpl.training.features import (
    FrozenEngine,
    PromptsOf,
    freeze_table,
    shuffled_prompts,
)
from dcmpl.training.loop import EpochReport

TOLERANCE = 1e-6
"""Other batches add up in another order: a few float32 roundings of a value below 1."""

ROOM = 30
"""Tokens of a prompt that fit the small backbone beside start, end and 8 slots."""

Words = list[str]


@pytest.fixture(scope="module")
def prompted_words(train_words: Words) -> Words:
    """Of a quick training of the preset, all but ``--out``; the rate has it learn to read."""
    words = [*train_words, "--preset", "dcmpl-prompted", "--epochs", "2"]
    return [*words, "--lr", "0.03"]


@pytest.fixture(scope="module")
def prompted_run(tmp_path_factory: pytest.TempPathFactory, prompted_words: Words) -> Path:
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "prompted"
    assert main([*prompted_words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def scorer(prompted_run: Path) -> Scorer:
    return Scorer.from_pretrained(prompted_run, device="cpu", workers=1)


@pytest.fixture(scope="module")
def paths(image_data: Path) -> list[Path]:
    return [image_data.parent / f"{i:02}.png" for i in range(6)]


PROMPTS = {
    "none": "",
    "blank": " \t\n ",
    "another script": "рыжая лиса",
    "emoji": "a red circle 🦊",
    "newlines": "a red circle\n\non a blue square,\r\nlarge",
    "ten thousand words": "blue " * 9_999 + "circle",
}


@pytest.fixture(scope="module")
def listed(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of one image with each of the prompts."""
    return written_list(tmp_path_factory.mktemp("list") / "list.csv", paths[:1], PROMPTS.values())


def written_list(file: Path, paths: Sequence[Path], prompts: Any) -> Path:
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image", "prompt"])
        for place, prompt in enumerate(prompts):
            writer.writerow([paths[place % len(paths)], prompt])
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words), "--workers", "1"])


# Training


def test_run_records_that_alignment_reads_the_prompt(prompted_run: Path) -> None:
    run = read_run(prompted_run)
    assert run.model.reads_prompt
    assert run.learned == ("quality", "alignment")
    assert (run.train.epochs, len(run.history)) == (2, 2)
    tensors = load_file(prompted_run / "model.safetensors")
    assert tensors["reader.share"].any()  # no reader begins so


def test_training_that_was_broken_off_ends_with_the_same_tensors(
    prompted_run: Path, prompted_words: Words, tmp_path: Path
) -> None:
    words, folder = [*prompted_words, "--out", str(tmp_path / "run")], tmp_path / "run"

    def break_off(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcmpl.cli.train.epoch_printer", lambda: break_off)
        assert main(words) == 130
    assert len(read_run(folder).history) == 1
    assert main([*words, "--resume"]) == 0
    for name in ("model.safetensors", "last.safetensors"):
        assert (folder / name).read_bytes() == (prompted_run / name).read_bytes()
    assert read_run(folder).history == read_run(prompted_run).history


def test_training_with_another_weight_of_telling_apart_is_not_resumed(
    capsys: Capture, prompted_run: Path, prompted_words: Words
) -> None:
    words = [
        *prompted_words,
        "--out",
        prompted_run,
        "--resume",
        "--set",
        "train.mismatch_weight=0.5",
    ]
    assert refused(capsys, 1, *words).startswith(
        f"expected to resume {prompted_run} with the train"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "model.readout=linear"], "expected only fields that this model reads, got"),
        (["--targets", "quality", "authenticity"], "expected only fields that this model reads"),
        (
            ["--set", "train.mismatch_weight=-1"],
            "expected a positive lr, an alignment_weight and a mismatch",
        ),
        (["--set", "train.mismatch_weight=much"], "expected a number for train.mismatch_weight"),
    ],
)
def test_words_that_do_not_go_with_reading_are_wrong_usage(
    capsys: Capture, prompted_words: Words, tmp_path: Path, words: Words, told: str
) -> None:
    found = refused(capsys, 2, *prompted_words, "--out", tmp_path / "run", *words)
    assert found.startswith(told)
    assert not (tmp_path / "run").exists()


def test_alignment_may_be_the_main_task_of_a_run_that_reads(
    capsys: Capture, prompted_words: Words, paths: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [*prompted_words, "--epochs", "1", "--targets", "alignment", "quality"]
    words += ["--set", "model.text_depth=0", "--set", "train.missing_alignment=quality"]
    assert main([*words, "--out", str(folder)]) == 0
    capsys.readouterr()
    scorer = Scorer.from_pretrained(folder, device="cpu", workers=1)
    one, other = (scorer.score(paths, prompt) for prompt in ("a red circle", "blue"))
    assert read_run(folder).learned == ("alignment", "quality")
    assert [row.quality for row in one] == [row.quality for row in other]
    assert all(a.alignment != b.alignment for a, b in zip(one, other, strict=True))


def test_validation_reads_the_own_prompt_of_each_image(
    prompted_run: Path, scorer: Scorer, image_data: Path
) -> None:
    _, model = load_model(prompted_run, device="cpu")
    table = load_table(image_data, MosScale(1, 5))
    rows = scorer.score(list(table.frame["image"]), list(table.frame["prompt"]))
    wanted = [value for row in rows for value in (row.quality, row.alignment)]
    frozen, tasks = freeze_table(model, table, "center", "fp32"), model.config.tasks
    for found in (
        predict_table(TorchEngine(model, tasks), table, "center", "reading")[0],
        predict_table(FrozenEngine(model, tasks, frozen), table, "center", "reading")[0],
    ):
        assert found.ravel().tolist() == pytest.approx(wanted, abs=1e-5)
    texts = [row.alignment for row in scorer.score(list(table.frame["image"]), "prompt 0")]
    differ = np.abs(np.array(texts, dtype=np.float64) - found[:, 1])
    assert (differ[np.arange(48) % 12 != 0] > 2e-5).mean() > 0.9


def test_each_window_that_is_trained_on_comes_with_the_prompt_of_its_image(
    image_data: Path,
) -> None:
    table, config = load_table(image_data, MosScale(1, 5)), TrainConfig(crops=2, batch_size=8)
    data = EpochWindows(table, 32, config, 1, None, ("quality", "alignment"))
    texts = PromptsOf(table).texts
    for row in (0, 5, 47):
        batch = data[row]
        assert [texts[place] for place in batch.prompts] == [f"prompt {row % 12}"] * 2
    targets = {f"prompt {i}": table.targets(["quality"])[i::12, 0] for i in range(12)}
    batches = list(epoch_loader(data, config, 1, 0))
    assert {len(batch.prompts) for batch in batches} == {8}
    for batch in batches:
        for place, opinions in zip(batch.prompts, batch.targets, strict=True):
            assert opinions[0].item() in targets[texts[place]]


# Scores


def test_alignment_depends_on_the_prompt_and_quality_does_not_bit_for_bit(
    scorer: Scorer, paths: list[Path]
) -> None:
    prompts = ["a red circle", "blue", "рыжая лиса", "x " * 100, "a red square"]
    found = [scorer.score(paths, prompt) for prompt in prompts]
    for other in found[1:]:
        assert [row.quality for row in other] == [row.quality for row in found[0]]
        pairs = zip(other, found[0], strict=True)
        assert all(abs((a.alignment or 0) - (b.alignment or 0)) > 1e-4 for a, b in pairs)


def test_alignment_of_an_image_is_the_same_alone_and_among_longer_prompts(
    scorer: Scorer, paths: list[Path]
) -> None:
    prompts = ["blue", "a red circle " * 9, "", "a red circle on a blue square", "x", "b " * 500]
    together = scorer.score(paths, prompts)
    for path, prompt, among in zip(paths, prompts, together, strict=True):
        (alone,) = scorer.score([path], prompt)
        assert alone.alignment == pytest.approx(among.alignment, abs=TOLERANCE)


def test_scores_do_not_depend_on_workers_and_batches(
    prompted_run: Path, scorer: Scorer, paths: list[Path]
) -> None:
    prompts = ["blue", "a red circle " * 9, "", "a red circle on a blue square", "x", "b " * 500]
    wanted = scorer.score(paths, prompts)
    same = Scorer.from_pretrained(prompted_run, device="cpu", workers=3)
    assert same.score(paths, prompts) == wanted
    other = Scorer.from_pretrained(prompted_run, device="cpu", workers=1, batch_size=1)
    for found, expected in zip(other.score(paths, prompts), wanted, strict=True):
        assert found.alignment == pytest.approx(expected.alignment, abs=TOLERANCE)


def test_stream_scores_pairs_as_a_list(scorer: Scorer, paths: list[Path]) -> None:
    prompts = [f"prompt {i}" for i in range(6)]
    taken = list(scorer.stream(zip(paths, prompts, strict=True)))
    assert taken == scorer.score(paths, prompts)
    assert [row.prompt for row in taken] == prompts


def test_rank_by_alignment_puts_what_fits_the_prompt_first(
    scorer: Scorer, paths: list[Path]
) -> None:
    known = [row.alignment for row in scorer.score(paths, "a red circle")]
    found = scorer.rank(paths, "a red circle", by="alignment")
    assert [row.alignment for row in found] == sorted(known, key=lambda value: -(value or 0))
    assert [known[row.index] for row in found] == [row.alignment for row in found]
    assert [row.rank for row in found] == [1, 2, 3, 4, 5, 6]
    assert len(set(known)) == len(known)


def test_rank_by_alignment_without_a_prompt_leaves_all_unranked(
    scorer: Scorer, paths: list[Path]
) -> None:
    found = scorer.rank(paths, by="alignment")
    assert [(row.index, row.alignment, row.rank) for row in found] == [
        (i, None, None) for i in range(6)
    ]


def test_frame_of_scores_has_the_dropped_tokens(scorer: Scorer, paths: list[Path]) -> None:
    frame = scorer.score(paths[:3], ["blue", "", "blue" + 49 * " blue"]).to_dataframe()
    assert frame["tokens_dropped"].tolist() == [0, 0, 50 - ROOM]
    assert frame["alignment"].isna().tolist() == [False, True, False]


def test_image_that_cannot_be_read_has_no_dropped_tokens(
    scorer: Scorer, paths: list[Path], tmp_path: Path
) -> None:
    bad, good = scorer.score([tmp_path / "no.png", paths[0]], "blue" + 49 * " blue")
    assert (bad.status, bad.alignment, bad.tokens_dropped, bad.note) == ("error", None, None, "")
    assert (good.status, good.tokens_dropped) == ("ok", 20)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT], ids=str)
def test_image_whose_prompt_is_none_is_one_without_a_prompt(
    scorer: Scorer, paths: list[Path], missing: Any
) -> None:
    """As a column of captions has it where one is missing; the other images have theirs."""
    prompts: list[Any] = [missing, "a red circle"]
    without, other = scorer.score(paths[:2], prompts)
    assert (without.status, without.alignment) == ("ok", None)
    assert other.alignment is not None


def test_notes_of_image_and_prompt_stand_side_by_side(scorer: Scorer) -> None:
    image = Image.new("RGBA", (40, 40), (9, 9, 9, 100))
    (found,) = scorer.score([image], "")
    assert found.note == "transparent parts laid on white; no prompt to judge alignment by"


def test_loss_is_one_less_the_quality_and_no_loss_of_alignment(
    scorer: Scorer, paths: list[Path]
) -> None:
    pixels = torch.from_numpy(np.stack([read_image(path) for path in paths])) / 255
    images = pixels.permute(0, 3, 1, 2).requires_grad_()
    loss = scorer.as_loss()(images)
    wanted = [1 - (row.quality or 0) for row in scorer.score(paths, "blue")]
    assert loss.tolist() == pytest.approx(wanted, abs=1e-5)
    loss.sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()
    # It would be of an image whose text nobody reads.
    with pytest.raises(UsageError, match=r"^expected a target that no prompt is read for, got al"):
        scorer.as_loss("alignment")


def test_loss_of_alignment_is_there_where_it_reads_no_prompt(trained_run: Path) -> None:
    scorer = Scorer.from_pretrained(trained_run, device="cpu", workers=1)
    assert scorer.as_loss("alignment")(torch.rand(1, 3, 40, 40)).shape == (1,)


# The command


@pytest.mark.parametrize("long", ["truncate", "window"])
def test_every_prompt_gets_its_row_with_quality_and_a_note(
    prompted_run: Path, listed: Path, tmp_path: Path, long: str
) -> None:
    out = tmp_path / "scores.csv"
    assert score(listed, "--model", prompted_run, "-o", out, "--long-prompts", long) == 0
    rows = dict(zip(PROMPTS, rows_of(out), strict=True))
    assert [row["prompt"] for row in rows.values()] == list(PROMPTS.values())
    assert {row["status"] for row in rows.values()} == {"ok"}
    qualities = [float(row["quality"]) for row in rows.values()]
    assert qualities == pytest.approx(qualities[:1] * len(rows), abs=TOLERANCE)
    for name in ("none", "blank"):
        assert rows[name]["alignment"] == ""
        assert rows[name]["note"] == "no prompt to judge alignment by"
    judged = {name: row for name, row in rows.items() if name not in ("none", "blank")}
    assert all(0 < float(row["alignment"]) < 1 for row in judged.values())
    assert len({row["alignment"] for row in judged.values()}) == len(judged)
    letters = "the model has no words for the letters of the prompt"
    assert rows["another script"]["note"] == letters
    assert rows["newlines"]["note"] == ""
    dropped = 10_000 - ROOM if long == "truncate" else 0
    assert [row["tokens_dropped"] for row in rows.values()] == [*["0"] * 5, str(dropped)]
    assert rows["ten thousand words"]["note"] == (
        f"{dropped} tokens of the prompt were dropped"
        if dropped
        else "the prompt was read in 334 parts"
    )


def test_prompts_too_long_are_rows_of_errors_and_the_others_go_on(
    capsys: Capture, prompted_run: Path, listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert score(listed, "--model", prompted_run, "-o", out, "--long-prompts", "error") == 3
    *others, last = rows_of(out)
    assert {row["status"] for row in others} == {"ok"}
    assert (last["status"], last["quality"], last["alignment"]) == ("error", "", "")
    assert last["reason"] == (
        "expected a prompt of at most 30 tokens, got 10000: shorten it, or take --long-prompts "
        "truncate or window"
    )
    captured = capsys.readouterr()
    assert captured.out == f"5 of 6 images scored: {out} and its manifest\n"
    assert f"not scored: {last['reason']}" in captured.err.splitlines()


def test_without_long_prompts_the_end_is_dropped(
    prompted_run: Path, listed: Path, tmp_path: Path
) -> None:
    plain, cut = tmp_path / "plain.csv", tmp_path / "cut.csv"
    assert score(listed, "--model", prompted_run, "-o", plain) == 0
    words = ["--model", prompted_run, "-o", cut, "--long-prompts", "truncate"]
    assert score(listed, *words) == 0
    assert plain.read_bytes() == cut.read_bytes()


def test_note_names_no_word_at_length() -> None:
    parts = Parts(((1, 2, 3),), unknown=("short", "x" * 5000))
    (note,) = of_prompt("short " + "x" * 5000, parts, "alignment")
    assert note == f"not understood: short, {'x' * 40}..."


def test_unknown_way_with_long_prompts_is_wrong_usage(
    capsys: Capture, prompted_run: Path, paths: list[Path], tmp_path: Path
) -> None:
    words = ["score", paths[0], "--model", prompted_run, "-o", tmp_path / "scores.csv"]
    told = refused(capsys, 2, *words, "--long-prompts", "drop")
    assert told == "expected --long-prompts of truncate, window, error, got drop: take one of these"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_hold_the_same_rows(
    prompted_run: Path, listed: Path, tmp_path: Path, suffix: str
) -> None:
    out, plain = tmp_path / f"scores{suffix}", tmp_path / "scores.csv"
    for file in (out, plain):
        assert score(listed, "--model", prompted_run, "-o", file) == 0
    frame = (
        pd.read_parquet(out)
        if suffix == ".parquet"
        else pd.DataFrame(map(json.loads, out.read_text(encoding="utf-8").splitlines()))
    )
    rows = rows_of(plain)
    assert list(frame.columns) == list(rows[0])
    assert frame["prompt"].tolist() == list(PROMPTS.values())
    assert frame["tokens_dropped"].tolist() == [float(row["tokens_dropped"]) for row in rows]
    for target in ("quality", "alignment"):
        wanted = [float(row[target] or "nan") for row in rows]
        np.testing.assert_array_equal(frame[target].to_numpy(float), wanted)


def test_one_prompt_is_for_all_and_its_lack_is_said(
    capsys: Capture, prompted_run: Path, paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert score(*paths, "--model", prompted_run, "-o", out, "--prompt", "blue") == 0
    assert "judges alignment by the prompt" not in capsys.readouterr().err
    assert all(row["alignment"] for row in rows_of(out))
    assert score(*paths, "--model", prompted_run, "-o", out) == 0
    assert "note: this model judges alignment by the prompt" in capsys.readouterr().err
    assert not any(row["alignment"] for row in rows_of(out))
    assert all(row["quality"] for row in rows_of(out))


def test_sorted_by_alignment_rows_without_a_prompt_come_last(
    prompted_run: Path, listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    words = [listed, "--model", prompted_run, "-o", out, "--rank", "--by", "alignment"]
    assert score(*words) == 0
    by_prompt: dict[str, list[str]] = {}
    for row in rows_of(out):
        by_prompt.setdefault(row["prompt"], []).append(row["alignment"])
    blank = [found for prompt, found in by_prompt.items() if not prompt.strip()]
    assert [value for found in blank for value in found] == ["", ""]
    for found in (found for found in by_prompt.values() if found not in blank):
        assert [float(value) for value in found] == sorted(map(float, found), reverse=True)


COUNT = 140
"""Rows: two chunks and a part of one."""


@pytest.fixture(scope="module")
def many(
    paths: list[Path], prompted_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Words, Path]:
    """The words of a job with all kinds of prompts, but for ``-o``, and its scores."""
    folder = tmp_path_factory.mktemp("many")
    kinds = ["", "a red circle {}", "рыжая лиса {}", "blue {} " * 20, "a\nfox {}"]
    prompts = [kinds[i % 5].replace("{}", str(i)) for i in range(COUNT)]
    file = written_list(folder / "list.csv", paths, prompts)
    words = [str(file), "--model", str(prompted_run), "--long-prompts", "window"]
    assert score(*words, "-o", folder / "scores.csv") == 0
    return words, folder / "scores.csv"


def test_shards_hold_the_rows_of_the_whole(many: tuple[Words, Path], tmp_path: Path) -> None:
    words, whole = many
    shards = [tmp_path / f"{i}.csv" for i in (1, 2, 3)]
    for i, shard in enumerate(shards, 1):
        assert score(*words, "-o", shard, "--shard", f"{i}/3") == 0
        assert 0 < len(rows_of(shard)) < COUNT
    out = tmp_path / "merged.csv"
    assert main(["merge", *map(str, shards), "-o", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_scoring_that_was_broken_off_goes_on_with_the_same_rows(
    many: tuple[Words, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, whole = many
    out, real = tmp_path / "scores.csv", Journal.write
    written = 0

    def write_or_break(part: Journal, row: Row) -> None:
        nonlocal written
        if written == 100:
            raise KeyboardInterrupt
        written += 1
        real(part, row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write_or_break)
        assert score(*words, "-o", out) == 130
    assert not out.exists()
    assert score(*words, "-o", out, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()


def test_job_with_other_words_for_long_prompts_is_not_gone_on_with(
    capsys: Capture, many: tuple[Words, Path], tmp_path: Path
) -> None:
    words, whole = many
    for path in whole.parent.glob("scores.csv*"):
        shutil.copy(path, tmp_path)
    out = tmp_path / "scores.csv"
    assert score(*words[:-1], "truncate", "-o", out, "--resume") == 0
    assert "is finished" not in capsys.readouterr().err
    assert out.read_bytes() != whole.read_bytes()


# Measured


def measured(run: Path, out: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        evaluate_bare(patch)
        assert main(["evaluate", str(run), "--split", "all", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_evaluation_says_what_other_prompts_change(
    capsys: Capture, prompted_run: Path, scorer: Scorer, image_data: Path, tmp_path: Path
) -> None:
    metrics = measured(prompted_run, tmp_path)
    assert metrics["prompts"].keys() == {"alignment"}
    found = metrics["prompts"]["alignment"]
    table = load_table(image_data, MosScale(1, 5))
    paths, opinions = list(table.frame["image"]), table.frame["mos_alignment"].to_numpy(float)
    own, other = (
        np.array([row.alignment for row in scorer.score(paths, prompts)], dtype=np.float64)
        for prompts in (list(table.frame["prompt"]), shuffled_prompts(table))
    )
    assert np.abs(own - other).mean() > 5e-4
    assert found["mean_drop"] == pytest.approx((own - other).mean(), abs=TOLERANCE)
    # Ranks of scores that differ by less than a rounding may change places.
    drop = srcc(own, opinions) - srcc(other, opinions)
    assert found["srcc_drop"] == pytest.approx(drop, abs=1e-2)
    assert found["own_higher"] == pytest.approx((own > other).mean(), abs=0.05)
    printed = capsys.readouterr().out
    assert "SRCC lost with other" in printed
    assert "own prompt scores higher" in printed


def test_alignment_of_rows_without_a_prompt_counts_nowhere(
    prompted_run: Path, scorer: Scorer, image_data: Path
) -> None:
    """Not in metrics, nor in what other prompts change, nor in a calibration."""
    table = load_table(image_data, MosScale(1, 5))
    prompts = [*table.frame["prompt"][:-2], "", "  "]
    assert isinstance(scorer.engine, TorchEngine)
    scores, spread = predict_table(scorer.engine, table, "center", "scoring", prompts)
    column = scorer.engine.tasks.index("alignment")
    assert np.isnan(scores[:, column]).tolist() == [not p.strip() for p in prompts]
    assert np.isfinite(np.delete(scores, column, axis=1)).all()
    assert len(judged(table, "alignment", scores[:, column], spread[:, column])) == len(table) - 2
    blank = replace(table, frame=table.frame.assign(prompt=prompts))
    found = prompts_matter(scorer.engine, blank, "center", scores)["alignment"]
    assert np.isfinite(list(found.values())).all()


def test_evaluation_of_a_blind_run_says_that_prompts_change_nothing(
    trained_run: Path, tmp_path: Path
) -> None:
    nothing = {"srcc_drop": 0.0, "mean_drop": 0.0, "own_higher": 0.5}
    assert measured(trained_run, tmp_path)["prompts"] == {"alignment": nothing}


def test_other_prompts_change_nothing_where_all_images_have_one(
    prompted_run: Path, image_data: Path, tmp_path: Path
) -> None:
    """Other images with one prompt, so that there is none to shuffle in."""
    rng = np.random.default_rng(3)
    with (tmp_path / "other.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "mos_alignment"])
        for i in range(5):
            pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            writer.writerow([f"{i}.png", "a blue circle", i / 2 + 1])
    words = ["--data", str(tmp_path / "other.csv"), "--mos-scale", "1", "5"]
    assert main(["evaluate", str(prompted_run), *words, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["prompts"]
    assert found == {"alignment": {"srcc_drop": 0.0, "mean_drop": 0.0, "own_higher": 0.5}}


# Exported


def test_export_leaves_alignment_out_and_says_so(
    capsys: Capture, prompted_run: Path, paths: list[Path], scorer: Scorer, tmp_path: Path
) -> None:
    """What is made of an engine is tested with the exports of other runs."""
    engines: list[TorchEngine] = []

    def made(engine: TorchEngine, *_: Any) -> dict[str, Any]:
        engines.append(engine)
        return {"variants": []}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcmpl.scoring.export.write_export", made)
        patch.setattr("dcmpl.runs.validation_images", lambda *_: [])
        assert main(["export", str(prompted_run), "-o", str(tmp_path / "new")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "alignment" in line]
    assert line.startswith("note: alignment reads the prompt, which only torch does")
    (engine,) = engines
    assert (engine.tasks, engine.reads) == (("quality",), None)
    assert not any(isinstance(module, Reader) for module in engine.network.modules())
    found = Scorer(engine, "center", ScoringOptions(workers=1)).score(paths, "blue")
    assert {(row.alignment, row.note, row.status) for row in found} == {(None, "", "ok")}
    qualities = [row.quality for row in scorer.score(paths, "blue")]
    assert [row.quality for row in found] == pytest.approx(qualities, abs=TOLERANCE)


def test_export_tells_in_words_what_is_exported(
    capsys: Capture, prompted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmpl.scoring.export.write_export", lambda *_: {"variants": []})
    monkeypatch.setattr("dcmpl.runs.validation_images", lambda *_: [])
    assert main(["export", str(prompted_run), "-o", str(tmp_path / "new")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "alignment" in line]
    assert line.endswith("exported: quality")


@pytest.mark.parametrize("targets", [["alignment"], ["quality", "alignment"]])
def test_export_of_what_reads_the_prompt_is_refused(
    capsys: Capture, prompted_run: Path, tmp_path: Path, targets: Words
) -> None:
    words = ["export", prompted_run, "-o", tmp_path / "new", "--targets", *targets]
    assert refused(capsys, 2, *words) == (
        "expected targets that no prompt is read for, got alignment: only torch reads prompts, "
        "score with the run itself"
    )
    assert not (tmp_path / "new").exists()


def test_floors_are_of_the_images_that_have_a_prediction(
    prompted_run: Path, image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(image_data)
    frame["image"] = [str(image_data.parent / image) for image in frame["image"]]
    frame.loc[::2, "prompt"] = ""
    frame.to_csv(tmp_path / "half.csv", index=False)
    rising = np.linspace(0.1, 0.9, 3 * len(frame)).reshape(len(frame), 3)
    monkeypatch.setattr("dcmpl.evaluation.results.statistics_of", lambda *_: {})
    monkeypatch.setattr(
        "dcmpl.evaluation.results.predict_baselines", lambda *_: {"statistics": rising}
    )
    monkeypatch.setattr("dcmpl.data.leaks.find_leaks", lambda *_: [])
    words = ["--data", tmp_path / "half.csv", "--mos-scale", "1", "5", "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, [prompted_run, "--split", "all", *words])]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    opinions = frame["mos_alignment"].to_numpy(float)[1::2]
    wanted = srcc(rising[1::2, 1], opinions)
    assert found["alignment"]["n"] == len(opinions)
    assert found["baselines"]["statistics"]["alignment"]["srcc"] == pytest.approx(wanted)
