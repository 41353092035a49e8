"""Weights files that PyTorch saved, read by ``torch.load(weights_only=True)``.

``torch.load`` never executes what a file names. The checks before it bound memory and time:
PyTorch's files are zip archives, and nothing in them may be larger than the file itself.
"""

import os
import pickletools
import struct
import warnings
import zipfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcmpl.errors import WeightsError
from dcmpl.files import sha256_of

__all__ = ["OPENAI", "read_torch"]

OPENAI = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}
"""SHA-256 of the files that OpenAI published: programs (TorchScript), so no other may run."""

MAX_PICKLE_BYTES = 2**20
"""Bound on the pickle that describes the tensors; one of 600 tensors with Adam has 240 kB."""

MAX_TUPLES = 20_000
"""Bound on its tuples, so on their depth; a tensor needs four, a CLIP has some 600 tensors."""

MAX_SHARED = 16
"""Longest tuple that may be used again, as optimizers beside the tensors do with their betas."""

MAX_NAME = 1000
"""Longest name of a tensor, in characters."""

KINDS = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Byte", "Bool")
CALLS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in KINDS),
}
"""All that the pickle of a state dict names."""

TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
PUTS = {"BINPUT", "LONG_BINPUT"}
GETS = {"BINGET", "LONG_BINGET"}
VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"NONE", "NEWTRUE", "NEWFALSE"}
DICTS = {"EMPTY_DICT", "SETITEM", "SETITEMS"}
CONTAINERS = {*DICTS, "EMPTY_LIST", "APPEND", "APPENDS", "BUILD"}
OPCODES = {*TUPLES, *PUTS, *GETS, *VALUES, *CONTAINERS}
OPCODES |= {"PROTO", "MARK", "EMPTY_TUPLE", "GLOBAL", "REDUCE", "BINPERSID", "STOP"}
"""All that PyTorch writes for tensors, numbers and texts in lists and dictionaries."""

