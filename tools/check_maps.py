"""Whether the map of ``dcmpl explain`` finds damage: a blurred or noisy piece, pasted in.

    python tools/check_maps.py RUN [--images 200] [--side 128]

Images of the run's test part, every other one blurred and noisy; a map has found the piece
where its lowest block lies inside. The same with the weights of the model shuffled, each
tensor in itself, where nothing should be found but by chance. Written to ``RUN/maps.json``.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dcmpl.files import as_json, write_atomically
from dcmpl.images.decode import read_image
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded
from dcmpl.progress import track
from dcmpl.runs import read_run, read_split, table_of_run
from dcmpl.scoring.calibration import Calibration, read_calibration
from dcmpl.scoring.explain import QualityMap, damaged, patch_map, window_map
from dcmpl.scoring.torch_engine import TorchEngine, load_model
from draw_scenes import each_once

BLUR, NOISE = 4.0, 40.0


def shuffled(model: DCMPL, seed: int) -> DCMPL:
    """``model`` with the numbers of every tensor in another order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.clip.buffers()]:
            flat = tensor.flatten()
            tensor.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(tensor))
    return model


def found(
    model: DCMPL, calibration: Calibration, paths: list[str], side: int
) -> dict[str, dict[str, float]]:
    """By map and kind of damage, how often the lowest block lies in the piece."""
    engine = TorchEngine(model, [next(iter(calibration.targets))])
    hits: dict[str, dict[str, list[bool]]] = {}
    for number, path in enumerate(track(paths, "looking for damage")):
        image, rng = read_image(path), np.random.default_rng(number)
        top, left = (8 * int(rng.integers(0, (s - side) // 8 + 1)) for s in image.shape[:2])
        kind, strength = (("blur", BLUR), ("noise", NOISE))[number % 2]
        box = top, left, top + side, left + side
        shown = damaged(image, box, kind, strength, number)
        assert isinstance(engine.network, Folded)
        maps = {
            "patches": patch_map(engine.network, calibration, shown),
            "windows": window_map(engine, shown),
        }
        for name, values in maps.items():
            row, column = QualityMap(values, name, "").worst
            inside = top <= row < top + side and left <= column < left + side
            hits.setdefault(name, {}).setdefault(kind, []).append(inside)
    rates = {n: {k: float(np.mean(v)) for k, v in kinds.items()} for n, kinds in hits.items()}
    return {n: {**r, "both": float(np.mean([*r.values()]))} for n, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a calibrated run")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=128, help="of the piece, in pixels")
    options = parser.parse_args()
    run, model = load_model(options.run)
    calibration = read_calibration(options.run, read_run(options.run).weights_sha256)
    split, table = read_split(options.run, run), table_of_run(run)
    assert split is not None
    assert calibration is not None
    test = each_once(split.test_part(table).table)
    rows = pd.Series(np.arange(len(test)) % max(1, len(test) // options.images) == 0)
    paths = list(test.select(rows).frame["image"])[: options.images]
    image = read_image(paths[0])
    chance = options.side**2 / (image.shape[0] * image.shape[1])
    told = {"images": len(paths), "side": options.side, "chance": chance}
    told |= {"trained": found(model, calibration, paths, options.side)}
    told |= {"shuffled": found(shuffled(model, 0), calibration, paths, options.side)}
    write_atomically(options.run / "maps.json", as_json(told))
    print(as_json(told).decode())


if __name__ == "__main__":
    main()
