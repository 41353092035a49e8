"""Scores in a Ray data set: python batch_ray.py FOLDER OUT, with pip install 'dcmpl-agiqa[ray]'."""

import sys

import ray

from dcmpl.integrations.ray import Actors, score


def main(folder: str, out: str, model: str | None = None) -> None:
    images = ray.data.read_binary_files(folder, include_paths=True, file_extensions=["png", "jpg"])
    # The bytes are decoded where they are scored: one that is no image is a row with its reason.
    rows = images.map(lambda row: {"image": {"bytes": row["bytes"], "path": row["path"]}})
    score(rows, model, actors=Actors(count=1)).write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
