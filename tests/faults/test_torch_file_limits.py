"""PyTorch's files that are made to harm: what reading them takes is bounded by their size."""

import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from dcmpl.errors import WeightsError
from dcmpl.weights.torch_files import MAX_SHARED, MAX_TUPLES, read_torch
from torch_files import ORDERED, described, named, plain, save_archive, tensor

State = dict[str, Tensor]
ROOM = 4 * 2**20
"""What a small file may take beside its tensors, in bytes of Python's objects."""


def refused_or_read(path: Path) -> State:
    """Nothing where ``path`` is refused; the objects made on the way must be small."""
    tracemalloc.start()
    try:
        found = read_torch(path)
    except WeightsError:
        found = {}
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ROOM
    return found


def assert_refused(path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^expected [^\n]+$"):
        read_torch(path)


def test_compressed_tensors_are_refused(tmp_path: Path) -> None:
    """A million zeros take a thousand bytes; what is read must not outgrow the file."""
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in entries.items():
            small.writestr(name, content)
    assert_refused(tmp_path / "small.pt")


def test_storages_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    """So that a file of 40 kB would become 100 times as much in memory."""
    content, inner, trees = bytes(40_000), [], {}
    for key in map(str, range(100)):
        info = zipfile.ZipInfo(f"m/data/{key}")
        info.file_size, info.CRC = len(content), zlib.crc32(content)
        info.compress_size = len(content)
        inner.append((info, len(content)))
        trees[f"w{key}"] = tensor(key=key, count=len(content), kind="BoolStorage")
        content = info.FileHeader() + content
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + described(**trees) + b".")
        archive.writestr("padding", content)
        end = archive.start_dir
        for info, size in inner:
            info.header_offset = end - size - len(info.FileHeader())
            archive.filelist.append(info)
    assert_refused(tmp_path / "a.pt")


