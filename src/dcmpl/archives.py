"""Tensors from PyTorch's own files, read as data: nothing in them is ever executed.

Two kinds exist. A plain state dict goes through PyTorch's ``weights_only`` loader. The files
that OpenAI published are TorchScript archives, programs with weights; of those only the
pickled attribute tree is read, by an unpickler that knows tensors and containers and makes
an inert record of everything the program would have made an object of.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dcmpl.errors import WeightsError

__all__ = ["read_torch"]

MAX_BYTES = 16 * 2**30
MAX_PICKLE_BYTES = 64 * 2**20

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict or of a TorchScript archive, by name.

    Raises :class:`WeightsError` for whatever is not one, or holds anything but tensors.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"expected weights of at most {MAX_BYTES} bytes, got {path}")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _torchscript(archive)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # damaged pickles and archives raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"expected tensors and nothing else in {path}, got: {reason}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise WeightsError(
            f"expected a state dict (names to tensors) in {path}, got something else"
        )
    return {str(name): tensor for name, tensor in found.items()}


class _Inert:
    """Stands for an object of the archive's program: its attributes, and no behaviour."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """An unpickler that can name nothing but tensors, containers and :class:`_Inert`."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Inert,), {})
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch", storage): dtype for storage, dtype in STORAGES.items()},
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in _LISTS},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage")
        if key not in self.storages:
            info = self.archive.getinfo(f"{self.root}/data/{key}")
            size = count * dtype.itemsize
            if info.file_size != size or info.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"storage {key} is not the {size} bytes it should be")
            content = bytearray(self.archive.read(info))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if size else torch.empty(0)
        return self.storages[key]


_LISTS = ("int", "double", "bool", "tensor")


def _tensor(storage: Tensor, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(shape), tuple(stride), offset)


def _torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """All tensors of the module tree, under the names that its state dict would have."""
    (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1)
    if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
        raise WeightsError(f"expected at most {MAX_PICKLE_BYTES} bytes of structure, got more")
    with archive.open(name) as file:
        tree = _Reader(file, archive, name.split("/")[0]).load()
    found: dict[str, Tensor] = {}

    def walk(node: _Inert, prefix: str) -> None:
        for key, value in node.attributes.items():
            if isinstance(value, Tensor):
                found[prefix + key] = value
            elif isinstance(value, _Inert):
                walk(value, f"{prefix}{key}.")

    walk(tree, "")
    return found
