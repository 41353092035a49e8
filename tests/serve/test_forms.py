"""Images and prompts of a request, by form and by JSON; what is neither is one problem."""

import base64
import errno
import json
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette import formparsers
from starlette.testclient import TestClient

from dcmpl.serve.forms import MOST_NAME, MOST_PROMPT
from dcmpl.serve.queue import Limits
from served import fault_of, files, png, served

pytest_plugins = ("calibrated",)

IMAGES = 5
"""The bound on images of a request here."""


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(limits=Limits(images=IMAGES)) as client:
        yield client


def encoded(level: int, **more: Any) -> dict[str, Any]:
    return {"data": base64.b64encode(png(level)).decode(), **more}


def rows_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rows"]
    return found


def named(answer: Any) -> list[tuple[str, str]]:
    """Image and prompt of each row, all of which must be scored."""
    rows = rows_of(answer)
    assert {row["status"] for row in rows} == {"ok"}
    return [(row["image"], row["prompt"]) for row in rows]


def body_of(*parts: bytes) -> dict[str, Any]:
    """A form of parts that are written by hand."""
    content = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    return {"content": content, "headers": {"content-type": "multipart/form-data; boundary=edge"}}


def part_of(about: str, content: bytes) -> bytes:
    return f"Content-Disposition: form-data; {about}\r\n\r\n".encode() + content


