"""Files by path or by URL: found, read, written whole, copied here; no key in any sentence."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcmpl import storage
from dcmpl.errors import RunError, UsageError

pytest_plugins = ("hub", "stores")

SECRETS = (
    "s3://name:TOPSECRET@bucket/a.png",
    "s3://TOPSECRET@bucket/a.png",
    "s3://name:TOP/SECRET@bucket/a.png",  # keys of S3 have slashes
    "S3://name:TOPSECRET@bucket/a.png",
    "gs://name:TOPSECRET@bucket/a.png",
    "hf://name:TOPSECRET@datasets/a.png",
    "abfs://name:TOPSECRET@account.dfs.core.windows.net/a.png",
    "https://name:TOPSECRET@host/a.png",
    "s3://bucket/a.png?X-Amz-Signature=TOPSECRET",
    "gs://bucket/a.png?x-goog-signature=TOPSECRET",
    "abfs://box/a.png?sv=1&sig=TOPSECRET",
    "s3://bucket/a.png?AWSAccessKeyId=TOPSECRET",
)


@pytest.fixture(params=["disk", "bucket", "hub"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, of this machine, in a bucket or in a data set of the hub."""
    if request.param == "disk":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue(request.param)}/{tmp_path.name}"


def put(root: str, *names: str) -> list[str]:
    """Files with their name as content."""
    paths = [storage.join(root, name) for name in names]
    for path in paths:
        storage.write(path, storage.base_of(path).encode())
    return paths


def read(path: str) -> bytes:
    with storage.open_file(path) as file:
        return bytes(file.read())


# Names


def test_question_marks_may_stand_in_names() -> None:
    assert storage.is_url("s3://b/what?.png")
    assert storage.is_url("s3://b/is it=a&design=1.png")


def test_two_that_write_one_file_write_it_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    with storage.writing(path) as one, storage.writing(path) as other:
        one.write(b"long " * 1000)
        other.write(b"short")
    assert read(path) == b"long " * 1000
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("url", ["s3://b/a", "gs://b/a", "abfs://c@a.host/x", "hf://datasets/a/b"])
def test_urls_of_known_kinds_are_urls(url: str) -> None:
    assert storage.is_url(url)


@pytest.mark.parametrize("path", ["a.png", "/x/a.png", "a:b.png", "x@y:z/a.png", "1s://x", ""])
def test_paths_are_no_urls(path: str) -> None:
    assert not storage.is_url(path)
    assert not storage.is_url(Path(path))


@pytest.mark.parametrize("url", ["http://h/a.png", "file:///etc/passwd", "s3a://b/a", "ftp://x"])
def test_unknown_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        storage.is_url(url)
    scheme = url.partition(":")[0]
    assert str(caught.value) == (
        f"expected a path, or a URL of s3://, gs://, abfs://, hf://, got {scheme}://: "
        "copy it to one of these first"
    )


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize(
    "use",
    [
        storage.is_url,
        storage.about,
        storage.is_folder,
        storage.list_files,
        storage.open_file,
        storage.fetched,
        storage.remove,
        lambda url: storage.write(url, b""),
    ],
)
def test_url_with_a_key_is_refused_without_showing_it(url: str, use: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError) as caught:
        use(url)
    assert "SECRET" not in str(caught.value)
    assert "TOP" not in str(caught.value)
    assert url.partition(":")[0].lower() + "://" in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///a.png", "s3:////"])
def test_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected a URL that names a bucket"):
        storage.about(url)


def test_names_are_joined_and_taken_apart() -> None:
    assert storage.join("s3://b/x/", "a.png") == "s3://b/x/a.png"
    assert storage.join("s3://b", "a.png") == "s3://b/a.png"
    assert storage.join("x", "a.png") == os.path.join("x", "a.png")
    assert storage.base_of("s3://b/x/run/") == "run"
    assert storage.base_of("s3://b/x/a.png") == "a.png"
    assert storage.base_of("x/a.png") == "a.png"


def test_container_of_an_azure_url_keeps_its_account() -> None:
    url = "abfs://box@account.dfs.core.windows.net/x"
    assert storage._url_of(url, "box/x/a.png") == f"{url}/a.png"
    assert storage._url_of("s3://b/x", "b/x/a b#c?.png") == "s3://b/x/a b#c?.png"


# All kinds of places


