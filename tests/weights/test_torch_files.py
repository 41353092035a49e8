"""PyTorch's files: tensors bit for bit, one sentence for everything else, nothing executed."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmpl.errors import WeightsError
from dcmpl.files import sha256_of
from dcmpl.weights.torch_files import OPENAI, read_torch
from torch_files import (
    ORDERED,
    Trap,
    described,
    modules,
    named,
    plain,
    save_archive,
    save_torchscript,
    tensor,
)

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    """Tensors under OpenAI's names, of every kind of layout and number that files have."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    half = torch.randn(6, 2, generator=generator).half()
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    return {
        "logit_scale": torch.tensor(3.0),
        "visual.conv1.weight": torch.randn(2, 3, 2, 2, generator=generator),
        "visual.proj": base[1:3, 2:5],  # shares its storage with the two behind it
        "text_projection": base.T,
        "positional_embedding": base[0],
        "transformer.resblocks.0.attn.in_proj_weight": half,
        "transformer.resblocks.0.attn.out_proj.bias": half[:, 1],
        "transformer.resblocks.0.ln_1.bias": special,
        "transformer.resblocks.1.ln_1.bias": torch.randn(2, generator=generator).bfloat16(),
        "transformer.resblocks.1.ln_1.weight": torch.randn(2, generator=generator).double(),
        "context_length": torch.tensor(77),
        "attn_mask": torch.eye(2, dtype=torch.bool),
        "vocab_size": torch.arange(3, dtype=torch.int32),
    }


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape), name
        assert bits(found[name]) == bits(wanted), name


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_ordered(value: State, path: Path) -> None:
    torch.save(
        OrderedDict((k, nn.Parameter(t, t.is_floating_point())) for k, t in value.items()), path
    )


def save_wrapped(value: State, path: Path) -> None:
    torch.save({"state_dict": value, "epoch": 3}, path)


def save_module(value: State, path: Path) -> None:
    """The state dict of a module, which carries versions as attributes."""
    torch.save(modules(value).state_dict(), path)


def save_with_optimizer(value: State, path: Path) -> None:
    """What training scripts save: betas are one tuple in two groups."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [w]} for w in weights])
    sum(weights).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "state_dict": value, "best": 0.5}, path)


def save_lightning(value: State, path: Path) -> None:
    """Hyper-parameters as well, in which equal pairs are one object."""
    pairs = {"sizes": [(1, 2), (3, 4)], "steps": ((1, 2), (3, 4)), "name": "vit"}
    torch.save({"state_dict": value, "hyper_parameters": pairs}, path)


WRITERS = [save_zip, save_ordered, save_module, save_wrapped, save_with_optimizer, save_lightning]


@pytest.mark.parametrize("save", WRITERS)
def test_tensors_are_read_bit_for_bit(
    tmp_path: Path, state: State, save: Callable[[State, Path], None]
) -> None:
    save(state, tmp_path / "weights.pt")
    assert_equal(read_torch(tmp_path / "weights.pt"), state)


@pytest.mark.parametrize("save", [save_zip, save_ordered])
def test_an_empty_tensor_keeps_its_kind(
    tmp_path: Path, save: Callable[[State, Path], None]
) -> None:
    save({"empty": torch.zeros(0, 3).half()}, tmp_path / "weights.pt")
    (found,) = read_torch(tmp_path / "weights.pt").values()
    assert (found.dtype, found.shape) == (torch.float16, (0, 3))


def test_an_archive_by_hand_is_read(tmp_path: Path) -> None:
    """What the archives below that are refused differ from."""
    save_archive(tmp_path / "a.pt", described(w=tensor(), b=tensor((), ())))
    assert read_torch(tmp_path / "a.pt").keys() == {"w", "b"}


def refusal(path: Path) -> str:
    """The message ``path`` is refused with, which must be one sentence that names it."""
    with pytest.raises(WeightsError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert str(path) in message
    assert "\n" not in message
    return message


def pickle_dump(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, 2))


@pytest.mark.parametrize("save", [pickle_dump, save_zip, save_legacy])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"w": t}, lambda t: {"state_dict": [t]}])
def test_a_pickle_with_code_is_refused_and_executes_nothing(
    tmp_path: Path, save: Callable[[Any, Path], None], wrap: Callable[[Trap], Any]
) -> None:
    save(wrap(Trap(tmp_path / "sprung")), tmp_path / "weights.pth")
    refusal(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_refusal_shows_no_control_characters(tmp_path: Path) -> None:
    """Names in a file may hold what clears a terminal."""
    for name in ("\x1b[2J", "\u202e", "a" * 10_000):
        save_archive(tmp_path / "a.pt", described(w=named("os", name) + b")R"))
        message = refusal(tmp_path / "a.pt")
        assert message.isprintable()
        assert len(message) < 1000


def test_a_refusal_never_says_how_to_run_the_code(tmp_path: Path) -> None:
    """PyTorch's own messages do, with escape codes for bold letters."""
    for value in (Trap(tmp_path / "sprung"), nn.Linear(1, 1)):
        torch.save(value, tmp_path / "weights.pth")
        message = refusal(tmp_path / "weights.pth")
        assert "weights_only" not in message
        assert message.isprintable()
        assert "this file can still be loaded" not in message.lower()


