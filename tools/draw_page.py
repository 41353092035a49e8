"""Pictures of the page of a running ``dcmpl serve``, as docs/page has them.

    dcmpl serve                                                       # in another terminal
    python tools/draw_page.py [http://127.0.0.1:8765] [--out docs/page] [--seed 0]

Six drawn scenes, each clean and twice degraded, with their captions as prompts, and a file that
is no image. Chromium at /usr/bin/chromium shows the page at three widths, light and dark, an
image explained and two compared.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from defects import degrade, draw_defects
from drawings import draw_scene, render, to_bytes

SCENES, SIZE, QUALITY = 6, 512, 80
WIDTHS = {"wide": 1600, "middle": 800, "small": 360}
SCHEMES = ("light", "dark")


def draw_images(folder: Path, seed: int) -> list[str]:
    """Write the images and their prompts beside them; returns all paths."""
    for number in range(SCENES):
        rng = np.random.default_rng([seed, number])
        scene = draw_scene(rng)
        clean = render(scene, rng, SIZE)
        for variant in "abc":
            shown = clean if variant == "a" else degrade(clean, draw_defects(rng), rng)
            name = folder / f"scene {number + 1}{variant}.png"
            Image.fromarray(to_bytes(shown)).save(name)
            name.with_suffix(".txt").write_text(scene.caption())
    (folder / "not an image.png").write_text("no image")
    return [str(path) for path in sorted(folder.iterdir())]


def shoot(page: Any, out: Path, name: str) -> None:
    """Save what the window shows."""
    page.wait_for_timeout(1000)  # thumbnails come when they are seen
    page.screenshot(path=out / f"{name}.jpg", type="jpeg", quality=QUALITY)


def show_gallery(page: Any, out: Path) -> None:
    for width, pixels in WIDTHS.items():
        page.set_viewport_size({"width": pixels, "height": 1000})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            shoot(page, out, f"{width}-{scheme}")


def show_dialogs(page: Any, out: Path) -> None:
    page.set_viewport_size({"width": 1200, "height": 1000})
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        page.locator(".open").first.click()
        page.get_by_role("button", name="Explain").click()
        page.wait_for_selector("#detail .words", timeout=0)
        shoot(page, out, f"explained-{scheme}")
        page.keyboard.press("Escape")
    page.check("#group")
    for place in (0, 1):
        page.locator(".pick").nth(place).click()
    page.click("#compare")
    page.wait_for_selector("#pair[open] p:has-text('People prefer')")
    shoot(page, out, "compared")
    page.keyboard.press("Escape")
    shoot(page, out, "grouped")
    page.click("text=The API")
    page.wait_for_selector("#paths section")
    shoot(page, out, "api")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8765")
    parser.add_argument("--out", type=Path, default=Path("docs/page"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        paths = draw_images(Path(name), options.seed)
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.goto(options.url)
        page.wait_for_selector("#model:has-text('version')")
        page.set_viewport_size({"width": WIDTHS["wide"], "height": 1000})
        shoot(page, options.out, "empty")
        page.set_input_files("#files", paths)
        page.wait_for_selector("#work", state="visible")
        page.wait_for_selector("#work", state="hidden", timeout=0)
        show_gallery(page, options.out)
        show_dialogs(page, options.out)
        browser.close()


if __name__ == "__main__":
    main()
