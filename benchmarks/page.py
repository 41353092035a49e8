"""Whether the page of the service stutters: how long it holds the browser up, with many images.

    python benchmarks/page.py [--images 1000] [--model RUN]

``dcmpl serve`` in a process of its own, Chromium at /usr/bin/chromium without a screen, 512 x 512
JPEG. What a person feels is the longest time in which the browser could draw nothing: while
images are scored, scrolled through, sorted anew and cut off by the slider.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from score_speed import draw

from serve import PROMPT, served

DISTINCT, SCROLLS, MOVES = 50, 60, 40
FRAMES = """
window.gaps = [];
let last = performance.now();
const step = (now) => { gaps.push(now - last); last = now; requestAnimationFrame(step); };
requestAnimationFrame(step);
"""


def many(folder: Path, count: int) -> list[str]:
    """Paths of so many images, of which some are the same under other names."""
    drawn = draw(folder / "drawn", min(count, DISTINCT))
    paths = [folder / f"{place:05}.jpg" for place in range(count)]
    for place, path in enumerate(paths):
        path.hardlink_to(drawn[place % len(drawn)])
    return [str(path) for path in paths]


def felt(page: Any, what: str, does: Callable[[], object]) -> None:
    """Print how long ``does`` takes, and the times between frames while it does."""
    page.evaluate("window.gaps.length = 0")
    start = time.perf_counter()
    does()
    seconds = time.perf_counter() - start
    gaps = sorted(page.evaluate("window.gaps"))
    middle, most = gaps[len(gaps) // 2], gaps[-1]
    late = gaps[int(0.99 * len(gaps))]
    print(
        f"{what:14} {seconds:7.1f} s {len(gaps):6} frames {middle:5.0f} {late:5.0f} {most:5.0f} ms"
    )


def scroll(page: Any) -> None:
    for _ in range(SCROLLS):
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(50)


def slide(page: Any) -> None:
    for place in range(MOVES):
        page.evaluate(f"document.getElementById('threshold').value = {place / MOVES}")
        page.dispatch_event("#threshold", "input")
        page.wait_for_timeout(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", help="run or export (default: the model of the package)")
    options = parser.parse_args()
    words = ["--model", options.model] if options.model else []
    with (
        tempfile.TemporaryDirectory() as name,
        served(words) as (url, _),
        sync_playwright() as driver,
    ):
        paths = many(Path(name), options.images)
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(url)
        page.fill("#prompt", PROMPT)
        page.evaluate(FRAMES)

        def score() -> None:
            page.set_input_files("#files", paths)
            page.wait_for_selector("#work", state="visible")
            page.wait_for_selector("#work", state="hidden", timeout=0)

        print(f"{options.images} images; times between frames: median, 99 %, longest")
        felt(page, "scoring", score)
        page.mouse.move(600, 600)
        felt(page, "scrolling", lambda: scroll(page))
        felt(page, "sorting", lambda: page.select_option("#sort", "alignment"))
        felt(page, "the slider", lambda: slide(page))
        memory = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        print(f"{memory:.0f} MiB of JavaScript's memory")
        browser.close()


if __name__ == "__main__":
    main()
