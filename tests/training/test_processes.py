"""Work that processes share out; how they end together is tested with the loop."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dcmpl.errors import RunError
from dcmpl.training import processes
from dcmpl.training.processes import by_all, check_same


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Stand-in for three processes, one after another: what each gives to all others."""
    given: list[list[Any]] = []

    def gather(own: list[Any]) -> list[Any]:
        given.append(own)
        return [entry for part in given for entry in part]

    monkeypatch.setattr(processes, "_are_several", lambda: True)
    monkeypatch.setattr(processes, "gather_object", gather)
    monkeypatch.setattr(
        processes,
        "PartialState",
        lambda: SimpleNamespace(process_index=len(given), num_processes=3),
    )
    return given


@pytest.mark.parametrize("count", [1, 4, 5, 13, 24])
def test_each_item_is_worked_on_once_and_in_whole_chunks(told: list[list[Any]], count: int) -> None:
    seen: list[int] = []

    def work(items: np.ndarray) -> np.ndarray:
        assert len(items)
        seen.extend(items.tolist())
        return np.stack([items, items**2], axis=1)

    for _ in range(3):
        found = by_all(count, 4, work)
    assert sorted(seen) == list(range(count))
    assert found.tolist() == [[item, item**2] for item in range(count)]
    for own in told:
        for items, _ in own:
            (starts,) = np.nonzero(np.diff(items, prepend=-2) != 1)
            assert all(items[start] % 4 == 0 for start in starts)


def test_one_process_works_on_all() -> None:
    assert by_all(5, 2, lambda items: items * 10).tolist() == [0, 10, 20, 30, 40]


def test_processes_with_another_run_are_refused(told: list[list[Any]], tmp_path: Path) -> None:
    check_same(["abc", 2], tmp_path)
    check_same(["abc", 2], tmp_path)
    with pytest.raises(RunError, match=r"expected the same run at .* in all processes"):
        check_same(["abc", 0], tmp_path)
