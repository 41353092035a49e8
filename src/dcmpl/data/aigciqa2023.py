"""Reader of AIGCIQA2023 (Wang et al., arXiv:2307.00211), in all circulating forms.

The authors ship three MATLAB files that differ in nothing but their numbers; copies have mixed
them up before, so each is held to the ends it is known for.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from dcmpl.data.sheets import first_file, need, read_mat, read_numbers, read_sheet
from dcmpl.data.table import ImageTable, MosScale, image_table
from dcmpl.errors import DataError

__all__ = ["MODELS", "PER_MODEL", "SCALE", "read_aigciqa2023", "tells_aigciqa2023"]

SCALE = MosScale(0, 100)
MODELS = ("Controlnet", "DALLE", "Glide", "Lafite", "stable-diffusion", "Unidiffuser")
PER_MODEL, PER_PROMPT = 400, 4
AIGCIQA_2023_TARGETS = ("quality", "authenticity", "alignment")
"""In the order of the authors' files; they say correspondence for alignment."""
RANGES = {"quality": (26.63, 72.11), "authenticity": (28.42, 73.72), "alignment": (27.69, 72.39)}
"""Least and greatest MOS of the whole set: what tells the three files apart."""

MATS = ("DATA/MOS", "MOS", "DATA", "")
SPREADS = ("DATA/STD/", "STD/", "DATA/", "")
LAYOUT = (
    "DATA/MOS/mosz1.mat (quality), mosz2.mat (authenticity), mosz3.mat (correspondence) with "
    "MOSz, 2400 x 1"
)


def tells_aigciqa2023(folder: Path) -> Path | None:
    names = [f"{place}/mosz{i}.mat".lstrip("/") for place in MATS for i in (1, 2, 3)]
    return first_file(folder, [*names, "AIGIQA2023.json", "moz1.txt", "AIGIQA2023+.csv"])


def read_aigciqa2023(folder: Path, file: Path) -> ImageTable:
    """Read AIGCIQA2023; image n is number n % 4 of prompt n % 400 // 4 of generator n // 400."""
    count = PER_MODEL * len(MODELS)
    number = np.arange(count)
    prompt = number % PER_MODEL // PER_PROMPT
    numbers, texts = _aigciqa2023_opinions(folder, file, count)
    _check_ranges(numbers, file)
    frame = pd.DataFrame({f"mos_{t}": _texts(values) for t, values in numbers.items()})
    for index, target in enumerate(AIGCIQA_2023_TARGETS, 1):
        spread = first_file(folder, [f"{place}SD{index}.mat" for place in SPREADS])
        if spread:
            frame[f"std_{target}"] = _texts(read_mat(spread, "SD", count))
    frame["generator"] = np.repeat(MODELS, PER_MODEL)
    allimg = next((p for p in ("Image/allimg", "allimg") if (folder / p).is_dir()), None)
    models = next((p for p in ("Image", ".") if (folder / p / MODELS[0]).is_dir()), None)
    if allimg or not models:
        frame["image"], place = [f"{n}.png" for n in number], folder / (allimg or "allimg")
    else:
        shown = (f"{p:03}-{n % PER_PROMPT + 1}.png" for n, p in zip(number, prompt, strict=True))
        frame["image"] = [f"{m}/{name}" for m, name in zip(frame["generator"], shown, strict=True)]
        place = folder / models
    texts = texts or _aigciqa2023_prompts(folder)
    notes = [] if texts else ["no sheet of prompts beside it: they are not known, only numbered"]
    frame["prompt"] = [texts[p] if texts else "" for p in prompt]
    pairs = zip(prompt, frame["prompt"], strict=True)
    frame["group"] = [f"{number:03} {text}".strip() for number, text in pairs]
    plus = folder / "AIGIQA2023+.csv"
    if plus.is_file():
        _check_plus(plus, frame["generator"])
    return image_table("AIGCIQA2023", SCALE, frame, [place], file, notes)


