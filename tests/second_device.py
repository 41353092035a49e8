"""A second device that every machine has: it computes on the CPU and refuses to mix with it.

``torch.device("elsewhere")`` is a backend of PyTorch's own kind (PrivateUse1). Its tensors wrap
CPU tensors; an operation between one of them and a plain tensor of any dimensions is an error,
as it is on a GPU, and so are 64-bit floats, which Apple's GPUs lack. So what a model computes
can be held to its device, by whole commands too, on a machine without a GPU.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["ELSEWHERE"]

ELSEWHERE = "elsewhere"


class _Backend(SimpleNamespace):
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)  # it draws on the CPU

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Elsewhere(torch.Tensor):
    """A tensor of the second device over ``raw``, one of the CPU."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "_Elsewhere":
        if raw.dtype == torch.float64:
            raise TypeError("this device has no 64-bit floats")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(ELSEWHERE, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _raw(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.raw if isinstance(value, _Elsewhere) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the CPU whose tensors all are of the second device, or move there."""
    if func is torch.ops.aten.copy_.default:  # how tensors cross from one device to the other
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = {id(t.raw): t for t in tensors if isinstance(t, _Elsewhere)}
    plain = [t for t in tensors if not isinstance(t, _Elsewhere) and t.ndim]
    if ours and plain:
        shapes = ", ".join(str(tuple(t.shape)) for t in plain)
        raise RuntimeError(f"{func} got tensors of two devices, those of {shapes} on the CPU")
    wanted = kwargs.get("device")
    found = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if wanted is not None and torch.device(wanted).type == "cpu":
        return found

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return ours[id(value)] if id(value) in ours else _Elsewhere(value)

    with torch.inference_mode(False):  # or what is cut into views cannot be wrapped
        return tree_map(placed, found)


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


if not hasattr(torch, ELSEWHERE):  # once for a process, whoever imports this file
    _setup_privateuseone_for_python_backend(ELSEWHERE, _Backend())
    LIBRARY = torch.library.Library("_", "IMPL")
    LIBRARY.fallback(_fallback, "PrivateUse1")
