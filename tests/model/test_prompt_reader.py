"""Alignment that reads the prompt: against the method written out, and what must not happen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from conftest import made_table
from dcmpl.config import WORDS, AdapterConfig, FusionConfig, MpaConfig, TrainConfig
from dcmpl.data.table import ImageTable
from dcmpl.errors import UsageError
from dcmpl.model.clip import as_tensors
from dcmpl.model.dcmpl import DCMPL, Scores, is_trainable, trainable_parameters
from dcmpl.model.prompt_reader import Texts
from dcmpl.model.stem import to_unit_range
from dcmpl.presets import ANTONYMS, PRESETS, with_settings, with_targets
from dcmpl.scoring.torch_engine import TorchEngine, by_target
from dcmpl.training.batches import Batch
from dcmpl.training.features import PromptsOf, shuffled_prompts, texts_of
from dcmpl.training.labels import with_alignment
from dcmpl.training.loop import task_loss, train_step

Build = Callable[..., DCMPL]
PROMPTED = PRESETS["dcmpl-prompted"].model
TOLERANCE = 1e-6
"""Other batches add up in another order: a few float32 roundings of a value below 1."""

WORDS_OF = [
    "a red circle",
    "blue",
    "a small green square on a plain white background left of a dotted yellow star",
    "two foxes",
    "",
]
"""Texts of several lengths; none is cut."""

NO_MPA, NO_FUSION = MpaConfig("none"), FusionConfig(on=False)
THREE = {task: WORDS[task] for task in ("quality", "authenticity", "alignment")}
VARIANTS: dict[str, dict[str, Any]] = {
    "as the preset": {},
    "three tasks": {"words": THREE},
    "alignment is the main task": {"words": dict(reversed(PROMPTED.words.items()))},
    "alignment alone": {"words": {"alignment": WORDS["alignment"]}, "mpa": NO_MPA}
    | {"fusion": NO_FUSION},
    "several pairs": {"words": {"quality": ANTONYMS, "alignment": ANTONYMS}},
    "no text prompts": {"text_depth": 0, "mpa": NO_MPA},
    "text prompts in one layer": {"text_depth": 1, "mpa": NO_MPA},
    "no prompts in the image tower": {"vision_depth": 0, "mpa": NO_MPA, "fusion": NO_FUSION},
    "no prompts": {"vision_depth": 0, "text_depth": 0, "mpa": NO_MPA, "fusion": NO_FUSION},
    "visual prompts in one layer": {"vision_depth": 1, "mpa": MpaConfig(depth=2)},
    "attention of one layer": {"mpa": MpaConfig(depth=1)},
    "independent": {"mpa": MpaConfig(deep="independent")},
    "no adapter": {"adapter": AdapterConfig("none")},
    "shared adapter": {"adapter": AdapterConfig(shared=True)},
    "few slots": {"n_context": 2},
    "rounded prompts": {"round_prompts": True},
}


@pytest.fixture(scope="module")
def bytes_of() -> Tensor:
    """Windows of noise, (5, 32, 32, 3)."""
    noise = torch.randint(256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(3))
    return noise.to(torch.uint8)


@pytest.fixture(scope="module")
def images(bytes_of: Tensor) -> Tensor:
    return to_unit_range(bytes_of)


@pytest.fixture(scope="module")
def model(build: Build) -> DCMPL:
    return build("dcmpl-prompted")


def texts_for(model: DCMPL, texts: Sequence[str]) -> Texts:
    """One text for each image."""
    return Texts(model.tokens_of(texts), torch.arange(len(texts)))


def mismatch_of(model: DCMPL, images: Tensor, texts: Texts) -> Tensor:
    found: Tensor | None = model(images, texts=texts).mismatch
    assert found is not None
    return found


def logit_of(model: DCMPL, images: Tensor, texts: Texts | None) -> Tensor:
    """The logit of alignment, of one pair of words."""
    score: Tensor = model(images, texts=texts).alignment
    return score.double().logit()


# The method written out


def naive_alignment(model: Any, image: Tensor, text: str) -> Tensor:
    """One image and one text, as the method says it."""
    reader, clip = model.reader, model.clip
    prompts = model.prompts()[1]
    tokens = model.tokenizer([text], model.config.n_context)
    vector = F.normalize(clip.text(*as_tensors(tokens), prompts.text)[0], dim=-1)
    encoded = clip.visual(((image[None] - model.mean) / model.std), prompts.visual)
    embedding = F.normalize(model.adapters["alignment"](encoded)[0], dim=-1)
    added = reader.share * clip.logit_scale.exp() * (embedding @ vector) + reader.constant

    pair = model.tokenizer(["aligned photo.", "misaligned photo."], model.config.n_context)
    good, bad = clip.text(*as_tensors(pair), prompts.text)
    cosines = [F.cosine_similarity(embedding, word, dim=0) for word in (good, bad)]
    scale = clip.logit_scale.exp()
    return torch.stack([scale * cosines[0] + added, scale * cosines[1]]).softmax(0)[0]


@torch.no_grad()
def test_alignment_equals_the_reading_written_out(model: DCMPL, images: Tensor) -> None:
    found = model(images, texts=texts_for(model, WORDS_OF)).alignment
    wanted = torch.stack(
        [naive_alignment(model, *pair) for pair in zip(images, WORDS_OF, strict=True)]
    )
    assert found.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# What it adds


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("words", [PROMPTED.words, THREE], ids=["two tasks", "three tasks"])
def test_fresh_reader_adds_nothing(
    build: Build, images: Tensor, words: dict[str, Any], seed: int
) -> None:
    plain = build("dcmpl", seed, fresh=True, words=words)
    fresh = build("dcmpl-prompted", seed, fresh=True, words=words)
    found, wanted = fresh(images, texts=texts_for(fresh, WORDS_OF)), plain(images)
    assert found.tasks == wanted.tasks
    assert torch.equal(found.values, wanted.values)


@torch.no_grad()
def test_reader_changes_what_the_image_alone_gives_by_what_it_found_only(
    build: Build, model: DCMPL, images: Tensor
) -> None:
    plain = build("dcmpl")  # all but the reader is as in the model
    assert torch.equal(model(images).values, plain(images).values)
    own = texts_for(model, WORDS_OF)
    assert (logit_of(model, images, own) - logit_of(plain, images, None)).abs().min() > 1e-3


@torch.no_grad()
def test_no_other_task_depends_on_the_text_bit_for_bit(build: Build, images: Tensor) -> None:
    model = build("dcmpl-prompted", words=THREE)
    first = model(images, texts=texts_for(model, WORDS_OF))
    other = model(images, texts=texts_for(model, [*WORDS_OF[1:], "a fox"]))
    for task in ("quality", "authenticity"):
        assert torch.equal(first[task], other[task])
    assert (first.alignment - other.alignment).abs().min() > 1e-4


@torch.no_grad()
def test_a_text_is_read_for_each_image_anew(model: DCMPL, images: Tensor) -> None:
    """The same text moves the logits of two images differently."""
    moved = [logit_of(model, images, texts_for(model, [text] * 5)) for text in ("blue", "red")]
    assert (moved[0] - moved[1]).std() > 1e-4


@torch.no_grad()
def test_the_order_of_words_counts(model: DCMPL, images: Tensor) -> None:
    one, other = (
        model(images, texts=texts_for(model, [text] * 5)).alignment
        for text in ("a red circle on a blue square", "a blue circle on a red square")
    )
    assert (one - other).abs().min() > 10 * TOLERANCE


# What it must not depend on


@torch.no_grad()
def test_padding_changes_no_alignment(model: DCMPL, images: Tensor) -> None:
    together = model(images, texts=texts_for(model, WORDS_OF)).alignment
    for row, text in enumerate(WORDS_OF):
        alone = model(images, texts=texts_for(model, [text] * 5)).alignment
        assert alone[row].item() == pytest.approx(together[row].item(), abs=TOLERANCE)


@torch.no_grad()
def test_an_image_has_the_same_alignment_alone(model: DCMPL, images: Tensor) -> None:
    together = model(images, texts=texts_for(model, WORDS_OF)).alignment
    alone = [
        model(image[None], texts=texts_for(model, [text])).alignment
        for image, text in zip(images, WORDS_OF, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_rows_say_which_text_is_whose(model: DCMPL, images: Tensor) -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    wanted = model(images, texts=texts_for(model, [WORDS_OF[row] for row in order]))
    found = model(images, texts=Texts(model.tokens_of(WORDS_OF), order))
    torch.testing.assert_close(found.alignment, wanted.alignment, rtol=0, atol=TOLERANCE)
    one = model(images, texts=Texts(model.tokens_of(WORDS_OF), torch.full((5,), 2)))
    same = model(images, texts=texts_for(model, [WORDS_OF[2]] * 5))
    torch.testing.assert_close(one.alignment, same.alignment, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_rows_of_a_table_that_a_batch_needs_are_taken_once(model: DCMPL, images: Tensor) -> None:
    tokens = model.tokens_of([*WORDS_OF, "a fox"])
    own = torch.tensor([5, 1, 1, 2, 5])
    texts = texts_of(tokens, own)
    assert len(texts.tokens.ids) == 3
    assert np.array_equal(texts.tokens.ids[texts.own], tokens.ids[own])
    assert np.array_equal(texts.tokens.end[texts.own], tokens.end[own])


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        *[("as the preset", 8), ("few slots", 2), ("no text prompts", 0), ("no prompts", 0)],
        *[("alignment alone", 8), ("text prompts in one layer", 8)],
    ],
)
def test_slots_are_kept_free_where_text_prompts_stand_only(
    build: Build, name: str, slots: int
) -> None:
    model = build("dcmpl-prompted", **VARIANTS[name])
    plain = model.tokenizer(["a red circle"], slots)
    assert model.slots == slots
    assert np.array_equal(model.tokens_of(["a red circle"]).ids, plain.ids)
    engine, prompt = TorchEngine(model, ["alignment"]), " ".join(["red"] * (38 - slots))
    assert len(engine.parts(prompt, "error").ids[0]) == 38 - slots
    with pytest.raises(UsageError, match=f"^expected a prompt of at most {38 - slots} tokens"):
        engine.parts(f"{prompt} red", "error")


# Folded


def engine_and_model(
    model: DCMPL, windows: Tensor, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    tasks = model.config.tasks
    engine = TorchEngine(model, tasks)
    found = engine(windows.numpy(), [engine.parts(text, "truncate").ids for text in texts])
    with torch.no_grad():
        scores = model(to_unit_range(windows), texts=texts_for(model, texts))
    return found, scores.values.T.double().numpy()


@pytest.mark.parametrize("name", VARIANTS)
def test_folded_engine_scores_with_texts_as_the_model(
    build: Build, bytes_of: Tensor, name: str
) -> None:
    model = build("dcmpl-prompted", **VARIANTS[name])
    found, wanted = engine_and_model(model, bytes_of, WORDS_OF)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    # Far more hangs on the texts than is allowed for.
    others, _ = engine_and_model(model, bytes_of, WORDS_OF[::-1])
    column = model.config.tasks.index("alignment")
    moved = np.abs(found - others)[[0, 1, 3, 4], column]  # the third keeps its text
    assert moved.min() > 1e-4


def test_folded_engine_takes_no_notice_of_longer_texts_in_a_call(
    model: DCMPL, bytes_of: Tensor
) -> None:
    engine, windows = TorchEngine(model, ["alignment"]), bytes_of.numpy()
    ids = [engine.parts(text, "truncate").ids for text in WORDS_OF]
    together = engine(windows, ids)
    for row in range(5):
        alone = engine(windows[row : row + 1], ids[row : row + 1])
        assert alone[0, 0] == pytest.approx(together[row, 0], abs=TOLERANCE)


def test_engine_without_alignment_reads_nothing(model: DCMPL, bytes_of: Tensor) -> None:
    engine = TorchEngine(model, ["quality"])
    assert (engine.reads, engine.parts("a red circle", "error").ids) == (None, ((),))
    both = TorchEngine(model, ["alignment", "quality"])
    assert both.reads == "alignment"
    found = both(bytes_of.numpy(), [[(5, 6, 7)]] * 5)[:, 1:]
    np.testing.assert_allclose(found, engine(bytes_of.numpy()), rtol=0, atol=TOLERANCE)


def test_bf16_of_the_towers_leaves_what_is_read_near(model: DCMPL, bytes_of: Tensor) -> None:
    exact, lower = (TorchEngine(model, ["alignment"], p) for p in ("fp32", "bf16"))
    ids = [exact.parts(text, "truncate").ids for text in WORDS_OF]
    # Three digits of tokens of order 1, behind a softmax of slope at most 1/4.
    np.testing.assert_allclose(
        lower(bytes_of.numpy(), ids), exact(bytes_of.numpy(), ids), rtol=0, atol=2e-2
    )


# What is learned


def reached(model: DCMPL) -> set[str]:
    found = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    model.zero_grad(set_to_none=True)
    return found


def test_telling_prompts_apart_trains_the_auxiliary_branch_and_nothing_of_the_main_one(
    model: DCMPL, images: Tensor
) -> None:
    mismatch_of(model, images, texts_for(model, WORDS_OF)).sum().backward()
    found = reached(model)
    assert {name for name in found if name.startswith("auxiliary.text")} == {"auxiliary.text.0"}
    parts = {".".join(name.split(".")[:2]) for name in found}
    # The reader's share is learned from opinions alone.
    assert parts == {
        *("auxiliary.attention", "auxiliary.text", "auxiliary.visual", "adapters.alignment")
    }


def test_gradients_reach_every_free_text_prompt_of_the_auxiliary_branch(
    build: Build, images: Tensor
) -> None:
    model = build("dcmpl-prompted", mpa=NO_MPA)
    mismatch_of(model, images, texts_for(model, WORDS_OF)).sum().backward()
    assert {n for n in reached(model) if ".text." in n} == {f"auxiliary.text.{i}" for i in range(3)}


def test_alignment_with_texts_trains_all_that_is_learned_but_the_main_branch(
    model: DCMPL, images: Tensor
) -> None:
    model(images, texts=texts_for(model, WORDS_OF)).alignment.sum().backward()
    own = ("main.", "fusion.", "adapters.quality")
    assert reached(model) == {n for n in trainable_parameters(model) if not n.startswith(own)}


@torch.no_grad()
def test_mismatch_is_the_cross_entropy_among_the_texts_of_the_batch(
    model: DCMPL, images: Tensor
) -> None:
    """Written out, with two images of one text."""
    own = torch.tensor([2, 0, 2, 1, 3])
    found = mismatch_of(model, images, Texts(model.tokens_of(WORDS_OF[:4]), own))
    prompts, clip = model.prompts()[1], model.clip
    tokens = model.tokenizer(WORDS_OF[:4], model.config.n_context)
    vectors = clip.text(*as_tensors(tokens), prompts.text)
    encoded = clip.visual((images - model.mean) / model.std, prompts.visual)
    embedding = model.adapter_of("alignment")(encoded)
    cosine = F.cosine_similarity(embedding[:, None], vectors[None], dim=-1)
    logits = clip.logit_scale.exp() * cosine
    wanted = logits.logsumexp(1) - logits[torch.arange(5), own]
    assert wanted.std() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_nothing_is_told_apart_where_all_texts_are_the_same(model: DCMPL, images: Tensor) -> None:
    found = mismatch_of(model, images, Texts(model.tokens_of(["a fox"]), torch.zeros(5).long()))
    assert not found.any()
    found.mean().backward()
    most = max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)
    assert most < 1e-6
    model.zero_grad(set_to_none=True)


def test_model_that_reads_nothing_takes_no_notice_of_texts(build: Build, images: Tensor) -> None:
    plain = build("dcmpl")
    scores = plain(images, texts=texts_for(plain, WORDS_OF))
    assert scores.mismatch is None
    assert torch.equal(scores.values, plain(images).values)


def losses(mismatch: Tensor | None, weight: float) -> Tensor:
    values = torch.tensor([[0.5, 0.25], [0.75, 0.5]])
    targets = torch.tensor([[0.0, 0.5], [0.25, float("nan")]])
    return task_loss(Scores(("quality", "alignment"), values, mismatch), targets, 0.5, weight)


def test_loss_adds_the_mean_mismatch() -> None:
    plain = losses(None, 0.0).item()
    assert plain == pytest.approx((0.25 + 0.0) / 2 + 0.5 * 0.0625)
    mismatch = torch.tensor([2.0, 0.5])
    assert losses(mismatch, 0.3).item() == pytest.approx(plain + 0.3 * 1.25)
    assert losses(mismatch, 0.0).item() == plain
    assert losses(None, 0.3).item() == plain


def test_mismatch_is_float32_whatever_the_towers_are(model: DCMPL, images: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = mismatch_of(model, images, texts_for(model, WORDS_OF))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_training_learns_to_tell_prompts_apart(build: Build, images: Tensor) -> None:
    model = build("dcmpl-prompted", fresh=True)
    tokens = model.tokens_of(WORDS_OF)
    batch = Batch(images, torch.full((5, 2), float("nan")), torch.arange(5))
    config = TrainConfig(mismatch_weight=1.0)
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), 0.01)
    found = [
        train_step(model, optimizer, batch, config, Accelerator(), False, tokens)
        for _ in range(120)
    ]
    assert found[0] > 1  # what noise is not told by
    assert found[-1] < 0.1
    with torch.no_grad():
        found_apart = mismatch_of(model, images, texts_for(model, WORDS_OF))
    assert (found_apart < np.log(2)).all()  # its own before any other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["no prompts", "alignment is the main task", "three tasks"])
def test_a_step_with_few_prompts_learns_and_leaves_the_towers(
    build: Build, images: Tensor, name: str, precision: Any
) -> None:
    model = build("dcmpl-prompted", fresh=True, **VARIANTS[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    targets = torch.full((5, len(model.config.tasks)), 0.25)
    batch = Batch(images, targets, torch.tensor([0, 0, 1, 0, 0]))
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), 0.01)
    config = TrainConfig(precision=precision)
    steps = (optimizer, batch, config, Accelerator(), False, model.tokens_of(["a", "b"]))
    assert all(np.isfinite(train_step(model, *steps)) for _ in range(2))
    for parameter_name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[parameter_name])
        assert same != is_trainable(parameter_name), parameter_name


# Tables


def test_prompts_of_a_table_are_each_there_once_and_found_again() -> None:
    prompts = ["b", "a", "b", "", "A", "a"]
    known = PromptsOf(made_table(prompt=prompts))
    assert [known.texts[row] for row in known.rows] == prompts
    assert sorted(known.texts) == ["", "A", "a", "b"]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_prompts_are_of_other_groups_and_of_the_table(seed: int) -> None:
    prompts = [*["a fox"] * 9, "A  Fox", "an ox", " a fox "]
    found = shuffled_prompts(made_table(prompt=prompts), seed)
    assert [" ".join(f.split()).lower() for f in found] == [*["an ox"] * 10, "a fox", "an ox"]
    assert set(found) <= set(prompts)


def test_shuffled_prompts_depend_on_the_seed_alone() -> None:
    table = made_table(prompt=[f"prompt {i}" for i in range(20)])
    first = shuffled_prompts(table)
    assert first == shuffled_prompts(table, 0)
    assert first != shuffled_prompts(table, 1)
    assert len(set(first)) > 5
    assert all(own != other for own, other in zip(table.frame["prompt"], first, strict=True))


def test_shuffled_prompts_of_one_group_stay() -> None:
    prompts = ["a fox", "A fox", "a  fox"]
    assert shuffled_prompts(made_table(prompt=prompts)) == prompts


def test_shuffled_prompts_are_never_empty() -> None:
    table = made_table(prompt=["a fox", "", "an ox", "  "])
    for seed in range(10):
        found = shuffled_prompts(table, seed)
        assert [found[0], found[2]] == ["an ox", "a fox"]
        assert {found[1], found[3]} <= {"a fox", "an ox"}


def test_shuffled_prompts_differ_where_groups_share_a_text() -> None:
    table = made_table(prompt=["a fox", "a fox", "an ox"], group=["1", "2", "3"])
    for seed in range(10):
        assert shuffled_prompts(table, seed)[:2] == ["an ox", "an ox"]


def test_columns_of_tasks_become_those_of_a_table() -> None:
    table = made_table(mos_quality=[1.0, 2.0], mos_realism=[1.0, 2.0])
    values = np.array([[0.1, 0.2, 0.9], [0.3, 0.4, 0.9]])
    found = by_target(values, ["realism", "quality", "mood"], table)
    assert found.shape == (2, len(table.asked))
    by_name = dict(zip(table.asked, found.T.tolist(), strict=True))
    assert by_name["realism"] == [0.1, 0.3]
    assert by_name["quality"] == [0.2, 0.4]
    assert np.isnan(by_name["alignment"]).all()
    assert np.isnan(by_name["authenticity"]).all()


@pytest.mark.parametrize("name", ["as the preset", "no prompts", "no text prompts"])
def test_similarity_stands_in_for_alignment_whatever_is_kept_of_images(
    build: Build, image_table: ImageTable, name: str
) -> None:
    """The frozen CLIP's own, so nothing that is learned or read changes it."""
    config = TrainConfig(missing_alignment="clip_similarity", views="center")
    wanted = with_alignment(image_table, config, build("coop", words=PROMPTED.words), None)
    found = with_alignment(image_table, config, build("dcmpl-prompted", **VARIANTS[name]), None)
    stood_in = found.frame["mos_alignment"].to_numpy()
    assert np.ptp(stood_in) > 1
    np.testing.assert_allclose(stood_in, wanted.frame["mos_alignment"], rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def image_table(image_data: Path) -> ImageTable:
    names = [f"{i:02}.png" for i in range(6)]
    paths = [str(image_data.parent / name) for name in names]
    texts = [*WORDS_OF[:4], "a fox", "an ox"]
    return made_table(name=names, image=paths, prompt=texts, mos_quality=[3.0] * 6)


# Settings


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.readout=linear"], "only fields that this model reads"),
        (["model.words={quality: [[good, bad]]}"], "reads_prompt"),
        (["model.reads_prompt=maybe"], "true, false for model.reads_prompt"),
    ],
    ids=["linear", "no alignment", "no boolean"],
)
def test_settings_that_do_not_go_together_are_refused_in_a_sentence(
    words: list[str], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        with_settings(PROMPTED, words)
    sentence = str(caught.value)
    assert sentence.startswith("expected ")
    assert told in sentence
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize("preset", ["linear-probe", "dcmpl-no-aux"])
def test_preset_that_has_no_use_for_prompts_is_not_made_to_read_them(preset: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_settings(PRESETS[preset].model, ["model.reads_prompt=true"])
    assert str(caught.value) == (
        "expected only fields that this model reads, got reads_prompt: leave them at their defaults"
    )


def test_targets_without_alignment_are_refused_for_a_model_that_reads() -> None:
    with pytest.raises(UsageError, match=r"^expected .*reads_prompt"):
        with_targets(PROMPTED, ["quality", "authenticity"], ["quality", "authenticity"])


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.text_depth=0", "model.mpa.form=none"],
        ["model.vision_depth=0", "model.mpa.form=none", "model.fusion.on=false"],
        ["model.mpa.deep=independent"],
        ["model.n_context=2"],
    ],
)
def test_any_other_setting_goes_with_reading(settings: list[str]) -> None:
    plain = with_settings(PRESETS["dcmpl"].model, settings)
    read = with_settings(plain, ["model.reads_prompt=true"])
    assert read.reads_prompt
    assert read == with_settings(PROMPTED, settings)


def test_alignment_may_be_the_main_task() -> None:
    changed = with_targets(PROMPTED, ["quality", "alignment"], ["alignment", "quality"])
    assert changed.tasks == ("alignment", "quality")
    assert changed.reads_prompt
