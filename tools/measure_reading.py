"""What a run reads in drawings that it has never seen; see ``draw_scenes.py``.

    python tools/measure_reading.py RUN --data DIR/data.csv [--images 1000]

Of the test part: SRCC of alignment to the number of faults in the prompt, and how often the
right caption scores higher than one with a single fault. Written to ``RUN/reading.json``.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dcmpl.files import as_json, write_atomically
from dcmpl.metrics import srcc
from dcmpl.runs import read_run, read_split, table_of_run
from dcmpl.scoring.torch_engine import TorchEngine, load_model, predict_table
from draw_scenes import each_once


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="trained on the drawings with dcmpl-prompted")
    parser.add_argument("--data", type=Path, required=True, help="their table")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    run = read_run(options.run)
    table, split = table_of_run(run), read_split(options.run, run)
    assert split is not None
    test = each_once(split.test_part(table).table)
    test = test.select(pd.Series(np.arange(len(test)) < options.images))
    told = pd.read_csv(options.data).set_index("image").loc[test.frame["name"]]
    _, model = load_model(options.run)
    engine = TorchEngine(model, ["alignment"])

    def alignment(prompts: list[str], what: str) -> np.ndarray:
        found: np.ndarray = predict_table(engine, test, run.train.views, what, prompts)[0][:, 0]
        return found

    own, right, wrong = (
        alignment(told[column].tolist(), f"reading {column}")
        for column in ("prompt", "right", "wrong")
    )
    faults, clean = told["faults"].to_numpy(), (told["generator"] == "clean").to_numpy()
    better = (right > wrong) + 0.5 * (right == wrong)
    kinds = {"all": np.full(len(test), True), "clean": clean, "degraded": ~clean}
    found = {
        name: {
            "drawings": int(rows.sum()),
            "srcc_to_faults": -srcc(own[rows], faults[rows]),
            "right_above_wrong": float(better[rows].mean()),
        }
        for name, rows in kinds.items()
    }
    by_part = pd.Series(better).groupby(told["wrong_in"].to_numpy()).mean().to_dict()
    write_atomically(options.run / "reading.json", as_json({**found, "fault in": by_part}))
    print(as_json({**found, "fault in": by_part}).decode())


if __name__ == "__main__":
    main()
