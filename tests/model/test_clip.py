"""The towers: against transformers, and what deep prompts do between the blocks."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import TOKENIZER
from dcmpl.model.clip import Clip, Transformer
from dcmpl.weights import EMBEDDED
from dcmpl.weights.backbones import load_backbone
from dcmpl.weights.layouts import read_config

END = 639  # the highest id: transformers finds the end by argmax or by eos_token_id
BASE = {"width": (768, 512), "layers": 12, "heads": (12, 8), "hidden": (3072, 2048)}
ORACLES = {
    "vit-b-32": {**BASE, "image": 224, "patch": 32, "length": 77, "joint": 512},
    # Of the layers of the others, twelve to 24, three prove the sizes.
    "vit-b-16": {**BASE, "layers": 3, "image": 224, "patch": 16, "length": 77, "joint": 512},
    **{
        f"vit-l-14, {image}": {
            "width": (1024, 768),
            "layers": 3,
            "heads": (16, 12),
            "hidden": (4096, 3072),
            "image": image,
            "patch": 14,
            "length": 77,
            "joint": 768,
        }
        for image in (224, 336)
    },
    "small": {
        "width": (48, 32),
        "layers": 2,
        "heads": (4, 2),
        "hidden": (80, 72),
        "image": 24,
        "patch": 8,
        "length": 20,
        "joint": 16,
        # What the large ones leave at its default.
        "activation": "gelu",
        "eps": (1e-3, 1e-2),
    },
}


@dataclass(frozen=True)
class Oracle:
    """Inputs, what transformers makes of them, and our towers with the same weights."""

    clip: Clip
    images: Tensor
    ids: Tensor
    end: Tensor
    image_embedding: Tensor
    text_embedding: Tensor


@pytest.fixture(scope="module", params=ORACLES)
def oracle(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    randomise: Callable[[nn.Module, int], None],
) -> Oracle:
    from transformers import CLIPConfig, CLIPModel

    sizes = ORACLES[request.param]
    vision, text = (
        {
            "hidden_size": sizes["width"][tower],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"][tower],
            "intermediate_size": sizes["hidden"][tower],
            "hidden_act": sizes.get("activation", "quick_gelu"),
            "layer_norm_eps": sizes.get("eps", (1e-5, 1e-5))[tower],
        }
        for tower in (0, 1)
    )
    length = sizes["length"]
    config = CLIPConfig(
        vision_config={**vision, "image_size": sizes["image"], "patch_size": sizes["patch"]},
        text_config={
            **text,
            "vocab_size": END + 1,
            "max_position_embeddings": length,
            "bos_token_id": 1,
            "eos_token_id": END,
        },
        projection_dim=sizes["joint"],
    )
    theirs = CLIPModel(config).eval()
    randomise(theirs, 0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, sizes["image"], sizes["image"], generator=generator)
    ids = torch.randint(3, END, (3, length), generator=generator)
    end = torch.tensor([3, length // 2, length - 1])
    for row, position in zip(ids, end, strict=True):
        row[position] = END
        row[position + 1 :] = 0
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=images)
        texts = theirs.get_text_features(input_ids=ids)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    del theirs
    shutil.copy(TOKENIZER, folder)
    clip = load_backbone(str(folder)).clip
    shutil.rmtree(folder)  # half a gigabyte
    # Before version 5 of transformers the features were the tensor itself.
    return Oracle(
        clip,
        images,
        ids,
        end,
        getattr(features, "pooler_output", features),
        getattr(texts, "pooler_output", texts),
    )


def test_image_tower_equals_transformers(oracle: Oracle) -> None:
    with torch.no_grad():
        ours = oracle.clip.visual(oracle.images)
    assert oracle.image_embedding.std() > 0.3  # else the tolerance would say little
    # float32 sums in another order: about 1e-6 for outputs of order 1
    torch.testing.assert_close(ours, oracle.image_embedding, rtol=0, atol=1e-5)


def test_text_tower_equals_transformers(oracle: Oracle) -> None:
    with torch.no_grad():
        ours = oracle.clip.text(oracle.ids, oracle.end)
    assert oracle.text_embedding.std() > 0.3
    # float32 sums in another order: about 1e-6 for outputs of order 1
    torch.testing.assert_close(ours, oracle.text_embedding, rtol=0, atol=1e-5)


LAYERS, SLOTS = 3, 2


@pytest.fixture(scope="module")
def clip(small_backbone: Path, randomise: Callable[[nn.Module, int], None]) -> Clip:
    """The small CLIP of the tests with nothing left at one or zero."""
    clip = Clip(read_config(small_backbone / "config.json")).eval().requires_grad_(False)
    randomise(clip, 2)
    return clip


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Two texts of 40 ids; the ends stand at 9 and 14."""
    return torch.randint(3, 640, (2, 40), generator=torch.Generator().manual_seed(4))


