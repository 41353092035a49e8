"""Every command ends with its exit code, and every mistake with one sentence."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli.evaluate import EVALUATE
from dcmpl.cli.main import COMMANDS, command_of, main, parse, parser_of


@pytest.mark.parametrize(
    ("word", "near"),
    [("--epocks", "--epochs"), ("--batch_size", "--batch-size"), ("--bakbone", "--backbone")],
)
def test_unknown_flag_names_the_nearest(
    capsys: Capture, train: list[str], word: str, near: str
) -> None:
    assert refused(capsys, 2, *train, word, 3) == (
        f"expected a flag of dcmpl train, got {word}: did you mean {near}?"
    )


def test_unknown_flag_with_an_equals_sign_names_the_nearest(
    capsys: Capture, train: list[str]
) -> None:
    assert refused(capsys, 2, *train, "--epocks=3").endswith("did you mean --epochs?")


def test_flag_like_no_other_points_at_the_help(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--xyzzy").endswith("got --xyzzy: see dcmpl train --help")


def test_shortened_flag_is_unknown(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--epoch", 3).endswith("did you mean --epochs?")


EVERY = ", ".join(COMMANDS)


def test_unknown_command_names_the_nearest(capsys: Capture) -> None:
    assert refused(capsys, 2, "trian") == (
        f"expected a command ({EVERY}), got trian: did you mean train?"
    )


def test_no_command_names_them_all(capsys: Capture) -> None:
    assert refused(capsys, 2) == (f"expected a command ({EVERY}), got none: see dcmpl --help")


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--epochs", "three", "a whole number"),
        ("--epochs", "1.5", "a whole number"),
        ("--lr", "fast", "a finite number"),
        ("--lr", "nan", "a finite number"),
        ("--seed", "x", "a whole number"),
    ],
)
def test_wrong_type_says_what_is_wanted(
    capsys: Capture, train: list[str], flag: str, value: str, wanted: str
) -> None:
    assert refused(capsys, 2, *train, flag, value) == f"expected {wanted} for {flag}, got {value}"


def test_unknown_backbone_names_what_there_is(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--backbone", "foo") == (
        "expected a backbone (small), a folder, a .pt file of OpenAI's or a Hugging Face id such "
        "as openai/clip-vit-base-patch32, got 'foo'"
    )


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["train", "--out", "x"], "--data"),
        (["compare"], "RUN"),
        (["data check"], "PATH"),
        (["data split", "."], "--out"),
        (["score", "a.png", "--model", "x"], "--out"),
        (["score", "-o", "x.csv", "--model", "x"], "PATH"),
    ],
)
def test_missing_argument_is_named(capsys: Capture, words: list[str], missing: str) -> None:
    command, *others = words
    told = refused(capsys, 2, *command.split(), *others)
    assert told == (f"expected {missing} for dcmpl {command}, got none: see dcmpl {command} --help")


def test_missing_data_is_wrong_usage(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert refused(capsys, 2, "train", "--data", path, "--out", "x") == (
        f"expected a data set at {path}, got nothing there"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mos-scale", "1"], "expected 2 values after --mos-scale, got more or fewer"),
        (["--columns"], "expected one or more values after --columns, got more or fewer"),
        (["--lr"], "expected a value after --lr, got more or fewer"),
    ],
)
def test_count_of_values_is_told(
    capsys: Capture, train: list[str], words: list[str], told: str
) -> None:
    assert refused(capsys, 2, *train, *words) == f"{told}: see dcmpl train --help"


def test_two_sources_of_prompts_are_wrong_usage(capsys: Capture) -> None:
    words = ["a.png", "--model", "x", "-o", "x.csv", "--prompt", "a fox", "--prompts", "p.csv"]
    told = refused(capsys, 2, "score", *words)
    assert told == "expected --prompt or --prompts, got both: leave one out"


def test_flag_before_the_command_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, "--seed", *train) == (
        "expected flags after train, got --seed before it"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--columns", "moss_quality=x"], "did you mean mos_quality?"),
        (["--backbone", "./nowhere"], "got './nowhere'"),
        (["--mos-scale", "5", "1"], "expected --mos-scale LOW HIGH with LOW below HIGH, got 5 1"),
    ],
)
def test_mistake_is_told_without_importing_torch(
    train: list[str], words: list[str], told: str
) -> None:
    code = (
        "import sys; from dcmpl.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *train, *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_configuration_round_trip_gives_the_same_arguments(
    capsys: Capture, train: list[str], tmp_path: Path
) -> None:
    assert main([*train, "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    again, wanted = parse(["train", "--config", str(tmp_path / "c.yaml")])[1], parse(train)[1]
    again.config = None
    assert vars(again) == vars(wanted)


def test_flag_after_the_configuration_wins(train: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 7\nlr: 0.5\n")
    _, arguments = parse([*train, "--config", str(tmp_path / "c.yaml"), "--lr", "0.25"])
    assert (arguments.seed, arguments.lr) == (7, 0.25)


@pytest.mark.parametrize("text", ["epocks: 7\n", "epochs: many\n", "epochs: [\n"])
def test_wrong_configuration_is_wrong_usage(
    capsys: Capture, train: list[str], tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    told = refused(capsys, 2, *train, "--config", tmp_path / "c.yaml")
    assert "epoc" in told or "c.yaml" in told


def test_missing_configuration_is_wrong_usage(capsys: Capture, tmp_path: Path) -> None:
    told = refused(capsys, 2, "train", "--config", tmp_path / "no.yaml")
    assert str(tmp_path / "no.yaml") in told


def test_debug_shows_the_traceback(capsys: Capture, tmp_path: Path) -> None:
    assert main(["evaluate", str(tmp_path), "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interruption_has_exit_code_130(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcmpl.cli.evaluate.EVALUATE", replace(EVALUATE, run=interrupted))
    assert refused(capsys, 130, "evaluate", tmp_path).startswith("interrupted")


def test_fault_of_ours_is_one_sentence(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def faulty(_: object) -> int:
        raise ValueError("a\nb")

    monkeypatch.setattr("dcmpl.cli.evaluate.EVALUATE", replace(EVALUATE, run=faulty))
    assert refused(capsys, 1, "evaluate", tmp_path) == (
        "unexpected ValueError: a b; run again with --debug for the traceback"
    )


def test_version_is_that_of_the_package(capsys: Capture) -> None:
    from dcmpl import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dcmpl {__version__}\n"


WITHOUT_TORCH = """
import sys
from dcmpl.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = sorted({"torch", "pandas", "scipy", "accelerate"} & set(sys.modules))
print("imported:", *heavy)
sys.exit(code)
"""

ANSWERS = [
    ("--help", 0),
    ("--version", 0),
    ("trian", 2),
    ("train --epocks 3 --data . --out x", 2),
    ("train --data . --out x --preset foo", 2),
    ("train --data . --out x --epochs 0", 2),
    ("score a.png --model nowhere -o x.csv", 2),
    ("evaluate nowhere", 2),
]


def imported_by(words: str) -> tuple[int, list[str]]:
    """The exit code of a command, and which heavy packages it imported."""
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words.split()], capture_output=True, text=True
    )
    return told.returncode, told.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(("words", "code"), ANSWERS)
def test_mistakes_are_answered_without_torch(words: str, code: int) -> None:
    assert imported_by(words) == (code, [])


def test_help_of_every_command_imports_no_torch() -> None:
    script = "; ".join(
        [
            "import sys",
            "from dcmpl.cli.main import COMMANDS, command_of, parser_of",
            "texts = [parser_of(n, command_of(n)).format_help() for n in COMMANDS]",
            "heavy = {'torch', 'pandas', 'scipy', 'accelerate'} & set(sys.modules)",
            "sys.exit(99 if heavy or not all(texts) else 0)",
        ]
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_description_and_flags_that_are_explained(name: str) -> None:
    command = command_of(name)
    assert command.about.endswith(".")
    assert all(flag.about for flag in command.flags)
    assert parser_of(name, command).prog == f"dcmpl {name}"


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "benchmark", "score", "explain"], ids=lambda name: name
)
def test_commands_that_compute_take_a_device(name: str) -> None:
    assert "--device" in {flag.name for flag in command_of(name).flags}


def test_module_is_the_command() -> None:
    words = [sys.executable, "-m", "dcmpl", "--version"]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    assert told.stdout.startswith("dcmpl ")


@pytest.mark.parametrize("words", ["--help", "train --data x --out y --print-config"])
def test_output_that_nobody_reads_is_no_error(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dcmpl", *words.split()]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, b"")


def test_errors_are_not_printed_among_results_where_standard_error_is_closed(
    tmp_path: Path,
) -> None:
    words = f"exec {sys.executable} -m dcmpl nothing 2>&-"
    found = subprocess.run(["sh", "-c", words], stdout=subprocess.PIPE, check=False)
    assert (found.returncode, found.stdout) == (2, b"")
