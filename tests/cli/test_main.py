"""Every command ends with its exit code, and every mistake with one sentence."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from conftest import Capture, refused
from dcmpl.cli.evaluate import EVALUATE
from dcmpl.cli.main import COMMANDS, command_of, main, parse, parser_of
from dcmpl.cli.options import recipe_of
from dcmpl.config import RECIPES, TrainConfig
from dcmpl.files import sealed
from dcmpl.metrics import bootstrap
from dcmpl.presets import PRESETS
from dcmpl.runs import read_run


@pytest.fixture
def train(train_words: list[str], tmp_path: Path) -> list[str]:
    """The words of a training that works."""
    return [*train_words, "--out", str(tmp_path / "run")]


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


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--epochs", "0", "expected epochs of at least 1, got 0"),
        ("--batch-size", "-1", "expected batch_size of at least 1, got -1"),
        ("--set", "train.crops=0", "expected crops of at least 1, got 0"),
        (
            "--lr",
            "0",
            "expected a positive lr, an alignment_weight",
        ),
        ("--set", "train.views=grid-0", "expected views to be windows, center, resize or grid-N"),
        ("--preset", "foo", "expected --preset of dcmpl"),
    ],
)
def test_value_out_of_range_is_wrong_usage(
    capsys: Capture, train: list[str], flag: str, value: str, told: str
) -> None:
    assert refused(capsys, 2, *train, flag, value).startswith(told)


def test_unknown_backbone_names_what_there_is(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--backbone", "foo") == (
        "expected a backbone (tiny), a folder, a .pt file of OpenAI's or a Hugging Face id such as "
        "openai/clip-vit-base-patch32, got 'foo'"
    )


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["train", "--out", "x"], "--data"),
        (["compare"], "RUN"),
        (["data check"], "PATH"),
        (["data split", "."], "--out"),
        (["score", "a.png", "-o", "x.csv"], "--model"),
        (["score", "a.png", "--model", "x"], "--out"),
        (["score", "-o", "x.csv", "--model", "x"], "PATH"),
    ],
)
def test_missing_argument_is_named(capsys: Capture, words: list[str], missing: str) -> None:
    command, *others = words
    told = refused(capsys, 2, *command.split(), *others)
    assert told == (f"expected {missing} for dcmpl {command}, got none; see dcmpl {command} --help")


def test_missing_data_is_wrong_usage(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert refused(capsys, 2, "train", "--data", path, "--out", "x") == (
        f"expected a data set at {path}, found nothing there"
    )


def test_data_without_a_scale_is_wrong_usage(
    capsys: Capture, image_data: Path, tmp_path: Path
) -> None:
    told = refused(capsys, 2, "train", "--data", image_data, "--out", tmp_path / "run")
    assert told.endswith("add --mos-scale LOW HIGH, for example --mos-scale 1 5")


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
    assert refused(capsys, 2, *train, *words) == f"{told}; see dcmpl train --help"


def test_two_sources_of_prompts_are_wrong_usage(capsys: Capture) -> None:
    words = ["a.png", "--model", "x", "-o", "x.csv", "--prompt", "a fox", "--prompts", "p.csv"]
    told = refused(capsys, 2, "score", *words)
    assert told == "expected --prompt or --prompts, got both: leave one out"


def test_flag_before_the_command_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, "--seed", *train) == (
        "expected flags after train, got --seed before it"
    )


def test_mapping_without_an_equals_sign_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--columns", "foo") == (
        "expected --columns OURS=THEIRS ..., got foo"
    )


def test_existing_run_is_not_overwritten(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    before = {file.name: file.read_bytes() for file in trained_run.iterdir()}
    assert refused(capsys, 2, *train_words, "--out", trained_run) == (
        f"expected a new folder at --out {trained_run}, found a run in it: "
        "add --resume to go on with it, or choose another"
    )
    assert {file.name: file.read_bytes() for file in trained_run.iterdir()} == before


def test_finished_run_is_resumed_without_work(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()}
    assert main([*train_words, "--out", str(trained_run), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()} == before


def test_finished_run_that_lost_its_model_is_not_called_finished(
    capsys: Capture, train_words: list[str], trained_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "model.safetensors").unlink()
    told = refused(capsys, 1, *train_words, "--out", run, "--resume")
    assert told.startswith(f"expected model.safetensors in {run}")


def test_resume_with_other_opinions_fails(
    capsys: Capture, train_words: list[str], trained_run: Path, image_data: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(image_data.parent, tmp_path / "other")) / "scores.csv"
    frame = pd.read_csv(other)
    frame.assign(mos_quality=frame["mos_quality"].round(1)).to_csv(other, index=False)
    words = [*train_words, "--out", trained_run, "--resume", "--data", other]
    told = refused(capsys, 1, *words)
    assert told.startswith(f"expected to resume {trained_run} with the table it was started with")


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


def test_resume_with_other_settings_fails(
    capsys: Capture, train_words: list[str], trained_run: Path
) -> None:
    words = [*train_words, "--out", trained_run, "--resume", "--lr", "0.5"]
    assert refused(capsys, 1, *words).startswith(f"expected to resume {trained_run} with the train")


def test_unreadable_images_stop_training_before_it_begins(
    capsys: Capture, train: list[str], image_data: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(image_data.parent, tmp_path / "moved"))
    (moved / "07.png").write_text("no image")
    train[train.index("--data") + 1] = str(moved / "scores.csv")
    assert main(train) == 1
    assert str(moved / "07.png") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_says_what_to_do_next(capsys: Capture, train: list[str], tmp_path: Path) -> None:
    assert main([*train, "--epochs", "1"]) == 0
    assert capsys.readouterr().out == (
        f"run: {tmp_path / 'run'}\nnext: dcmpl evaluate {tmp_path / 'run'} --split test\n"
    )


def test_flags_reach_the_record(trained_run: Path) -> None:
    config = read_run(trained_run).train
    assert config == TrainConfig(epochs=3, batch_size=16, lr=0.003, views="center")


def test_flags_that_are_not_given_have_the_value_of_the_recipe(image_data: Path) -> None:
    words = ["train", "--data", str(image_data), "--mos-scale", "1", "5", "--out", "x"]
    assert recipe_of(parse(words)[1]) == RECIPES["tiny"]


@pytest.mark.parametrize("backbone", ["tiny", "openai/clip-vit-base-patch32"])
def test_patience_can_be_turned_off_and_on_for_every_backbone(backbone: str) -> None:
    words = ["train", "--data", ".", "--out", "x", "--backbone", backbone, "--set"]
    assert recipe_of(parse([*words, "train.patience=none"])[1]).patience is None
    assert recipe_of(parse([*words, "train.patience=3"])[1]).patience == 3


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


def test_unknown_split_is_wrong_usage(capsys: Capture, trained_run: Path) -> None:
    told = refused(capsys, 2, "evaluate", trained_run, "--split", "foo")
    assert told == "expected --split of test, val, train, all, got foo: take one of these"


@pytest.mark.parametrize(("part", "count", "kind"), [("test", 8, "clean"), ("val", 4, "clean")])
def test_evaluation_prints_its_table_and_its_files(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    trained_run: Path,
    tmp_path: Path,
    part: str,
    count: int,
    kind: str,
) -> None:
    few = partial(bootstrap, draws=5)
    monkeypatch.setattr("dcmpl.evaluation.results.bootstrap", lambda *words: few(*words[:4]))
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
        f"expected the run's data set at {tmp_path / 'gone.csv'}, found nothing there: "
        "give its new place with --data"
    )


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


def test_presets_are_listed_with_what_they_learn(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["presets"]) == 0
    told = capsys.readouterr().out
    listed = {line.strip("│ ").split(" ")[0] for line in told.splitlines()}
    assert set(PRESETS) <= listed
    assert "25,588,224" in told
    assert "train.patience" in told


def test_preset_and_settings_are_in_the_record(train: list[str], tmp_path: Path) -> None:
    settings = ["--preset", "clip-agiqa", "--set", "model.n_context=3", "model.fusion.depth=2"]
    assert main([*train, *settings, "--epochs", "1"]) == 0
    run = read_run(tmp_path / "run")
    assert (run.preset, run.model.mpa.form) == ("clip-agiqa", "none")
    assert (run.model.n_context, run.model.fusion.depth) == (3, 2)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.mpa.frm=joint", "did you mean model.mpa.form?"),
        ("mpa.form=joint", "did you mean model.mpa.form?"),
        ("model.mpa.form=foo", "for model.mpa.form, got 'foo'"),
        ("model.adapter.ratio=2", "expected adapter.ratio from 0 to 1, got 2.0"),
        ("model.mpa.form=none model.mpa.depth=2", "got mpa.depth: leave them at their defaults"),
    ],
)
def test_setting_that_does_not_fit_is_wrong_usage(
    capsys: Capture, train: list[str], setting: str, told: str
) -> None:
    assert refused(capsys, 2, *train, "--set", *setting.split()).endswith(told)


def test_unknown_preset_names_the_nearest(capsys: Capture, train: list[str]) -> None:
    told = refused(capsys, 2, *train, "--preset", "clip-agqia")
    assert told.endswith("got clip-agqia: did you mean clip-agiqa?")


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


def test_device_that_cannot_be_one_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--device", "cuda 1").startswith("expected --device of auto")
    assert refused(capsys, 2, *train, "--device", "tpu").startswith("expected a device that torch")


def test_module_is_the_command() -> None:
    words = [sys.executable, "-m", "dcmpl", "--version"]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    assert told.stdout.startswith("dcmpl ")


def test_learned_tensors_without_a_record_are_not_taken_for_a_training(
    capsys: Capture, train_words: list[str], trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.safetensors").write_bytes((trained_run / "last.safetensors").read_bytes())
    told = refused(capsys, 1, *train_words, "--out", tmp_path)
    assert told.startswith("expected run.json beside last.safetensors")
