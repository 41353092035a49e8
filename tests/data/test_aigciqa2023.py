"""AIGCIQA2023 in every form that it goes round in, and its three files never mixed up."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "aigciqa2023-labels"

TARGETS = ("quality", "authenticity", "alignment")
ENDS = {"quality": (26.63, 72.11), "authenticity": (28.42, 73.72), "alignment": (27.69, 72.39)}
MODELS = ("Controlnet", "DALLE", "Glide", "Lafite", "stable-diffusion", "Unidiffuser")
MOS = {
    target: np.random.default_rng(seed).permutation(np.linspace(*ENDS[target], 2400))
    for seed, target in enumerate(TARGETS)
}
PROMPTS = [f"prompt {i}, a  Fox" + " " * (i == 7) for i in range(100)]
LAYOUT = (
    "DATA/MOS/mosz1.mat (quality), mosz2.mat (authenticity), mosz3.mat (correspondence) with "
    "MOSz, 2400 x 1"
)


def told(folder: Path, scale: MosScale | None = None) -> str:
    """The one sentence with which ``folder`` is refused."""
    with pytest.raises(DataError) as caught:
        load_table(folder, scale)
    message = str(caught.value)
    assert "\n" not in message
    return message


def mats(folder: Path, place: str = "DATA/MOS", order: tuple[str, ...] = TARGETS) -> Path:
    """The three files, with the opinions of ``order`` in them."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for number, target in enumerate(order, 1):
        savemat(folder / place / f"mosz{number}.mat", {"MOSz": MOS[target][:, None]})
    return folder


QUESTIONS = ("quality?", "authenticity?", "correspondence?", "all?")


