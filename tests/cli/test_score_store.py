"""``dcmpl score`` of what lies in an object store: the scores of the same files on disk."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import Capture, refused
from dcmpl import storage
from dcmpl.cli.main import main
from dcmpl.data.sources import LISTS
from dcmpl.scoring.files import manifest_of, read_manifest, read_scores
from dcmpl.scoring.scorer import Scorer
from list_writers import WRITERS

pytest_plugins = ("stores",)
pytestmark = pytest.mark.usefixtures("loaded_once")

COUNT = 5

Rows = list[dict[str, Any]]
Run = Callable[..., Rows]


@pytest.fixture(scope="module")
def here(image_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with sidecars, archives of them, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "in" / "sub").mkdir(parents=True)
    for i in range(COUNT):
        shutil.copy(image_data.parent / f"{i:02}.png", folder / "in" / f"{i}.png")
        (folder / "in" / f"{i}.txt").write_text(f"a fox {i}")
    (folder / "in" / "3.txt").write_bytes(b"\xff\xfe\x00\xd8")
    (folder / "in" / "4.json").write_text('{"prompt": "another"}')
    about = PngInfo()
    about.add_text("parameters", "a (red:1.2) fox\nSteps: 20, Sampler: Euler a")
    with Image.open(image_data.parent / "05.png") as image:
        image.save(folder / "in" / "sub" / "told.png", pnginfo=about)
    (folder / "in" / "bad.png").write_text("no image")
    files = sorted((folder / "in").rglob("*.*"))
    with zipfile.ZipFile(folder / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"x/{file.name}")
    for ending in (".tar", ".tar.gz"):
        with tarfile.open(folder / f"more{ending}", f"w:{ending[5:]}") as tar:
            for file in files:
                tar.add(file, file.name)
    return folder


@pytest.fixture(scope="module")
def there(here: Path, bucket: str) -> str:
    """URL of a copy of the folder."""
    url = f"{bucket}/there"
    for file in here.rglob("*.*"):
        storage.upload(file, f"{url}/{file.relative_to(here).as_posix()}")
    return url


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Run:
    """Score; gives the rows."""

    def score(*words: object, code: int = 0) -> Rows:
        out = tmp_path / "scores.jsonl"
        given = [str(word) for word in words]
        if "--model" not in given:
            given += ["--model", str(trained_run)]
        assert main(["score", *given, "--workers", "1", "-o", str(out)]) == code
        return [dict(row) for row in read_scores(out)]

    return score


def check_same(found: Rows, known: Rows, here: object, there: object) -> None:
    """Check that rows differ in the place of the images only."""

    def moved(row: dict[str, Any]) -> dict[str, Any]:
        texts = ("image", "reason", "note")
        return {**row, **{n: row[n].replace(str(here), str(there)) for n in texts}}

    assert found == [moved(row) for row in known]


@pytest.mark.parametrize("what", ["in", "more.zip", "more.tar", "more.tar.gz", "in/2.png"])
@pytest.mark.parametrize("prompts", [(), ("--prompt-from", "sidecar"), ("--prompt", "a fox")])
def test_what_lies_in_a_store_has_the_scores_it_has_here(
    here: Path, there: str, run: Run, what: str, prompts: tuple[str, ...]
) -> None:
    code = 0 if what == "in/2.png" else 3
    known = run(here / what, *prompts, code=code)
    found = run(f"{there}/{what}", *prompts, code=code)
    check_same(found, known, here, there)
    assert len(found) == (1 if code == 0 else COUNT + 2)


def test_prompts_of_metadata_are_read_in_a_store(here: Path, there: str, run: Run) -> None:
    words = ("--prompt-from", "metadata")
    known = run(here / "in", here / "more.zip", *words, code=3)
    found = run(f"{there}/in", f"{there}/more.zip", *words, code=3)
    check_same(found, known, here, there)
    assert [row["prompt"] for row in found if "told" in row["image"]] == ["a (red:1.2) fox"] * 2


def test_places_are_mixed_and_each_image_is_named_once(here: Path, there: str, run: Run) -> None:
    paths = [f"{there}/in/1.png", here / "in" / "1.png", f"{there}/in", f"{there}/in/1.png"]
    rows = run(*paths, code=3)
    names = [row["image"] for row in rows]
    assert names[:2] == [f"{there}/in/1.png", str(here / "in" / "1.png")]
    assert len(names) == len({*names}) == COUNT + 3
    assert rows[0]["quality"] == rows[1]["quality"]


def test_sidecars_that_are_odd_leave_a_note(there: str, run: Run) -> None:
    rows = run(f"{there}/in", "--prompt-from", "sidecar", code=3)
    notes = {row["image"].rpartition("/")[2]: (row["prompt"], row["note"]) for row in rows}
    assert notes["0.png"] == ("a fox 0", "")
    assert notes["3.png"] == (
        "",
        f"no prompt read: {there}/in/3.txt holds bytes that are no text",
    )
    assert notes["4.png"] == ("a fox 4", f"the prompt in {there}/in/4.json is another")


@pytest.mark.parametrize("suffix", LISTS)
def test_rows_of_a_list_are_beside_it_or_at_their_own_url(
    there: str, run: Run, here: Path, tmp_path: Path, suffix: str
) -> None:
    import pandas as pd

    paths = ["in/0.png", f"{there}/in/1.png", "more.zip/x/2.png", "in/gone.png", "/etc/passwd.png"]
    paths.append(str(here / "in" / "0.png"))  # a place of this machine is none of the store
    frame = pd.DataFrame({"image": paths, "prompt": [f"an ox {i}" for i in range(len(paths))]})
    WRITERS[suffix](frame, tmp_path / f"list{suffix}")
    storage.upload(tmp_path / f"list{suffix}", f"{there}/list{suffix}")
    rows = run(f"{there}/list{suffix}", code=3)
    assert [row["status"] for row in rows] == [*["ok"] * 3, *["error"] * 3]
    assert [row["image"] for row in rows[:4]] == [
        *(f"{there}/in/0.png", f"{there}/in/1.png", f"{there}/more.zip/x/2.png"),
        f"{there}/in/gone.png",
    ]
    assert [row["prompt"] for row in rows] == [*frame["prompt"]]
    known = run(*(here / "in" / f"{i}.png" for i in range(3)))
    assert [row["quality"] for row in rows[:3]] == [row["quality"] for row in known]
    assert rows[3]["reason"] == (
        f"expected a whole file at {there}/in/gone.png, got: No such file or directory"
    )


def test_list_of_this_machine_may_name_urls(
    there: str, run: Run, here: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(
        f"image,prompt\n{there}/in/0.png,x\n{here}/in/0.png,x\n{there}/more.tar/0.png,x\n"
    )
    rows = run(tmp_path / "list.csv")
    assert len({row["quality"] for row in rows}) == 1
    assert rows[2]["image"] == f"{there}/more.tar/0.png"


@pytest.mark.parametrize("row", ["http://host/a.png", "s3://name:TOP/SECRET@bucket/a.png"])
def test_url_that_is_none_is_a_row_that_does_not_show_it(
    here: Path, run: Run, row: str, tmp_path: Path, capsys: Capture
) -> None:
    images = tmp_path / "list.csv"
    images.write_text(f"image,prompt\n{here}/in/0.png,a fox\n{row},a cat\n")
    first, second = run(images, code=3)
    assert (first["status"], second["image"]) == ("ok", f"{images}/1")
    assert second["reason"].startswith("expected a ")
    written = [path.read_text() for path in tmp_path.iterdir() if path != images]
    assert not any("SECRET" in text for text in [*written, capsys.readouterr().err])


def test_scores_at_a_url_may_be_scored_again_as_a_list(
    there: str, trained_run: Path, run: Run
) -> None:
    words = ["score", f"{there}/in", "--model", str(trained_run), "--prompt", "=a fox"]
    assert main([*words, "-o", f"{there}-out/scores.csv"]) == 3
    rows = run(f"{there}-out/scores.csv", code=3)
    assert rows == [dict(row) for row in read_scores(f"{there}-out/scores.csv")]
    assert {row["prompt"] for row in rows} == {"=a fox"}


@pytest.mark.parametrize("place", ["here", "there"])
def test_table_of_prompts_may_lie_in_a_store(
    there: str, run: Run, tmp_path: Path, place: str, capsys: Capture
) -> None:
    table = f"{there}/prompts.csv" if place == "there" else str(tmp_path / "prompts.csv")
    lines = ["image,prompt", "1.png,one", f"{there}/in/2.png,two", "told.png,three", "z.png,no"]
    if place == "there":
        lines.append("in/0.png,zero")
    storage.write(table, "\n".join(lines).encode())
    rows = run(f"{there}/in", "--prompts", table, code=3)
    prompts = {row["image"].rpartition("/")[2]: row["prompt"] for row in rows}
    wanted = {"1.png": "one", "2.png": "two", "told.png": "three"}
    wanted |= {"0.png": "zero"} if place == "there" else {}
    assert {name: prompt for name, prompt in prompts.items() if prompt} == wanted
    assert f"1 rows of {table} name none of the images" in capsys.readouterr().err


def test_table_of_prompts_that_is_none_is_one_sentence(
    there: str, trained_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    storage.write(f"{there}/damaged.csv", b'image,prompt\n"\xff\n')
    words = ["score", f"{there}/in", "--model", trained_run, "-o", tmp_path / "out.csv"]
    for name, code, begin in (
        ("none", 2, "expected a table at --prompts {}, got no file"),
        ("damaged", 1, "expected a UTF-8 CSV table at {}, got: "),
    ):
        url = f"{there}/{name}.csv"
        assert refused(capsys, code, *words, "--prompts", url).startswith(begin.format(url))


# Models


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_model_at_a_url_scores_as_it_does_here(
    there: str, trained_run: Path, here: Path, run: Run, bucket: str, cache: Path
) -> None:
    for file in trained_run.rglob("*"):
        if file.is_file():
            name = file.relative_to(trained_run.parent).as_posix()
            storage.upload(file, f"{bucket}/models/{name}")
    url = f"{bucket}/models/{trained_run.name}"
    known = run(here / "in", code=3)
    manifest = cache.parent / "scores.jsonl.manifest.json"
    before = manifest.read_bytes()
    assert run(here / "in", "--model", url, code=3) == known
    assert manifest.read_bytes() == before
    assert Scorer.from_pretrained(url).about == Scorer.from_pretrained(trained_run).about
    assert len([*(cache / "dcmpl").iterdir()]) == 1


@pytest.mark.parametrize("name", ["bucket/none", "none/model"])
def test_model_that_is_not_there_is_one_sentence(
    bucket: str, here: Path, tmp_path: Path, cache: Path, name: str, capsys: Capture
) -> None:
    words = ["score", here / "in", "-o", tmp_path / "out.csv", "--model", f"s3://{name}"]
    message = refused(capsys, 1, *words)
    assert message == f"expected a folder with files at s3://{name}, got none"


# What is refused


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("s3://none/in/", 2, "expected images in s3://none/in/, got none"),
        ("s3://none/list.csv", 1, "expected a table at s3://none/list.csv, got: "),
        ("s3://none/more.zip", 3, ""),
        ("s3://none/a.png", 3, ""),
        ("s3://bucket/list.txt", 3, ""),
        ("s3:///in", 2, "expected a URL that names a bucket, got s3:///in"),
        ("http://host/a.png", 2, "expected a path, or a URL of s3://, gs://, abfs://, hf://"),
        ("file:///etc/passwd", 2, "expected a path, or a URL of s3://"),
        ("s3://bucket/none/", 2, "expected images in s3://bucket/none/, got none"),
    ],
)
def test_store_that_has_it_not_is_a_row_or_one_sentence(
    bucket: str,
    trained_run: Path,
    tmp_path: Path,
    path: str,
    code: int,
    words: str,
    capsys: Capture,
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["score", path, "--model", str(trained_run), "-o", str(out)]
    if code == 3:
        assert main(command) == 3
        (row,) = read_scores(out)
        assert row["reason"].startswith(f"expected a whole file at {path}, got: ")
        assert "\n" not in row["reason"]
    else:
        assert refused(capsys, code, *command).startswith(words)
        assert not out.exists()


@pytest.mark.parametrize("flag", ["PATH", "-o", "--model", "--prompts"])
@pytest.mark.parametrize(
    "url",
    [
        "s3://name:TOPSECRET@bucket/a",
        "s3://name:TOP/SECRET@bucket/a",
        "https://name:TOPSECRET@host/a",
        "s3://bucket/a.png?X-Amz-Credential=name&X-Amz-Signature=TOPSECRET",
        "abfs://box@account.host/a?sv=1&sig=TOPSECRET",
        "hf://datasets/a/b/c?token=TOPSECRET",
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".png", ""])
def test_key_in_a_url_is_never_shown(
    bucket: str,
    here: Path,
    trained_run: Path,
    tmp_path: Path,
    flag: str,
    url: str,
    ending: str,
    capsys: Capture,
) -> None:
    given = {"PATH": str(here / "in"), "--model": str(trained_run), "-o": str(tmp_path / "o.csv")}
    given[flag] = url + ending
    words = [given.pop("PATH"), *(word for pair in given.items() for word in pair)]
    message = refused(capsys, 2, "score", *words)
    assert not any(word in message for word in ("TOP", "SECRET", "name:"))
    assert [*tmp_path.iterdir()] == []


def test_credentials_are_in_no_manifest(
    there: str, trained_run: Path, run: Run, tmp_path: Path, capsys: Capture
) -> None:
    run(f"{there}/in", code=3)
    out = tmp_path / "scores.jsonl"
    said = capsys.readouterr()
    for text in (out.read_text(), manifest_of(out).read_text(), said.out, said.err):
        assert not any(secret in text for secret in ("not-a-secret", "testing"))
    assert read_manifest(out)["count"] == COUNT + 2


def test_image_in_a_store_that_was_changed_is_scored_anew(
    bucket: str, here: Path, trained_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    url, out = f"{bucket}/changing", tmp_path / "out.csv"
    for i in range(2):
        storage.upload(here / "in" / f"{i}.png", f"{url}/{i}.png")
    words = ["score", url, "--model", str(trained_run), "-o", str(out), "--resume"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert f"{out} is finished" in capsys.readouterr().err
    storage.upload(here / "in" / "4.png", f"{url}/1.png")
    assert main(words) == 0
    rows = [*read_scores(out)]
    assert main([*words[:1], str(here / "in" / "4.png"), *words[2:5], str(out)]) == 0
    (known,) = read_scores(out)
    assert rows[1]["quality"] == pytest.approx(known["quality"], abs=1e-6)


def test_image_that_is_no_file_of_its_name_is_told_by_its_content(
    bucket: str, run: Run, here: Path
) -> None:
    content = io.BytesIO()
    with Image.open(here / "in" / "0.png") as image:
        image.save(content, "BMP")
    storage.write(f"{bucket}/odd/x y#1?%20.png", content.getvalue())
    (row,) = run(f"{bucket}/odd")
    assert row["image"] == f"{bucket}/odd/x y#1?%20.png"
    (known,) = run(here / "in" / "0.png")
    assert row["quality"] == known["quality"]


@pytest.mark.parametrize(
    "words",
    [
        "score IN -o s3://b/x.csv",
        "score IN -o s3://b/x.csv --resume",
        "score IN --prompts s3://b/p.csv",
        "score s3://b/in",
        "score s3://b/list.csv",
        "merge s3://b/x -o OUT",
        "merge s3://b/x.csv -o OUT",
    ],
)
def test_store_that_does_not_answer_is_one_sentence(
    here: Path,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    capsys: Capture,
) -> None:
    def gone(url: str) -> None:
        raise storage.StoreError(f"read {url}: no route")

    monkeypatch.setattr(storage, "_opened", gone)
    given = words.replace("IN", str(here / "in")).replace("OUT", str(tmp_path / "out.csv")).split()
    if "-o" not in given:
        given += ["-o", str(tmp_path / "out.csv")]
    if given[0] == "score":
        given += ["--model", str(trained_run)]
    message = refused(capsys, 1, *given)
    assert message.startswith("expected ")
    assert message.count("no route") == 1
    assert "unexpected" not in message
    assert [*tmp_path.iterdir()] == []
