"""Images are read out of archives, whatever is wrong with one of them."""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcmpl.data.sources import Source, find_sources, with_content
from dcmpl.errors import DataError, UsageError
from dcmpl.images.archives import Archives

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def png(value: int) -> bytes:
    """An image whose first red value is ``value``; noise, so that it takes some bytes."""
    pixels = np.random.default_rng(value).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pixels[0, 0, 0] = value
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


Members = Mapping[str, bytes]
SOME = {"a.png": png(1), "sub/b.PNG": png(2), "sub/._b.png": b"mac", "notes.md": b"x"}


def pack(path: Path, members: Members) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    kind = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def found_in(*paths: Path | str, sidecar: bool = False) -> list[Source]:
    return find_sources([str(path) for path in paths], sidecar)


def values(entries: list[Source]) -> list[int | str]:
    """The first red value of each image, or why there is none."""
    found: list[int | str] = []
    for request in with_content(entries):
        try:
            found.append(int(request.read().pixels[0, 0, 0]))
        except DataError as error:
            found.append(str(error))
    return found


@pytest.fixture(params=SUFFIXES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return pack(tmp_path / f"some{request.param}", SOME)


def test_images_of_an_archive_are_listed_in_its_order(archive: Path) -> None:
    assert found_in(archive) == [
        Source(f"{archive}/a.png", str(archive), "a.png"),
        Source(f"{archive}/sub/b.PNG", str(archive), "sub/b.PNG"),
    ]


def test_images_of_an_archive_are_read(archive: Path) -> None:
    assert values(found_in(archive)) == [1, 2]


def test_nothing_is_unpacked_to_disk(archive: Path) -> None:
    values(found_in(archive))
    assert os.listdir(archive.parent) == [archive.name]


def test_content_of_an_entry_is_that_of_the_member(archive: Path) -> None:
    assert [entry.file_content() for entry in found_in(archive)] == [
        SOME["a.png"],
        SOME["sub/b.PNG"],
    ]


def test_archive_named_twice_is_taken_once(archive: Path) -> None:
    assert found_in(archive, archive) == found_in(archive)


def test_archive_may_be_named_by_a_glob_but_is_not_looked_for_in_folders(archive: Path) -> None:
    assert found_in(f"{archive.parent}/some*") == found_in(archive)
    with pytest.raises(UsageError, match="expected images in "):
        found_in(archive.parent)


def test_archives_and_files_are_read_in_the_order_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(png(3))
    one = pack(tmp_path / "one.zip", {"a.png": png(1), "b.png": png(2)})
    two = pack(tmp_path / "two.tar.gz", {"a.png": png(4)})
    assert values(found_in(two, tmp_path / "c.png", one)) == [4, 3, 1, 2]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_archive_without_images_is_a_row_with_its_reason(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"none{suffix}", {"notes.md": b"x"})
    (entry,) = found_in(path)
    assert str(entry.fault) == f"expected images in {path}, got none"
    assert entry == Source(str(path), str(path), fault=entry.fault)
    assert values([entry]) == [str(entry.fault)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04" + 60 * b"\0"])
def test_file_that_is_no_archive_is_a_row_with_its_reason(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    pack(tmp_path / "good.zip", {"a.png": png(1)})
    found = values(found_in(path, tmp_path / "good.zip"))
    assert str(found[0]).startswith(f"expected a whole file at {path}, got: ")
    assert "\n" not in str(found[0])
    assert found[1:] == [1]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_truncated_archive_has_a_row_that_says_so(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"cut{suffix}", {f"{i}.png": png(i) for i in range(4)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert str(values(found_in(path))[-1]).startswith(f"expected a whole file at {path}, got: ")


def test_damaged_member_is_one_row_and_leaves_the_others(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.zip", {f"{i}.png": png(i) for i in range(3)})
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("1.png").header_offset + 300
    content = bytearray(path.read_bytes())
    content[place : place + 50] = bytes(50)
    path.write_bytes(content)
    found = values(found_in(path))
    assert found[::2] == [0, 2]
    assert str(found[1]).startswith(f"expected a whole file at {path}/1.png, got: ")


def encrypt(path: Path) -> None:
    """Say of every member that it is encrypted, here and in the central directory."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(mark, place + 4)
    path.write_bytes(content)


def test_encrypted_members_are_rows_with_their_reason(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.zip", {"a.png": png(1), "b.png": png(2)})
    encrypt(path)
    found = [str(value) for value in values(found_in(path))]
    assert [f.partition(", got: ")[0] for f in found] == [
        f"expected a whole file at {path}/{name}" for name in ("a.png", "b.png")
    ]
    assert all("is encrypted, password required" in f for f in found)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_member_over_the_limit_is_a_row_and_leaves_the_others(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b"\0" * 100_000
    path = pack(tmp_path / f"some{suffix}", {"a.png": png(1), "b.png": large, "c.png": png(3)})
    monkeypatch.setattr(Archives, "read", partialmethod(Archives.read, limit=50_000))
    first, second, third = values(found_in(path))
    assert (first, third) == (1, 3)
    assert second == f"expected at most 50000 bytes at {path}/b.png, got more"


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_member_of_the_limit_is_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / f"some{suffix}", {"a.png": png(1)})
    monkeypatch.setattr(Archives, "read", partialmethod(Archives.read, limit=len(png(1))))
    assert values(found_in(path)) == [1]


def test_member_that_is_no_image_is_a_row_that_names_it(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.zip", {"a.png": b"no image", "b.png": png(2)})
    first, second = values(found_in(path))
    assert str(first).startswith(f"expected an image that can be decoded, got {path}/a.png: ")
    assert second == 2


def test_archive_that_is_gone_when_it_is_read_is_a_row(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.zip", {"a.png": png(1)})
    entries = found_in(path)
    path.unlink()
    assert str(values(entries)[0]).startswith(f"expected a whole file at {path}/a.png, got: ")


def test_links_of_a_tar_lead_to_its_members_and_nowhere_else(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.tar", {"a.png": png(1)})
    (tmp_path / "outside.png").write_bytes(png(2))
    links = {"b.png": "a.png", "c.png": str(tmp_path / "outside.png"), "d.png": "d.png"}
    with tarfile.open(path, "a") as archive:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    found = values(found_in(path))
    assert found[:2] == [1, 1]
    assert [str(value).partition(" ")[0] for value in found[2:]] == ["expected", "expected"]


@pytest.mark.parametrize("ending", ["", "damaged"])
def test_member_appended_to_a_tar_replaces_the_one_before(tmp_path: Path, ending: str) -> None:
    path = pack(tmp_path / "in.tar", {"a.png": png(1), "a.txt": b"old", "b.png": png(2)})
    with tarfile.open(path, "a") as archive:
        for name, content in {"a.png": png(3), "a.txt": b"new"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    if ending:
        with path.open("r+b") as file:
            file.seek(end)
            file.write(b"x" * 700)
    found = found_in(path, sidecar=True)
    assert values(found)[:2] == [3, 2]
    assert found[0].prompt == "new"
    assert len(found) == (3 if ending else 2)  # the damage is a row


def test_last_entry_of_a_name_may_be_no_file(tmp_path: Path) -> None:
    path = pack(tmp_path / "in.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(4)})
    with tarfile.open(path, "a") as archive:
        for name, kind, link in (
            ("a.png", tarfile.DIRTYPE, ""),
            ("b.png", tarfile.SYMTYPE, "b.png"),
            ("./c.png", tarfile.SYMTYPE, "a-file-that-is-not-there.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
    a, b, c = values(found_in(path))
    assert str(a).endswith("got a folder or another kind of entry")
    assert str(b).endswith("got a link that leads to itself")
    assert "c.png" in str(c)


def test_members_that_are_spelled_in_two_ways_are_one(tmp_path: Path) -> None:
    path = pack(tmp_path / "in.tar", {"./a.png": png(1), "a.png": png(3)})
    assert values(found_in(path)) == [3]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_last_of_two_members_of_a_zip_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for value in (1, 3):
            archive.writestr("a.png", png(value))
    assert values(found_in(tmp_path / "in.zip")) == [3]


def test_folder_of_a_tar_that_is_called_like_an_image_is_none(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("b.png")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    (entry,) = found_in(path)
    assert str(entry.fault) == f"expected images in {path}, got none"


def test_name_that_leads_out_of_an_archive_is_but_a_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "some.tar", {"../../a.png": png(1), "/etc/b.png": png(2)})
    assert values(found_in(path)) == [1, 2]


# Prompts in archives.

LAYOUTS: dict[str, Members] = {
    "text behind": {"000.jpg": png(1), "000.txt": b"a red fox\n", "001.jpg": png(2)},
    "text before": {"000.txt": b"a red fox", "000.jpg": png(1), "001.jpg": png(2)},
    "json": {
        "000.jpg": png(1),
        "000.json": json.dumps({"key": "000", "caption": " a red fox"}).encode(),
        "001.jpg": png(2),
        "001.json": json.dumps({"caption": None, "url": "x"}).encode(),
    },
    "json with both": {
        "000.jpg": png(1),
        "000.json": json.dumps({"caption": "no", "prompt": "a red fox"}).encode(),
        "001.jpg": png(2),
    },
    "garbage beside": {
        "000.jpg": png(1),
        "000.txt": b"a red fox",
        "001.jpg": png(2),
        "001.json": b"[" * 50_000,
        "002.json": b"\xff\xfe{",
        "003.json": b"[5]",
    },
    "in folders": {
        "x/000.jpg": png(1),
        "y/000.jpg": png(2),
        "x/000.txt": b"a red fox",
        "000.txt": b"an ox",
    },
}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_lie_beside_the_images(tmp_path: Path, layout: str, suffix: str) -> None:
    path = pack(tmp_path / f"shard{suffix}", LAYOUTS[layout])
    found = found_in(path, sidecar=True)
    assert [entry.prompt for entry in found] == ["a red fox", ""]
    assert values(found) == [1, 2]


def test_prompts_of_an_archive_are_left_where_not_asked_for(tmp_path: Path) -> None:
    path = pack(tmp_path / "shard.tar", LAYOUTS["text behind"])
    assert [entry.prompt for entry in found_in(path)] == ["", ""]
