"""What ``dcmpl data check`` finds wrong with a copy, and the page that shows a data set."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl.cli.main import main
from dcmpl.data import report as data_report
from dcmpl.data.datasets import DATASETS, load_table
from dcmpl.data.leaks import ImageFacts, survey
from dcmpl.data.report import Findings, check_table, data_page
from dcmpl.data.table import ImageTable, MosScale, image_table

SHARED = Path(__file__).parents[3] / "shared" / "data"


def real(name: str) -> ImageTable:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"shared/data/{name} is not beside this repository")
    return load_table(folder)


def table_of(
    folder: Path,
    name: str = "mine",
    notes: tuple[str, ...] = (),
    **columns: list[str],
) -> ImageTable:
    """A table in ``folder``; what is not given is made up."""
    rows = len(columns["image"])
    frame = pd.DataFrame({"prompt": [f"p{i}" for i in range(rows)]} | columns, dtype=str)
    if "mos_quality" not in frame:
        frame["mos_quality"] = "3"
    return image_table(name, MosScale(0, 5), frame, [folder], folder / "data.csv", notes)


def whole_3k(folder: Path) -> ImageTable:
    """Names and prompts of AGIQA-3K in the numbers that are published."""
    counts = DATASETS["AGIQA-3K"].figures.generators
    rows = [(name, n) for name, count in counts.items() for n in range(300 - count, 300)]
    return table_of(
        folder,
        "AGIQA-3K",
        image=[f"{name}_{n:03}.jpg" for name, n in rows],
        prompt=[f"prompt {n}" for _, n in rows],
        generator=[name for name, _ in rows],
    )


def seen(table: ImageTable, **odd: ImageFacts) -> dict[str, ImageFacts]:
    """Facts of images that are all there, each of its own content, but for the ``odd``."""
    fine = ImageFacts(width=8, height=8)
    found = {}
    for path, name in zip(table.frame["image"], table.frame["name"], strict=True):
        found[path] = odd.get(Path(name).stem, replace(fine, sha256=f"of {name}"))
    return found


def faults(table: ImageTable) -> list[str]:
    return check_table(table, seen(table)).faults


def save(file: Path, seed: int | None) -> str:
    """An image of noise, or a flat one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise * (seed is not None)).save(file)
    return file.name


def test_whole_copy_has_no_faults(tmp_path: Path) -> None:
    table = whole_3k(tmp_path)
    assert len(table) == 2982
    assert check_table(table, seen(table)) == Findings([], [])


def test_missing_rows_are_counted_against_the_published_figures(tmp_path: Path) -> None:
    table = whole_3k(tmp_path)
    gone = table.frame["name"].isin(["DALLE2_normal_010.jpg", "sd1.5_normal_299.jpg"])
    table = table.select(~gone)
    assert faults(table) == [
        "2,980 of 2,982 images of the full set are there",
        "by generator, 299 of 300 of sd1.5_normal, 289 of 290 of DALLE2_normal are there",
    ]


def test_missing_prompts_are_counted(tmp_path: Path) -> None:
    table = whole_3k(tmp_path)
    table = table.select(~table.frame["prompt"].isin(["prompt 0", "prompt 299"]))
    found = faults(table)
    assert found[:2] == [
        "2,965 of 2,982 images of the full set are there",
        "2 of 300 prompts of the full set are absent",
    ]
    assert found[2].endswith("of sd1.5_lowstep and 7 more are there")


def test_prompts_that_are_too_many_are_not_called_absent(tmp_path: Path) -> None:
    table = whole_3k(tmp_path)
    table.frame.loc[[0, 1], "prompt"] = ["another", "and another"]
    (fault,) = faults(table)
    assert "302" in fault
    assert "-2" not in fault
    assert "absent" not in fault


def test_images_that_are_too_many_are_told(tmp_path: Path) -> None:
    table = whole_3k(tmp_path)
    images, generators = ["glide_normal_300.jpg", "dalle4_1.jpg"], ["glide_normal", "dalle4"]
    more = table_of(tmp_path, image=images, prompt=["prompt 1"] * 2, generator=generators)
    table = table.joined(more)
    assert faults(table) == [
        "2,984 of 2,982 images of the full set are there",
        "by generator, 301 of 300 of glide_normal are there",
        "generators that the full set has not: dalle4",
    ]