def records(
    order: tuple[str, ...] = TARGETS, questions: tuple[str, ...] = QUESTIONS[:1]
) -> list[dict[str, object]]:
    """MINT-IQA's JSON, MOS / 100; it has a row for each of four questions on an image."""
    return [
        {
            "id": str(n),
            "img": f"{n}.png",
            "prompt": PROMPTS[n % 400 // 4],
            **{f"moz{i}": float(MOS[target][n] / 100) for i, target in enumerate(order, 1)},
            "q1": question,
        }
        for n in range(2400)
        for question in questions
    ]


def as_json(folder: Path, rows: list[dict[str, object]]) -> Path:
    (folder / "AIGIQA2023.json").write_text(json.dumps(rows))
    return folder


def as_lines(folder: Path, divisor: float = 1, order: tuple[str, ...] = TARGETS) -> Path:
    for number, target in enumerate(order, 1):
        values = MOS[target] / divisor
        (folder / f"moz{number}.txt").write_text("".join(f"{v!r}\n" for v in values.tolist()))
    return folder


def plus(folder: Path, models: list[str], encoding: str = "gb18030") -> Path:
    """The "+" sheet: no header, levels, reasons in Chinese with line breaks and without."""
    lines = [
        f"{n},{n % 400 // 4:03}-{n % 4 + 1}.png,{model},3,4,3,2,11,"
        '"柯基犬, 失真\n",,"a ""toy"", odd",\r\n'
        for n, model in enumerate(models)
    ]
    (folder / "AIGIQA2023+.csv").write_bytes("".join(lines).encode(encoding))
    return folder


def prompt_sheet(file: Path, columns: int = 3) -> None:
    """No header; challenge, category, prompt, and three more columns in an older version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [["simple", "Arts", prompt, "x", "y", "z"][:columns] for prompt in PROMPTS]
    pd.DataFrame(rows).to_excel(file, index=False, header=False)


FORMS: dict[str, Callable[[Path], object]] = {
    "official": mats,
    "MOS": lambda folder: mats(folder, "MOS"),
    "DATA": lambda folder: mats(folder, "DATA"),
    "CLIP-AGIQA": lambda folder: mats(folder, ""),
    "MINT-IQA": lambda folder: as_json(folder, records(questions=QUESTIONS)),
    "lines": as_lines,
    "lines from 0 to 1": lambda folder: as_lines(folder, 100),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_opinions(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    table = load_table(tmp_path)
    assert (table.name, table.scale, len(table)) == ("AIGCIQA2023", MosScale(0, 100), 2400)
    for target in TARGETS:
        assert table.frame[f"mos_{target}"].to_numpy() == pytest.approx(MOS[target], abs=1e-9)
        assert table.frame[f"std_{target}"].isna().all()


def test_images_are_numbered_by_model_then_prompt(tmp_path: Path) -> None:
    frame = load_table(mats(tmp_path)).frame
    assert frame["generator"].tolist() == [model for model in MODELS for _ in range(400)]
    assert frame["group"].iloc[[0, 3, 4, 399, 400, 2399]].tolist() == [
        *("000", "000", "001", "099", "000", "099"),
    ]
    assert frame.groupby("group").size().tolist() == [24] * 100


@pytest.mark.parametrize("place", ["Image/allimg", "allimg"])
def test_images_lie_in_allimg_even_beside_model_folders(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "Image" / MODELS[0]).mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / place / "2399.png")
    frame = load_table(mats(tmp_path)).frame
    assert frame["name"].tolist() == [f"{n}.png" for n in range(2400)]
    assert Path(frame["image"].iloc[2399]).is_file()
    assert frame["image"].iloc[0] == str(tmp_path / place / "0.png")


@pytest.mark.parametrize("place", ["Image", "."])
def test_images_lie_in_model_folders_where_there_is_no_allimg(tmp_path: Path, place: str) -> None:
    for model in MODELS:
        (tmp_path / place / model).mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / place / "DALLE" / "099-4.png")
    frame = load_table(mats(tmp_path)).frame
    assert frame["name"].iloc[[0, 1, 4, 799, 2000]].tolist() == [
        *("Controlnet/000-1.png", "Controlnet/000-2.png", "Controlnet/001-1.png"),
        *("DALLE/099-4.png", "Unidiffuser/000-1.png"),
    ]
    assert Path(frame["image"].iloc[799]).is_file()
    assert frame["name"].nunique() == 2400


@pytest.mark.parametrize("place", ["DATA/STD", "STD", "DATA", "."])
def test_spreads_are_those_of_their_targets(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        savemat(tmp_path / place / f"SD{number}.mat", {"SD": np.full((2400, 1), 10.0 + number)})
    frame = load_table(mats(tmp_path)).frame
    assert {t: frame[f"std_{t}"].unique().tolist() for t in TARGETS} == {
        **{"quality": [11.0], "authenticity": [12.0], "alignment": [13.0]},
    }


@pytest.mark.parametrize("columns", [3, 6])
@pytest.mark.parametrize("place", ["AIGCIQA2023_Prompts.xlsx", "DATA/AIGCIQA2023_Prompts.xlsx"])
def test_prompts_come_from_the_third_column_of_the_sheet(
    tmp_path: Path, place: str, columns: int
) -> None:
    prompt_sheet(tmp_path / place, columns)
    table = load_table(mats(tmp_path))
    assert table.frame["prompt"].tolist() == [PROMPTS[n % 400 // 4] for n in range(2400)]
    assert table.notes == ()


def test_prompts_come_from_the_sheet_of_a_row_per_image(tmp_path: Path) -> None:
    prompts = [PROMPTS[n % 400 // 4] for n in range(2400)]
    pd.DataFrame({"name": range(2400), "prompt": prompts}).to_excel(
        tmp_path / "prompt.xlsx", index=False
    )
    assert load_table(mats(tmp_path)).frame["prompt"].tolist() == prompts


def test_prompts_come_from_the_json(tmp_path: Path) -> None:
    table = load_table(as_json(tmp_path, records()))
    assert table.frame["prompt"].tolist() == [PROMPTS[n % 400 // 4] for n in range(2400)]


def test_rows_of_the_json_may_lie_in_any_order(tmp_path: Path) -> None:
    frame = load_table(as_json(tmp_path, records()[::-1])).frame
    assert frame["mos_quality"].to_numpy() == pytest.approx(MOS["quality"], abs=1e-9)
    assert frame["prompt"].iloc[2000] == PROMPTS[0]


def test_absent_prompts_are_told_and_groups_known(tmp_path: Path) -> None:
    table = load_table(mats(tmp_path))
    assert table.frame["prompt"].unique().tolist() == [""]
    assert table.frame["group"].nunique() == 100
    assert table.notes == ("no sheet of prompts beside it: they are not known, only numbered",)


def test_plus_sheet_in_gb18030_is_held_against_the_models(tmp_path: Path) -> None:
    models = [model for model in MODELS for _ in range(400)]
    mats(tmp_path)
    assert len(load_table(plus(tmp_path, models))) == 2400
    assert told(plus(tmp_path, models[::-1])) == (
        f"expected id, image and model of 2400 images in {tmp_path / 'AIGIQA2023+.csv'}, "
        f"400 for each of {', '.join(MODELS)}, got others"
    )
    assert "2400 images" in told(plus(tmp_path, models[1:]))


def test_plus_sheet_in_a_wrong_encoding_is_told_the_right_one(tmp_path: Path) -> None:
    models = [model for model in MODELS for _ in range(400)]
    mats(tmp_path)
    assert told(plus(tmp_path, models, "utf-16")).startswith(
        f"expected a GB18030 CSV table at {tmp_path / 'AIGIQA2023+.csv'}, got: "
    )


def test_plus_sheet_alone_has_no_mos(tmp_path: Path) -> None:
    assert told(plus(tmp_path, ["DALLE"])) == (
        f"expected {LAYOUT} or AIGIQA2023.json in {tmp_path}, got only AIGIQA2023+.csv, whose "
        "coarse levels are no MOS"
    )


SWAPS = [order for order in itertools.permutations(TARGETS) if order != TARGETS]
TWICE = ("alignment", "authenticity", "alignment")
"""A converter reads the first file for correspondence too."""


def swapped(folder: Path, order: tuple[str, ...]) -> str:
    """What is said of the first file that is not what it should be."""
    wanted, got = next((w, g) for w, g in zip(TARGETS, order, strict=True) if w != g)
    (low, high), (least, most) = ENDS[wanted], ENDS[got]
    return (
        f"expected {wanted} from {low:g} to {high:g} in {folder} ({LAYOUT}), got "
        f"{least:.2f} to {most:.2f}, which are those of {got}: the columns are swapped"
    )


@pytest.mark.parametrize("order", [*SWAPS, TWICE, ("quality", "quality", "quality")])
def test_swapped_mat_files_are_told(tmp_path: Path, order: tuple[str, ...]) -> None:
    mats(tmp_path, order=order)
    assert told(tmp_path) == swapped(tmp_path / "DATA" / "MOS", order)


@pytest.mark.parametrize("order", [SWAPS[0], SWAPS[-1]])
def test_swapped_columns_of_the_json_are_told(tmp_path: Path, order: tuple[str, ...]) -> None:
    assert told(as_json(tmp_path, records(order))) == swapped(tmp_path, order)


@pytest.mark.parametrize("order", [SWAPS[0], SWAPS[-1]])
def test_swapped_files_of_lines_are_told(tmp_path: Path, order: tuple[str, ...]) -> None:
    assert told(as_lines(tmp_path, 100, order)) == swapped(tmp_path, order)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda mos: mos / 20, "1.33 to 3.61"),
        (lambda mos: 100 - mos, "27.89 to 73.37"),
        (lambda mos: np.where(mos > 72, np.nan, mos), "nan to nan"),
        (lambda mos: mos + 0.05, "26.68 to 72.16"),
    ],
)
def test_opinions_of_other_ends_are_told_with_the_layout(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], got: str
) -> None:
    mats(tmp_path)
    savemat(tmp_path / "DATA/MOS/mosz1.mat", {"MOSz": change(MOS["quality"])[:, None]})
    assert told(tmp_path) == (
        f"expected quality from 26.63 to 72.11 in {tmp_path}/DATA/MOS ({LAYOUT}), got {got}"
    )


@pytest.mark.parametrize("absent", [1, 2, 3])
def test_absent_mat_is_named_with_the_layout(tmp_path: Path, absent: int) -> None:
    mats(tmp_path)
    (tmp_path / f"DATA/MOS/mosz{absent}.mat").unlink()
    assert told(tmp_path) == f"expected {LAYOUT} in {tmp_path}, got no mosz{absent}.mat"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_corrupt_mat_is_named_with_what_it_should_hold(tmp_path: Path, number: int) -> None:
    file = mats(tmp_path) / f"DATA/MOS/mosz{number}.mat"
    file.write_bytes(file.read_bytes()[:9000])
    assert told(tmp_path).startswith(
        f"expected a MATLAB file with the variable MOSz, 2400 x 1 numbers, at {file}, got: "
    )


def test_renamed_keys_of_the_json_are_told(tmp_path: Path) -> None:
    rows = [{("mos1" if k == "moz1" else k): v for k, v in row.items()} for row in records()]
    assert told(as_json(tmp_path, rows)) == (
        f"expected the columns id, prompt, moz1, moz2, moz3 in {tmp_path / 'AIGIQA2023.json'}, "
        "got id, img, prompt, mos1, moz2, moz3, q1: moz1 is not there"
    )


def test_json_without_an_image_is_refused(tmp_path: Path) -> None:
    rows = [row for row in records() if row["id"] != "17"]
    assert told(as_json(tmp_path, rows)) == (
        f"expected the ids 0 to 2399 in {tmp_path / 'AIGIQA2023.json'}, got others"
    )


def test_lines_of_other_count_are_refused(tmp_path: Path) -> None:
    file = as_lines(tmp_path) / "moz2.txt"
    file.write_text(file.read_text() + "50\n")
    assert told(tmp_path) == f"expected 2400 lines that end in a number at {file}, got 2401"


@pytest.mark.parametrize("rows", [[["a", "b"]] * 100, [["challenge", "category", "prompt"]] * 101])
def test_prompts_of_another_shape_are_told_the_layout(
    tmp_path: Path, rows: list[list[str]]
) -> None:
    file = mats(tmp_path) / "AIGCIQA2023_Prompts.xlsx"
    pd.DataFrame(rows).to_excel(file, index=False, header=False)
    assert told(tmp_path).startswith(f"expected 100 prompts in the third column of {file}, got ")


def test_real_opinions_are_those_of_the_official_layout(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("shared/data/aigciqa2023-labels is not beside this repository")
    copy = load_table(REAL)  # MINT-IQA's JSON, beside the "+" sheet
    for number, target in enumerate(TARGETS, 1):
        savemat(tmp_path / f"mosz{number}.mat", {"MOSz": copy.frame[[f"mos_{target}"]].to_numpy()})
    prompts = copy.frame["prompt"].iloc[:400:4].tolist()
    pd.DataFrame([["", "Arts", prompt] for prompt in prompts]).to_excel(
        tmp_path / "AIGCIQA2023_Prompts.xlsx", index=False, header=False
    )
    official = load_table(tmp_path)
    assert official.digest == copy.digest
    ranks = official.frame[[f"mos_{target}" for target in TARGETS]].corr("spearman").to_numpy()
    assert ranks[np.triu_indices(3, 1)].round(3).tolist() == [0.862, 0.701, 0.755]
    means = official.frame.groupby("generator", sort=False)["mos_quality"].mean().round(1)
    assert dict(means) == dict(zip(MODELS, [56.0, 57.5, 40.7, 41.1, 54.2, 50.0], strict=True))
