"""``dcmpl score --url`` writes what ``dcmpl score`` writes, computed by a service."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.errors import RunError
from dcmpl.scoring.files import read_scores
from dcmpl.scoring.job import journal_of
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from serving import listening

pytest_plugins = ("calibrated",)

KEY = "a-key-of-the-service"


@pytest.fixture(scope="module")
def url(calibrated_run: Path) -> Iterator[str]:
    scorer = Scorer.from_pretrained(calibrated_run, device="cpu")
    with listening(service(scorer, key=KEY)) as found:
        yield found


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture(scope="module")
def images(judged_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with sidecars and metadata, one that is none, and an archive."""
    folder = tmp_path_factory.mktemp("images")
    chosen = sorted(judged_data.parent.glob("*.png"))[:6]
    for place, path in enumerate(chosen):
        shutil.copy(path, folder / f"{place}.png")
        (folder / f"{place}.txt").write_text(f"a fox, {place}")
    (folder / "3.txt").write_bytes(b"\xff\xfe\x00\xd8")
    (folder / "bad.png").write_text("no image")
    about = PngInfo()
    about.add_text("parameters", "a (red:1.2) fox\nSteps: 20, Sampler: Euler a")
    with Image.open(chosen[0]) as opened:
        opened.save(folder / "told.png", pnginfo=about)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(chosen[0], "in.png")
        archive.writestr("bad.png", b"no image")
    return folder


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


def here_and_there(
    images: Path, run: Path, url: str, key_file: Path, folder: Path, *words: object
) -> tuple[Any, Any]:
    """Rows and job of a scoring here, and of one by the service."""
    found = []
    wheres: list[list[object]] = [["--model", run], ["--url", url, "--key-file", key_file]]
    for name, where in zip(("here", "there"), wheres, strict=True):
        out = folder / f"{name}.csv"
        assert score(images, images / "more.zip", *where, *words, "-o", out) == 3
        manifest = json.loads(out.with_name(out.name + ".manifest.json").read_text())
        found.append((list(read_scores(out)), manifest["job"]))
    return found[0], found[1]


@pytest.mark.parametrize(
    "words",
    [[], ["--prompt", "a fox"], ["--prompt-from", "sidecar"], ["--prompt-from", "metadata"]],
)
def test_rows_and_the_record_are_those_of_scoring_here(
    images: Path,
    calibrated_run: Path,
    url: str,
    key_file: Path,
    tmp_path: Path,
    words: list[str],
) -> None:
    (ours, job), (theirs, their_job) = here_and_there(
        images, calibrated_run, url, key_file, tmp_path, *words
    )
    numbers = [name for name, value in ours[0].items() if isinstance(value, float)]
    for here, there in zip(ours, theirs, strict=True):
        for name in numbers:
            assert there.pop(name) == pytest.approx(here.pop(name), abs=1e-4)
        assert here == there
    assert job == their_job


def test_images_are_ranked_as_here(
    images: Path, calibrated_run: Path, url: str, key_file: Path, tmp_path: Path
) -> None:
    (ours, _), (theirs, _) = here_and_there(
        images, calibrated_run, url, key_file, tmp_path, "--rank", "--by", "quality_mos"
    )
    columns = ("image", "rank", "call")
    assert [[row[c] for c in columns] for row in ours] == [
        [row[c] for c in columns] for row in theirs
    ]


def test_what_was_scored_is_kept_when_the_service_goes(
    images: Path,
    calibrated_run: Path,
    judged_data: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, folder = tmp_path / "s.csv", judged_data.parent
    scorer = Scorer.from_pretrained(calibrated_run, device="cpu")
    with listening(service(scorer)) as url:
        from dcmpl.client import Client

        asked, whole = [0], Client._answered

        def some(client: Client, *asked_for: Any) -> Any:
            asked[0] += 1
            if asked[0] > 2:
                raise RunError(f"an answer from the service at {url}", "none")
            return whole(client, *asked_for)

        monkeypatch.setattr(Client, "_answered", some)
        assert score(folder, "--url", url, "-o", out) == 1
        assert "--resume" in capsys.readouterr().err
        assert journal_of(out).is_file()
        monkeypatch.setattr(Client, "_answered", whole)
        assert score(folder, "--url", url, "-o", out, "--resume") == 0
    assert "64 of 120 images were scored before" in capsys.readouterr().err
    assert score(folder, "--model", calibrated_run, "-o", out, "--resume") == 0
    assert f"{out} is finished" in capsys.readouterr().err


def test_service_that_is_not_there_is_one_sentence(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert score(images, "--url", "http://127.0.0.1:9", "-o", tmp_path / "s.csv") == 1
    assert "expected an answer from the service at 127.0.0.1:9, got none" in capsys.readouterr().err


def test_journal_of_nothing_is_not_left(
    images: Path, calibrated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.csv"

    def none(*_: Any) -> Any:
        raise RunError("an answer", "none")

    with listening(service(Scorer.from_pretrained(calibrated_run, device="cpu"))) as url:
        monkeypatch.setattr("dcmpl.client.Client._answered", none)
        assert score(images, "--url", url, "-o", out) == 1
        assert not journal_of(out).exists()
        monkeypatch.undo()
        assert score(images, "--url", url, "-o", out) == 3


def test_key_that_is_missing_is_asked_for(
    images: Path, url: str, tmp_path: Path, capsys: Capture
) -> None:
    assert score(images, "--url", url, "-o", tmp_path / "s.csv") == 2
    assert "expected the key of this service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "default"], "expected --url or --model, got both: dcmpl serve has its own"),
        (["--precision", "bf16"], "expected --url or --precision, got both"),
        (["--against", "DALLE2"], "expected --url or --against, got both"),
    ],
)
def test_options_of_a_model_here_do_not_go_with_a_service(
    image_data: Path, tmp_path: Path, capsys: Capture, words: list[str], sentence: str
) -> None:
    line = ["score", str(image_data.parent), "--url", "http://127.0.0.1:9", *words]
    assert sentence in refused(capsys, 2, *line, "-o", str(tmp_path / "s.csv"))


def test_key_without_a_service_is_refused(
    image_data: Path, tmp_path: Path, capsys: Capture, key_file: Path
) -> None:
    line = ["score", str(image_data.parent), "--key-file", str(key_file)]
    assert "expected --key-file with --url" in refused(
        capsys, 2, *line, "-o", str(tmp_path / "s.csv")
    )
