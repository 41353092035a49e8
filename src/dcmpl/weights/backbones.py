"""Pretrained CLIP backbones: find, check, load strictly.

A backbone is a folder as Hugging Face or open_clip lays it out, an id on the hub, a ``.pt``
file of OpenAI's, or ``small``, which comes with the package. Tensors are read as tensors;
nothing in these files is executed, but for the four programs that OpenAI published its CLIPs as.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcmpl.errors import WeightsError
from dcmpl.files import sha256_of
from dcmpl.model.clip import Clip, ClipConfig
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.weights import EMBEDDED, check_backbone
from dcmpl.weights.layouts import ours, read_config, read_open_clip_config, sizes_of
from dcmpl.weights.torch_files import read_torch

__all__ = ["Backbone", "load_backbone"]

CONFIGS = {"config.json": read_config, "open_clip_config.json": read_open_clip_config}
WEIGHTS = {
    "config.json": ("model.safetensors", "pytorch_model.bin"),
    "open_clip_config.json": (
        "model.safetensors",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
}
"""By configuration file: the weights files that may lie beside it, the best first."""
TOKENIZERS = ("tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, its tokenizer, and the SHA-256 of its weights file."""

    name: str
    clip: Clip
    tokenizer: Tokenizer
    sha256: str

    @property
    def image_size(self) -> int:
        """Side of a window in pixels."""
        return self.clip.config.image_size


def load_backbone(name: str) -> Backbone:
    """Load the backbone called ``name``; raises :class:`WeightsError` naming what is missing."""
    place = _find(name)
    if place.is_file():
        weights, state = place, ours(read_torch(place))
        config = sizes_of(state, place)
        place = place.parent
        state = _fitting(state, _expected(config), weights)
    else:
        described = next((file for file in CONFIGS if (place / file).is_file()), FILES[0])
        _check_present(place, described)
        config = CONFIGS[described](place / described)
        known = WEIGHTS[described]
        weights = place / next((file for file in known if (place / file).is_file()), known[0])
        _check_present(place, weights.name)
        state = _read_weights(weights, _expected(config))
    words = next((file for file in TOKENIZERS if (place / file).is_file()), TOKENIZERS[0])
    _check_present(place, words)
    tokenizer = Tokenizer(place / words, config.context_length)
    if tokenizer.size > config.vocab_size:
        raise WeightsError(
            f"a tokenizer of at most {config.vocab_size} entries in {place}",
            tokenizer.size,
            f"{words} belongs to another backbone",
        )
    with torch.random.fork_rng(devices=[]):  # what it is filled with is overwritten
        clip = Clip(config)
    clip.load_state_dict(state, strict=True)
    clip.eval().requires_grad_(False)
    return Backbone(_lasting(name), clip, tokenizer, sha256_of(weights))


def _lasting(name: str) -> str:
    """Lasting name of a backbone: full paths for folders and files."""
    is_place = name not in EMBEDDED and Path(name).exists()
    return str(Path(name).absolute()) if is_place else name


def _check_present(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise WeightsError(f"a CLIP backbone in {folder} ({', '.join(FILES)})", f"no {file}")


def _find(name: str) -> Path:
    """The folder or file that holds a backbone; the hub's cache where ``name`` is an id."""
    if check_backbone(name) in EMBEDDED:
        return EMBEDDED[name]
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download  # slow to import, and only needed here

    def fetch(weights: str, local: bool) -> Path:
        wanted = [*CONFIGS, weights, *TOKENIZERS]
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local))

    def has(folder: Path, files: Iterable[str]) -> bool:
        return any((folder / file).is_file() for file in files)

    weights_files = [file for files in WEIGHTS.values() for file in files]

    with contextlib.suppress(Exception):  # nothing of it is here yet
        folder = fetch("*", local=True)
        if all(has(folder, files) for files in (CONFIGS, weights_files, TOKENIZERS)):
            return folder
    try:
        if not has(folder := fetch("*model.safetensors", local=False), weights_files):
            folder = fetch("*pytorch_model.bin", local=False)  # older uploads have nothing else
    except Exception as error:  # network, hub and cache raise a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"to find the backbone {name} in the local cache or on the hub",
            hint="download it once or give the path of its folder",
            reason=reason,
        ) from error
    return folder


def _expected(config: ClipConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a CLIP of that size."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in Clip(config).state_dict().items()}


def _read_weights(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path, expected)
    return _fitting(ours(read_torch(path)), expected, path)


def read_tensors(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a safetensors file in float32, all of ``expected`` and no others."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Sizes first: a file that does not fit is refused before it is read.
            total = sum(torch.Size(file.get_slice(n).get_shape()).numel() for n in names)
            if total > 2 * sum(shape.numel() for shape in expected.values()):
                raise WeightsError("the weights config.json describes", f"more in {path}")
            state = ours({name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"a readable safetensors file at {path}", reason=error) from error
    return _fitting(state, expected, path)


def _fitting(
    state: dict[str, Tensor], expected: Mapping[str, torch.Size], path: Path
) -> dict[str, Tensor]:
    """``state`` in float32 where it has just the expected names and shapes, and numbers."""
    missing, extra = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or extra:
        raise WeightsError(
            f"the tensors of a CLIP in {path}",
            f"{len(missing)} missing ({', '.join(missing[:3])}) and "
            f"{len(extra)} unknown ({', '.join(extra[:3])})",
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise WeightsError(
                f"{name} of shape {tuple(shape)} in {path}", tuple(state[name].shape)
            )
        if state[name].is_complex():
            raise WeightsError(f"real numbers in {path}", f"complex ones in {name}")
    floats = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in floats.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"finite numbers in {path}", f"others in {name}")
    return floats