def test_file_is_written_found_read_and_removed(root: str) -> None:
    (path,) = put(root, "sub/a b#c?%41[.txt")
    found = storage.about(path)
    assert found is not None
    assert (found.path, found.size) == (path, 14)
    assert found.changed > 10**18 or path.startswith("hf://")  # which tells no times
    assert read(path) == b"a b#c?%41[.txt"
    storage.write(path, b"A b#c?%41[.txt")  # as long
    assert read(path) == b"A b#c?%41[.txt"
    assert storage.list_files(storage.join(root, "sub")) == [storage.about(path)]
    storage.remove(path)
    assert storage.about(path) is None
    storage.remove(path)
    with pytest.raises(FileNotFoundError):
        storage.open_file(path)


@pytest.mark.parametrize("ending", ["tar.gz", "gz", "bz2", "zst"])
def test_content_is_written_as_it_is_whatever_its_name(
    root: str, tmp_path: Path, ending: str
) -> None:
    """Where pyarrow would compress what is called so."""
    path = storage.join(root, f"a.{ending}")
    storage.write(path, b"content")
    assert read(path) == b"content"
    (tmp_path / "local").write_bytes(b"other")
    storage.upload(tmp_path / "local", path)
    assert read(path) == b"other"


def test_file_can_be_read_at_any_place(root: str) -> None:
    (path,) = put(root, "digits-0123456789")
    with storage.open_file(path) as file:
        file.seek(-3, os.SEEK_END)
        assert bytes(file.read()) == b"789"
        file.seek(7)
        assert bytes(file.read(2)) == b"01"


def test_folder_is_no_file_and_a_file_no_folder(root: str) -> None:
    (path,) = put(root, "sub/a")
    assert storage.about(storage.join(root, "sub")) is None
    assert storage.is_folder(storage.join(root, "sub"))
    assert storage.is_folder(storage.join(root, "sub") + "/")
    assert not storage.is_folder(path)
    assert not storage.is_folder(storage.join(root, "none"))


def test_other_content_of_one_size_is_seen_where_there_are_no_times(hub: str) -> None:
    (path,) = put(hub, "one.txt")
    before = storage.about(path)
    storage.write(path, b"two.txt")
    assert storage.about(path) != before
    storage.write(path, b"one.txt")
    assert storage.about(path) == before


