"""The page in a real browser, and its files."""

import csv
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from starlette.testclient import TestClient

from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.serve.pages import PARTS
from serving import listening

pytest_plugins = ("calibrated",)

CHROMIUM = Path("/usr/bin/chromium")
SCRIPT = "<script>document.title = 'run'</script>"


@pytest.fixture(scope="module")
def app(calibrated_run: Path) -> Any:
    return service(Scorer.from_pretrained(calibrated_run, device="cpu"))


# Files


@pytest.mark.parametrize("name", sorted(PARTS))
def test_files_of_the_page_come_by_name(app: Any, name: str) -> None:
    found = TestClient(app, base_url="http://127.0.0.1").get(f"/page/{name}")
    assert found.content == PARTS[name].read_bytes()
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    assert found.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]


@pytest.mark.parametrize(
    "name", ["app.py", "..%2fapp.py", "%2e%2e%2fapp.py", "/etc/passwd", "index", "index.html%00"]
)
def test_no_other_file_comes(app: Any, name: str) -> None:
    found = TestClient(app, base_url="http://127.0.0.1").get(f"/page/{name}")
    assert found.status_code == 404
    assert b"import" not in found.content


@pytest.mark.parametrize("name", sorted(PARTS))
def test_page_names_no_other_host_and_holds_no_code_in_line(name: str) -> None:
    text = PARTS[name].read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "innerHTML" not in text
    assert " style=" not in text
    assert " on" + "click=" not in text


# In a browser


@pytest.fixture(scope="module")
def address(app: Any) -> Iterator[str]:
    with listening(app) as found:
        yield f"{found}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists() and "CI" not in os.environ:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, with what the browser complained of; at the end there must be nothing."""
    found = browser.new_page(viewport={"width": 1200, "height": 800})
    complaints, hosts = list[str](), set[str]()
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: hosts.add(request.url.partition("/page/")[0]))
    found.goto(address)
    yield found
    assert complaints == []
    assert {host.split(":")[0] for host in hosts} <= {"http", "blob"}
    assert all("//127.0.0.1:" in host for host in hosts if host.startswith("http"))
    found.close()


def give(page: Any, data: Path, count: int = 6, prompt: str = "a fox") -> list[Path]:
    """Give the page some images and a file that is none, and wait until all are scored."""
    paths = [*sorted(data.parent.glob("*.png"))[:count], data]
    page.fill("#prompt", prompt)
    page.set_input_files("#files", [str(path) for path in paths])
    page.wait_for_selector("#work", state="hidden")
    page.wait_for_selector(f".card >> nth={count}")
    return paths


def names(page: Any) -> list[str]:
    return list(page.locator(".name").all_text_contents())


def rows(page: Any) -> list[dict[str, str]]:
    """The rows that the page saves."""
    with page.expect_download() as download:
        page.click("#csv")
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))


def test_images_are_scored_sorted_and_saved_as_the_scorer_does(
    page: Any, app: Any, judged_data: Path, calibrated_run: Path
) -> None:
    paths = give(page, judged_data)
    found = rows(page)
    scorer = Scorer.from_pretrained(calibrated_run, device="cpu")
    wanted = {score.image: score for score in scorer.score(paths, "a fox")}
    by_name = {Path(name).name: score for name, score in wanted.items()}
    for row in found:
        score = by_name[row["image"]]
        assert row["status"] == score.status
        assert row["quality"] == ("" if score.quality is None else str(score.quality))
        assert row["quality_label"] == (score.more["quality_label"] or "")
    ordered = [float(row["quality"]) for row in found if row["quality"]]
    assert ordered == sorted(ordered, reverse=True)
    assert found[-1]["status"] == "error"
    page.select_option("#sort", "")
    assert names(page) == sorted(path.name for path in paths)


def test_folder_that_is_dropped_is_scored_to_its_end(
    page: Any, judged_data: Path, tmp_path: Path
) -> None:
    """18 images in folders and a file that is none, as a hand drops them."""
    folder = tmp_path / "made"
    for place, image in enumerate(sorted(judged_data.parent.glob("*.png"))[:18]):
        target = folder / f"seed {place % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    (folder / "notes.md").write_text("no image")
    told: list[str] = []
    page.expose_function("tell", lambda text: told.append(text))
    page.evaluate(
        "new MutationObserver(() => tell(document.getElementById('left').textContent))"
        ".observe(document.getElementById('left'), { childList: true })"
    )
    hand = page.context.new_cdp_session(page)
    files = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"type": kind, "x": 600, "y": 120, "data": files}
        hand.send("Input.dispatchDragEvent", place)
    page.wait_for_selector(".card >> nth=18")
    page.wait_for_selector("#work", state="hidden")
    found = rows(page)
    assert len(found) == 19
    assert sorted(row["image"] for row in found if row["status"] == "error") == ["made/notes.md"]
    assert {row["image"].rpartition("/")[0] for row in found[:-1]} == {"made/seed 0", "made/seed 1"}
    assert told[-1] == "19 of 19"
    assert " of 19, " in told[0]
    assert told[0].endswith(" left")


def test_nothing_shown_is_nothing_to_save(page: Any, judged_data: Path) -> None:
    page.set_input_files("#files", [str(judged_data.parent / "000.png")])
    page.wait_for_selector(".card")
    page.select_option("#label", "error")
    assert names(page) == []
    assert page.is_disabled("#csv")
    page.click("#clear")
    assert page.is_hidden("#tools")


