"""Tensors from PyTorch's own files, read as data: nothing in them is ever executed.

Both kinds, a saved state dict and the TorchScript archives that OpenAI published, are zip
files with raw numbers and a pickle that says what they are. That pickle is not unpickled:
its instructions are read one by one, and those that build tensors and containers are done
on plain values of ours. Every other instruction, and every other name, is refused.
"""

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcmpl.errors import WeightsError

__all__ = ["read_torch"]

MAX_PICKLE_BYTES = 4 * 2**20
"""OpenAI's largest has 200 kB."""

MAX_NAME = 1000

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _RefusedError(Exception):
    """What the pickle asks for is not about tensors."""


@dataclass(frozen=True)
class _Name:
    """Something of a program that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _Described:
    """A tensor that is still to be read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class _Module:
    """An object of the archive's program: its attributes, and no behaviour."""

    attributes: dict[Any, Any] = field(default_factory=dict)


FAULTS = (
    *(_RefusedError, zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, OverflowError, RuntimeError, NotImplementedError),
)
"""What damaged and made-up files raise on the way."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict or of a TorchScript archive, by name.

    Raises :class:`WeightsError` for whatever is not one, or holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (
                n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1
            )
            order = f"{name.split('/')[0]}/byteorder"
            if order in archive.namelist() and _stored(archive, order, 16) != b"little":
                raise _RefusedError("numbers of another byte order")
            tree = _Machine().run(_stored(archive, name, MAX_PICKLE_BYTES))
            return _read_all(archive, name.split("/")[0], dict(_flat(tree)), path.stat().st_size)
    except FAULTS as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        told = "".join(letter for letter in told if letter.isprintable())
    raise WeightsError(
        f"expected a file that PyTorch 1.6 or later saved, tensors and nothing else, at {path}, "
        f"got: {told}"
    )


def _stored(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """An entry of at most ``size`` bytes, as PyTorch writes them: not compressed."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
        raise _RefusedError(f"{name} is compressed or larger than {size} bytes")
    return archive.read(info)


