"""The examples name flags that there are, and do what they say against a real service."""

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dcmpl.cli.main import parse
from dcmpl.cli.serve import FLAGS
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from serving import listening

pytest_plugins = ("calibrated",)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
USUAL: dict[str, Any] = {flag.dest: flag.default for flag in FLAGS}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def test_docker_image_serves_under_a_key() -> None:
    (words,) = re.findall(r"^CMD (\[.*\])$", text_of("Dockerfile"), re.MULTILINE)
    _, found = parse(json.loads(words))
    assert (found.host, found.key_file) == ("0.0.0.0", "/run/key")
    assert f":{USUAL['port']}/readyz" in text_of("Dockerfile")
    assert "USER dcmpl" in text_of("Dockerfile")


def test_docker_image_takes_files_that_there_are() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text_of("Dockerfile"), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_unit_serves_under_a_key() -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", text_of("examples/dcmpl.service"), re.MULTILINE)
    program, *words = shlex.split(line)
    assert program.endswith("/dcmpl")
    assert parse(words)[1].key_file == "${CREDENTIALS_DIRECTORY}/key"


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_proxy_asks_where_the_service_listens_and_takes_as_much(name: str) -> None:
    told = text_of(f"examples/{name}")
    assert f"127.0.0.1:{USUAL['port']}" in told
    assert re.search(rf"\b{USUAL['max_upload']}(m|MiB)\b", told)


class Shown:
    """Any part of a page; keeps nothing."""

    def __init__(self, *parts: object, **options: object) -> None:
        """Take whatever Gradio takes."""


@pytest.fixture
def demo(calibrated_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demo beside a service, its page left out: Gradio does not go with our requirements."""
    kinds = ("Interface", "File", "Textbox", "Gallery")
    page = SimpleNamespace(**dict.fromkeys(kinds, Shown))
    monkeypatch.setitem(sys.modules, "gradio", page)
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "gradio_demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with listening(service(Scorer.from_pretrained(calibrated_run, device="cpu"))) as url:
        monkeypatch.setattr(sys, "argv", ["gradio_demo.py", url])
        spec.loader.exec_module(module)
        yield module


def test_demo_ranks_images_and_says_what_is_none(
    demo: ModuleType, judged_data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    paths = [*map(str, sorted(judged_data.parent.glob("*.png"))[:3]), str(bad)]
    shown, told = demo.rank(paths, "a fox")
    assert sorted(path for path, _ in shown) == paths[:3]
    scores = [float(score) for _, score in shown]
    assert scores == sorted(scores, reverse=True)
    assert told.startswith("The first against the second: ")
    assert f"got {bad}" in told
    assert demo.rank(None, "a fox") == ([], "Choose some images.")
