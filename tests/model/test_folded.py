"""A folded model gives the scores of the trained one, and holds nothing it has no use for."""

import gc
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import TOKENIZER
from dcmpl.config import CLIP_AGIQA_WORDS, WORDS, AdapterConfig, FusionConfig, MpaConfig
from dcmpl.errors import UsageError
from dcmpl.model.clip import Clip, ClipConfig, TextTower, TowerConfig
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.model.stem import to_unit_range
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.presets import ANTONYMS, PRESETS
from dcmpl.weights.backbones import Backbone, load_backbone

Build = Callable[..., DCMPL]
Fill = Callable[[nn.Module, int], None]
ALL = list(PRESETS)
TOLERANCE = 1e-6
"""A few float32 roundings of a value below 1, whose sums are taken in another order."""

NO_MPA, NO_FUSION = MpaConfig("none"), FusionConfig(on=False)
THREE = {task: WORDS[task] for task in ("alignment", "authenticity", "quality")}
SEVERAL = {"quality": ANTONYMS, "alignment": (*WORDS["alignment"], *ANTONYMS[:2])}
VARIANTS: dict[str, dict[str, Any]] = {
    "prompts in one layer of text": {"text_depth": 1},
    "prompts in two layers of text": {"text_depth": 2},
    "prompts in one layer of vision": {"vision_depth": 1},
    "prompts in two layers of vision": {"vision_depth": 2},
    "attention in one layer": {"mpa": MpaConfig(depth=1)},
    "attention in two layers": {"mpa": MpaConfig(depth=2)},
    "attention in one layer, prompts in two": {"mpa": MpaConfig(depth=1), "vision_depth": 2},
    "attention in two layers, prompts in one": {"mpa": MpaConfig(depth=2), "vision_depth": 1},
    "free prompts in no layer": {"vision_depth": 0, "text_depth": 0, "fusion": NO_FUSION},
    "no attention, one layer": {"mpa": NO_MPA, "vision_depth": 1, "text_depth": 1},
    "no attention, two layers": {"mpa": NO_MPA, "vision_depth": 2, "text_depth": 2},
    "more layers than there are": {"vision_depth": 40, "text_depth": 40, "mpa": MpaConfig(depth=9)},
    "no fusion": {"fusion": NO_FUSION},
    "fusion in one layer": {"fusion": FusionConfig(depth=1)},
    "fusion with the first layer": {"fusion": FusionConfig(aux_tap="first_layer")},
    "adapter of both": {"adapter": AdapterConfig(shared=True)},
    "adapter of the main task": {"adapter": AdapterConfig("main")},
    "adapter of the auxiliary task": {"adapter": AdapterConfig("aux")},
    "no adapter": {"adapter": AdapterConfig("none")},
    "learned ratio": {"adapter": AdapterConfig(learnable_ratio=True)},
    "several pairs": {"words": SEVERAL},
    "three tasks": {"words": THREE},
    "rounded prompts": {"round_prompts": True},
    "attention of each layer": {"mpa": MpaConfig(share="per_layer")},
    "independent": {"mpa": MpaConfig(deep="independent")},
    "generated and free": {"mpa": MpaConfig("joint", deep="generated_plus_free", depth=2)},
    "visual prompts made of text": {"vision_source": "text", "fusion": NO_FUSION},
}


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """Bytes: noise, a ramp, and two flat ones, (5, 32, 32, 3)."""
    noise = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(3))
    ramp = torch.arange(32)[:, None, None].mul(8).expand(32, 32, 3)
    flat = torch.tensor([0, 255])[:, None, None, None].expand(2, 32, 32, 3)
    return torch.cat([noise, ramp[None], flat]).to(torch.uint8)


def spread(model: DCMPL) -> DCMPL:
    """A linear readout far from its start puts most scores at the ends: bring it between."""
    if model.config.readout == "linear":
        with torch.no_grad():
            model.linear.weight.mul_(0.05)
            model.linear.bias.fill_(0.5)
    return model


@torch.no_grad()
def as_trained(model: DCMPL, windows: Tensor, tasks: Sequence[str] | None = None) -> Tensor:
    scores = model(to_unit_range(windows))
    return torch.stack([scores[task] for task in tasks or model.config.tasks], dim=1)


def check_near(model: DCMPL, windows: Tensor) -> None:
    found = Folded(model, model.config.tasks)(windows)
    torch.testing.assert_close(found, as_trained(model, windows), rtol=0, atol=TOLERANCE)


def check(model: DCMPL, windows: Tensor, tasks: Sequence[str] | None = None) -> None:
    tasks = tuple(tasks or model.config.tasks)
    expected = as_trained(model, windows, tasks)
    assert expected.std(dim=0).min() > 20 * TOLERANCE  # windows differ, by more than is allowed
    found = Folded(model, tasks)(windows)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


