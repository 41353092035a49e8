"""Published data sets of AI-generated images with human scores, each read as one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dcmpl.config import COLUMNS, target_of
from dcmpl.data.aigciqa2023 import MODELS, PER_MODEL, SCALE, read_aigciqa2023, tells_aigciqa2023
from dcmpl.data.sheets import SHEETS, check_cells, first_file, need, read_sheet
from dcmpl.data.table import ImageTable, MosScale, as_group, image_table, listed, opinions
from dcmpl.errors import DataError, UsageError

__all__ = ["DATASETS", "Figures", "Official", "load_table"]


@dataclass(frozen=True)
class Figures:
    """Published counts of a data set, to check a copy against."""

    images: int
    prompts: int | None
    generators: dict[str, int]


@dataclass(frozen=True)
class Official:
    """A published data set: how to recognise it, its reader, its published counts."""

    scale: MosScale
    figures: Figures
    told_by: Callable[[Path], Path | None]
    """The file in a folder that says this is the data set, or None."""
    read: Callable[[Path, Path], ImageTable]


FOLDERS = ("img", "image", "images", "file", "all", "All", "allimg", "AGIQA-3K", "ACGIQA-3K")
"""Names that copies of these data sets give to the folder of the images."""


def _sheet(folder: Path, stem: str) -> Path | None:
    return first_file(folder, [f"{stem}.csv", f"{stem}.xlsx"])


def _places(folder: Path, *more: str) -> list[Path]:
    """Folders an image may lie in; the data set's own is the last resort."""
    found = [folder / name for name in (*FOLDERS, *more) if (folder / name).is_dir()]
    return [*found, folder] if found else [folder]


AGIQA_3K = {
    "name": "image",
    "prompt": "prompt",
    "mos_quality": "mos_quality",
    "std_quality": "std_quality",
    "mos_align": "mos_alignment",
    "std_align": "std_alignment",
}


def _tells_agiqa_3k(folder: Path) -> Path | None:
    file = first_file(folder, ["data.csv"])
    return file if file and {"adj1", "mos_align"} & set(read_sheet(file)) else None


def _read_agiqa_3k(folder: Path, file: Path) -> ImageTable:
    """Read AGIQA-3K; names are GENERATOR_SETTING_NUMBER.jpg, setting goes with generator."""
    wanted = [theirs for theirs, ours in AGIQA_3K.items() if not ours.startswith("std")]
    frame = need(read_sheet(file), wanted, file).rename(columns=AGIQA_3K)
    frame["generator"] = frame["image"].str.rsplit("_", n=1).str[0]
    places = _places(folder)[:1]
    return image_table("AGIQA-3K", DATASETS["AGIQA-3K"].scale, frame, places, file)


def _read_agiqa_1k(folder: Path, file: Path) -> ImageTable:
    """Read AGIQA-1K: one MOS; prompts that differ only in their two style words are one group.

    In the authors' sheet one name stands twice, with two opinions, and one image is absent.
    """
    frame = need(read_sheet(file), ["Image", "Prompt", "MOS"], file)
    frame = frame.rename(columns={"Image": "image", "Prompt": "prompt", "MOS": "mos_quality"})
    doubled = frame["image"].duplicated(keep=False)
    doubled_names, notes = set(frame["image"][doubled]), []
    for name, cells in frame["mos_quality"][doubled].groupby(frame["image"], sort=False):
        numbers = pd.to_numeric(cells, errors="coerce")
        both = " and ".join(f"{mos:.3f}" for mos in numbers)
        notes.append(f"{name} stands twice in {file.name}, with MOS {both}: both rows are left out")
    frame = frame[~doubled].reset_index(drop=True)
    raw = folder / "AIGC_all.csv"
    if raw.is_file():
        absent = set(need(read_sheet(raw), ["Image"], raw)["Image"]) - set(frame["image"])
        absent -= {"dreamStudio_8_9_1_.jpg", *doubled_names}  # the former is the latter, cut short
        if absent:
            notes.append(f"{listed(sorted(absent))} of {raw.name} has no row in {file.name}")
    frame["generator"] = frame["image"].str.split("_").str[0]
    words = frame["prompt"].str.replace(",", " ").str.replace("-", "").str.split()
    frame["group"] = words.str[:-2].str.join(" ")
    places = _places(folder)[:1]
    return image_table("AGIQA-1K", DATASETS["AGIQA-1K"].scale, frame, places, file, notes)


