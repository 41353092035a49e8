"""Scores in a Spark data frame: python batch_spark.py FOLDER OUT (install pyspark, and Java)."""

import os
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession

from dcmpl.integrations.batch import BatchScorer

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or it takes another Python's packages


def main(folder: str, out: str, model: str | None = None) -> None:
    spark = SparkSession.builder.master("local[1]").getOrCreate()
    scorer = BatchScorer(model, targets=["quality"])

    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            found = scorer(frame.to_dict("list"))
            yield pd.DataFrame({name: found[name] for name in ("image", "quality", "reason")})

    files = spark.read.format("binaryFile").load(folder).selectExpr("path as image")
    plain = files.selectExpr("regexp_replace(image, '^file:/+', '/') as image")
    plain.mapInPandas(score, "image string, quality double, reason string").write.parquet(out)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
