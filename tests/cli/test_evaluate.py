"""``dcmpl evaluate``: the table and the files of a run's results, and its refusals."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.files import sealed


def test_unknown_split_is_wrong_usage(capsys: Capture, trained_run: Path) -> None:
    told = refused(capsys, 2, "evaluate", trained_run, "--split", "foo")
    assert told == "expected --split of test, val, train, all, got foo: take one of these"


@pytest.mark.parametrize(("part", "count", "kind"), [("test", 8, "clean"), ("val", 4, "clean")])
def test_evaluation_prints_its_table_and_its_files(
    capsys: Capture,
    trained_run: Path,
    tmp_path: Path,
    part: str,
    count: int,
    kind: str,
) -> None:
    assert main(["evaluate", str(trained_run), "--split", part, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    title = f"scores, {part} part, {count} images; protocol: {kind}"
    assert title in " ".join(printed.split())
    assert printed.endswith(f"results: {tmp_path}/metrics.json, predictions.csv\n")


def test_edited_split_fails(capsys: Capture, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    record = json.loads((run / "split.json").read_text())
    record["test"].append(record["train"].pop())
    (run / "split.json").write_text(json.dumps(record))
    assert refused(capsys, 1, "evaluate", run) == (
        f"expected the split its digest names at {run / 'split.json'}, got a changed one"
    )


def test_data_that_is_gone_fails(capsys: Capture, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    del record["digest"]
    record["source"]["path"] = str(tmp_path / "gone.csv")
    (run / "run.json").write_bytes(sealed(record))
    assert refused(capsys, 1, "evaluate", run) == (
        f"expected the run's data set at {tmp_path / 'gone.csv'}, got nothing there: "
        "give its new place with --data"
    )