ENDS = torch.tensor([9, 14])


def draw_prompts(width: int, *batch: int) -> list[Tensor | None]:
    """One random prompt per layer."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*batch, SLOTS, width, generator=generator) for _ in range(LAYERS)]


def plain_image_embedding(clip: Clip, images: Tensor) -> Tensor:
    """CLIP as published, without any mention of prompts."""
    visual = clip.visual
    patches = visual.stem.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding)
    for block in visual.transformer.resblocks:
        x = block(x, False)
    return visual.ln_post(x[:, 0]) @ visual.proj


def plain_text_embedding(clip: Clip, ids: Tensor, end: Tensor) -> Tensor:
    """CLIP as published, on all tokens."""
    text = clip.text
    x = text.token_embedding(ids) + text.positional_embedding
    for block in text.transformer.resblocks:
        x = block(x, True)
    return text.ln_final(x)[torch.arange(len(ids)), end] @ text.text_projection


def naive_image_embedding(clip: Clip, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """The loop over blocks written out for (n, width) prompts in every layer."""
    rows = []
    for image in images:
        x = torch.cat([clip.visual.embed(image[None])[0], prompts[0]])
        x = clip.visual.ln_pre(x)
        for index, block in enumerate(clip.visual.transformer.resblocks):
            if index > 0:
                x[-SLOTS:] = prompts[index]
            x = block(x[None], False)[0]
        rows.append(clip.visual.ln_post(x[0]) @ clip.visual.proj)
    return torch.stack(rows)


def naive_text_embedding(clip: Clip, ids: Tensor, end: Tensor, prompts: list[Tensor]) -> Tensor:
    """The loop over blocks written out, on all tokens."""
    rows = []
    for text, last in zip(ids, end, strict=True):
        x = clip.text.token_embedding(text)
        x[1 : 1 + SLOTS] = prompts[0]
        x = x + clip.text.positional_embedding
        for index, block in enumerate(clip.text.transformer.resblocks):
            if index > 0:
                x[1 : 1 + SLOTS] = prompts[index]
            x = block(x[None], True)[0]
        rows.append(clip.text.ln_final(x[last]) @ clip.text.text_projection)
    return torch.stack(rows)


@contextmanager
def watched(transformer: Transformer) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into and comes out of every block."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        for block in transformer.resblocks
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("prompts", [(), [None] * LAYERS], ids=["no prompts", "all None"])
def test_image_tower_without_prompts_is_plain_clip(
    clip: Clip, images: Tensor, prompts: list[None]
) -> None:
    assert torch.equal(clip.visual(images, prompts), plain_image_embedding(clip, images))


@pytest.mark.parametrize("prompts", [(), [None] * LAYERS], ids=["no prompts", "all None"])
def test_text_tower_without_prompts_is_plain_clip(
    clip: Clip, ids: Tensor, prompts: list[None]
) -> None:
    cut = ids[:, :15]  # what the tower keeps, so that sums run over the same length
    text = clip.text
    x = text.token_embedding(cut) + text.positional_embedding[:15]
    for block in text.transformer.resblocks:
        x = block(x, True)
    expected = text.ln_final(x[torch.arange(2), ENDS]) @ text.text_projection
    assert torch.equal(text(ids, ENDS, prompts), expected)


def test_cut_at_the_end_token_equals_all_tokens(clip: Clip, ids: Tensor) -> None:
    full = plain_text_embedding(clip, ids, ENDS)
    # float32 sums of another length
    torch.testing.assert_close(clip.text(ids, ENDS), full, rtol=0, atol=1e-5)


def test_ids_behind_the_end_token_change_nothing(clip: Clip, ids: Tensor) -> None:
    other = ids.clone()
    other[0, 10:] = 0
    # the same sums, with weights of exactly zero for what is masked
    torch.testing.assert_close(clip.text(other, ENDS), clip.text(ids, ENDS), rtol=0, atol=1e-6)


def test_text_tower_takes_any_padding_up_to_the_context(clip: Clip, ids: Tensor) -> None:
    alone = clip.text(ids[:1], ENDS[:1])
    # float32 sums of another length
    torch.testing.assert_close(clip.text(ids, ENDS)[:1], alone, rtol=0, atol=1e-5)


def test_deep_visual_prompts_equal_the_written_out_loop(clip: Clip, images: Tensor) -> None:
    prompts = draw_prompts(64)
    naive = naive_image_embedding(clip, images, prompts)
    # one image at a time: float32 sums in another order
    torch.testing.assert_close(clip.visual(images, prompts), naive, rtol=0, atol=1e-5)


def test_deep_text_prompts_equal_the_written_out_loop(clip: Clip, ids: Tensor) -> None:
    prompts = draw_prompts(32)
    naive = naive_text_embedding(clip, ids, ENDS, prompts)
    # one text at a time and uncut: float32 sums in another order
    torch.testing.assert_close(clip.text(ids, ENDS, prompts), naive, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_visual_prompt_matters(clip: Clip, images: Tensor, layer: int) -> None:
    prompts = draw_prompts(64)
    before = clip.visual(images, prompts)
    prompts[layer] = -prompts[layer]  # a factor above 0 would be normalised away
    # far above rounding (1e-6), far below the outputs (1)
    assert (clip.visual(images, prompts) - before).abs().max() > 1e-3


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_text_prompt_matters(clip: Clip, ids: Tensor, layer: int) -> None:
    prompts = draw_prompts(32)
    before = clip.text(ids, ENDS, prompts)
    prompts[layer] = -prompts[layer]  # a factor above 0 would be normalised away
    # far above rounding (1e-6), far below the outputs (1)
    assert (clip.text(ids, ENDS, prompts) - before).abs().max() > 1e-3


def every_slot(clip: Clip, images: Tensor, prompts: Sequence[Tensor | None]) -> Tensor:
    """Slots behind the patches, normalised once, and all of them computed in every block."""
    tower = clip.visual
    x = tower.embed(images)
    if prompts[0] is not None:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = tower.ln_pre(x)
    for index, block in enumerate(tower.transformer.resblocks):
        prompt = prompts[index] if index < len(prompts) else None
        if index and prompt is not None:
            x = torch.cat([x[:, :17], prompt.expand(len(x), -1, -1)], dim=1)  # 1 + 4 x 4 patches
        x = block(x, False)
    embedding: Tensor = tower.ln_post(x[:, 0]) @ tower.proj
    return embedding


GIVEN = [(0, 1, 2), (0,), (0, 1), (0, 2), (1,), (2,), (1, 2)]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_prompted_image_tower_equals_one_that_computes_every_slot(
    clip: Clip, images: Tensor, given: tuple[int, ...]
) -> None:
    prompts = [p if i in given else None for i, p in enumerate(draw_prompts(64))]
    found, wanted = clip.visual(images, prompts), every_slot(clip, images, prompts)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)  # of values up to 4


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_gradients_of_prompts_equal_those_of_every_slot(
    clip: Clip, images: Tensor, given: tuple[int, ...]
) -> None:
    def gradients(tower: Callable[..., Tensor]) -> list[Tensor]:
        drawn = [prompt.clone().requires_grad_() for prompt in draw_prompts(64)]
        tower([p if i in given else None for i, p in enumerate(drawn)]).square().sum().backward()
        return [drawn[i].grad for i in given]  # type: ignore[misc]

    found = gradients(lambda prompts: clip.visual(images, prompts))
    wanted = gradients(lambda prompts: every_slot(clip, images, prompts))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_first_text_prompt_gets_the_positions_one_to_n(clip: Clip, ids: Tensor) -> None:
    prompts = draw_prompts(32)
    with watched(clip.text.transformer) as blocks:
        clip.text(ids, ENDS, prompts)
    expected = prompts[0] + clip.text.positional_embedding[1 : 1 + SLOTS]
    assert torch.equal(blocks[0][0][:, 1 : 1 + SLOTS], expected.expand(2, -1, -1))


def test_later_text_prompts_replace_the_slots_alone_without_position(
    clip: Clip, ids: Tensor
) -> None:
    prompts = draw_prompts(32)
    with watched(clip.text.transformer) as blocks:
        clip.text(ids, ENDS, prompts)
    for layer in range(1, LAYERS):
        (entered, _), (_, left) = blocks[layer], blocks[layer - 1]
        assert torch.equal(entered[:, 1 : 1 + SLOTS], prompts[layer].expand(2, -1, -1))
        assert torch.equal(entered[:, :1], left[:, :1])
        assert torch.equal(entered[:, 1 + SLOTS :], left[:, 1 + SLOTS :])


def test_none_leaves_the_text_slots_as_the_block_before_made_them(clip: Clip, ids: Tensor) -> None:
    first, _, last = draw_prompts(32)
    with watched(clip.text.transformer) as blocks:
        clip.text(ids, ENDS, [first, None, last])
    assert torch.equal(blocks[1][0], blocks[0][1])


def test_fewer_prompts_than_layers_leave_the_later_blocks_alone(clip: Clip, images: Tensor) -> None:
    first, _, _ = draw_prompts(64)
    assert torch.equal(clip.visual(images, [first]), clip.visual(images, [first, None, None]))


def test_batched_visual_prompts_equal_unbatched_ones(clip: Clip, images: Tensor) -> None:
    prompts = draw_prompts(64)
    batched = [prompt.expand(2, -1, -1) for prompt in prompts]
    found, wanted = clip.visual(images, batched), clip.visual(images, prompts)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)  # kernels of other sizes


def test_batched_text_prompts_equal_unbatched_ones(clip: Clip, ids: Tensor) -> None:
    prompts = draw_prompts(32)
    batched = [prompt.expand(2, -1, -1) for prompt in prompts]
    assert torch.equal(clip.text(ids, ENDS, batched), clip.text(ids, ENDS, prompts))


def test_each_image_of_a_batch_gets_its_own_prompts(clip: Clip, images: Tensor) -> None:
    prompts = draw_prompts(64, 2)
    alone = [clip.visual(images[i : i + 1], [p[i] for p in prompts]) for i in range(2)]
    # one image at a time: float32 sums in another order
    torch.testing.assert_close(clip.visual(images, prompts), torch.cat(alone), rtol=0, atol=1e-5)


def test_parameter_names_are_those_of_openai(small_backbone: Path) -> None:
    """Weights in the wild carry these names; a renamed one would no longer load."""
    clip = Clip(read_config(small_backbone / "config.json"))
    vision = {name for name in clip.visual.state_dict() if "resblocks" not in name}
    assert vision == {
        "class_embedding",
        "positional_embedding",
        "proj",
        "stem.conv1.weight",
        *(f"{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")),
    }
    assert set(clip.text.transformer.resblocks[0].state_dict()) == {
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        *(
            f"{layer}.{kind}"
            for layer in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
            for kind in ("weight", "bias")
        ),
    }


def test_embedded_backbone_config_is_what_the_file_says() -> None:
    record = json.loads((EMBEDDED["small"] / "config.json").read_text())
    config = read_config(EMBEDDED["small"] / "config.json")
    assert config.vision.width == record["vision_config"]["hidden_size"]
    assert config.text.layers == record["text_config"]["num_hidden_layers"]
    assert config.stem == "hybrid"
