"""URLs in the place of paths, for every command: read, copied here, or refused in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Capture, evaluate_bare, refused
from dcmpl import storage
from dcmpl.cli.main import COMMANDS, PLACES, _bring, command_of, main
from dcmpl.cli.options import Arguments, Flag
from dcmpl.errors import UsageError
from dcmpl.runs import read_run

pytest_plugins = ("stores",)

PATHS = [
    pytest.param(name, flag, id=f"{name} {flag.name}")
    for name in COMMANDS
    for flag in command_of(name).flags
    if flag.metavar in PLACES
]


def given(name: str, flag: Flag, value: object) -> Arguments:
    arguments = Arguments()
    for other in command_of(name).flags:
        setattr(arguments, other.dest, None)
    setattr(arguments, flag.dest, (value,) if flag.count == "+" else value)
    return arguments


@pytest.mark.parametrize(("name", "flag"), PATHS)
def test_path_of_this_machine_stays_as_it_is(name: str, flag: Flag) -> None:
    arguments = given(name, flag, "sub/a:b.png")
    before = dict(vars(arguments))
    _bring(command_of(name), arguments)
    assert vars(arguments) == before


@pytest.mark.parametrize(("name", "flag"), [p for p in PATHS if not p.values[1].at_url])
def test_flag_that_takes_no_url_says_so_and_shows_no_key(name: str, flag: Flag) -> None:
    command = command_of(name)
    with pytest.raises(UsageError, match="expected a path of this machine at "):
        _bring(command, given(name, flag, "s3://bucket/a"))
    with pytest.raises(UsageError) as caught:
        _bring(command, given(name, flag, "s3://me:SECRET@bucket/a"))
    assert "SECRET" not in str(caught.value)


@pytest.fixture(scope="module")
def there(image_data: Path, trained_run: Path, bucket: str) -> str:
    """URL of a copy of the data and of a run."""
    for place, folder in (("data", image_data.parent), ("run", trained_run)):
        for file in folder.rglob("*"):
            if file.is_file():
                storage.upload(file, f"{bucket}/{place}/{file.relative_to(folder).as_posix()}")
    return bucket


Words = Callable[[str], list[str]]


@pytest.fixture
def words(there: str, image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    """Words of a line with THERE, DATA and OUT in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = {"THERE": there, "DATA": str(image_data), "OUT": str(tmp_path / "out")}

    def replaced(line: str) -> list[str]:
        for name, place in places.items():
            line = line.replace(name, place)
        return line.split()

    return replaced


def test_data_in_a_store_train_as_they_do_here(
    words: Words, train_words: list[str], image_data: Path, trained_run: Path, tmp_path: Path
) -> None:
    given = [words("THERE/data/scores.csv")[0] if w == str(image_data) else w for w in train_words]
    assert main([*given, *words("--out OUT")]) == 0
    found, wanted = read_run(tmp_path / "out"), read_run(trained_run)
    assert found.history == wanted.history
    assert found.source is not None
    assert wanted.source is not None
    assert found.source.sha256 == wanted.source.sha256


@pytest.mark.parametrize(
    "line",
    [
        "data check THERE/data/scores.csv --mos-scale 1 5",
        "info THERE/run",
        "evaluate THERE/run --out OUT",
        "evaluate THERE/run --data THERE/data/scores.csv --mos-scale 1 5 --out OUT",
        "export THERE/run -o OUT --targets quality",
        "explain THERE/data/00.png --model THERE/run -o OUT.png",
    ],
)
def test_what_lies_in_a_store_is_read_by_every_command(
    words: Words, line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:

    evaluate_bare(monkeypatch)
    assert main(words(line)) == 0
    assert capsys.readouterr().out


def test_scores_in_a_store_are_selected_from(
    words: Words, there: str, tmp_path: Path, capsys: Capture
) -> None:
    line = "score THERE/data --model THERE/run -o THERE/scores.jsonl --workers 1"
    assert main(words(line)) == 0
    assert main(words("select THERE/scores.jsonl --top 3 -o OUT.jsonl")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["image"].startswith(f"{there}/data/") for row in rows)


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("evaluate THERE/run", 2, "expected --out for the results, with a URL at RUN, got none"),
        ("compare THERE/run", 2, "expected --out for the results, with a URL at RUN, got none"),
        ("info THERE/none", 1, "expected a folder with files at THERE/none, got none"),
        (
            "data check THERE/none.csv",
            1,
            "expected a table or a folder at THERE/none.csv, got none",
        ),
        ("explain THERE/none.png -o OUT.png", 1, "expected a file at THERE/none.png, got none"),
        (
            "train --data DATA --mos-scale 1 5 --out THERE/new",
            2,
            "expected a path of this machine at --out, got THERE/new: copy from and to the store "
            "with its own programs",
        ),
    ],
)
def test_what_is_not_there_or_cannot_lie_there_is_one_sentence(
    words: Words, there: str, line: str, code: int, sentence: str, capsys: Capture
) -> None:
    assert refused(capsys, code, *words(line)) == sentence.replace("THERE", there)
