"""The house: imports go one way, rooms are small, public names are true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dcmpl

SOURCE = Path(dcmpl.__file__).parent
ROOT = SOURCE.parents[1]
ORDER = (
    ("errors", "files", "progress", "pages", "metrics", "storage"),
    ("config", "presets"),
    ("model",),
    ("weights",),
    ("images",),
    ("data",),
    ("runs",),
    ("scoring",),
    ("training",),
    ("evaluation",),
    ("client", "integrations"),
    ("serve",),
    ("cli",),
)
"""A room, or a loose file, imports only what stands before it; the loose files of one entry may
import one another."""

ROOMS = [name for names in ORDER for name in names if (SOURCE / name).is_dir()]
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
MOST_FILES, MOST_LINES, MOST_OF_A_FUNCTION = 14, 500, 50
FILES = sorted(SOURCE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Rooms and loose files of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            if (node.module or "").startswith("dcmpl."):
                found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dcmpl.")}
    return found


def test_there_are_ten_rooms_and_twelve_loose_files() -> None:
    loose = {file.stem for file in SOURCE.glob("*.py")}
    assert (len(ROOMS), len(loose)) == (10, 12)
    assert set(PLACE) == {*ROOMS, *loose} - {"__init__", "__main__"}


@pytest.mark.parametrize("name", PLACE)
def test_imports_go_one_way(name: str) -> None:
    place = SOURCE / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        found = imported(ast.parse(file.read_text(encoding="utf-8"))) - {name}
        limit = PLACE[name] + (not place.is_dir())
        assert {other for other in found if PLACE[other] >= limit} == set(), file.name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_few_files_and_its_door_imports_nothing_heavy(room: str) -> None:
    files = list((SOURCE / room).glob("*.py"))
    assert len(files) <= MOST_FILES
    code = f"import sys, dcmpl.{room}; sys.exit(bool({{'torch', 'pandas'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            told = ast.get_docstring(node, clean=False) or ""
            length = (node.end_lineno or node.lineno) - node.lineno - told.count("\n")
            assert length <= MOST_OF_A_FUNCTION, node.name


TESTS = ROOT / "tests"
OF_ALL = {"device", "layout"}
"""Tests of the whole house."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_file_has_its_tests(file: Path) -> None:
    place = TESTS / file.relative_to(SOURCE).parent
    assert file.stem in ("__init__", "__main__") or (place / f"test_{file.stem}.py").is_file()


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_tests_are_called_after_the_file_they_test(room: str) -> None:
    """``test_FILE.py``, or ``test_FILE_TOPIC.py`` where there are many."""
    known = {file.stem for file in (SOURCE / room).glob("*.py")} | (OF_ALL if not room else set())
    for file in (TESTS / room).glob("test_*.py"):
        words = file.stem.split("_")[1:]
        assert known & {"_".join(words[: end + 1]) for end in range(len(words))}, file.name


NOT_THE_FIELD_S = {"picture", "pictures", "told", "tells", "asked", "said", "whoever", "nobody"}
"""Words that docstrings do without: an image, and who does what to which."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_first_line_of_a_docstring_is_a_sentence_in_the_words_of_the_field(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = (ast.get_docstring(node) or "A stand-in.").splitlines()[0]
            assert first.endswith("."), first
            assert not NOT_THE_FIELD_S & {*first.lower().replace(".", "").split()}, first


@pytest.mark.parametrize("room", ["model"])
def test_network_knows_no_files_and_no_command_line(room: str) -> None:
    for file in (SOURCE / room).glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        plain = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not plain & {"os", "sys", "io", "argparse", "yaml"}, file.name


def test_network_and_weights_know_nothing_of_images_on_disk() -> None:
    assert PLACE["model"] < PLACE["weights"] < PLACE["images"] < PLACE["data"] < PLACE["runs"]


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


def test_importing_the_loop_changes_no_setting_of_torch() -> None:
    # Or a score would depend on what else the program imports.
    script = (
        "import sys, torch; before = torch.get_float32_matmul_precision(); "
        "import dcmpl.training.loop; "
        "sys.exit(torch.get_float32_matmul_precision() != before)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
