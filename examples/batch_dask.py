"""Scores in a Dask data frame: python batch_dask.py FOLDER OUT (pip install dask distributed)."""

import sys
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
from dask.distributed import Client, LocalCluster

from dcmpl.integrations.batch import BatchScorer


def main(folder: str, out: str, model: str | None = None) -> None:
    paths = sorted(str(path) for path in Path(folder).iterdir() if path.suffix in (".png", ".jpg"))
    scorer = BatchScorer(model)  # a worker opens the model when it is first called

    def score(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(scorer(frame.to_dict("list")))

    images = dd.from_pandas(pd.DataFrame({"image": paths}), chunksize=64)
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster):
        meta = score(pd.DataFrame({"image": [""]})).iloc[:0]
        images.map_partitions(score, meta=meta).compute().to_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