AIGIQA_20K_PARTS = {"train": "train", "val": "val", "test": "test"}


def _tells_aigiqa_20k(folder: Path) -> Path | None:
    info = _sheet(folder, "info_train")
    if info:
        return info
    file = first_file(folder, ["data.csv"])
    return file if file and list(read_sheet(file))[:3] == ["name", "prompt", "mos"] else None


def _read_aigiqa_20k(folder: Path, file: Path) -> ImageTable:
    """Read AIGIQA-20K: one MOS of quality and alignment, read as quality; an official split."""
    parts = []
    for part in AIGIQA_20K_PARTS:
        sheet = _sheet(folder, f"info_{part}") if file.stem != "data" else None
        if sheet:
            parts.append(_aigiqa_20k_part(sheet, part).assign(part=part))
    frame = pd.concat(parts, ignore_index=True) if parts else read_sheet(file)
    need(frame, ["name", "prompt", "mos"], file)
    frame = frame.rename(columns={"name": "image", "mos": "mos_quality"}).fillna("")
    frame["generator"] = frame["image"].str.rsplit("_", n=1).str[0]
    unjudged = int((frame["mos_quality"] == "").sum())
    notes = ["its one MOS mixes quality and alignment; it is read as quality"]
    notes += [f"{unjudged} images of the official split have no MOS"] if unjudged else []
    places = _places(folder, "train", "val", "test")
    return image_table("AIGIQA-20K", DATASETS["AIGIQA-20K"].scale, frame, places, file, notes)


def _aigiqa_20k_part(file: Path, part: str) -> pd.DataFrame:
    """Read one part of AIGIQA-20K, with or without header and MOS."""
    names = ["name", "prompt", "mos"]
    frame = read_sheet(file, header=False)
    if str(frame.iloc[0, 0]).endswith(".png"):
        frame.columns = [*names, *map(str, range(3, len(frame.columns)))][: len(frame.columns)]
    else:
        frame = read_sheet(file)
    judged = part == "train" or len(frame.columns) > 2
    frame = need(frame, names if judged else names[:2], file)
    if judged:
        mos = frame["mos"].rename("mos_quality")
        opinions(mos, DATASETS["AIGIQA-20K"].scale, file)
    return frame


PKU = {
    "Generated_image": "image",
    "Text_prompt": "prompt",
    "MOS_q": "mos_quality",
    "MOS_a": "mos_authenticity",
    "MOS_c": "mos_alignment",
}


PKU_FOLDERS = ("", "/All", "/SD", "/MJ", "/DALLE")
PKU_PLACES = [f"{above}{place}" for above in ("", "/Generated_image") for place in PKU_FOLDERS]


def _read_pku(folder: Path, file: Path) -> ImageTable:
    """Read PKU-AIGIQA-4K, text and image to image; images of one image prompt are a group.

    The authors test on every fourth row, which shares every prompt with training.
    """
    frame = need(read_sheet(file), list(PKU), file).rename(columns=PKU)
    images = frame.get("Image_prompt", pd.Series("", frame.index, dtype=str))
    frame["group"] = as_group(frame["prompt"]).where(images == "", "image " + images)
    frame["generator"] = frame["image"].str.split("_").str[0]
    frame["part"] = np.where(np.arange(len(frame)) % 4 == 3, "test", "train")
    below = [f"{part}{place}" for part in ("T2I", "I2I") for place in PKU_PLACES]
    places = _places(folder, *below)
    return image_table("PKU-AIGIQA-4K", DATASETS["PKU-AIGIQA-4K"].scale, frame, places, file)


_AIGIQA_20K_COUNTS = {
    **dict.fromkeys(("DALLE2", "DALLE3", "IF", "MJ"), 500),
    **dict.fromkeys(("LCM_Pixart", "LCM_SD1.5", "LCM_SDXL", "SDXL_Turbo"), 1000),
    **dict.fromkeys(("Dream", "Pixart", "Playground", "SD1.4", "SD1.5", "SDXL", "SSD1B"), 2000),
}
_AGIQA_3K_COUNTS = {
    **dict.fromkeys((f"sd1.5_{s}" for s in ("highcorr", "lowcorr", "lowstep", "normal")), 300),
    **dict.fromkeys(("AttnGAN_normal", "glide_normal", "xl2.2_normal"), 300),
    **dict.fromkeys(("midjourney_lowstep", "midjourney_normal"), 296),
    "DALLE2_normal": 290,
}