CODE = {
    "os.system": named("os", "system"),
    "posix.mkdir": named("posix", "mkdir"),
    "builtins.eval": named("builtins", "eval"),
    "builtins.getattr": named("builtins", "getattr"),
    "dcmpl.weights.torch_files.pickle.sys": named("dcmpl.weights.torch_files", "pickle.sys"),
    "torch.load": named("torch", "load"),
    "torch.FloatStorage.mro": named("torch", "FloatStorage.mro"),
    "collections.OrderedDict.fromkeys": named("collections", "OrderedDict.fromkeys"),
    "torch.jit._pickle.build_anylist": named("torch.jit._pickle", "build_anylist"),
    "_rebuild_tensor": named("torch._utils", "_rebuild_tensor"),
    "dotted, protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93",
    "extension": b"\x82\x01",
}


@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_an_archive_that_names_code_is_refused_and_executes_nothing(
    tmp_path: Path, code: bytes
) -> None:
    call = code + plain(str(tmp_path / "sprung")) + b"\x85R"
    save_archive(tmp_path / "a.pt", described(w=tensor(), x=call))
    refusal(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("save", WRITERS)
@pytest.mark.parametrize("keep", [0, 1, 4, 40, 0.3, 0.6, 0.9, -200, -40, -1])
def test_a_truncated_file_is_refused(
    tmp_path: Path, state: State, save: Callable[[State, Path], None], keep: float
) -> None:
    path = tmp_path / "weights.pt"
    save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"weights", b"\n" * 99, bytes(999), b"PK\x03\x04" + bytes(99), b"\x80\x02."],
    ids=["empty", "text", "lines", "zeros", "zip", "nothing"],
)
def test_a_file_that_is_none_of_these_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    refusal(tmp_path / "weights.pt")


def test_the_format_before_version_1_6_is_refused_by_its_name(tmp_path: Path) -> None:
    """It is several pickles in a row, which saving again makes one of."""
    save_legacy({"w": torch.ones(1)}, tmp_path / "weights.pth")
    message = refusal(tmp_path / "weights.pth")
    assert "PyTorch 1.6 or later" in message
    assert "damaged" not in message


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path)
    refusal(tmp_path / "missing.pt")


@pytest.mark.parametrize("save", [save_zip])
@pytest.mark.parametrize(
    "value",
    [
        1,
        [torch.ones(1)],
        torch.ones(1),
        {"w": 1},
        {"w": [torch.ones(1)]},
        {"state_dict": {"w": "w"}},
    ],
    ids=["number", "list", "tensor", "dict of number", "dict of list", "wrapped text"],
)
def test_what_holds_no_tensors_by_name_is_refused(
    tmp_path: Path, save: Callable[[Any, Path], None], value: Any
) -> None:
    save(value, tmp_path / "weights.pt")
    assert "tensors and nothing else" in refusal(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"]
)
def test_a_tensor_without_plain_numbers_is_refused(tmp_path: Path, tensor: Tensor) -> None:
    """Whoever asks for its values later would fail without naming the file."""
    torch.save({"w": tensor}, tmp_path / "weights.pt")
    refusal(tmp_path / "weights.pt")