def test_thumbnails_are_drawn_once(page: Any, judged_data: Path) -> None:
    give(page, judged_data)
    page.wait_for_selector(".thumbnail img >> nth=5")
    before = page.evaluate("[...document.querySelectorAll('.thumbnail img')].map((i) => i.src)")
    for by in ("alignment", "quality"):
        page.select_option("#sort", by)
    page.check("#group")
    after = page.evaluate("[...document.querySelectorAll('.thumbnail img')].map((i) => i.src)")
    assert sorted(after) == sorted(before)


def test_cancelled_second_prompt_leaves_the_first_score(page: Any, judged_data: Path) -> None:
    give(page, judged_data, 2)
    before = rows(page)
    page.route("**/v1/score", lambda route: None)  # an answer that never comes
    page.locator(".open").first.click()
    page.fill("#detail textarea", "another prompt")
    page.get_by_role("button", name="Score with this prompt").click()
    page.click("#cancel")
    page.wait_for_selector("#work", state="hidden")
    assert rows(page) == before


def test_page_says_what_scores(page: Any, calibrated_run: Path) -> None:
    page.wait_for_selector("#model:has-text('version')")
    told = str(page.text_content("#model"))
    assert told.startswith(f"{calibrated_run.name}, version ")
    assert told.endswith("; alignment is judged from the image alone")


def test_texts_beside_images_are_their_prompts(
    page: Any, judged_data: Path, tmp_path: Path
) -> None:
    images = sorted(judged_data.parent.glob("*.png"))[:3]
    for image in images:
        (tmp_path / image.name).write_bytes(image.read_bytes())
    first, second, third = images
    (tmp_path / f"{first.stem}.txt").write_text("  a red fox, \u706b\n", encoding="utf-8")
    (tmp_path / f"{second.stem}.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "alone.txt").write_text("a text beside no image")
    page.fill("#prompt", "of the others")
    page.set_input_files("#files", [str(path) for path in sorted(tmp_path.iterdir())])
    page.wait_for_selector("#trouble:not([hidden])")
    told = str(page.text_content("#trouble"))
    assert told.startswith(f"no prompt read from {second.stem}.txt: expected at most 64 KiB")
    assert {row["image"]: row["prompt"] for row in rows(page)} == {
        first.name: "a red fox, \u706b",
        second.name: "of the others",
        third.name: "of the others",
        "alone.txt": "of the others",
    }


def test_threshold_and_labels_say_how_many_stay(page: Any, judged_data: Path) -> None:
    give(page, judged_data)
    scores = [float(row["quality"]) for row in rows(page) if row["quality"]]
    least = sorted(scores)[2] - 1e-6
    page.evaluate(f"document.getElementById('threshold').step = 'any', threshold.value = {least}")
    page.dispatch_event("#threshold", "input")
    assert page.text_content("#stay") == "4 of 7 stay"
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        kept = {info.filename: archive.read(info) for info in archive.infolist()}
    assert len(kept) == 4
    assert all(content == (judged_data.parent / n).read_bytes() for n, content in kept.items())
    page.select_option("#label", "error")
    assert names(page) == [judged_data.name]
    assert "expected an image that can be decoded" in str(page.text_content(".reason"))


def test_image_is_opened_explained_and_scored_with_another_prompt(
    page: Any, judged_data: Path
) -> None:
    give(page, judged_data)
    page.locator(".open").first.click()
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#detail figure + figure, #detail .two .two, #detail p:has-text('MOS')")
    page.fill("#detail textarea", SCRIPT)
    page.get_by_role("button", name="Score with this prompt").click()
    page.wait_for_selector("#detail[open] td:has-text('<script>')")
    assert page.title() != "run"
    page.keyboard.press("Escape")
    page.check("#group")
    assert SCRIPT in page.locator("#gallery h2").all_text_contents()


def test_keyboard_alone_picks_two_and_compares_them(page: Any, judged_data: Path) -> None:
    give(page, judged_data)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("c")
    page.wait_for_selector("#pair[open] p:has-text('People prefer')")
    page.keyboard.press("Escape")
    assert not page.is_visible("#pair")
    page.keyboard.press("Enter")
    assert page.is_visible("#detail")


@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    page: Any, judged_data: Path, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    give(page, judged_data, 3, "a very long prompt " * 20 + "w" * 300)
    page.check("#group")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".open").first.click()
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= width


def faults(page: Any) -> list[str]:
    """What axe finds that is serious, by its rules, with the parts of the page."""
    found = Axe().run(page).response["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {node['html']}" for each in grave for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, judged_data: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    assert faults(page) == []
    give(page, judged_data)
    page.check("#group")
    assert faults(page) == []
    page.locator(".open").first.click()
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#detail p:has-text('MOS')")
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.click("text=The API")
    page.wait_for_selector("#paths section")
    assert faults(page) == []


def test_page_of_the_api_describes_every_path(page: Any, app: Any) -> None:
    page.click("text=The API")
    page.wait_for_selector("#paths section")
    found = page.locator("#paths h2").all_text_contents()
    wanted = app.openapi()["paths"]
    assert found == [f"{method.upper()} {path}" for path in wanted for method in wanted[path]]
    assert "curl -F files=@a.png" in str(page.text_content("#paths pre"))


def test_work_can_be_cancelled(page: Any, judged_data: Path) -> None:
    """What was scored by then stays; what was not is gone."""
    page.route("**/v1/score", lambda route: None)  # an answer that never comes
    page.set_input_files("#files", [str(judged_data.parent / "000.png")])
    page.click("#cancel")
    page.wait_for_selector("#work", state="hidden")
    assert names(page) == []
    page.unroute("**/v1/score")
    give(page, judged_data, 2)
    assert len(names(page)) == 3
