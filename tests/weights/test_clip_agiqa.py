"""Files of CLIP-AGIQA's training script, made here under its names, as runs of ours."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.weights.backbones import Backbone
from dcmpl.weights.clip_agiqa import read_clip_agiqa

pytest_plugins = ("clip_agiqa_files",)

State = dict[str, Tensor]
Randomise = Callable[[nn.Module, int], None]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_made_files_have_the_names_and_shapes_of_the_published_one(
    files: tuple[Path, Path],
) -> None:
    """A prompt less in the list of the text than in that of the images, 3 layers here."""
    auxiliary, tar = (torch.load(file, weights_only=True) for file in files)
    names = ["ctx", "prompts_text.0", "prompts_text.1"]
    names += ["prompts_vis.0", "prompts_vis.1", "prompts_vis.2", "token_prefix", "token_suffix"]
    shapes = [(8, 32), (8, 32), (8, 32), (8, 64), (8, 64), (8, 64), (2, 1, 32), (2, 31, 32)]
    assert {n: tuple(t.shape) for n, t in auxiliary.items()} == dict(
        zip(names, shapes, strict=True)
    )
    more = {n: tuple(tar[n].shape) for n in tar.keys() - set(names)}
    layers = ("proj", "compound_prompt_projections.0", "compound_prompt_projections.1")
    weights = {f"{layer}.weight": (64, 128) for layer in layers}
    assert more == weights | {f"{layer}.bias": (64,) for layer in layers}


def test_both_files_make_the_model_they_were_written_of(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)
    theirs = trainable_parameters(learned)
    ours = trainable_parameters(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        found, expected = model.eval()(images), learned(images)
    assert found.tasks == expected.tasks == ("quality", "alignment")
    assert torch.equal(found.values, expected.values)


def test_prompts_are_rounded_as_the_script_does(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)
    plain = replace(learned.config, round_prompts=False)
    unrounded = DCMPL(backbone.clip, backbone.tokenizer, plain, seed=1)
    unrounded.load_state_dict(learned.state_dict())
    with torch.no_grad():
        found, other = model.eval()(images).values, unrounded.eval()(images).values
    assert not torch.equal(found, other)
    torch.testing.assert_close(found, other, rtol=0, atol=1e-2)


def test_the_auxiliary_file_alone_predicts_alignment(
    files: tuple[Path, Path], backbone: Backbone, learned: DCMPL, images: Tensor
) -> None:
    model = read_clip_agiqa(files[0], None, backbone.clip, backbone.tokenizer)
    with torch.no_grad():
        found, expected = model.eval()(images), learned(images)
    assert found.tasks == ("alignment",)
    torch.testing.assert_close(found.alignment, expected.alignment, rtol=0, atol=1e-6)


def test_token_vectors_may_be_of_half_precision(
    files: tuple[Path, Path], backbone: Backbone
) -> None:
    """A script on a GPU writes them so; it is what tells one backbone from another."""
    state = torch.load(files[0], weights_only=True)
    torch.save({n: t.half() if "token" in n else t for n, t in state.items()}, files[0])
    read_clip_agiqa(*files, backbone.clip, backbone.tokenizer)


# The command.