WIDE = tensor(shape=(50_000,), stride=(0,))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    """Strides of 0 make any shape of four bytes; a CLIP of that shape would be built."""
    save_archive(tmp_path / "a.pt", described(w=tensor(shape=(2**40,), stride=(0,))))
    assert_refused(tmp_path / "a.pt")
    torch.save({"w": torch.zeros(1).expand(2**40)}, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth")


def test_many_tensors_of_one_storage_are_refused(tmp_path: Path) -> None:
    """They may share it, but together they must not be a hundred times the file."""
    shared = torch.zeros(10_000)
    torch.save({f"w{i}": shared for i in range(500)}, tmp_path / "weights.pth")
    assert_refused(tmp_path / "weights.pth")


METHODS = {
    "__iter__": ORDERED + WIDE + b"\x85R",
    "add": WIDE + b"(" + WIDE + b"\x90",
    "__setitem__": WIDE + plain(0) + WIDE + b"s",
    "__setstate__": tensor() + plain((True, None, {})) + b"b",
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_a_tensor_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Opcodes for sets, lists and attributes reach them; with large operands they take all."""
    called: list[str] = []

    def record(*_: object) -> None:
        called.append(method)
        raise RuntimeError(method)

    save_archive(tmp_path / "a.pt", described(x=METHODS[method], w=tensor()))
    monkeypatch.setattr(torch.Tensor, method, record, raising=False)
    assert_refused(tmp_path / "a.pt")
    assert called == []


def test_a_storage_cannot_be_made_larger(tmp_path: Path) -> None:
    """Setting a tensor's state resizes the storage of an empty one."""
    empty = tensor((0,), key="0", count=0)
    grown = empty + b"(" + empty + plain(0) + plain((2**24,)) + plain((1,)) + b"tb"
    save_archive(tmp_path / "a.pt", described(w=grown), {"0": b""})
    assert_refused(tmp_path / "a.pt")


def functions() -> dict[str, Any]:
    found = {n: f for n, f in vars(torch._utils).items() if isinstance(f, FunctionType)}
    return {n: (f.__defaults__, f.__kwdefaults__, dict(vars(f))) for n, f in found.items()}


def test_a_file_changes_nothing_of_the_program(tmp_path: Path) -> None:
    """Defaults of the function that makes tensors are attributes too."""
    before = functions()
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    for state in ((None, {"__kwdefaults__": {"note": 1}}), {"note": 1}):
        save_archive(tmp_path / "a.pt", described(x=rebuild + plain(state) + b"b", w=tensor()))
        refused_or_read(tmp_path / "a.pt")
    assert functions() == before


def memo(index: int) -> bytes:
    return struct.pack("<cI", b"r", index)


def recall(index: int) -> bytes:
    return struct.pack("<cI", b"j", index)


def doubled(times: int) -> bytes:
    """A pair of a pair of ... of None, each there once and shown twice."""
    pairs = (recall(index) + b"\x86" + memo(index + 1) for index in range(times))
    return b"N" + memo(0) + b"".join(pairs)


def nested(depth: int) -> bytes:
    """A tuple in a tuple in a tuple, as a name beside the state dict."""
    name = b"N" + b"\x85" * depth
    weights = described(w=tensor())
    return b"}(" + plain("state_dict") + weights + plain("x") + b"}(" + name + plain(1) + b"uu"


PAIRS = b"](" + b"".join(plain((i, i)) for i in range(1000)) + b"e" + memo(1)
DICT = b"}(" + b"".join(plain(f"k{i}") + b"N" for i in range(1000)) + b"u" + memo(1)
ATTRIBUTES = ORDERED + b")R" + recall(1) + b"b"
LARGE = {
    # CPython keeps what a pickle refers to in a table as long as the largest index.
    "a memo index": described(x=b"N" + memo(2**22), w=tensor()),
    "copies of a list": described(x=PAIRS, y=b"](" + (ORDERED + recall(1) + b"\x85R") * 200 + b"e"),
    "copies by a mark": described(x=PAIRS, y=b"](" + (ORDERED + b"(h\x01tR") * 200 + b"e"),
    "copies of attributes": described(x=DICT, y=b"](" + ATTRIBUTES * 200 + b"e"),
    "a list of a tensor": described(w=ORDERED + WIDE + b"\x85R"),
    "a doubled tuple as storage": described(w=b"(" + plain("storage") + doubled(60) + b"NNNtQ"),
    "a doubled tuple as shape": described(w=tensor() + ORDERED + doubled(60) + b"\x85R"),
    "a doubled tuple as name": described(x=b"}" + doubled(60) + tensor() + b"s"),
    "a long name": described(**{"k" * 10_000: tensor()}),
}


@pytest.mark.parametrize("tree", LARGE.values(), ids=LARGE)
def test_a_small_pickle_makes_no_large_objects(tmp_path: Path, tree: bytes) -> None:
    save_archive(tmp_path / "a.pt", tree)
    refused_or_read(tmp_path / "a.pt")


def test_a_compressed_pickle_makes_no_large_objects(tmp_path: Path) -> None:
    """Every opcode is a table of 64 bytes, and compressed it is a thousandth of a byte."""
    save_archive(tmp_path / "a.pt", described(w=tensor()))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x04(" + b"}" * 10**5 + b"t.")
    refused_or_read(tmp_path / "b.pt")


@pytest.mark.parametrize("depth", [MAX_TUPLES - 10, 10**6])
def test_a_deeply_nested_name_does_not_end_the_process(tmp_path: Path, depth: int) -> None:
    """Hashing it needs more of the stack than there is; in a process of its own."""
    save_archive(tmp_path / "a.pt", nested(depth))
    lines = (
        "import sys, pathlib, threading, dcmpl.weights.torch_files as files",
        "read = lambda: files.read_torch(pathlib.Path(sys.argv[1]))",
        "thread = threading.Thread(target=read)",  # whose stack may be smaller
        "thread.start(); thread.join(); read()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path / "a.pt")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == (0 if depth < MAX_TUPLES else 1), done.stderr[-300:]


@pytest.mark.parametrize(("length", "is_read"), [(2, True), (MAX_SHARED + 1, False)])
def test_only_a_short_tuple_may_be_used_again(tmp_path: Path, length: int, is_read: bool) -> None:
    """Every use as a name is a hash of all of it; optimizers have one pair in many groups."""
    pair = b"(" + plain(1) * length + b"t" + memo(1)
    beside = b"](" + pair + recall(1) * 2000 + b"e"
    tree = b"}(" + plain("state_dict") + described(w=tensor()) + plain("x") + beside + b"u"
    save_archive(tmp_path / "a.pt", tree)
    assert (refused_or_read(tmp_path / "a.pt") != {}) is is_read


CALL = b")R"
DOUBLED = {
    "lists": b"]"
    + memo(0)
    + b"".join(b"](" + recall(i) * 2 + b"e" + memo(i + 1) for i in range(60)),
    "tuples and lists": b"N"
    + memo(0)
    + b"".join(b"](" + recall(i) * 2 + b"e" + b"\x85" + memo(i + 1) for i in range(60)),
    "dictionaries": ORDERED
    + CALL
    + memo(0)
    + b"".join(
        ORDERED + CALL + b"(N" + recall(i) + plain(1) + recall(i) + b"u" + memo(i + 1)
        for i in range(60)
    ),
    "dictionaries of dictionaries": b"".join(
        ORDERED + b"(" + ORDERED + CALL + b"tR" + memo(i) for i in range(3)
    ),
}


@pytest.mark.parametrize("tree", DOUBLED.values(), ids=DOUBLED)
@pytest.mark.parametrize("called", [CALL, b")\x81", b""], ids=["call", "new object", "value"])
def test_containers_that_double_are_refused(tmp_path: Path, tree: bytes, called: bytes) -> None:
    """PyTorch quotes what it refuses to call, and the quotation doubles as well."""
    save_archive(tmp_path / "a.pt", described(x=tree + called, w=tensor()))
    assert_refused(tmp_path / "a.pt")


def test_many_small_objects_are_refused(tmp_path: Path) -> None:
    save_archive(tmp_path / "a.pt", described(x=b"(" + b"\x8f" * 10**6 + b"t", w=tensor()))
    refused_or_read(tmp_path / "a.pt")


def test_second_archive_that_pytorch_would_read_is_refused(tmp_path: Path) -> None:
    """Bytes before an archive shift what zipfile reads, and not what PyTorch reads."""
    save_archive(tmp_path / "checked.pt", described(w=tensor()))
    save_archive(tmp_path / "read.pt", described(x=b"}" + doubled(60) + tensor() + b"s"))
    both = (tmp_path / "read.pt").read_bytes() + (tmp_path / "checked.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(both)
    assert_refused(tmp_path / "a.pt")