DATASETS: dict[str, Official] = {
    "AGIQA-3K": Official(
        MosScale(0, 5), Figures(2982, 300, _AGIQA_3K_COUNTS), _tells_agiqa_3k, _read_agiqa_3k
    ),
    "AIGCIQA2023": Official(
        SCALE,
        Figures(2400, 100, dict.fromkeys(MODELS, PER_MODEL)),
        tells_aigciqa2023,
        read_aigciqa2023,
    ),
    "AGIQA-1K": Official(
        MosScale(0, 5),
        Figures(1080, 720, {"deepai": 720, "dreamStudio": 360}),
        lambda folder: first_file(folder, ["AIGC_MOS_Zscore.xlsx"]),
        _read_agiqa_1k,
    ),
    "AIGIQA-20K": Official(
        MosScale(0, 5),
        Figures(20_000, 19_259, _AIGIQA_20K_COUNTS),
        _tells_aigiqa_20k,
        _read_aigiqa_20k,
    ),
    "PKU-AIGIQA-4K": Official(
        MosScale(0, 5),
        Figures(4000, None, {"SD": 1600, "MJ": 1600, "DALLE": 800}),
        lambda folder: _sheet(folder, "annotation"),
        _read_pku,
    ),
}
"""By the name they are known by, in the order in which a folder is asked."""


def load_table(
    path: str | Path,
    mos_scale: MosScale | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImageTable:
    """Read a data set, recognised by what lies at ``path``.

    ``path`` is the folder of a published one (``DATASETS``), or a table of one's own, for
    which ``mos_scale`` is needed; ``columns`` maps our names (``COLUMNS``) to those of the
    file. Raises :class:`DataError` when it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"a data set at {path}", "nothing there")
    if not path.is_dir():
        return _read_own(path.stem, path, mos_scale, columns or {})
    for name, official in DATASETS.items() if not columns else ():
        if (file := official.told_by(path)) is not None:
            scale = official.scale
            if mos_scale not in (None, scale):
                raise UsageError(
                    f"no MOS scale for {name} at {path}, whose own is {scale.low:g} to "
                    f"{scale.high:g}",
                    f"{mos_scale.low:g} to {mos_scale.high:g}",
                    "leave --mos-scale out",
                )
            return official.read(path, file)
    own = [path / f"data{ending}" for ending in SHEETS if (path / f"data{ending}").is_file()]
    if own:
        return _read_own(path.absolute().name, own[0], mos_scale, columns or {})
    raise DataError(
        f"{path} to be a table, or a folder with data.csv or with one of "
        f"{', '.join(DATASETS)} as its authors ship it",
        f"{len(list(path.iterdir()))} entries and none of their tables",
    )


def _mapped(frame: "pd.DataFrame", columns: Mapping[str, str], file: Path) -> "pd.DataFrame":
    """Table under our names; one column may serve for several of ours."""
    named = frame.drop(columns={*columns, *columns.values()}, errors="ignore")
    named = named.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})
    used = [name for name in named if name in COLUMNS or target_of(str(name)) is not None]
    check_cells(frame, [columns.get(str(name), str(name)) for name in used], file)
    return named


def _read_own(
    name: str, file: Path, mos_scale: MosScale | None, columns: Mapping[str, str]
) -> ImageTable:
    frame = read_sheet(file)
    unknown = [ours for ours in columns if ours not in COLUMNS and target_of(ours) is None]
    absent = [theirs for theirs in columns.values() if theirs not in frame]
    if unknown or absent:
        raise DataError(
            f"--columns to map {', '.join(COLUMNS)} to columns of {file} "
            f"({', '.join(frame.columns)})",
            ", ".join(unknown or absent),
        )
    frame = _mapped(frame, columns, file)
    missing = [column for column in ("image", "prompt") if column not in frame]
    if not any(target_of(str(column), ("mos",)) for column in frame):
        missing.append("mos_quality")
    if missing:
        raise DataError(
            f"the columns image, prompt and mos_quality in {file}",
            ", ".join(frame.columns),
            f"rename them or map them, as in --columns {missing[0]}=THEIR_NAME",
        )
    if mos_scale is None:
        raise UsageError(
            f"the ends of the MOS scale of {file}",
            "none",
            "add --mos-scale LOW HIGH, for example --mos-scale 1 5",
        )
    return image_table(name, mos_scale, frame, [file.parent], file, declared=True)