@pytest.mark.parametrize("size", [5, 1000, -1])
def test_store_that_goes_while_a_file_is_read_is_an_error_of_the_system(
    hub: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from huggingface_hub.hf_file_system import HfFileSystemFile

    def gone(*_: object) -> None:
        raise RuntimeError("the line is cut")  # each library has errors of its own

    (path,) = put(hub, "left.txt")
    with storage.open_file(path) as file:
        monkeypatch.setattr(HfFileSystemFile, "read", gone)
        with pytest.raises(OSError, match=rf"read {path}: the line is cut"):
            file.read(size)


def test_files_below_a_folder_are_listed_by_name(root: str) -> None:
    paths = put(root, "b", "a", "sub/deep/c", "sub2/d")
    assert [file.path for file in storage.list_files(root)] == sorted(paths)
    assert [file.size for file in storage.list_files(root)] == [1] * 4
    sub = storage.join(root, "sub")
    assert [file.path for file in storage.list_files(sub)] == [storage.join(root, "sub/deep/c")]
    assert storage.list_files(storage.join(root, "none")) == []


def test_digest_is_that_of_the_content(root: str) -> None:
    (path,) = put(root, "a")
    assert storage.sha256_at(path).startswith("ca978112ca1bbdcafac231b39a23dc4d")


def test_what_is_written_bit_by_bit_is_there_when_the_block_ends(root: str) -> None:
    path = storage.join(root, "new/a")
    with storage.writing(path) as file:
        file.write(b"one ")
        assert storage.about(path) is None
        file.write(b"two")
    assert read(path) == b"one two"
    assert [file.path for file in storage.list_files(storage.join(root, "new"))] == [path]


def write_torn(path: str, error: type[BaseException]) -> None:
    with storage.writing(path) as file:
        file.write(b"torn")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_written_where_the_block_fails(root: str, error: type[BaseException]) -> None:
    there, new = put(root, "there")[0], storage.join(root, "new")
    for path in (there, new):
        with pytest.raises(error):
            write_torn(path, error)
    assert read(there) == b"there"
    assert [file.path for file in storage.list_files(root)] == [there]


def test_local_file_is_uploaded_whole(root: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    storage.upload(tmp_path / "a", storage.join(root, "up/b"))
    assert read(storage.join(root, "up/b")) == b"content"


def test_copy_lasts_as_long_as_the_block(root: str) -> None:
    (path,) = put(root, "a.csv")
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == b"a.csv"
        assert copy.name == "a.csv"
    assert copy.exists() is not storage.is_url(path)


# Stores


@pytest.mark.parametrize("url", ["s3://none/a", "s3://[bucket/a", "s3://no such/a"])
def test_bucket_that_is_not_there_is_an_error_of_the_system(bucket: str, url: str) -> None:
    with pytest.raises(OSError, match=r"."):
        storage.open_file(url)
    with pytest.raises(OSError, match=r"^write "):
        storage.write(url, b"x")


def test_words_of_a_store_are_one_line() -> None:
    assert storage.reason_of(OSError("a\nb   c")) == "a b c"
    assert storage.reason_of(FileNotFoundError(2, "No such file", "x")) == "No such file"
    assert storage.reason_of(ValueError()) == "ValueError"
    assert len(storage.reason_of(OSError("x" * 1000))) == 300


def test_whatever_a_store_raises_is_an_error_of_the_system(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no\nroute")

    monkeypatch.setattr(storage, "_filesystem", lambda *_: Broken())
    uses: list[Callable[[], object]] = [
        lambda: storage.about("s3://b/a"),
        lambda: storage.is_folder("s3://b/a"),
        lambda: storage.list_files("s3://b/a"),
        lambda: storage.open_file("s3://b/a"),
        lambda: storage.write("s3://b/a", b""),
        lambda: storage.remove("s3://b/a"),
    ]
    for use in uses:
        with pytest.raises(OSError, match=r"^\w+( at)? s3://b/a: no route$"):
            use()


def test_every_process_has_its_own_connection(bucket: str) -> None:
    mine = storage._opened(f"{bucket}/a")[0]
    assert storage._opened("S3://bucket/b")[0] is mine
    assert storage._filesystem("s3", "", os.getpid() + 1) is not mine


# Folders of stores, as folders here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(bucket: str, tmp_path: Path, cache: Path) -> str:
    """URL of a folder with files, of a test of its own."""
    folder = f"{bucket}/{tmp_path.name}/model"
    put(folder, "a", "sub/b")
    return folder


def in_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_folder_of_a_store_is_copied_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.fetched(model)
    assert (folder.name, in_folder(folder)) == ("model", {"a": b"a", "sub/b": b"b"})
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_file", None)
        assert storage.fetched(model) == folder
        assert storage.fetched(model + "/").name == "model"


def test_folder_that_was_changed_is_copied_again(model: str) -> None:
    before = storage.fetched(model)
    storage.write(f"{model}/a", b"longer")
    after = storage.fetched(model)
    assert before != after
    assert in_folder(after)["a"] == b"longer"
    assert in_folder(before)["a"] == b"a"


def test_copy_that_breaks_off_is_not_taken_for_the_whole(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.open_file

    def failing(path: str) -> Any:
        if path.endswith("b"):
            raise OSError("the line is cut")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_file", failing)
        with pytest.raises(RunError, match=r"expected a folder at .*model, got: the line is cut"):
            storage.fetched(model)
    assert in_folder(storage.fetched(model)) == {"a": b"a", "sub/b": b"b"}


def test_two_processes_may_copy_at_once(
    model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = storage.fetched(model)
    kept = first.with_name("kept")
    first.rename(kept)
    real = storage.open_file

    def slow(path: str) -> Any:
        if not first.exists():  # meanwhile the other one is ready
            shutil.copytree(kept, first)
        return real(path)

    monkeypatch.setattr(storage, "open_file", slow)
    assert storage.fetched(model) == first
    assert in_folder(first) == {"a": b"a", "sub/b": b"b"}


def test_names_in_a_store_do_not_lead_out_of_the_folder(
    model: str, cache: Path, tmp_path: Path
) -> None:
    import boto3

    key = f"{tmp_path.name}/model/../../../../z"
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"evil")
    put(model, "sub/deep/er/c")
    with pytest.raises(RunError, match="expected names of files below s3://bucket/"):
        storage.fetched(model)
    assert not [path for path in tmp_path.rglob("*") if path.name == "z"]


@pytest.mark.parametrize("url", ["s3://none/model", "s3://bucket/none"])
def test_folder_that_is_not_there_is_one_sentence(bucket: str, cache: Path, url: str) -> None:
    with pytest.raises(RunError) as caught:
        storage.fetched(url)
    assert str(caught.value) == f"expected a folder with files at {url}, got none"
