"""``make quick`` runs the tests of what has changed."""

from pathlib import Path

import pytest

from changed_tests import of_changed

ROOT = Path(__file__).parents[2]
LAYOUT = "tests/test_layout.py"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], {LAYOUT}),
        (["README.md", "src/dcmpl/weights/gone.py"], {LAYOUT}),
        (["src/dcmpl/metrics.py"], {LAYOUT, "tests/test_metrics.py"}),
        (["src/dcmpl/weights/clip_agiqa.py"], {LAYOUT, "tests/weights/test_clip_agiqa.py"}),
        (["tests/cli/test_info.py"], {LAYOUT, "tests/cli/test_info.py"}),
    ],
)
def test_tests_are_those_of_the_changed_files(changed: list[str], expected: set[str]) -> None:
    found = set(of_changed(changed, ROOT))
    assert expected <= found
    stems = {Path(name).stem for name in changed}
    others = {Path(name).stem for name in found - expected}
    assert all(any(name.startswith(f"test_{stem}") for stem in stems) for name in others)