def test_rows_that_the_reader_left_out_are_not_missing(tmp_path: Path) -> None:
    rows = [("deepai", n) for n in range(720)] + [("dreamStudio", n % 720) for n in range(358)]
    images = [f"{generator}_{n}.jpg" for generator, n in rows]
    names = [generator for generator, _ in rows]
    prompts = [f"prompt {n}" for _, n in rows]
    made = {"image": images, "generator": names, "prompt": prompts}
    told = ("x.jpg stands twice in y.xlsx, with MOS 1.000 and 2.000: both rows are left out",)
    table = table_of(tmp_path, "AGIQA-1K", told, **made)
    assert check_table(table, seen(table)) == Findings([], list(told))
    untold = table_of(tmp_path, "AGIQA-1K", **made)
    assert faults(untold) == [
        "1,078 of 1,080 images of the full set are there",
        "by generator, 358 of 360 of dreamStudio are there",
    ]


def test_own_data_are_held_against_no_figures(tmp_path: Path) -> None:
    table = table_of(tmp_path, image=["a.png"], generator=["anyone"])
    assert check_table(table, seen(table)) == Findings([], [])


def test_real_label_files_are_whole_or_told_short() -> None:
    for name in ("agiqa-1k-labels", "aigciqa2023-labels"):
        assert faults(real(name)) == []
    assert faults(real("pku-aigiqa-4k-labels")) == [
        "2,400 of 4,000 images of the full set are there",
        "by generator, 800 of 1600 of SD, 800 of 1600 of MJ are there",
    ]
    assert faults(real("agiqa-3k-dev")) == [
        "2,384 of 2,982 images of the full set are there",
        "60 of 300 prompts of the full set are absent",
        "by generator, 240 of 300 of sd1.5_highcorr, 240 of 300 of sd1.5_lowcorr, "
        "240 of 300 of sd1.5_lowstep and 7 more are there",
    ]


