"""Import of checkpoints that CLIP-AGIQA's training script wrote.

Fu et al., arXiv:2406.16641. Its script saves the auxiliary and the main prompt learner as
two state dicts. Beside the prompts they hold the token vectors of their words, which tell
whether a backbone is the one they were learned on.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dcmpl.config import CLIP_AGIQA_WORDS, ModelConfig
from dcmpl.errors import RunError, UsageError
from dcmpl.model.clip import Clip, as_tensors
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.presets import PRESETS
from dcmpl.weights.torch_files import read_torch

__all__ = ["read_clip_agiqa"]

MAX_BYTES = 2**30
TOLERANCE = 1e-4
"""Token vectors are copies; float16 rounding of either side stays far below this."""

NAMES = (
    (r"^ctx$", "text.0"),
    (r"^prompts_text\.(\d{1,3})$", "text.{next}"),
    (r"^prompts_vis\.(\d{1,3})$", "visual.{same}"),
    (r"^proj\.(weight|bias)$", "fusion.layers.0.{last}"),
    (r"^compound_prompt_projections\.(\d{1,3})\.(weight|bias)$", "fusion.layers.{next}.{last}"),
)
"""The script's names and ours; its lists of deep prompts begin at layer 2."""


def read_clip_agiqa(auxiliary: Path, main: Path | None, clip: Clip, tokenizer: Tokenizer) -> DCMPL:
    """Read a model with the prompts of both files or, without ``main``, of alignment alone.

    Prompts are rounded through float16 as the script does, so that scores are its own.
    Raises :class:`RunError` where names, shapes or token vectors do not fit ``clip``.
    """
    learned = _learned(auxiliary)
    prompts = learned.get("text.0")
    if prompts is None or prompts.ndim != 2 or not 0 < len(prompts) < clip.config.context_length:
        raise RunError(f"the prompts of CLIP-AGIQA in {auxiliary}", "no ctx")
    config = PRESETS["clip-agiqa" if main else "ivlp"].model
    if main is None:
        config = replace(config, words={"alignment": CLIP_AGIQA_WORDS["alignment"]})
    config = replace(config, n_context=len(prompts), round_prompts=True)
    try:
        model = DCMPL(clip, tokenizer, config, seed=0)
    except UsageError as error:  # prompts that the context has no room for
        raise RunError(f"{error.expected} in {auxiliary}", error.got, error.hint) from error
    found = {f"{'auxiliary' if main else 'main'}.{name}": t for name, t in learned.items()}
    _check_tokens(auxiliary, found, "alignment", model, tokenizer)
    if main is not None:
        of_main = {
            name if name.startswith("fusion.") else f"main.{name}": tensor
            for name, tensor in _learned(main).items()
        }
        _check_tokens(main, of_main, "quality", model, tokenizer)
        found |= of_main
    parameters = trainable_parameters(model)
    wrong = sorted(parameters.keys() ^ found.keys()) or sorted(
        name for name, p in parameters.items() if p.shape != found[name].shape
    )
    if wrong:
        files = " and ".join(str(file) for file in (auxiliary, main) if file)
        raise RunError(
            f"text and visual prompts of {clip.config.text.layers} and "
            f"{clip.config.vision.layers} layers for this backbone in {files}",
            f"{len(wrong)} tensors that differ, {wrong[0]} among them",
            "give the backbone they are of",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(found[name])
    return model


def _learned(file: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint under our names; token vectors keep theirs."""
    if not file.is_file():
        raise RunError(f"a checkpoint of CLIP-AGIQA at {file}", "no file")
    if file.stat().st_size > MAX_BYTES:
        raise RunError(f"a checkpoint of at most {MAX_BYTES} bytes", file)
    found = {}
    for name, tensor in read_torch(file).items():
        for pattern, ours in NAMES:
            if match := re.search(pattern, name):
                first, last = match[1] if match.groups() else "", name.rpartition(".")[2]
                following = int(first) + 1 if first.isdigit() else ""
                name = ours.format(next=following, same=first, last=last)
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise RunError(f"finite numbers in {file}", f"others in {name}")
        found[name] = tensor.float()
    return found


def _check_tokens(
    file: Path, found: dict[str, Tensor], task: str, model: DCMPL, tokenizer: Tokenizer
) -> None:
    """Check stored token vectors against the backbone's, and remove them from ``found``."""
    n = model.config.n_context
    (pair,) = ModelConfig().words[task]
    tokens = tokenizer([f"{word}." for word in pair], n)
    stored = []
    for name in ("token_prefix", "token_suffix"):
        key = next((key for key in found if key.endswith(f".{name}")), "")
        tensor = found.pop(key, torch.empty(0))
        wide = model.clip.config.text.width
        if tensor.ndim != 3 or len(tensor) != len(pair) or tensor.shape[-1] != wide:
            raise RunError(
                f"{name} of {len(pair)} texts, {wide} wide as the backbone's tokens, in {file}",
                tuple(tensor.shape) if key else "none",
            )
        stored.append(tensor)
    with torch.no_grad():
        vectors = model.clip.text.token_embedding(as_tensors(tokens)[0])
    for row, end in enumerate(tokens.end.tolist()):
        ours = torch.cat([vectors[row, :1], vectors[row, 1 + n : end + 1]])
        theirs = torch.cat([stored[0][row], stored[1][row, : end - n]])
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > TOLERANCE:
            raise RunError(
                f"the token vectors of {pair[row]!r} in {file} to be the backbone's",
                "others",
                "give the backbone the prompts were learned on",
            )
