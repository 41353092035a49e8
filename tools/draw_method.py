"""Draw the method in one figure: ``python tools/draw_method.py docs/method.png``."""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, LEARNED, RESULT = "#dfe5ec", "#ffd9a8", "#cfe8cf"
LAYERS = ("block 1", "block 2", "block L")
COLUMNS = (3.4, 5.9, 8.6)


def main(out: Path) -> None:
    figure = Figure(figsize=(13.2, 6.6), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13.2), ylim=(0, 6.6))
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str, width: float = 1.5) -> None:
        shape = FancyBboxPatch(
            (x - width / 2, y - 0.22), width, 0.44, boxstyle="round,pad=0.04", fc=colour, ec="0.35"
        )
        axes.add_patch(shape)
        axes.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = "0.25") -> None:
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.2)
        )

    def tower(y: float, name: str) -> None:
        axes.text(0.15, y, name, va="center", fontsize=9.5, weight="bold")
        for x, layer in zip(COLUMNS, LAYERS, strict=True):
            box(x, y, layer, FROZEN, 1.2)
        arrow((COLUMNS[0] + 0.68, y), (COLUMNS[1] - 0.68, y))
        arrow((COLUMNS[1] + 0.68, y), (COLUMNS[2] - 0.68, y))
        axes.text(7.25, y + 0.12, "...", ha="center", fontsize=12)

    tower(6.0, "text tower: aligned /\nmisaligned photo")
    tower(3.95, "image tower,\nauxiliary pass")
    tower(2.15, "image tower,\nmain pass")
    tower(0.55, "text tower: good /\nbad photo")
    for i, x in enumerate(COLUMNS):
        number = ("1", "2", "L")[i]
        box(x, 5.3, f"$T^a_{number}$", LEARNED, 0.5)
        box(x, 4.65, f"$V^a_{number}$", LEARNED, 0.5)
        arrow((x, 5.55), (x, 5.74))
        arrow((x, 4.4), (x, 4.21))
        box(x + 0.62, 3.05, f"$F_{number}$", LEARNED, 0.5)
        box(x - 0.5, 3.05, f"$V^m_{number}$", LEARNED, 0.5)
        arrow((x - 0.22, 3.05), (x + 0.34, 3.05))
        arrow((x + 0.3, 4.55), (x + 0.64, 3.31), "#b5651d")
        arrow((x + 0.5, 2.8), (x + 0.2, 2.41))
        box(x, 1.3, f"$T^m_{number}$", LEARNED, 0.5)
        arrow((x, 1.06), (x, 0.81))
    for left, right in ((COLUMNS[0], COLUMNS[1]), (COLUMNS[1], COLUMNS[2])):
        middle = (left + right) / 2
        box(middle, 4.98, "MPA", LEARNED, 0.7)
        for y in (5.3, 4.65):
            arrow((left + 0.3, y), (middle - 0.4, 5.02))
            arrow((middle + 0.4, 5.02), (right - 0.3, y))
    for y, task, text_y in ((3.95, "alignment", 6.0), (2.15, "quality", 0.55)):
        box(10.5, y, "image adapter", LEARNED, 1.35)
        arrow((9.28, y), (9.78, y))
        box(12.3, y, f"{task}\n0..1", RESULT, 1.1)
        arrow((11.22, y), (11.7, y))
        arrow((9.28, text_y), (11.85, y + (0.28 if text_y > y else -0.28)))
        sign = 1 if text_y > y else -1
        axes.text(11.5, y + sign * 1.15, "cosine, softmax\nover the word pair", fontsize=8)
    axes.text(
        0.15,
        6.45,
        "grey: frozen CLIP    orange: learned    V, T: prompts, replaced before every block    "
        "MPA: prompt attention, one module for all layers    F: fusion",
        fontsize=8.5,
        va="center",
    )
    FigureCanvasAgg(figure).print_png(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
