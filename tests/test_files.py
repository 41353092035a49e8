"""Files are written whole or not at all, and a sealed record tells that it was changed."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmpl.errors import RunError
from dcmpl.files import as_json, check_sealed, sealed, sha256_of, write_atomically


def test_content_is_written_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.bin", b"content")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"content"


def test_writing_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", b"content")
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(RunError) as caught:
        write_atomically(path, b"new content")
    assert str(caught.value) == (
        f"expected to write {path}, got: No space left on device: what stood there before "
        "is whole, make room and start again"
    )
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_interruption_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new content")
    assert path.read_bytes() == b"old"


def test_what_an_interruption_left_is_gone_after_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a.bin", b"content")
    write_atomically(tmp_path / "a.bin", b"content")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_place_inside_a_file_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected to write "):
        write_atomically(tmp_path / "file" / "a.bin", b"content")


def test_what_is_not_finite_is_null_in_json() -> None:
    record = {"a": float("nan"), "b": {"c": float("inf"), "d": 0.5}, "e": -float("inf")}
    assert json.loads(as_json(record)) == {"a": None, "b": {"c": None, "d": 0.5}, "e": None}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text().filter(lambda name: name not in ("digest", "version")), VALUES)
PATH = Path("some/run.json")


@given(record=RECORDS)
def test_sealed_record_comes_back_without_its_seal(record: dict[str, object]) -> None:
    found = json.loads(sealed(record))
    check_sealed(found, PATH)
    assert as_json(found) == as_json(record)


@given(record=RECORDS, name=st.text().filter(lambda name: name != "version"))
def test_further_entry_of_a_sealed_record_is_told(record: dict[str, object], name: str) -> None:
    found = json.loads(sealed(record))
    found[name] = [found.get(name)]
    with pytest.raises(RunError, match="got one that its digest says was changed since"):
        check_sealed(found, PATH)


def test_order_of_entries_is_sealed() -> None:
    found = json.loads(sealed({"a": 1, "b": 2}))
    turned = {name: found[name] for name in ("b", "a", "digest")}
    with pytest.raises(RunError, match="its digest says"):
        check_sealed(turned, PATH)


def test_digest_is_that_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256_of(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def test_digest_of_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "no.bin")
