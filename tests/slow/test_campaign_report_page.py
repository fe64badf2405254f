"""The report of a campaign in a real browser."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_tuner_report import made_page

PATIENCE_S = 120  # of a busy machine: the page holds 5 MB of Plotly


# playwright's own transport leaves its child's pipe to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("state", ["usual", "front", "all-failed"])
def test_report_in_a_browser(browser: Any, tmp_path: Path, state: str) -> None:
    _, html = made_page(tmp_path / ("a_folder_of_a_long_name" * 4), state)
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 900})  # a phone's
    loaded: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: loaded.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.goto(f"file://{tmp_path / 'report.html'}", timeout=PATIENCE_S * 1000)
    plots = page.locator(".plot").count()
    assert plots == html.count("<h3>")
    wait_until(page, f"document.querySelectorAll('.plot .main-svg').length >= {plots}")
    # The page itself never scrolls sideways, once each plot has taken the width it is given.
    wait_until(page, "document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})  # a desk's
    wait_until(page, "[...document.querySelectorAll('.plot .main-svg')].every(it => "
                     "it.getBoundingClientRect().width > 390)")  # fmt: skip
    wait_until(page, "document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    assert [url for url in loaded if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
    page.close()


def wait_until(page: Any, true: str) -> None:
    """Until this is true in the page; `wait_for_function` needs `eval`, which the page forbids."""
    end_s = time.monotonic() + PATIENCE_S
    while not page.evaluate(true):
        assert time.monotonic() < end_s, true
        page.wait_for_timeout(100)
