"""Files as PyTorch writes them, and as nobody should: for tests of what reads them."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.tokenizer import Tokenizer


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Odd(nn.Module):
    """Attributes that no state dict has, as programs carry them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.eps, self.name, self.nothing = 2, 1e-5, "block", None
        self.sizes, self.ratios, self.flags = [1, 2, 3], [0.5, 2.0], [True, False]
        self.pair = (1, 2.0)


def modules(state: Mapping[str, Tensor]) -> nn.Module:
    """Nested modules whose state dict is ``state``, some with attributes beside it."""
    root: nn.Module = Odd()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        here = root
        for parent in parents:
            if parent not in here._modules:
                here.add_module(parent, Odd() if parent == "attn" else nn.Module())
            here = here.get_submodule(parent)
        if tensor.is_floating_point():
            here.register_parameter(last, nn.Parameter(tensor))
        else:
            here.register_buffer(last, tensor)
    return root


def save_torchscript(state: Mapping[str, Tensor], path: Path) -> None:
    """``state`` as a program with weights, the kind of file that OpenAI published."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch asks to switch to another format
        torch.jit.save(torch.jit.script(modules(state)), path)


def plain(value: Any) -> bytes:
    """The opcodes that leave ``value`` on the stack of an unpickler."""
    return pickle.dumps(value, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ORDERED = named("collections", "OrderedDict")


def tensor(
    shape: Any = (1,),
    stride: Any = (1,),
    offset: Any = 0,
    key: Any = "0",
    count: Any = 1,
    kind: str = "FloatStorage",
) -> bytes:
    """A tensor as an archive has it; OpenAI's lie on ``cuda:0``."""
    storage = plain("storage") + named("torch", kind) + plain(key) + plain("cuda:0") + plain(count)
    hooks = named("collections", "OrderedDict") + b")R"
    place = plain(offset) + plain(shape) + plain(stride)
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + b"(("
        + storage
        + b"tQ"
        + place
        + (b"\x89" + hooks + b"tR")
    )


def described(**tensors: bytes) -> bytes:
    """A state dict of these tensors."""
    pairs = b"".join(plain(name) + value for name, value in tensors.items())
    return b"}(" + pairs + b"u"


def save_archive(
    path: Path,
    tree: bytes,
    storages: Mapping[str, bytes] | None = None,
    compress: int = zipfile.ZIP_STORED,
) -> None:
    """What ``torch.save`` writes, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + tree + b".", zipfile.ZIP_STORED)
        for key, content in ({"0": bytes(4)} if storages is None else storages).items():
            archive.writestr(f"m/data/{key}", content)
        archive.writestr("m/version", b"3\n")


LEARNERS = {
    "auxiliary": ["aligned photo.", "misaligned photo."],
    "main": ["good photo.", "bad photo."],
}
"""The texts of each of CLIP-AGIQA's prompt learners, under our names of the branches."""


def clip_agiqa_state(model: DCMPL, tokenizer: Tokenizer, part: str) -> dict[str, Tensor]:
    """One of the prompt learners of ``model`` under the names of CLIP-AGIQA's script."""
    prompts, n = getattr(model, part), model.config.n_context
    lists = [("prompts_text", prompts.text[1:]), ("prompts_vis", prompts.visual)]
    state = {"ctx": prompts.text[0]}
    if part == "main":
        assert model.fusion is not None
        first, *others = model.fusion.layers
        modules = [("proj", first)]
        modules += [(f"compound_prompt_projections.{i}", m) for i, m in enumerate(others)]
        for place, layer in modules:
            state |= {f"{place}.{name}": p for name, p in layer.named_parameters()}
    for name, tensors in lists:
        state |= {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}
    tokens = tokenizer(LEARNERS[part], n)
    ids = torch.zeros(2, tokenizer.context_length, dtype=torch.long)
    ids[:, : tokens.ids.shape[1]] = torch.from_numpy(tokens.ids)
    vectors = model.clip.text.token_embedding(ids)
    state |= {"token_prefix": vectors[:, :1], "token_suffix": vectors[:, 1 + n :]}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def save_clip_agiqa(model: DCMPL, tokenizer: Tokenizer, folder: Path) -> tuple[Path, Path]:
    """Both files of ``model``, the auxiliary one first, called as the script calls them."""
    names = {"auxiliary": "AGIQA_AGIQA3k_8_aux_best.pth", "main": "AGIQA_AGIQA3k_8_tar_best.pth"}
    for part, name in names.items():
        torch.save(clip_agiqa_state(model, tokenizer, part), folder / name)
    return folder / names["auxiliary"], folder / names["main"]