def as_json(content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": "application/json"}}


# By form


def test_form_of_images_without_a_prompt(client: TestClient) -> None:
    found = named(client.post("/v1/score", files=files(10, 20, 30)))
    assert found == [("10.png", ""), ("20.png", ""), ("30.png", "")]


def test_one_prompt_is_that_of_all_images(client: TestClient) -> None:
    found = named(client.post("/v1/score", files=files(10, 20), data={"prompt": "a fox"}))
    assert found == [("10.png", "a fox"), ("20.png", "a fox")]


def test_prompts_go_to_images_in_their_order(client: TestClient) -> None:
    asked = {"prompt": ["a fox", "", "ein Füchslein 🦊"]}
    found = named(client.post("/v1/score", files=files(10, 20, 30), data=asked))
    assert [prompt for _, prompt in found] == asked["prompt"]


@pytest.mark.parametrize("count", [2, 4])
def test_prompts_of_another_count_are_refused(client: TestClient, count: int) -> None:
    asked = {"prompt": ["a fox"] * count}
    found = fault_of(client.post("/v1/score", files=files(10, 20, 30), data=asked), 422)
    assert found["detail"] == (
        f"expected one prompt for all, or one for each of 3 images, got {count}"
    )


@pytest.mark.parametrize("field", [{"prompts": "a fox"}, {"file": "x"}, {"": "x"}, {"By": "x"}])
def test_unknown_field_is_refused(client: TestClient, field: dict[str, str]) -> None:
    found = fault_of(client.post("/v1/score", files=files(10), data=field), 422)
    assert found["expected"] == "fields of files, prompt, by"
    assert found["got"] == repr(*field)


def test_unknown_field_of_a_file_is_refused(client: TestClient) -> None:
    asked = [*files(10), ("image", ("a.png", png(20)))]
    assert fault_of(client.post("/v1/score", files=asked), 422)["got"] == "'image'"


@pytest.mark.parametrize("field", ["prompt", "by"])
def test_file_in_the_place_of_a_text_is_refused(client: TestClient, field: str) -> None:
    asked = [*files(10), (field, ("a.txt", b"a fox"))]
    found = fault_of(client.post("/v1/score", files=asked), 422)
    assert found["expected"] == "files in files, and texts in prompt and by"


def test_text_in_the_place_of_a_file_is_refused(client: TestClient) -> None:
    asked = {"files": "not a file"}
    found = fault_of(client.post("/v1/score", files=files(10), data=asked), 422)
    assert found["expected"] == "files in files, and texts in prompt and by"


def test_two_targets_are_refused(client: TestClient) -> None:
    asked = {"by": ["quality", "alignment"]}
    found = fault_of(client.post("/v1/rank", files=files(10, 20), data=asked), 422)
    assert found["detail"] == "expected one target in by, got 2"


def test_form_without_images_is_refused(client: TestClient) -> None:
    alone = body_of(part_of('name="prompt"', b"a fox"))
    for asked in (alone, body_of()):
        found = fault_of(client.post("/v1/score", **asked), 422)
        assert found["detail"] == "expected at least one image in files or images, got 0"


@pytest.mark.parametrize("name", ["", "a" * 3000, "../../etc/passwd", "ä 🦊.png", "a\tb"])
def test_image_keeps_its_name_in_bounds(client: TestClient, name: str) -> None:
    asked = body_of(
        part_of('name="files"; filename="first.png"', png(10)),
        part_of(f'name="files"; filename="{name}"', png(20)),
    )
    found = named(client.post("/v1/score", **asked))
    assert found == [("first.png", ""), (name[:MOST_NAME] or "image 2", "")]


def test_as_many_files_as_the_bound_are_taken_with_a_prompt_each(client: TestClient) -> None:
    levels = range(10, 10 + IMAGES)
    asked = {"prompt": [f"prompt {level}" for level in levels], "by": "quality"}
    assert len(named(client.post("/v1/score", files=files(*levels), data=asked))) == IMAGES


def test_too_many_files_are_refused(client: TestClient) -> None:
    found = fault_of(client.post("/v1/score", files=files(*range(IMAGES + 1))), 413)
    assert f"at most {IMAGES} files" in found["expected"]


def test_too_many_fields_are_refused(client: TestClient) -> None:
    asked = {"prompt": ["a"] * (IMAGES + 3)}
    found = fault_of(client.post("/v1/score", files=files(10), data=asked), 413)
    assert found["got"].startswith("Too many fields")


@pytest.mark.parametrize(
    "about", ['name="files"; filename="a.png"', 'name="prompt"', 'name="x"', ""]
)
def test_ten_thousand_parts_are_refused(client: TestClient, about: str) -> None:
    answer = client.post("/v1/score", **body_of(*[part_of(about, b"x")] * 10_000))
    fault_of(answer, 413 if about else 400)


def test_prompt_up_to_its_bound_is_taken(client: TestClient) -> None:
    asked = {"prompt": "a" * MOST_PROMPT}
    (found,) = named(client.post("/v1/score", files=files(10), data=asked))
    assert found == ("10.png", asked["prompt"])


@pytest.mark.parametrize("field", ["prompt", "by", "x"])
def test_longer_prompt_or_field_is_refused(client: TestClient, field: str) -> None:
    asked = {field: "a" * (MOST_PROMPT + 1)}
    found = fault_of(client.post("/v1/score", files=files(10), data=asked), 413)
    assert f"{MOST_PROMPT:,} bytes" in found["expected"]
    assert len(found["detail"]) < 1000


BROKEN = {
    "no boundary": ("multipart/form-data", b"--edge--\r\n"),
    "another boundary": ("multipart/form-data; boundary=x", b"--edge\r\n\r\n--edge--\r\n"),
    "no form": ("multipart/form-data; boundary=edge", b"\x89PNG"),
    "no name": ("multipart/form-data; boundary=edge", b"--edge\r\n\r\nx\r\n--edge--\r\n"),
    "header without colon": ("multipart/form-data; boundary=edge", b"--edge\r\nx\r\n\r\n"),
    "cut off": (
        "multipart/form-data; boundary=edge",
        b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx',
    ),
    "long header": ("multipart/form-data; boundary=edge", b"--edge\r\n" + b"x" * 100_000),
    "empty": ("multipart/form-data; boundary=edge", b""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_form_that_cannot_be_read_is_a_problem(client: TestClient, kind: str) -> None:
    about, content = BROKEN[kind]
    answer = client.post("/v1/score", content=content, headers={"content-type": about})
    if answer.status_code == 422:  # a form that ends early has no files
        assert fault_of(answer, 422)["got"] == "0"
    else:
        assert fault_of(answer, 400)["expected"].startswith("a form of at most ")


@pytest.mark.parametrize(
    "charset",
    [
        *["utf-16", "utf-7", "undefined", "raw_unicode_escape", "base64", "idna", "no-such"],
        *["utf-8; charset=undefined", 'utf-8; CHARSET="raw_unicode_escape"', "'undefined'"],
        "utf-8; charset*=utf-8''undefined",
    ],
)
def test_letters_of_any_charset_are_no_failure(client: TestClient, charset: str) -> None:
    asked = body_of(
        part_of('name="files"; filename="a.png"', png(10)),
        part_of('name="prompt"', b"\\ud800 a fox \xff"),
    )
    asked["headers"] = {"content-type": f"multipart/form-data; boundary=edge; charset={charset}"}
    answer = client.post("/v1/score", **asked)
    assert answer.status_code in (200, 400, 422), answer.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_a_problem_of_its_own(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Full(SpooledTemporaryFile):
        def write(self, content: Any) -> int:
            raise OSError(number, "No space left on device")

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Full)
    found = fault_of(client.post("/v1/score", files=files(10)), 507)
    assert found["detail"] == "expected room for what was sent, got No space left on device"
    monkeypatch.undo()
    assert named(client.post("/v1/score", files=files(10))) == [("10.png", "")]


def test_spooled_files_are_closed_with_the_request(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Noted(SpooledTemporaryFile):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Noted)
    lines = {"accept": "application/x-ndjson"}
    client.post("/v1/score", files=files(10, 20))
    client.post("/v1/score", files=files(10), headers=lines)
    client.post("/v1/rank", files=files(10, 20), data={"by": "beauty"})
    client.post("/v1/score", files=files(10), data={"x": "unknown"})
    client.post("/v1/score", files=files(*range(IMAGES + 1)))
    assert len(made) >= 6
    assert all(file.closed for file in made)


# By JSON


def test_images_in_json(client: TestClient) -> None:
    asked = {
        "images": [
            encoded(10, name="a.png", prompt="a fox"),
            encoded(20),
            encoded(30, prompt=""),
            encoded(40, name="", prompt=None),
        ],
        "prompt": "of others",
    }
    assert named(client.post("/v1/score", json=asked)) == [
        ("a.png", "a fox"),
        ("image 2", "of others"),
        ("image 3", ""),
        ("image 4", "of others"),
    ]


def test_json_scores_as_a_form(client: TestClient) -> None:
    by_form = client.post("/v1/score", files=files(10, 200), data={"prompt": "a fox"})
    images = [encoded(10, name="10.png"), encoded(200, name="200.png")]
    by_json = client.post("/v1/score", json={"images": images, "prompt": "a fox"})
    assert rows_of(by_json) == rows_of(by_form)


def test_content_type_may_have_parameters_and_capitals(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    content = json.dumps({"images": [encoded(10)]})
    assert named(client.post("/v1/score", content=content, headers=headers)) == [("image 1", "")]


def test_long_name_in_json_is_cut(client: TestClient) -> None:
    asked = {"images": [encoded(10, name="a" * 3000)]}
    assert named(client.post("/v1/score", json=asked)) == [("a" * MOST_NAME, "")]


GOOD = json.dumps(encoded(10)).encode()

NOT_JSON = {
    "nothing": b"",
    "cut off": b'{"images": [',
    "a list": b"[" + GOOD + b"]",
    "null": b"null",
    "a number": b"3",
    "bytes": b"\xff\xfe\x00",
    "bytes in a text": b'{"images": [{"data": "", "name": "\xff"}]}',
    "deep": b"[" * 200_000,
    "deep in images": b'{"images": ' + b"[" * 200_000,
    "deep in objects": b'{"images": ' * 100_000,
    "deep in an unknown field": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no images": b'{"prompt": "a fox"}',
    "images of another kind": b'{"images": "x"}',
    "image of another kind": b'{"images": ["x"]}',
    "image without data": b'{"images": [{"name": "a.png"}]}',
    "null data": b'{"images": [{"data": null}]}',
    "unknown field": b'{"images": [' + GOOD + b'], "prompts": ["a"]}',
    "unknown field of an image": b'{"images": [{"data": "", "file": "a.png"}]}',
    "prompt of another kind": b'{"images": [' + GOOD + b'], "prompt": ["a fox"]}',
    "half a letter": b'{"images": [{"data": "", "prompt": "\\ud800"}]}',
    "more behind": b'{"images": [' + GOOD + b"]} {}",
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_json_that_is_none_is_a_problem(client: TestClient, kind: str) -> None:
    found = fault_of(client.post("/v1/score", **as_json(NOT_JSON[kind])), 422)
    assert found["expected"] == "JSON of images, prompt and by"
    assert len(found["detail"]) < 1000


def test_json_of_no_images_is_refused(client: TestClient) -> None:
    found = fault_of(client.post("/v1/score", json={"images": []}), 422)
    assert found["detail"] == "expected at least one image in files or images, got 0"


@pytest.mark.parametrize("data", ["x", "ab=c", "????", "YQ", "YQ==\n", " YQ==", "ä", "data:,YQ=="])
def test_bad_base64_is_a_problem_that_names_its_image(client: TestClient, data: str) -> None:
    asked = {"images": [encoded(10), {"data": data}]}
    found = fault_of(client.post("/v1/score", json=asked), 422)
    assert found["expected"] == "base64 in data of image 1"


def test_too_many_images_in_json_are_refused(client: TestClient) -> None:
    asked = {"images": [encoded(10)] * (IMAGES + 1)}
    found = fault_of(client.post("/v1/score", json=asked), 413)
    assert found["detail"] == f"expected at most {IMAGES} images, got {IMAGES + 1}"


@pytest.mark.parametrize("letter", ["a", "🦊"])
@pytest.mark.parametrize("own", [True, False])
def test_too_long_prompt_in_json_is_refused(client: TestClient, letter: str, own: bool) -> None:
    prompt = letter * (MOST_PROMPT // len(letter.encode()))
    for text, status in ((prompt, 200), (prompt + letter, 413)):
        asked = {"images": [encoded(10, prompt=text)]}
        if not own:
            asked = {"images": [encoded(10)], "prompt": text}
        assert client.post("/v1/score", json=asked).status_code == status


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=200))
def test_any_body_has_an_answer(client: TestClient, content: bytes) -> None:
    for kind in ("application/json", "multipart/form-data; boundary=edge"):
        answer = client.post("/v1/score", content=content, headers={"content-type": kind})
        assert answer.status_code in (200, 400, 413, 422)


# Neither


@pytest.mark.parametrize(
    "kind", ["image/png", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed", ""]
)
def test_other_content_types_are_refused(client: TestClient, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    found = fault_of(client.post("/v1/score", content=png(10), headers=headers), 415)
    assert found["detail"] == (
        f"expected multipart/form-data or application/json, got {kind or 'no content type'}"
    )
