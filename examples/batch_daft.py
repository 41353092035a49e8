"""Scores in a Daft data frame: python batch_daft.py FOLDER OUT, with pip install daft.

Daft pins an older pyarrow than constraints.txt has: give it an environment of its own.
"""

import os
import sys

os.environ.setdefault("DO_NOT_TRACK", "true")  # it reports its use otherwise

import daft

from dcmpl.integrations.batch import BatchScorer


@daft.cls(max_concurrency=1)
class Quality:
    """BatchScorer as Daft calls it: one instance, opened once."""

    def __init__(self, model: str | None = None) -> None:
        self.scorer = BatchScorer(model, targets=["quality"])

    @daft.method.batch(return_dtype=daft.DataType.float64(), batch_size=64)
    def score(self, image: daft.Series) -> list[float]:
        return list(self.scorer({"image": image.to_pylist()})["quality"])


def main(folder: str, out: str, model: str | None = None) -> None:
    images = daft.from_glob_path(f"{folder}/*").select(daft.col("path").alias("image"))
    plain = images.with_column("image", daft.col("image").replace("file://", ""))
    plain.with_column("quality", Quality(model).score(daft.col("image"))).write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
