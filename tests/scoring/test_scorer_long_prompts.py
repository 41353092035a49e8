"""Prompts that do not fit the text tower: cut, read in parts, or refused."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from conftest import TOKENIZER
from dcmpl.errors import UsageError
from dcmpl.model.clip import Clip, ClipConfig, TowerConfig
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.model.tokenizer import LONG_PROMPTS, Ids, Tokenizer
from dcmpl.presets import PRESETS
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine
from dcmpl.weights.backbones import load_backbone

Build = Callable[..., DCMPL]
Fill = Callable[[nn.Module, int], None]
ScorerWith = Callable[[str], Scorer]

LENGTH, SLOTS, ROOM = 77, 8, 67
"""CLIP's context, the prompts of every preset, and what is left beside start and end."""

SMALL_ROOM = 30
"""Of the small backbone, whose context is 40."""

TOLERANCE = 1e-6
"""Other batches add up in another order: a few float32 roundings of a value below 1."""

KNOWN = (
    *("a", "red", "circle", "left", "of", "very", "large", "blue", "square", "on", "plain"),
    *("white", "background", "and", "small", "green", "star", "above", "dotted", "triangle"),
)
"""Words that are one token each."""


def words(count: int) -> str:
    """A prompt of so many tokens, the beginning of every longer one."""
    rng = np.random.default_rng(5)
    return " ".join(rng.choice(KNOWN, 400)[:count])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TOKENIZER, LENGTH)


@pytest.fixture(scope="module")
def model(randomise: Fill) -> DCMPL:
    """Small towers, all of them random, so that every word counts; the context is CLIP's."""
    vision = TowerConfig(64, 3, 4, 96, "quick_gelu")
    text = TowerConfig(32, 3, 2, 64, "quick_gelu")
    clip = Clip(ClipConfig(vision, text, 24, 32, 8, 640, LENGTH))
    tokenizer = Tokenizer(TOKENIZER, LENGTH)
    made = DCMPL(clip, tokenizer, PRESETS["dcmpl-prompted"].model, 0)
    randomise(made, 4)
    return made


@pytest.fixture(scope="module")
def of_model(model: DCMPL) -> ScorerWith:
    engine = TorchEngine(model, model.config.tasks)
    return lambda long: Scorer(engine, "center", ScoringOptions(workers=1, long_prompts=long))


@pytest.fixture(scope="module")
def of_embedded(randomise: Fill) -> ScorerWith:
    """The embedded backbone, with all that is learned drawn at random."""
    backbone = load_backbone("small")
    model = DCMPL(backbone.clip, backbone.tokenizer, PRESETS["dcmpl-prompted"].model, 0)
    for index, (name, module) in enumerate(model.named_children()):
        if name != "clip":
            randomise(module, index)
    engine = TorchEngine(model, model.config.tasks)
    return lambda long: Scorer(engine, "center", ScoringOptions(workers=1, long_prompts=long))


@pytest.fixture(scope="module")
def of_small(build: Build) -> ScorerWith:
    model = build("dcmpl-prompted")
    engine = TorchEngine(model, model.config.tasks)
    return lambda long: Scorer(engine, "center", ScoringOptions(workers=1, long_prompts=long))