def test_missing_and_unreadable_images_are_faults(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_bytes(b"no image")
    table = table_of(tmp_path, image=["a.png", "b.png", "c.png"])
    found = check_table(table, survey(table.frame["image"]))
    assert len(found.faults) == 2
    assert found.faults[0].startswith(
        f"expected an image that can be decoded, got {tmp_path / 'b.png'}: "
    )
    assert found.faults[1] == f"expected an image at {tmp_path / 'c.png'}, got no file"


@pytest.mark.parametrize(("name", "kind"), [("mine", "faults"), ("AGIQA-3K", "notes")])
def test_images_that_are_the_same_file_are_a_fault_of_ones_own_data(
    tmp_path: Path, name: str, kind: str
) -> None:
    for file, seed in (("a.png", 1), ("b.png", 2), ("c.png", 1), ("d.png", 1)):
        save(tmp_path / file, seed)
    table = table_of(tmp_path, name, image=["a.png", "b.png", "c.png", "d.png"])
    found = check_table(table, survey(table.frame["image"]))
    doubled = "doubled: a.png and c.png and d.png are the same file"
    assert doubled in getattr(found, kind)
    assert sum("doubled" in line for line in found.faults + found.notes) == 1


def test_flat_images_are_noted_and_not_called_doubled(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{i}.png", None if i < 2 else i) for i in range(3)]
    table = table_of(tmp_path, image=images)
    assert check_table(table, survey(table.frame["image"])) == Findings(
        [], ["flat, nothing is to be seen in them: 0.png, 1.png"]
    )


def test_images_without_a_row_are_noted_from_every_folder(tmp_path: Path) -> None:
    for file in ("one/a.png", "one/z.JPG", "two/a.png", "two/y.png", "three/x.png", "one/._a.png"):
        save(tmp_path / file, 0)
    (tmp_path / "one" / "readme.txt").touch()
    table = table_of(tmp_path, image=["one/a.png", "two/a.png"])
    assert check_table(table, seen(table)).notes == ["2 images have no row: z.JPG, y.png"]


def test_notes_of_the_reader_come_first(tmp_path: Path) -> None:
    table = table_of(tmp_path, notes=("odd",), image=["a.png"])
    facts = dict.fromkeys(table.frame["image"], ImageFacts(flat=True))
    notes = check_table(table, facts).notes
    assert notes == ["odd", "flat, nothing is to be seen in them: a.png"]


def test_command_lists_all_that_is_wrong_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("z", 2)):
        save(tmp_path / f"{name}.png", seed)
    file = tmp_path / "data.csv"
    file.write_text("image,prompt,mos_quality\na.png,x,3\nb.png,x,4\nc.png,y,5\n")
    assert main(["data", "check", str(tmp_path), "--mos-scale", "1", "5"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path.name}: 3 images, 2 prompts, 1 generators, MOS 1 to 5 for quality",
        "  note: 1 images have no row: z.png",
        f"  wrong: expected an image at {tmp_path / 'c.png'}, got no file",
        "  wrong: doubled: a.png and b.png are the same file",
        "2 of 3 images decode; 2 things are wrong",
    ]


def test_command_passes_a_whole_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png", 1)
    (tmp_path / "data.csv").write_text("image,prompt,mos_quality\na.png,x,3\n")
    assert main(["data", "check", str(tmp_path), "--mos-scale", "1", "5"]) == 0
    assert capsys.readouterr().out.endswith("\n1 of 1 images decode; 0 things are wrong\n")


def test_command_tells_opinions_out_of_scale_with_their_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data.csv"
    file.write_text("image,prompt,mos_quality\na.png,x,3\nb.png,x,14\nc.png,y,0\n")
    assert main(["data", "check", str(tmp_path), "--mos-scale", "1", "5"]) == 1
    shown = capsys.readouterr()
    assert "mos_quality between 1 and 5" in shown.out + shown.err
    assert "got '14' in line 3 (2 such)" in shown.out + shown.err


class Page(HTMLParser):
    """Tags, and the texts of headings, items, captions and cells."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.tags[-1], []).append(data)


def page_of(table: ImageTable, facts: Mapping[str, ImageFacts] | None = None) -> Page:
    return Page(data_page(table, facts or survey(table.frame["image"])))


def test_page_shows_images_from_worst_to_best_of_each_target(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{i}.png", i) for i in range(3)]
    table = table_of(
        tmp_path,
        image=images,
        prompt=["a fox", "an ox", "a hen"],
        generator=["x", "y", "x"],
        mos_quality=["2", "0.5", "4.25"],
        mos_authenticity=["", "5", "1"],
    )
    page = page_of(table)
    assert page.texts["h2"] == [
        *("What it holds", "Opinions", "Generators"),
        *("From worst to best quality", "From worst to best authenticity"),
    ]
    assert page.texts["figcaption"] == [
        *("0.50 y: an ox", "2.00 x: a fox", "4.25 x: a hen"),
        *("1.00 x: a hen", "5.00 y: an ox"),
    ]
    assert page.texts["li"] == [
        "3 images, 3 prompts, 2 generators",
        "MOS from 0 (worst) to 5; judged for quality, authenticity",
        "sizes: 8 x 8",
    ]
    assert page.texts["td"][:3] == ["x", "2", "3.125"]


def test_page_samples_both_ends_of_many_images(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{i:02}.png", i) for i in range(40)]
    mos = [f"{i / 10}" for i in range(40)]
    captions = page_of(table_of(tmp_path, image=images, mos_quality=mos)).texts["figcaption"]
    assert len(captions) == 24
    assert captions[0].startswith("0.00")
    assert captions[-1].startswith("3.90")
    assert captions == sorted(captions)


def test_page_runs_nothing_that_a_data_set_says(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror='alert(1)'>\"'"
    image = save(tmp_path / "a'onload='b<b>.png", 0)
    table = table_of(tmp_path, evil, (evil,), image=[image], prompt=[evil], generator=[evil])
    page = page_of(table)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2  # the histogram and the image
    assert page.texts["h1"] == [evil]
    assert evil in page.texts["li"]
    assert page.texts["figcaption"] == [f"3.00 {evil}: {evil}"[:160]]
    raw = data_page(table, survey(table.frame["image"])).decode()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/)", raw)


def test_page_lists_faults_and_shows_what_can_be_read(tmp_path: Path) -> None:
    table = table_of(tmp_path, image=[save(tmp_path / "a.png", 0), "gone.png"])
    page = page_of(table)
    assert page.texts["h2"][1] == "What is wrong with this copy"
    assert f"expected an image at {tmp_path / 'gone.png'}, got no file" in page.texts["li"]
    assert page.texts["figcaption"] == ["3.00 : p0"]


def test_page_of_images_that_are_all_gone_has_no_figures(tmp_path: Path) -> None:
    page = page_of(table_of(tmp_path, image=[f"{i}.png" for i in range(203)]))
    assert "figure" not in page.tags
    assert len(page.texts["li"]) == 203  # three facts, and no more than 200 faults
    assert "and 3 more" in page.texts["p"]


def test_page_leaves_out_an_image_that_went_since_it_was_seen(tmp_path: Path) -> None:
    table = table_of(tmp_path, image=[save(tmp_path / f"{i}.png", i) for i in range(2)])
    facts = survey(table.frame["image"])
    (tmp_path / "0.png").unlink()
    assert page_of(table, facts).texts["figcaption"] == ["3.00 : p1"]


def test_page_without_matplotlib_has_no_histograms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_report, "has_matplotlib", lambda: False)
    page = page_of(table_of(tmp_path, image=[save(tmp_path / "a.png", 0)]))
    assert "Opinions" not in page.texts["h2"]
    assert page.tags.count("img") == 1
