"""The page in a real browser: headless Chromium, at a desk's and at a phone's width."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from cluster.storage.folder import FolderStore
from tests.support.endpoint_models import Served, make_checkpoint, png_of, served

DESK, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SHOTS = os.environ.get("AALNET_SCREENSHOTS")  # a folder, to look at them
# playwright's own transport leaves its child's pipe to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    make_checkpoint(FolderStore(folder / "store"), "tiny")
    with served("tiny", "--storage", folder / "store", cwd=folder) as endpoint:
        yield endpoint


class Page:
    """The page in a tab of its own, with everything it loaded and complained of."""

    def __init__(self, browser: "playwright.Browser", url: str, size: dict[str, int]) -> None:
        self.context = browser.new_context(viewport=size, accept_downloads=True, has_touch=True)
        self.page = self.context.new_page()
        self.loaded: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.loaded.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(url)
        playwright.expect(self.page.locator("#label option")).to_have_count(3)

    def _heard(self, line: "playwright.ConsoleMessage") -> None:
        if line.type == "error":
            self.complaints.append(line.text)

    def samples(self, count: int) -> None:
        playwright.expect(self.page.locator("#samples img")).to_have_count(count)
        playwright.expect(self.page.locator("#go")).to_be_enabled()

    def says(self, text: str) -> None:
        playwright.expect(self.page.locator("#status")).to_contain_text(text)

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


@pytest.fixture
def page(browser: "playwright.Browser", endpoint: Served) -> Iterator[Page]:
    opened = Page(browser, endpoint.url, DESK)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    outside = [url for url in opened.loaded if not url.startswith((endpoint.url, "data:", "blob:"))]
    assert outside == []


def draw(page: Page) -> None:
    box = page.page.locator("#canvas").bounding_box()
    assert box is not None
    x, y, side = box["x"], box["y"], box["width"]
    mouse = page.page.mouse
    mouse.move(x + 0.3 * side, y + 0.3 * side)
    mouse.down()
    for across, down in ((0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3)):
        mouse.move(x + across * side, y + down * side, steps=4)
    mouse.up()


def test_draw_then_download(page: Page, tmp_path: Path) -> None:
    draw(page)
    page.page.select_option("#label", "b")
    page.page.fill("#seed", "7")
    page.page.click("#go")
    page.samples(8)
    status = page.page.inner_text("#status")
    assert "8 samples of “b”, seed 7" in status
    assert "from 384×384 to 32×32" in status
    with page.page.expect_download() as download:
        page.page.click("#download-grid")
    download.value.save_as(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    page.shot("desk")


def test_pick_a_file_and_go_back_in_history(page: Page, tmp_path: Path) -> None:
    image = tmp_path / "drawing.png"
    image.write_bytes(png_of())
    page.page.click("#use-file")
    page.page.set_input_files("#file", image)
    page.page.fill("#number", "3")
    for seed in ("1", "2"):
        page.page.fill("#seed", seed)
        page.page.click("#go")
        page.says(f"seed {seed}")
    page.samples(3)
    assert page.page.locator("#history button").count() == 2
    second = page.page.get_attribute("#samples img", "src")
    page.page.click("#history button:last-child")
    page.says("seed 1")
    assert page.page.get_attribute("#samples img", "src") != second
    page.page.click("#again")
    playwright.expect(page.page.locator("#history button")).to_have_count(3)
    page.shot("file")


def test_drop_an_image(page: Page) -> None:
    page.page.evaluate(
        """async (bytes) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], "d.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        list(png_of()),
    )
    page.page.click("#go")
    page.samples(8)


def test_by_keyboard_alone(page: Page) -> None:
    keys = page.page.keyboard
    page.page.focus("#canvas")
    keys.down(" ")
    for _ in range(8):
        keys.press("ArrowRight")
    keys.up(" ")
    page.page.focus("#number")
    keys.press("Enter")
    page.samples(8)


def test_a_mistake_is_said(page: Page) -> None:
    page.page.click("#go")
    page.says("Draw something first.")


def test_on_a_phone(browser: "playwright.Browser", endpoint: Served) -> None:
    page = Page(browser, endpoint.url, PHONE)
    box = page.page.locator("#canvas").bounding_box()
    assert box is not None
    page.page.touchscreen.tap(box["x"] + 50, box["y"] + 50)
    draw(page)
    page.page.click("#go")
    page.samples(8)
    wide = page.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"]
    small = page.page.evaluate(
        """[...document.querySelectorAll('button, select, input[type=number], input[type=text]')]
        .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 40).length"""
    )
    assert small == 0, "too small for a finger"
    page.shot("phone")
    page.context.close()


def test_api_page(browser: "playwright.Browser", endpoint: Served) -> None:
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    page.goto(f"{endpoint.url}/docs")
    page.wait_for_selector("h2")
    text = page.inner_text("#paths")
    assert "POST /v1/samples" in text
    assert "num_samples" in text
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / "docs.png"), full_page=True)
    context.close()
