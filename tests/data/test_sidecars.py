"""Prompts of the files beside an image."""

import json

import pytest

from dcmpl.data.sidecars import MAX_SIDECAR_BYTES, SIDECARS, prompt_of_sidecar

A1111 = "a (red:1.2) fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 7"


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "A.TXT"])
def test_text_is_the_prompt(name: str) -> None:
    assert prompt_of_sidecar(name, " a red fox,\n\u72d0 \n".encode()) == ("a red fox,\n\u72d0", "")


def test_settings_behind_a_prompt_are_left_out() -> None:
    assert prompt_of_sidecar("a.txt", A1111.encode()) == ("a (red:1.2) fox", "")


@pytest.mark.parametrize("column", ["prompt", "text", "caption", "title"])
def test_json_has_its_prompt_under_a_known_name(column: str) -> None:
    record = {"seed": 7, column: " a fox "}
    for name in ("a.json", "a.JSON"):
        assert prompt_of_sidecar(name, json.dumps(record).encode()) == ("a fox", "")


def test_first_name_of_json_counts_and_what_is_no_text_does_not() -> None:
    record = {"title": "no", "caption": "a fox", "text": 7, "prompt": ["x"]}
    assert prompt_of_sidecar("a.json", json.dumps(record).encode()) == ("a fox", "")


def test_json_may_be_a_generators_graph() -> None:
    graph = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}},
        "2": {"class_type": "KSampler", "inputs": {"positive": ["1", 0]}},
    }
    assert prompt_of_sidecar("a.json", json.dumps(graph).encode()) == ("a fox", "")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"[" * 60_000, "is no JSON"),
        ("a.json", b"", "is no JSON"),
        ("a.json", b"[]", "has none"),
        ("a.json", b"null", "has none"),
        ("a.json", b'{"prompt": ""}', "has none"),
        ("a.json", b'{"prompt": {"prompt": {}}}', "has none"),
        ("a.txt", b"a\0b", "holds bytes that are no text"),
        ("a.txt", b"\xff\xfe\x00\xd8", "holds bytes that are no text"),
        ("a.txt", b"x" * (MAX_SIDECAR_BYTES + 1), f"has more than {MAX_SIDECAR_BYTES} bytes"),
    ],
)
def test_what_holds_no_prompt_is_a_note(name: str, content: bytes, why: str) -> None:
    assert prompt_of_sidecar(name, content) == ("", f"no prompt read: {name} {why}")


def test_empty_text_is_no_prompt_and_no_fault() -> None:
    assert prompt_of_sidecar("a.txt", b" \n") == ("", "")


def test_text_of_windows_is_read_with_a_note() -> None:
    note = "is no UTF-8 and was read as Windows-1252"
    assert prompt_of_sidecar("a.txt", "Füchslein".encode("cp1252")) == (
        "Füchslein",
        f"a.txt {note}",
    )
    content = '{"prompt": "Füchslein"}'.encode("cp1252")
    assert prompt_of_sidecar("a.json", content) == ("Füchslein", f"a.json {note}")
    assert prompt_of_sidecar("a.json", "\ufeff{}".encode())[1].endswith("has none")


def test_half_a_letter_is_replaced() -> None:
    assert prompt_of_sidecar("a.json", b'{"prompt": "a \\ud83d fox"}') == ("a \ufffd fox", "")


def test_long_text_is_read_to_its_limit() -> None:
    assert prompt_of_sidecar("a.txt", b"x" * MAX_SIDECAR_BYTES) == ("x" * MAX_SIDECAR_BYTES, "")


def test_endings_of_sidecars_are_no_images() -> None:
    from dcmpl.images.decode import is_called_image

    assert not any(is_called_image(f"a{ending}") for ending in SIDECARS)