HOOKS = ("EMPTY_TUPLE", "REDUCE")
"""An empty dictionary: the last argument of every call that makes a tensor."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, as views of the file; or of a CLIP of OpenAI's.

    Raises :class:`WeightsError` for a damaged file and for one that holds anything but
    tensors, before it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_program(path)
            with path.open("rb") as file:
                file.seek(-min(98, path.stat().st_size), os.SEEK_END)
                _check_directory(archive, file.read())
            held = _check_archive(archive, path.stat().st_size)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _checked(loaded, held)
    except WeightsError:
        raise
    except Exception as error:  # damaged and made-up files raise some twenty types
        is_ours = isinstance(error, (_RefusedError, zipfile.BadZipFile))
        reason = str(error) if is_ours else "a file that is damaged"
        reason = "".join(letter for letter in reason[:200] if letter.isprintable())
    raise WeightsError(
        f"a file that PyTorch 1.6 or later saved, tensors and nothing else, at {path}",
        hint="save the state dict alone, with safetensors.torch.save_file or torch.save",
        reason=reason,
    )


class _RefusedError(Exception):
    """Reason to refuse a file."""


def _check_directory(archive: zipfile.ZipFile, end: bytes) -> None:
    """Refuse two archives in one file: zipfile would check one and PyTorch read the other.

    Python allows bytes before an archive and shifts its offsets; PyTorch takes them as they are.
    """
    (offset,) = struct.unpack("<L", end[-6:-2])
    wide = end[-98:-42] if end[-42:-38] == b"PK\x06\x07" else b""
    offsets = {offset} - {2**32 - 1} | {*(struct.unpack("<Q", wide[48:]) if wide else ())}
    if end[-22:-18] != b"PK\x05\x06" or offsets != {archive.start_dir}:
        raise _RefusedError("an archive that does not begin where the file does")


def _check_archive(archive: zipfile.ZipFile, size: int) -> int:
    """Refuse bombs and damaged archives; returns the bytes of all tensors."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    root = names[0].split("/")[0] if names else ""
    if any(not name.startswith(f"{root}/") for name in names):
        raise _RefusedError("an archive of several folders")
    if len({name.casefold() for name in names}) < len(names):
        raise _RefusedError("an archive with two files of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _RefusedError("compressed tensors, which PyTorch does not write")
    if sum(entry.file_size for entry in entries) > size:
        raise _RefusedError("files larger than the archive they are in")
    if broken := archive.testzip():
        raise _RefusedError(f"a damaged archive: {broken} is not what was written")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise _RefusedError("numbers of another byte order")
    if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE_BYTES:
        raise _RefusedError(f"a description of more than {MAX_PICKLE_BYTES} bytes")
    _check_pickle(archive.read(f"{root}/data.pkl"))
    return sum(e.file_size for e in entries if e.filename.startswith(f"{root}/data/"))


@dataclass
class _Frame:
    """Opcodes since a mark: how many, and whether all of them are values."""

    count: int = 0
    is_flat: bool = True


def _check_pickle(content: bytes) -> None:
    """Refuse calls that make no tensor, and pickles that grow when they are read.

    Whatever is in the memo may be used again any number of times. Lists, dictionaries and
    tuples of more than a few values may not: in one another they double with each, and so does
    the time for a hash, and for the text of an error.
    """
    before: deque[str] = deque(maxlen=3)
    once, made, last, frames = set(), 0, _Frame(), [_Frame()]
    for code, argument, _ in pickletools.genops(content):
        name, frame = code.name, frames[-1]
        _check_opcode(name, argument, before, last)
        if name in PUTS:
            if _is_used_once(before, last):
                once.add(argument)
            continue
        if name in GETS and argument in once:
            raise _RefusedError("a list, dictionary or tuple that is used twice")
        if name in TUPLES:
            made, last = made + 1, _tuple_of(name, frame, before)
        if made > MAX_TUPLES:
            raise _RefusedError(f"more than {MAX_TUPLES} tuples")
        frame.count += 1
        frame.is_flat &= name in VALUES
        if name == "MARK":
            frames.append(_Frame())
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            frames.pop()
        before.append(name)


def _check_opcode(name: str, argument: object, before: Sequence[str], last: _Frame) -> None:
    """Refuse an opcode of anything but tensors, numbers and texts in lists and dictionaries."""
    if name not in OPCODES or (name == "GLOBAL" and argument not in CALLS):
        raise _RefusedError(f"a call of {argument or name}, which makes no tensor")
    if name == "REDUCE" and not _is_call(before, last):
        raise _RefusedError("a call that makes no tensor")
    if name == "BUILD" and before[-1] not in DICTS:
        raise _RefusedError("an object with attributes, which is no tensor")


def _is_used_once(before: Sequence[str], last: _Frame) -> bool:
    """Whether what goes into the memo is a list, a dictionary or a tuple of many things."""
    is_wide = before[-1] in TUPLES and not (last.is_flat and last.count <= MAX_SHARED)
    return is_wide or before[-1] in CONTAINERS or tuple(before)[-2:] == HOOKS


def _tuple_of(name: str, frame: _Frame, before: Sequence[str]) -> _Frame:
    """What a tuple is made of: all of its frame, or the last one to three."""
    if name == "TUPLE":
        return replace(frame)
    length = int(name[-1])
    return _Frame(length, {*list(before)[-length:]} <= VALUES)


def _is_call(before: Sequence[str], last: _Frame) -> bool:
    """Whether a call makes a dictionary of nothing, or a tensor of several arguments.

    A dictionary of a single one would copy it, or iterate over a tensor.
    """
    end = tuple(before)
    several = end == (*HOOKS, "TUPLE3") or (end == (*HOOKS, "TUPLE") and last.count > 3)
    return end[-1:] == ("EMPTY_TUPLE",) or several


def _read_program(path: Path) -> dict[str, Tensor]:
    if sha256_of(path) not in OPENAI:
        raise WeightsError(
            f"a file of tensors at {path}",
            "a program (TorchScript) that is none of OpenAI's "
            f"({', '.join(OPENAI.values())}), and strangers' programs are not run",
            "save its state_dict() with safetensors.torch.save_file",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch recommends another format
        program = torch.jit.load(path, map_location="cpu")
    state: dict[str, Tensor] = program.state_dict()
    return state


def _checked(loaded: Any, held: int) -> dict[str, Tensor]:
    """State dict in ``loaded``, whose tensors have at most ``held`` bytes."""
    if not isinstance(loaded, dict):
        raise _RefusedError(f"a {type(loaded).__name__} and no names with tensors")
    tree = dict(loaded)
    is_wrapped = isinstance(tree.get("state_dict"), dict)
    tree = dict(tree["state_dict"]) if is_wrapped else tree
    for name, tensor in tree.items():
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise _RefusedError(f"a name that is no text of at most {MAX_NAME} characters")
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            raise _RefusedError(f"values that are no tensors, {name} among them")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tree.values()}
    stored = sum(storage.nbytes() for storage in storages.values())
    if stored > held or (stored < held and not is_wrapped):
        raise _RefusedError(f"storages of {stored} bytes, {held} bytes are there")
    if sum(tensor.nbytes for tensor in tree.values()) > 2 * held:
        raise _RefusedError("far more numbers in tensors than in storages")
    return {name: tensor.detach() for name, tensor in tree.items()}
