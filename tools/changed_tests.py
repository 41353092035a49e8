"""Tests of what has changed since the last commit, as paths for pytest: for ``make quick``."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALWAYS = "tests/test_layout.py"


def of_changed(changed: Iterable[str], root: Path) -> list[str]:
    """Changed tests, and ``tests/ROOM/test_FILE*.py`` of every changed file of the package."""
    found = {ALWAYS}
    for name in changed:
        path = Path(name)
        if path.match("tests/**/test_*.py") or path.match("tests/test_*.py"):
            found.add(name)
        elif name.startswith("src/dcmpl/"):
            place = root / "tests" / path.relative_to("src/dcmpl").parent
            found |= {str(p.relative_to(root)) for p in place.glob(f"test_{path.stem}*.py")}
    return sorted(name for name in found if (root / name).is_file())


def changed_files() -> list[str]:
    """Files that differ from the last commit, new ones among them."""
    asked = (["diff", "--name-only", "HEAD"], ["ls-files", "--others", "--exclude-standard"])
    lines = [
        subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for words in asked
    ]
    return "".join(lines).splitlines()


if __name__ == "__main__":
    print(" ".join(of_changed(changed_files(), ROOT)))