# The same scores


@pytest.mark.parametrize("preset", ALL)
def test_every_preset_scores_folded_as_it_was_trained(
    build: Build, windows: Tensor, preset: str
) -> None:
    check(spread(build(preset)), windows)
    check_near(build(preset, fresh=True), windows)


@pytest.mark.parametrize("preset", [p for p in ALL if len(PRESETS[p].model.tasks) > 1])
def test_tasks_may_be_folded_alone_and_in_any_order(
    build: Build, windows: Tensor, preset: str
) -> None:
    model = spread(build(preset))
    first, second = model.config.tasks
    for tasks in ((first,), (second,), (second, first)):
        check(model, windows, tasks)


def test_three_tasks_may_be_folded_in_any_selection_and_order(
    build: Build, windows: Tensor
) -> None:
    model = build("dcmpl", words=THREE)
    for count in (1, 2, 3):
        for tasks in permutations(model.config.tasks, count):
            check(model, windows, tasks)


@pytest.mark.parametrize("name", VARIANTS)
def test_options_score_folded_as_they_were_trained(
    build: Build, windows: Tensor, name: str
) -> None:
    model = build("dcmpl", **VARIANTS[name])
    check(model, windows)
    for task in model.config.tasks:
        check(model, windows, (task,))


def depths(least: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(least, 4)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    fields=st.fixed_dictionaries(
        {
            "words": st.sampled_from([THREE, SEVERAL, dict(CLIP_AGIQA_WORDS)]),
            "n_context": st.sampled_from([1, 8]),
            "text_depth": depths(0),
            "vision_depth": depths(0),
            "round_prompts": st.booleans(),
            "mpa": st.builds(
                MpaConfig,
                form=st.sampled_from(["cmpa", "cmpa_no_mlp", "swapped_query", "joint"]),
                deep=st.sampled_from(["generated", "generated_plus_free", "independent"]),
                depth=depths(1),
            )
            | st.just(NO_MPA),
            "fusion": st.builds(FusionConfig, depth=depths(1)) | st.just(NO_FUSION),
            "adapter": st.builds(
                AdapterConfig,
                where=st.sampled_from(["both", "main", "aux", "none"]),
                shared=st.booleans(),
                learnable_ratio=st.booleans(),
            ),
        }
    )
)
def test_any_configuration_scores_folded_as_it_was_trained(
    build: Build, windows: Tensor, fields: dict[str, Any]
) -> None:
    try:
        model = build("dcmpl", **fields)
    except UsageError:  # fields that do not go together
        assume(False)
    check_near(model, windows)


@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa", "linear-probe"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize(("text", "vision"), [(2, 4), (4, 2), (1, 1)])
def test_towers_of_other_depths_and_activations_can_be_folded(
    windows: Tensor, randomise: Fill, preset: str, activation: Any, text: int, vision: int
) -> None:
    clip = Clip(
        ClipConfig(
            vision=TowerConfig(64, vision, 2, 64, activation),
            text=TowerConfig(32, text, 2, 64, activation),
            embed_dim=24,
            image_size=32,
            patch_size=16,
            vocab_size=640,
            context_length=40,
        )
    )
    tokenizer = Tokenizer(TOKENIZER, 40)
    model = DCMPL(clip, tokenizer, PRESETS[preset].model, 0)
    randomise(model, 5)
    check(spread(model), windows)


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone("small")


