"""Show what ``small`` learns from: ``python tools/sample_sheet.py docs/drawings.jpg``."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from defects import degrade, draw_defects
from drawings import draw_scene, render, to_bytes

SIDE, COLUMNS, ROWS = 160, 8, 4


def main(out: Path) -> None:
    sheet = Image.new("RGB", (SIDE * COLUMNS, SIDE * ROWS))
    for place in range(COLUMNS * ROWS):
        rng = np.random.default_rng([3, place // 2])  # a clean image, then a spoilt one
        image = render(draw_scene(rng), rng, 256)
        if place % 2:
            image = degrade(image, draw_defects(rng), rng)
        tile = Image.fromarray(to_bytes(image)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    sheet.save(out, quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
