"""The shape of the package: imports go down, files are short, public names are true."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dcmpl

SOURCE = Path(dcmpl.__file__).parent
FILES = sorted(SOURCE.glob("*.py"))

ORDER = [
    "errors",
    "disk",
    "progress",
    "config",
    "recipes",
    "scores",
    "usage",
    "presets",
    "tokenizer",
    "stem",
    "clip",
    "archives",
    "formats",
    "weights",
    "attention",
    "prompts",
    "coupling",
    "adapter",
    "reader",
    "model",
    "folded",
    "images",
    "views",
    "generators",
    "table",
    "sheets",
    "lists",
    "containers",
    "sources",
    "aigciqa2023",
    "official",
    "datasets",
    "survey",
    "splits",
    "leaks",
    "protocols",
    "curves",
    "metrics",
    "paired",
    "floors",
    "pages",
    "packing",
    "calibration",
    "patches",
    "inference",
    "ridge",
    "labels",
    "batches",
    "published",
    "checkpoint",
    "train",
    "evaluate",
    "repeats",
    "ablate",
    "ablation_report",
    "protocol_report",
    "cross",
    "compare",
    "data_report",
    "engines",
    "answers",
    "trained",
    "calibrating",
    "fewest",
    "loss",
    "inputs",
    "opening",
    "rows",
    "predict",
    "outputs",
    "parts",
    "selection",
    "scoring",
    "info",
    "explain",
    "export",
    "commands",
    "measuring",
    "data_commands",
    "studies",
    "score_checks",
    "checks",
    "score_parsers",
    "parsers",
    "cli",
]
"""A module imports only what stands before it."""


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            if node.module == "dcmpl":
                found |= {alias.name for alias in node.names if alias.name in ORDER}
            elif (node.module or "").startswith("dcmpl."):
                found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dcmpl.")}
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == [file.stem for file in FILES if not file.stem.startswith("__")]


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_only_down(name: str) -> None:
    found = imported(ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8")))
    upward = {other for other in found if ORDER.index(other) >= ORDER.index(name)}
    assert upward == set()


@pytest.mark.parametrize("name", ["clip", "prompts", "adapter", "model", "stem"])
def test_network_knows_no_files_and_no_command_line(name: str) -> None:
    tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
    plain = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    outer = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not (plain | outer) & {"os", "sys", "pathlib", "io", "argparse", "jsonargparse"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_is_shorter_than_350_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 350


def test_package_has_few_files() -> None:
    # One idea each; a new one must be worth more than the reader's time to find it.
    assert len(FILES) <= 90


@pytest.mark.parametrize("name", ORDER)
def test_public_names_of_a_module_are_there_and_sorted(name: str) -> None:
    module = importlib.import_module(f"dcmpl.{name}")
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    # As ruff sorts: constants, classes, the rest.
    kinds = [(not n.isupper(), not n[0].isupper(), n) for n in module.__all__]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("name", dcmpl.__all__)
def test_public_name_of_the_package_can_be_imported(name: str) -> None:
    assert getattr(dcmpl, name).__name__ == name


def test_public_names_of_the_package_are_sorted() -> None:
    assert list(dcmpl.__all__) == sorted(dcmpl.__all__)


def test_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dcmpl' has no attribute 'nothing'"):
        _ = dcmpl.nothing


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, dcmpl; sys.exit(bool({'torch', 'pandas', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_importing_the_commands_changes_no_setting_of_torch() -> None:
    # Or a score would depend on what else the program imports.
    script = (
        "import sys, torch; before = torch.get_float32_matmul_precision(); "
        "import dcmpl.commands; sys.exit(torch.get_float32_matmul_precision() != before)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