def _texts(values: np.ndarray) -> list[str]:
    return [repr(float(value)) for value in values]


def _aigciqa2023_opinions(
    folder: Path, file: Path, count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Opinions by target, on 0..100, and where the file has them the prompts."""
    if file.suffix == ".mat":
        files = [file.with_name(f"mosz{i}.mat") for i in (1, 2, 3)]
        absent = [f.name for f in files if not f.is_file()]
        if absent:
            raise DataError(f"{LAYOUT} in {folder}", f"no {absent[0]}")
        values = [read_mat(f, "MOSz", count) for f in files]
        return dict(zip(AIGCIQA_2023_TARGETS, values, strict=True)), []
    if file.suffix == ".json":
        columns = ["id", "prompt", "moz1", "moz2", "moz3"]
        frame = need(read_sheet(file), columns, file).drop_duplicates("id")
        frame = frame.sort_values("id", key=lambda ids: pd.to_numeric(ids, errors="coerce"))
        if list(frame["id"]) != [str(n) for n in range(count)]:
            raise DataError(f"the ids 0 to {count - 1} in {file}", "others")
        mos = frame[columns[2:]].apply(pd.to_numeric, errors="coerce").to_numpy(float) * 100
        return dict(zip(AIGCIQA_2023_TARGETS, mos.T, strict=True)), list(
            frame["prompt"].iloc[:PER_MODEL:PER_PROMPT]
        )
    if file.suffix == ".txt":
        values = [read_numbers(file.with_name(f"moz{i}.txt"), count) for i in (1, 2, 3)]
        values = [v * 100 if v.max() <= 1 else v for v in values]
        return dict(zip(AIGCIQA_2023_TARGETS, values, strict=True)), []
    raise DataError(
        f"{LAYOUT} or AIGIQA2023.json in {folder}",
        f"only {file.name}, whose coarse levels are no MOS",
    )


def _check_ranges(numbers: dict[str, np.ndarray], file: Path) -> None:
    """Check the range of each target, since copies have confused the three targets before."""
    for target, values in numbers.items():
        ends = float(np.min(values)), float(np.max(values))
        near = [
            name for name, known in RANGES.items() if np.allclose(ends, known, atol=0.02, rtol=0)
        ]
        if near != [target]:
            which = f", which are those of {near[0]}" if near else ""
            hint = "the columns are swapped" if near else ""
            low, high = RANGES[target]
            raise DataError(
                f"{target} from {low:g} to {high:g} in {file.parent} ({LAYOUT})",
                f"{ends[0]:.2f} to {ends[1]:.2f}{which}",
                hint,
            )


def _aigciqa2023_prompts(folder: Path) -> list[str]:
    """The 100 prompts, or none where no sheet lies beside the data."""
    names = ("AIGCIQA2023_Prompts.xlsx", "DATA/AIGCIQA2023_Prompts.xlsx", "prompt.xlsx")
    file = first_file(folder, names)
    if file is None:
        return []
    if file.name == "prompt.xlsx":  # 2,400 rows, a header
        texts = need(read_sheet(file), ["prompt"], file)["prompt"].tolist()
        texts = texts[:PER_MODEL:PER_PROMPT]
    else:
        frame = read_sheet(file, header=False)
        texts = frame["2"].tolist() if "2" in frame else []
    if len(texts) != PER_MODEL // PER_PROMPT:
        raise DataError(
            f"{PER_MODEL // PER_PROMPT} prompts in the third column of {file}", len(texts)
        )
    return texts


def _check_plus(file: Path, generators: "pd.Series[str]") -> None:
    """The "+" sheet, GB18030 without a header, must list the same models in the same order."""
    frame = read_sheet(file, header=False, encoding="gb18030")
    if len(frame.columns) < 3 or frame["2"].tolist() != generators.tolist():
        raise DataError(
            f"id, image and model of {len(generators)} images in {file}, 400 for each of "
            f"{', '.join(MODELS)}",
            "others",
        )
