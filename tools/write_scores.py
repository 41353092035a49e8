"""Write docs/scores.md and its images from measured runs.

    python tools/train_default.py --data AGIQA-3K --out runs/default
    dcmpl evaluate runs/default --split test; python tools/check_maps.py runs/default
    python tools/draw_scenes.py --out drawn --images 5000
    dcmpl train --data drawn/data.csv ... --out runs/drawn   # as the page has it
    python tools/measure_reading.py runs/drawn --data drawn/data.csv --images 400
    python tools/write_scores.py runs/default --drawings drawn/data.csv \
        --reading runs/drawn/reading.json

Every figure on the page is taken from those folders, and kept in docs/scores.json.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dcmpl.cli.main import main as dcmpl
from dcmpl.data.table import ImageTable
from dcmpl.files import as_json
from dcmpl.images.decode import read_image
from dcmpl.pages import figure_png, markdown_table
from dcmpl.runs import read_run, read_split, table_of_run
from dcmpl.scoring.calibration import Calibration, Meaning, read_calibration
from dcmpl.scoring.explain import damaged
from dcmpl.scoring.torch_engine import TorchEngine, load_model, predict_table
from dcmpl.training.calibrate import COVERAGES, judged
from draw_scenes import each_once

DOCS = Path(__file__).parents[1] / "docs"
NAMES = "metrics.json", "maps.json"


def test_part(folder: Path) -> ImageTable:
    run = read_run(folder)
    table, split = table_of_run(run), read_split(folder, run)
    assert split is not None
    return each_once(split.test_part(table).table)


def calibration_of(folder: Path) -> Calibration:
    found = read_calibration(folder, read_run(folder).weights_sha256)
    assert found is not None
    return found


def measured(folder: Path) -> dict[str, Any]:
    """What evaluate and the tools left in a run folder."""
    paths = (folder / name for name in NAMES)
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in paths if p.is_file()}


def plots(folder: Path, found: Mapping[str, Any]) -> bytes:
    """Populations, calibration and coverage of quality, on images that nothing has seen."""
    from matplotlib.figure import Figure

    calibration, test = calibration_of(folder), test_part(folder)
    meaning = calibration.targets["quality"]
    _, model = load_model(folder)
    engine = TorchEngine(model, ["quality"])
    scores, spread = predict_table(engine, test, calibration.views, "scoring")
    seen = judged(test, "quality", scores[:, 0], spread[:, 0])
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    first, second, third = figure.subplots(1, 3)
    hundred = np.linspace(0, 100, 101)
    for name, known in meaning.generators.items():
        first.plot(known, hundred, linewidth=1, label=name)
    first.plot(meaning.population, hundred, "k", linewidth=2.2, label="all")
    first.set(xlabel="quality", ylabel="percentile", title="scores of the training images")
    first.legend(fontsize=6)
    grid = np.linspace(seen.scores.min(), seen.scores.max(), 200)
    low, high = meaning.interval(grid, np.full_like(grid, float(np.median(seen.spread))))
    second.scatter(seen.scores, seen.mos, s=7, alpha=0.5, color="0.5")
    second.plot(grid, meaning.mos(grid), color="C3", label="from score to MOS")
    second.fill_between(grid, low, high, color="C3", alpha=0.15, label="90 % interval")
    order = np.array_split(np.argsort(seen.scores), 10)
    points = [(seen.scores[part].mean(), seen.mos[part].mean()) for part in order]
    second.plot(*zip(*points, strict=True), "o", color="C0", label="means of tenths")
    second.set(xlabel="quality", ylabel="MOS", title="test images")
    second.legend(fontsize=7)
    inside = found["calibration"]["quality"]
    third.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for target, marker in (("quality", "o"), ("alignment", "s")):
        values = [found["calibration"][target][f"coverage_{c:g}"] for c in COVERAGES]
        third.plot(COVERAGES, values, f"-{marker}", label=target)
    third.set(
        xlabel="stated coverage",
        ylabel="MOS inside, test images",
        title=f"intervals; calibration error {inside['calibration_error']:.2f} MOS units",
        xlim=(0.4, 1),
        ylim=(0.4, 1),
    )
    third.legend(fontsize=7)
    return figure_png(figure)


def why(folder: Path, drawn: Path, out: Path) -> dict[str, Any]:
    """``dcmpl explain`` of a drawing with a noisy piece and a word that is wrong."""
    table = pd.read_csv(drawn)
    rows = table[(table["generator"] == "clean") & table["wrong_in"].str.endswith("colour")]
    row = rows.iloc[0]
    image = Image.fromarray(read_image(str(drawn.parent / row["image"])))
    large = np.asarray(image.resize((512, 512), Image.Resampling.BICUBIC))  # room for a map
    spoilt = out.with_suffix(".tmp.png")
    Image.fromarray(damaged(large, (320, 48, 448, 176), "noise", 40.0, 0)).save(spoilt)
    out.unlink(missing_ok=True)  # made anew
    words = ["explain", str(spoilt), "--model", str(folder), "--prompt", row["wrong"]]
    assert dcmpl([*words, "-o", str(out)]) == 0
    spoilt.unlink()
    return {"prompt": row["wrong"], "right": row["right"], "wrong_in": row["wrong_in"]}


def cuts(meaning: Meaning) -> str:
    rows = [
        {
            "that or better": cut.label,
            "MOS from": cut.mos,
            "score from": cut.score,
            "precision": cut.precision,
            "recall": cut.recall,
            "share so good": cut.share,
            "nine in ten right from": cut.sure,
            "which finds": cut.sure_recall,
        }
        for cut in meaning.cuts
    ]
    return markdown_table(pd.DataFrame(rows))


def alignment_table(found: Mapping[str, Any]) -> str:
    metrics = found["run"]["metrics"]
    entry, prompts = metrics["alignment"], metrics["prompts"]["alignment"]
    row = {
        "SRCC": entry["srcc"]["value"],
        "PLCC": entry["plcc"]["value"],
        "better of two picked": entry["pairwise_accuracy"],
        "SRCC lost with other prompts": prompts["srcc_drop"],
        "own prompt scores higher": prompts["own_higher"],
    }
    return markdown_table(pd.DataFrame([row]), signed=["SRCC lost with other prompts"])


def page(found: Mapping[str, Any]) -> str:
    """The whole page, from docs/scores.json."""
    template = Path(__file__).with_name("scores_page.md").read_text(encoding="utf-8")
    metrics = found["run"]["metrics"]
    reading = found["reading"]
    of = found["run"]["maps"]
    values: dict[str, Any] = {
        "cuts": found["cuts"],
        "alignment": alignment_table(found),
        "prompt": found["why"]["prompt"],
        "right": found["why"]["right"],
        "images": metrics["quality"]["n"],
        "mapped": of["images"],
        "validation": found["validation"],
        "training": found["training"],
        "coverage": markdown_table(
            pd.DataFrame(
                {
                    "": target,
                    **{f"{c:.0%} stated": entry[f"coverage_{c:g}"] for c in COVERAGES},
                    "width of the 90 % one": entry["width_0.9"],
                }
                for target, entry in metrics["calibration"].items()
            )
        ),
        "calibration": markdown_table(
            pd.DataFrame(
                {
                    "": target,
                    "error of score on the scale": entry["calibration_error_before"],
                    "error of calibrated MOS": entry["calibration_error"],
                    "mean distance to MOS": entry["mean_error"],
                }
                for target, entry in metrics["calibration"].items()
            )
        ),
        "pairs": markdown_table(
            pd.DataFrame(
                {
                    "": target,
                    "pairs called": entry["called"],
                    "of those right": entry["called_right"],
                    "too close, right": entry["close_right"],
                    "error of probabilities": entry["pair_error"],
                }
                for target, entry in metrics["calibration"].items()
            )
        ),
        "reading": markdown_table(
            pd.DataFrame(
                {
                    "drawings": name,
                    "count": reading[name]["drawings"],
                    "SRCC to the faults": reading[name]["srcc_to_faults"],
                    "right above one fault": reading[name]["right_above_wrong"],
                }
                for name in ("all", "clean", "degraded")
            )
        ),
        "faults": ", ".join(
            f"{part} {value:.2f}"
            for part, value in sorted(reading["fault in"].items(), key=lambda pair: -pair[1])
        ),
        "maps": markdown_table(
            pd.DataFrame(
                {
                    "weights": weights,
                    "map": name,
                    "blurred": rates["blur"],
                    "noisy": rates["noise"],
                    "both": rates["both"],
                    "by chance": of["chance"],
                }
                for weights in ("trained", "shuffled")
                for name, rates in of[weights].items()
            )
        ),
    }
    for name, value in values.items():
        template = template.replace(f"{{{{{name}}}}}", str(value))
    return template


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="dcmpl-prompted, evaluated on its test part")
    parser.add_argument("--drawings", type=Path, required=True, help="table of drawings")
    parser.add_argument("--reading", type=Path, required=True, help="of a run trained on them")
    options = parser.parse_args()
    calibration = calibration_of(options.run)
    meaning = calibration.targets["quality"]
    found: dict[str, Any] = {
        "run": measured(options.run),
        "reading": json.loads(options.reading.read_text(encoding="utf-8")),
        "cuts": cuts(meaning),
        "validation": meaning.validation,
        "training": meaning.training,
        "why": why(options.run, options.drawings, DOCS / "why.png"),
    }
    (DOCS / "scores.png").write_bytes(plots(options.run, found["run"]["metrics"]))
    (DOCS / "scores.json").write_bytes(as_json(found))
    (DOCS / "scores.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