class _Machine:
    """Reads a pickle's instructions, one method for each kind that tensors need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}
        self.marks: list[int] = []

    def run(self, content: bytes) -> Any:
        """The value the pickle describes, made of plain values and the classes above."""
        for code, value, _ in pickletools.genops(content):
            if code.name == "STOP":
                return self.stack.pop()
            if code.name in INSTRUCTIONS:
                INSTRUCTIONS[code.name](self, value)
            elif code.name in VALUES:
                self.stack.append(value)
            else:
                raise _RefusedError(f"the instruction {code.name}, which no file of tensors needs")
        raise _RefusedError("a pickle without an end")

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember(self, place: Any) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: Any) -> None:
        self.stack.append(self.memo[place])

    def name(self, both: Any) -> None:
        if both is None:  # the two lie on the stack
            self.stack[-2:] = [_Name(_of(self.stack[-2], str), _of(self.stack[-1], str))]
        else:
            self.stack.append(_Name(*_of(both, str).split(" ", 1)))

    def join(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        _of(self.stack[-1], list).extend(items)

    def update(self, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        target = _of(self.stack[-1], dict)
        target.update((_key(key), value) for key, value in pairs)

    def refer(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))

    def call(self, _: Any) -> None:
        arguments, called = _of(self.stack.pop(), tuple), _of(self.stack.pop(), _Name)
        self.stack.append(_made(called, arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Module):
            self.stack[-1].attributes.update(_of(state, dict))
        else:  # an ordered dictionary's own attributes, of which none is a tensor
            _of(self.stack[-1], dict)


VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2"}
VALUES |= {"LONG1", "LONG4", "BINFLOAT"}


def _push(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value() if callable(value) else value)


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "NONE": _push(None),
    "NEWTRUE": _push(True),
    "NEWFALSE": _push(False),
    "EMPTY_TUPLE": _push(()),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "BINPERSID": _Machine.refer,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}


def _key(value: Any) -> str | int:
    if type(value) not in (str, int):
        raise _RefusedError(f"a {type(value).__name__} as a name")
    key: str | int = value
    return key


def _of(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise _RefusedError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _storage(found: Any) -> _Storage:
    kind, named, key, _, count = _of(found, tuple)
    dtype = DTYPES.get(str(_of(named, _Name)).removeprefix("torch."))
    if _of(kind, str) != "storage" or dtype is None:
        raise _RefusedError(f"a reference to {kind} of {named}, which is no storage of numbers")
    return _Storage(_of(key, str), dtype, _of(count, int))


def _rebuilt(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Described:
    numbers = (*_of(shape, tuple), *_of(stride, tuple), offset)
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise _RefusedError("a tensor whose sizes are no numbers")
    described = _Described(_of(storage, _Storage), offset, shape, stride)
    if torch.Size(shape).numel() > storage.count:
        raise _RefusedError(f"a tensor of shape {shape} in a storage of {storage.count} numbers")
    return described


KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": lambda tensor, *_: _of(tensor, _Described),
    "collections.OrderedDict": lambda: {},
    **{
        f"torch.jit._pickle.build_{kind}list": lambda items: _of(items, list)
        for kind in ("int", "double", "bool", "tensor")
    },
}


def _made(called: _Name, arguments: tuple[Any, ...]) -> Any:
    if called.module.split(".")[0] == "__torch__":
        return _Module()
    if str(called) not in KNOWN:
        raise _RefusedError(f"it calls {called}, which makes no tensor")
    return KNOWN[str(called)](*arguments)


def _flat(tree: Any) -> Iterator[tuple[str, _Described]]:
    """All tensors below, under the names that a state dict gives them."""
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if isinstance(tree, dict) and not all(isinstance(t, _Described) for t in tree.values()):
        raise _RefusedError("values that are no tensors")
    if not isinstance(tree, (dict, _Module)):
        raise _RefusedError(f"a {type(tree).__name__} and no names with tensors")
    waiting, seen = [("", tree)], set()
    while waiting:
        prefix, node = waiting.pop()
        if id(node) in seen:
            raise _RefusedError(f"one module under two names, {prefix} the second")
        seen.add(id(node))
        for name, value in (node if isinstance(node, dict) else node.attributes).items():
            if not isinstance(value, (_Described, _Module)):
                continue
            whole = f"{prefix}{_of(name, str)}"
            if len(whole) > MAX_NAME:
                raise _RefusedError(f"a name of more than {MAX_NAME} characters")
            if isinstance(value, _Described):
                yield whole, value
            else:
                waiting.append((f"{whole}.", value))


def _read_all(
    archive: zipfile.ZipFile, root: str, described: dict[str, _Described], size: int
) -> dict[str, Tensor]:
    """Read every storage once; all of them together are no larger than the file."""
    storages: dict[str, Tensor] = {}
    for tensor in described.values():
        storage = tensor.storage
        if storage.key not in storages:
            wanted = storage.count * storage.dtype.itemsize
            size -= wanted
            if size < 0:
                raise _RefusedError("storages larger than the file they are in")
            content = bytearray(_stored(archive, f"{root}/data/{storage.key}", wanted))
            if len(content) != wanted:
                raise _RefusedError(f"storage {storage.key} of {len(content)} bytes, not {wanted}")
            empty = torch.empty(0, dtype=storage.dtype)
            storages[storage.key] = (
                torch.frombuffer(content, dtype=storage.dtype) if wanted else empty
            )
        if storages[storage.key].dtype != storage.dtype:
            raise _RefusedError(f"storage {storage.key} as two kinds of numbers")
    held = sum(storage.numel() for storage in storages.values())
    if sum(torch.Size(tensor.shape).numel() for tensor in described.values()) > 2 * held:
        raise _RefusedError("far more numbers in tensors than in storages")
    return {
        name: storages[tensor.storage.key].as_strided(tensor.shape, tensor.stride, tensor.offset)
        for name, tensor in described.items()
    }