WRONG = {
    "fewer bytes": tensor(count=2, shape=(2,)),
    "more bytes": tensor(kind="HalfStorage"),
    "negative size": tensor(count=-1),
    "size beyond all memory": tensor(count=2**62, shape=(2**62,)),
    "no such storage": tensor(key="1"),
    "path as storage": tensor(key="../data/0"),
    "storage of another kind": tensor(kind="QInt8Storage"),
    "shape outside": tensor(shape=(2,)),
    "offset outside": tensor(offset=1),
    "offset beyond 64 bits": tensor(offset=2**64),
    "offset that wraps": tensor(offset=2**62),
    "offset that wraps below": tensor(offset=2**62 - 8),
    "negative offset": tensor(offset=-1),
    "negative stride": tensor(shape=(2,), stride=(-1,)),
    "stride outside": tensor(shape=(2,), stride=(2**62,)),
    "product that wraps": tensor(shape=(2**32, 2**32), stride=(0, 0)),
    "text as shape": tensor(shape="1"),
    "fraction as shape": tensor(shape=(1.0,)),
    "negative shape": tensor(shape=(-1,)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_tensor_that_is_not_within_its_storage_is_refused(tmp_path: Path, wrong: bytes) -> None:
    save_archive(tmp_path / "a.pt", described(w=wrong))
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tree",
    [
        b"N",
        b"]",
        plain(1),
        tensor(),
        b"c__torch__\nM\n",
        b"",
        b"(" * 99,
        b"\xff",
        b"0",
    ],
)
def test_an_archive_without_a_dictionary_of_tensors_is_refused(tmp_path: Path, tree: bytes) -> None:
    save_archive(tmp_path / "a.pt", tree)
    refusal(tmp_path / "a.pt")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    save_archive(tmp_path / "a.pt", b"}q\x01" + plain("me") + b"h\x01s")
    refusal(tmp_path / "a.pt")


def test_an_attribute_in_place_of_a_method_changes_nothing(tmp_path: Path) -> None:
    """An ordered dictionary takes attributes of any name."""
    odd = ORDERED + b")R(" + plain("w") + tensor() + b"u}(" + plain("items") + plain(1) + b"ub"
    save_archive(tmp_path / "a.pt", odd)
    assert read_torch(tmp_path / "a.pt").keys() == {"w"}


def test_a_changed_byte_is_refused(tmp_path: Path, state: State) -> None:
    save_zip(state, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:
        place = (tmp_path / "weights.pt").read_bytes().index(archive.read("weights/data/1"))
    content = bytearray((tmp_path / "weights.pt").read_bytes())
    content[place] ^= 1
    (tmp_path / "weights.pt").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "weights.pt")


# Programs, which OpenAI published their weights as.


def test_published_program_is_read_bit_for_bit(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_torchscript(state, tmp_path / "ViT.pt")
    monkeypatch.setitem(OPENAI, sha256_of(tmp_path / "ViT.pt"), "made")
    assert_equal(read_torch(tmp_path / "ViT.pt"), state)


def test_program_of_a_stranger_is_not_run(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_torchscript(state, tmp_path / "ViT.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it is run"))
    message = refusal(tmp_path / "ViT.pt")
    assert "ViT-B/32" in message
    assert "safetensors.torch.save_file" in message


def test_changed_byte_of_a_published_program_makes_it_a_stranger_s(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_torchscript(state, tmp_path / "ViT.pt")
    monkeypatch.setitem(OPENAI, sha256_of(tmp_path / "ViT.pt"), "made")
    with zipfile.ZipFile(tmp_path / "ViT.pt", "a") as archive:
        archive.writestr("ViT/extra", b"")
    refusal(tmp_path / "ViT.pt")