def noise(seed: int = 0, side: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scored(scorer: Scorer, prompts: Sequence[str]) -> list[Score]:
    """One image with each of the prompts."""
    return scorer.score([noise()] * len(prompts), prompts)


def alignment(scorer: Scorer, prompts: Sequence[str]) -> np.ndarray:
    return np.array([score.alignment for score in scored(scorer, prompts)], dtype=np.float64)


# Tokens


def test_words_are_a_token_each(tokenizer: Tokenizer) -> None:
    ids = tokenizer.parts(words(300), SLOTS, "window").ids
    assert tokenizer.context_length == LENGTH
    for count in (1, 60, ROOM):
        assert len(tokenizer.parts(words(count), SLOTS).ids[0]) == count
        assert tokenizer.parts(words(count), SLOTS).ids[0] == ids[0][:count]


@pytest.mark.parametrize("long", LONG_PROMPTS)
@pytest.mark.parametrize("count", [0, 1, 2, ROOM - 1, ROOM])
def test_prompt_that_fits_is_read_whole_whatever_was_asked(
    tokenizer: Tokenizer, long: str, count: int
) -> None:
    parts = tokenizer.parts(words(count), SLOTS, long)
    assert (len(parts.ids), len(parts.ids[0]), parts.dropped) == (1, count, 0)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(count=st.integers(1, 300), slots=st.integers(0, 74), long=st.sampled_from(LONG_PROMPTS[:2]))
def test_end_token_is_always_kept_and_all_tokens_accounted_for(
    tokenizer: Tokenizer, count: int, slots: int, long: str
) -> None:
    whole = Tokenizer(TOKENIZER, 400).parts(words(count)).ids[0]
    parts = tokenizer.parts(words(count), slots, long)
    tokens, room = tokenizer.framed(parts.ids, slots), LENGTH - 2 - slots
    rows = torch.arange(len(parts.ids))
    assert (tokens.ids[rows, tokens.end] == tokenizer.end_id).all()
    assert (tokens.ids == tokenizer.end_id).sum() == len(rows)  # and no other
    assert tokens.ids.shape[1] <= LENGTH
    assert not tokens.ids[:, 1 : 1 + slots].any()
    if long == "truncate":
        assert parts.ids == (whole[:room],)
        assert parts.dropped == max(0, count - room)
    else:
        assert parts.dropped == 0


@settings(deadline=None, derandomize=True, max_examples=150)
@given(count=st.integers(2, 300), slots=st.integers(0, 74))
def test_windows_hold_every_token_in_parts_of_equal_length_at_equal_distances(
    tokenizer: Tokenizer, count: int, slots: int
) -> None:
    # Every token another one, so that a part tells where it begins.
    room, whole = LENGTH - 2 - slots, tuple(range(count))
    encoded = type("Encoding", (), {"ids": list(whole)})
    with pytest.MonkeyPatch.context() as patch:
        pairs = type("Pairs", (), {"encode": lambda *_, **__: encoded})
        patch.setattr(tokenizer, "_pairs", pairs())
        parts = tokenizer.parts("any", slots, "window").ids
    assert {len(part) for part in parts} == {min(count, room)}
    assert len(parts) == -(-count // room)  # no more than are needed
    assert parts[0][0] == 0
    assert parts[-1][-1] == count - 1
    assert all(part == whole[part[0] : part[0] + len(part)] for part in parts)
    distances = np.diff([part[0] for part in parts])
    assert ((distances >= 1) & (distances <= room)).all()  # so nothing between them is lost
    assert np.ptp(distances) <= 1 if len(distances) else True


def test_prompt_of_one_token_more_than_fits_is_refused_in_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError) as caught:
        tokenizer.parts(words(ROOM + 1), SLOTS, "error")
    assert str(caught.value) == (
        "expected a prompt of at most 67 tokens, got 68: shorten it, or take --long-prompts "
        "truncate or window"
    )


@pytest.mark.parametrize("long", ["truncate", "window"])
def test_where_slots_leave_no_room_all_tokens_are_dropped(tokenizer: Tokenizer, long: str) -> None:
    parts = tokenizer.parts(words(5), LENGTH - 2, long)
    assert (parts.ids, parts.dropped) == (((),), 5)
    assert tokenizer.framed(parts.ids, LENGTH - 2).end.tolist() == [LENGTH - 1]


@pytest.mark.parametrize("long", LONG_PROMPTS)
def test_more_slots_than_fit_are_refused(tokenizer: Tokenizer, long: str) -> None:
    with pytest.raises(UsageError, match=r"^expected at most 75 prompt tokens, got 76"):
        tokenizer.parts("a", LENGTH - 1, long)


# Scores


@pytest.mark.parametrize("long", ["truncate", "window"])
@pytest.mark.parametrize("count", [76, 77, 200])
def test_prompts_about_the_context_and_far_beyond_are_scored(
    of_embedded: ScorerWith, long: str, count: int
) -> None:
    (found,) = scored(of_embedded(long), [words(count)])
    dropped, read = count - ROOM, -(-count // ROOM)
    assert found.status == "ok"
    assert found.alignment is not None
    assert 0 < found.alignment < 1
    assert found.tokens_dropped == (dropped if long == "truncate" else 0)
    assert found.note.rpartition("; ")[2] == (  # behind one on its size
        f"{dropped} tokens of the prompt were dropped"
        if long == "truncate"
        else f"the prompt was read in {read} parts"
    )


@pytest.mark.parametrize("long", LONG_PROMPTS)
def test_a_prompt_that_just_fits_scores_alike_in_every_way(of_model: ScorerWith, long: str) -> None:
    wanted = scored(of_model("truncate"), [words(ROOM), words(ROOM - 1)])
    found = scored(of_model(long), [words(ROOM), words(ROOM - 1)])
    assert found == wanted
    assert [(score.note, score.tokens_dropped) for score in found] == [("", 0)] * 2


def test_cut_prompt_scores_as_what_is_left_of_it(of_model: ScorerWith) -> None:
    found = alignment(of_model("truncate"), [words(ROOM), words(ROOM + 1), words(200)])
    np.testing.assert_allclose(found, found[0], rtol=0, atol=TOLERANCE)
    rest = alignment(of_model("window"), [words(ROOM), words(ROOM + 1), words(200)])
    assert abs(rest[2] - rest[0]) > 1e-4  # which windows read


@pytest.fixture(scope="module")
def slid(model: DCMPL) -> np.ndarray:
    """The alignment of every part of 67 tokens of a prompt of 200, by where it begins."""
    engine = TorchEngine(model, ["alignment"])
    whole = Tokenizer(TOKENIZER, 400).parts(words(200)).ids[0]
    texts: list[Ids] = [whole[start : start + ROOM] for start in range(200 - ROOM + 1)]
    return engine(np.array(noise(side=32))[None], [texts])[:, 0]


def test_score_in_windows_is_the_mean_over_its_parts(
    of_model: ScorerWith, slid: np.ndarray
) -> None:
    found = alignment(of_model("window"), [words(68), words(134), words(135), words(200)])
    starts = [[0, 1], [0, 67], [0, 34, 68], [0, 66, 133]]
    wanted = [slid[places].mean() for places in starts]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5 * TOLERANCE)


def test_a_word_more_changes_a_score_in_windows_little(
    of_model: ScorerWith, slid: np.ndarray
) -> None:
    """Of n parts, each begins where it did or a token later, as does the last.

    So the mean moves by no more than the most that a part's score does, a token on. Where there
    are n parts for n - 1, the first stays, the last moves by a token, and what is between them
    is n - 2 of n, whose scores may be anywhere in the range of all.
    """
    step, width = np.abs(np.diff(slid)).max(), np.ptp(slid)
    lengths = range(1, 201)
    found = alignment(of_model("window"), [words(count) for count in lengths])
    changes = np.abs(np.diff(found))
    assert changes[ROOM - 1 :].max() <= changes[: ROOM - 1].max()  # less than in one that fits
    for count, change in zip(lengths[ROOM - 1 :], changes[ROOM - 1 :], strict=False):
        before, after = (-(-n // ROOM) for n in (count, count + 1))
        bound = step if before == after else step + (after - 2) / after * width
        if count == ROOM:
            bound = step / 2  # half of the mean is the part that was all of it
        assert change <= bound + 5 * TOLERANCE, count


def test_scores_of_prompts_of_every_length_are_there(of_model: ScorerWith) -> None:
    rows = scored(of_model("window"), [words(count) for count in range(1, ROOM)])
    assert {(row.status, row.note, row.tokens_dropped) for row in rows} == {("ok", "", 0)}
    assert len({row.alignment for row in rows}) == len(rows)  # every word counts


def test_long_prompts_that_are_refused_leave_the_others(of_small: ScorerWith) -> None:
    prompts = [words(3), words(SMALL_ROOM + 1), words(SMALL_ROOM), words(90), ""]
    images = [noise(seed) for seed in range(len(prompts))]
    found = of_small("error").score(images, prompts)
    others = of_small("error").score([*images[:1], images[2], images[4]], ["blue", prompts[2], ""])
    assert [score.status for score in found] == ["ok", "error", "ok", "error", "ok"]
    assert [score.prompt for score in found] == prompts
    assert [score.index for score in found] == list(range(5))
    for place, count in ((1, 31), (3, 90)):
        assert found[place].reason == (
            f"expected a prompt of at most 30 tokens, got {count}: shorten it, or take "
            "--long-prompts truncate or window"
        )
        assert (found[place].quality, found[place].alignment) == (None, None)
        assert found[place].tokens_dropped is None
    qualities = [found[place].quality for place in (0, 2, 4)]
    assert qualities == pytest.approx([score.quality for score in others], abs=TOLERANCE)
    assert found[2].alignment == pytest.approx(others[1].alignment, abs=TOLERANCE)


@pytest.mark.parametrize("long", LONG_PROMPTS)
def test_images_without_a_prompt_are_scored_in_every_way(of_small: ScorerWith, long: str) -> None:
    for row in scored(of_small(long), ["", " \n\t"]):
        assert row.status == "ok"
        assert row.quality is not None
        assert (row.alignment, row.tokens_dropped) == (None, 0)
        assert row.note == "no prompt to judge alignment by"


def test_prompt_of_ten_thousand_words_is_cut_or_read_in_parts(of_small: ScorerWith) -> None:
    rng = np.random.default_rng(0)
    prompt = " ".join(rng.choice(KNOWN, 10_000))
    (cut,) = scored(of_small("truncate"), [prompt])
    assert (cut.status, cut.tokens_dropped) == ("ok", 10_000 - SMALL_ROOM)
    assert cut.note == "9970 tokens of the prompt were dropped"
    (read,) = scored(of_small("window"), [prompt])
    assert (read.status, read.tokens_dropped) == ("ok", 0)
    assert read.note == "the prompt was read in 334 parts"
    assert read.quality == pytest.approx(cut.quality, abs=TOLERANCE)
    assert read.alignment != pytest.approx(cut.alignment, abs=1e-4)


def test_long_prompts_of_neighbours_change_no_alignment(of_small: ScorerWith) -> None:
    prompts = ["blue", words(200), "a red circle", words(64), words(31)]
    images = [noise(seed) for seed in range(5)]
    for long in ("truncate", "window"):
        together = of_small(long).score(images, prompts)
        for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            (alone,) = of_small(long).score([image], prompt)
            assert alone.alignment == pytest.approx(together[place].alignment, abs=TOLERANCE)
            assert alone.quality == pytest.approx(together[place].quality, abs=TOLERANCE)


def test_windows_of_image_and_prompt_are_all_paired(build: Build) -> None:
    model = build("dcmpl-prompted")
    engine = TorchEngine(model, model.config.tasks)
    scorer = Scorer(
        engine, "grid-2", ScoringOptions(workers=1, long_prompts="window", batch_size=3)
    )
    image, prompt = noise(1, side=72), words(50)
    (found,) = scorer.score([image], prompt)
    pixels = np.asarray(image)
    corners = [pixels[t : t + 32, x : x + 32] for t in (0, 40) for x in (0, 40)]
    parts = engine.parts(prompt, "window").ids
    pairs = [(corner, part) for corner in corners for part in parts]
    assert len(pairs) == 8
    scores = engine(np.stack([c for c, _ in pairs]), [[p] for _, p in pairs])
    assert np.ptp(scores[:, 1]) > 1e-3
    wanted = scores.mean(0).tolist()
    assert [found.quality, found.alignment] == pytest.approx(wanted, abs=TOLERANCE)


def test_window_is_looked_at_once_for_all_parts_of_a_prompt(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("dcmpl-prompted")
    engine, counts = TorchEngine(model, model.config.tasks), list[int]()
    network = engine.network
    assert isinstance(network, Folded)
    stem = network.stem.forward
    monkeypatch.setattr(network.stem, "forward", lambda x: counts.append(len(x)) or stem(x))
    scorer = Scorer(engine, "grid-2", ScoringOptions(workers=1, long_prompts="window"))
    prompt = words(200)
    assert len(engine.parts(prompt, "window").ids) == 7
    one, two = scorer.score([noise(1, side=72), noise(2, side=72)], [prompt, "a red fox"])
    assert (one.status, two.status) == ("ok", "ok")
    assert sum(counts) == 8 + 1  # windows; the last one of a full batch goes on in the next


def test_model_that_reads_nothing_cuts_and_refuses_nothing(build: Build) -> None:
    model = build("dcmpl")
    engine = TorchEngine(model, model.config.tasks)
    for long in LONG_PROMPTS:
        scorer = Scorer(engine, "center", ScoringOptions(workers=1, long_prompts=long))
        (row,) = scored(scorer, [words(300)])
        assert (row.status, row.note, dict(row.more)) == ("ok", "", {})
        assert row.alignment is not None


def test_targets_without_alignment_read_no_prompt(build: Build) -> None:
    engine = TorchEngine(build("dcmpl-prompted"), ["quality"])
    scorer = Scorer(engine, "center", ScoringOptions(workers=1, long_prompts="error"))
    (row,) = scored(scorer, [words(300)])
    assert (row.status, row.note, dict(row.more)) == ("ok", "", {})


def test_unknown_way_is_a_usage_error(of_small: ScorerWith) -> None:
    with pytest.raises(UsageError) as caught:
        of_small("drop")
    assert str(caught.value) == ("expected long_prompts of truncate, window, error, got 'drop'")


# Letters


def test_another_script_is_scored_and_the_row_says_so(of_small: ScorerWith) -> None:
    prompts = ["рыжая лиса", "赤い狐", "ثعلب أحمر", "🦊🦊"]
    for row in scored(of_small("truncate"), prompts):
        assert row.status == "ok"
        assert row.quality is not None
        assert row.alignment is not None
        assert "the model has no words for the letters of the prompt" in row.note


@pytest.mark.parametrize("prompt", ["a red circle", "a large blue square\non white", words(60)])
def test_words_that_are_known_need_no_note_on_letters(of_small: ScorerWith, prompt: str) -> None:
    for row in scored(of_small("window"), [prompt]):
        assert "letters" not in row.note


@pytest.mark.parametrize("prompt", ["a fox", "fox", "x"])
def test_short_english_needs_no_note_on_letters(of_small: ScorerWith, prompt: str) -> None:
    (row,) = scored(of_small("truncate"), [prompt])
    assert row.note == ""


def test_long_prompt_of_another_script_has_its_note_in_parts_as_well(of_small: ScorerWith) -> None:
    prompt = "рыжая лиса и кот " * 6
    for long in ("truncate", "window"):
        (row,) = scored(of_small(long), [prompt])
        assert "no words for the letters" in row.note


def test_prompt_that_is_no_text_costs_its_own_row_at_most(of_small: ScorerWith) -> None:
    """Half of a pair of surrogates, as cut emoji have it in JSON, and bytes of a shell."""
    rows = scored(of_small("truncate"), ["blue", "a fox \ud83e", "a fox \udcff", "red"])
    assert [rows[0].status, rows[3].status] == ["ok", "ok"]
    assert len(rows) == 4