@pytest.mark.parametrize("preset", ["dcmpl", "clip-agiqa"])
def test_embedded_backbone_scores_folded_as_it_was_trained(
    embedded: Backbone, randomise: Fill, preset: str
) -> None:
    model = DCMPL(embedded.clip, embedded.tokenizer, PRESETS[preset].model, 0)
    for index, (name, module) in enumerate(model.named_children()):
        if name != "clip":
            randomise(module, index)
    size = embedded.image_size
    noise = torch.randint(256, (2, size, size, 3), generator=torch.Generator().manual_seed(3))
    windows = torch.cat([noise, noise[:1] // 4 + 64]).to(torch.uint8)
    check(model, windows)
    check(model, windows, ("alignment", "quality"))
    check(model, windows, ("alignment",))


def test_backbone_with_a_trunk_scores_folded_as_it_was_trained(randomise: Fill) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers = TowerConfig(24, 3, 2, 48, "quick_gelu"), TowerConfig(16, 3, 2, 32, "quick_gelu")
        clip = Clip(ClipConfig(*towers, 20, 128, 64, 640, 40, "hybrid", "lite0")).eval()
    tokenizer = Tokenizer(TOKENIZER, 40)
    model = DCMPL(clip, tokenizer, PRESETS["dcmpl"].model, 0)
    for index, (name, module) in enumerate(model.named_children()):
        if name != "clip":
            randomise(module, index)
    pixels = torch.randint(256, (3, 128, 128, 3), generator=torch.Generator().manual_seed(3))
    check_near(model, pixels.to(torch.uint8))
    with pytest.raises(UsageError, match=r"normalization=imagenet .*, got clip: leave it out"):
        DCMPL(clip, tokenizer, replace(model.config, normalization="clip"), 0)


def test_pixels_may_be_floats_of_bytes(build: Build, windows: Tensor) -> None:
    folded = Folded(build("dcmpl"), ("quality",))
    assert torch.equal(folded(windows.float()), folded(windows))


# What it holds


@pytest.mark.parametrize("preset", ["dcmpl", "coop-deep", "clip-iqa"])
def test_text_tower_and_tokenizer_are_let_go(
    random_backbone: Backbone, windows: Tensor, preset: str
) -> None:
    clip, tokenizer = deepcopy(random_backbone.clip), deepcopy(random_backbone.tokenizer)
    model = DCMPL(clip, tokenizer, PRESETS[preset].model, 0)
    gone = [weakref.ref(thing) for thing in (model, clip, clip.text, tokenizer)]
    gone += [weakref.ref(parameter) for parameter in clip.text.parameters()]
    folded = Folded(model, model.config.tasks)
    assert not any(isinstance(m, (TextTower, Clip, DCMPL, Tokenizer)) for m in folded.modules())
    del model, clip, tokenizer
    gc.collect()
    assert [reference for reference in gone if reference() is not None] == []
    assert folded(windows).isfinite().all()


def held(folded: Folded) -> int:
    return sum(t.numel() for t in (*folded.parameters(), *folded.buffers()))


def test_numbers_held_are_those_of_the_vision_tower_prompts_adapters_and_pairs(
    build: Build,
) -> None:
    model = build("dcmpl")
    tower = sum(parameter.numel() for parameter in model.clip.visual.parameters())
    # A bias of the patches; per branch 8 prompts, as key and value; a vector for each pair.
    width, joint, bias = 64, 24, 64
    prompts, adapter = 3 * 8 * 2 * width, 2 * joint * (joint // 4)
    # The class token carries its position.
    folded = tower - width + bias + 2 * (prompts + adapter + joint)
    assert held(Folded(model, model.config.tasks)) == folded


def test_task_that_is_not_asked_for_leaves_nothing_behind(build: Build) -> None:
    model = build("dcmpl")
    both, one = Folded(model, model.config.tasks), Folded(model, ("quality",))
    assert held(both) - held(one) == 3 * 8 * 2 * 64 + 2 * 24 * 6 + 24


def passes(folded: Folded, windows: Tensor) -> int:
    """Calls of the first block; every block is called as often."""
    counts = [0] * len(folded.blocks)

    def counted(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    hooks = [b.register_forward_hook(counted(i)) for i, b in enumerate(folded.blocks)]
    folded(windows)
    for hook in hooks:
        hook.remove()
    assert len(set(counts)) == 1
    return counts[0]


@pytest.mark.parametrize(
    ("preset", "tasks", "expected"),
    [
        ("dcmpl", ("quality", "alignment"), 2),
        ("dcmpl", ("quality",), 1),
        ("dcmpl", ("alignment",), 1),
        ("clip-agiqa", ("quality",), 1),
        ("linear-probe", ("quality", "alignment"), 1),
        ("coop", ("quality",), 1),
    ],
)
def test_tower_runs_once_for_each_branch_that_is_asked_for(
    build: Build, windows: Tensor, preset: str, tasks: tuple[str, ...], expected: int
) -> None:
    folded = Folded(build(preset), tasks)
    assert folded.branches == passes(folded, windows) == expected


def test_tasks_of_one_branch_share_a_pass(build: Build, windows: Tensor) -> None:
    model = build("dcmpl", words=dict(reversed(THREE.items())))  # quality is the main one
    assert passes(Folded(model, ("alignment", "authenticity")), windows) == 1
    assert passes(Folded(model, model.config.tasks), windows) == 2


def test_nothing_of_it_can_be_learned(build: Build) -> None:
    folded = Folded(build("dcmpl"), ("quality",))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(module.training for module in folded.modules())


@pytest.mark.parametrize("preset", ["dcmpl", "linear-probe"])
def test_folding_and_scoring_change_no_tensor_of_the_model(
    build: Build, windows: Tensor, preset: str
) -> None:
    model = build(preset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = as_trained(model, windows)
    Folded(model, model.config.tasks).in_bfloat16()(windows)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(as_trained(model, windows), scores)


def test_task_the_model_has_not_cannot_be_folded(build: Build) -> None:
    with pytest.raises(UsageError) as caught:
        Folded(build("dcmpl"), ("quality", "authenticity"))
    assert str(caught.value) == (
        "expected tasks of this model (quality, alignment), got authenticity"
    )
