"""README and docs are executed: their commands run, their Python runs, generated pages hold."""

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl.cli.main import main
from dcmpl.evaluation.compare import published_rows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.weights import EMBEDDED
from dcmpl.weights.backbones import load_backbone
from serving import listening
from torch_files import save_clip_agiqa

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8765"


def blocks(language: str, page: Path = ROOT / "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("dcmpl ")]


@pytest.fixture(scope="module")
def readers_folder(
    tmp_path_factory: pytest.TempPathFactory, small_backbone: Path, image_data: Path
) -> Path:
    """What somebody who follows the README has before them, small."""
    folder = tmp_path_factory.mktemp("reader")
    frame = pd.read_csv(image_data)
    (folder / "AGIQA-3K" / "img").mkdir(parents=True)
    (folder / "images").mkdir()
    for image in frame["image"]:
        shutil.copy(image_data.parent / image, folder / "AGIQA-3K" / "img" / f"glide_{image}")
        shutil.copy(image_data.parent / image, folder / image)
        shutil.copy(image_data.parent / image, folder / "images" / image)
    official = frame.rename(columns={"image": "name", "mos_alignment": "mos_align"})
    official["name"] = "glide_" + official["name"]
    official.to_csv(folder / "AGIQA-3K" / "data.csv", index=False, lineterminator="\r\n")
    rng, more = np.random.default_rng(1), frame.head(20)
    for image in more["image"]:
        pixels = rng.integers(256, size=(40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"new_{image}")
    more = more.assign(image="new_" + more["image"], prompt="another " + more["prompt"])
    more.to_csv(folder / "mine2.csv", index=False)
    own = {"image": "file", "prompt": "text", "mos_quality": "score"}
    frame.rename(columns=own).to_csv(folder / "mine.csv", index=False)
    with tarfile.open(folder / "shards.tar", "w") as shards:
        shards.add(folder / "images", "shard")
    frame["image"].map("images/{}".format).to_csv(folder / "list.csv", index=False)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / name)
    shutil.copytree(small_backbone, folder / "openai" / "clip-vit-base-patch32")
    (folder / "grids").mkdir()
    (folder / "grids" / "small.yaml").write_text("variants: {ivlp: {preset: ivlp}}")
    backbone = load_backbone(str(small_backbone))
    model = DCMPL(backbone.clip, backbone.tokenizer, PRESETS["clip-agiqa"].model, 0)
    for file, name in zip(
        save_clip_agiqa(model, backbone.tokenizer, folder), ("aux", "tar"), strict=True
    ):
        file.rename(folder / f"AGIQA3k_8_{name}_best.pth")
    return folder


def test_commands_and_python_of_the_readme_run(
    readers_folder: Path,
    small_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(readers_folder)
    monkeypatch.setitem(EMBEDDED, "small", small_backbone)  # or one command takes a minute
    monkeypatch.setattr(
        "dcmpl.scoring.export.INT8_SRCC", -1.0
    )  # four images have no ranks to speak of
    run = [words for words in commands() if words[0] != "serve"]  # it has no end
    told = [" ".join(words[:2]) if words[0] == "data" else words[0] for words in run]
    assert told == [
        *["train", "evaluate", "score", "train", "train"],
        *["score", "select", "score", "export", "score", "score", "score", "merge", "score"],
        *["train", "info", "score", "explain"],
        *["data check", "data show", "data split", "benchmark", "compare", "benchmark"],
        *["train", "train", "benchmark", "import"],
    ]
    quick = ["--epochs", "1"]
    shorter = {"train": quick, "benchmark": [*quick, "--repeats", "1"]}
    for command, words in zip(told, run, strict=True):
        # The copy made here is not whole.
        code = 1 if command == "data check" else 0
        assert main([*words, *shorter.get(command, [])]) == code, words
    assert len(pd.read_csv("scores.csv")) == 48
    assert Path("whole.csv").read_text().count("\n") == 49
    example, remote = blocks("python")
    capsys.readouterr()
    exec(example, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["a.png", "b.png"]
    with listening(service(Scorer.from_pretrained("runs/agiqa3k"))) as address:
        exec(remote.replace(ADDRESS, address), found := {})
        (line,) = blocks("bash", ROOT / "docs" / "serving.md")
        Path("scores.csv").unlink()
        assert main(shlex.split(line.replace(ADDRESS, address))[1:]) == 0
    assert len(pd.read_csv("scores.csv")) == 48
    assert [score.image for score in found["scores"]] == ["a.png", "b.png"]


def test_count_of_published_numbers_in_the_readme_is_true() -> None:
    assert f"beside {len(published_rows())} published numbers" in README


def test_captioned_tree_is_the_package() -> None:
    tree = README[README.index("```\nsrc/dcmpl/") :].split("```")[1]
    rooms = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    files = set(re.findall(r"(\w+\.py)", tree))
    place = ROOT / "src" / "dcmpl"
    assert rooms == {path.parent.name for path in place.glob("*/__init__.py")}
    assert files == {path.name for path in place.glob("*.py")}


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_links_of_the_readme_and_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_cli_page_is_what_the_program_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from write_cli_docs import PAGE, cli_docs

    monkeypatch.setenv("COLUMNS", "100")
    assert PAGE.read_text() == cli_docs()


def test_page_of_what_scores_mean_is_made_of_its_figures() -> None:
    from write_scores import DOCS, page

    figures = json.loads((DOCS / "scores.json").read_text())
    assert (DOCS / "scores.md").read_text() == page(figures)
