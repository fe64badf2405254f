"""The report of a run in every state it can be in, with texts that mean harm."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aalnet.errors import CheckpointError
from aalnet.settings import Settings, parse_settings
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.view.report import MAX_GRIDS, MAX_POINTS, build_report, thin

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "input", "br", "link"}
START: Record = {
    "kind": "start", "images": 0, "total_images": 96, "workers": 2, "threads": 1,
    "device": "cpu", "model": "aalnet", "time_s": 1000.0,
}  # fmt: skip


class Page(HTMLParser):
    """Checks that tags close, and gathers what a test asks for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def train(images: int, **terms: float) -> Record:
    return {"kind": "train", "images": images, "steps": images // 24, "terms": terms, "lr": 5e-4,
            "step_s": 0.2, "data_s": 0.01, "images_per_s": 102.0, "eta_s": 1.0,
            "time_s": 1000.0 + images / 100}  # fmt: skip


def evaluation(images: int) -> Record:
    return {"kind": "evaluation", "images": images, "kid_unpaired_lite0": 0.1,
            "kid_unpaired_lite0_condition": 0.245, "energy_score": 16.0, "energy_score_se": 0.36,
            "energy_score_condition": 20.0,
            "l1": 0.2, "l1_condition": 0.136, "best_of_k_l1": 0.1, "k": 8, "diversity": 0.06,
            "ssim": 0.7, "ssim_condition": 0.6, "psnr": 17.0, "psnr_condition": 13.0,
            "seconds": 2.0, "time_s": 1002.0 + images / 100}  # fmt: skip


def make(tmp_path: Path, records: list[Record], *, grids: int = 0, torn: bytes = b"") -> Run:
    run = Run(FolderStore(tmp_path), "mine")
    run.write_settings(parse_settings({"run": {"images": 96}}))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    run.store.write(run.key("metrics.jsonl"), lines.encode() + torn)
    for index in range(grids):
        run.store.write(run.key("samples", f"{24 * (index + 1)}.png"), PNG)
    return run


def test_a_whole_run(tmp_path: Path) -> None:
    records = [START, train(24, entropy=0.1, g_norm=1.0), train(48, entropy=0.2), evaluation(48),
               {"kind": "checkpoint", "images": 48, "bytes": 10, "seconds": 0.5, "time_s": 1003.0},
               train(96, entropy=0.3), evaluation(96),
               {"kind": "end", "images": 96, "status": "finished", "time_s": 1004.0}]  # fmt: skip
    html = build_report(make(tmp_path, records, grids=2))
    page = Page(html)
    # energy score, kid, l1 with best of k, diversity, ssim, psnr; entropy; g_norm; rate, seconds,
    # images/s
    assert page.count("svg") == 6 + 1 + 1 + 3
    assert page.count("img") == 2
    assert page.count("input") == 1
    assert html.count("✓ better") == 6
    assert html.count("✗ worse") == 1
    assert "± 0.360" in html
    assert "where time went" in html.lower()
    assert "lambda: 3.0" in html


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "Nothing logged yet"),
        ([START], "No evaluation yet"),
        ([START, train(24, entropy=0.1)], "No sample grid yet"),
        ([train(24)], "No evaluation yet"),
        ([START, evaluation(24)], "No sample grid yet"),
        ([{"kind": "train", "images": 24}], "No evaluation yet"),
        ([{"kind": "evaluation", "images": 24}], "No sample grid yet"),
        ([START, train(24, a=float("nan"), b=float("inf"))], "Terms of the objective"),
        ([START, {**START, "images": 24, "time_s": 2000.0}], "Resumed"),
        ([{"kind": "start", "images": 0}], "No evaluation yet"),
    ],
)
def test_poor_logs(tmp_path: Path, records: list[Record], says: str) -> None:
    html = build_report(make(tmp_path, records, torn=b'{"kind": "tr'))
    Page(html)
    assert says in html


def test_a_run_that_never_started(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        build_report(Run(FolderStore(tmp_path), "mine"))


def test_a_resumed_run_leaves_the_pause_out(tmp_path: Path) -> None:
    again = {**START, "images": 48, "time_s": 5000.0}
    later = {**train(96), "time_s": 5060.0}
    html = build_report(make(tmp_path, [START, train(48), again, later]))
    assert "<dt>Duration</dt><dd>1m00s</dd>" in html


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    harm = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    settings = parse_settings({"data": {"train": harm}})
    end = {"kind": "end", "images": 24, "status": "failed", "error": harm, "time_s": 1.0}
    run = make(tmp_path, [{**START, "device": harm}, train(24, **{harm: 1.0}), end])
    run.write_settings(settings)
    page = Page(build_report(run))
    assert page.count("script") == 0
    assert page.count("img") == 0


def test_a_hostile_status_or_figure_stays_text(tmp_path: Path) -> None:
    harm = '"><script>alert(1)</script>'
    end = {"kind": "end", "images": 24, "status": harm, "time_s": 1.0}
    run = make(tmp_path, [{**evaluation(24), f"kid_{harm}": 1.0, "k": harm}, end])
    assert Page(build_report(run)).count("script") == 0


def test_nothing_is_fetched(tmp_path: Path) -> None:
    html = build_report(make(tmp_path, [START, train(24, a=1.0), evaluation(24)], grids=2))
    assert "default-src 'none'" in html
    assert re.findall(r"(?:https?:)?//[a-z]", html) == []
    links = [value for _, attributes in Page(html).tags for name, value in attributes.items()
             if name in {"src", "href", "xlink:href", "srcset"} and value]  # fmt: skip
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)


def test_svg_ids_do_not_clash(tmp_path: Path) -> None:
    html = build_report(make(tmp_path, [START, train(24, a=1.0, b=2.0), evaluation(24)], grids=2))
    assert "#0102" not in html  # colours that stand for variables
    ids = re.findall(r'<g id="', html)
    assert ids == []


def test_many_grids_are_thinned_and_the_last_is_large(tmp_path: Path) -> None:
    html = build_report(make(tmp_path, [START], grids=100))
    page = Page(html)
    assert page.count("img") == MAX_GRIDS
    assert f"{MAX_GRIDS} of 100 grids" in html
    first = next(attributes for tag, attributes in page.tags if tag == "img")
    assert first["alt"] == "Sample grid at 2,400 images"


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20_000).tolist()
    records = [START, *(train(24 * i, a=value) for i, value in enumerate(values, start=1))]
    assert len(build_report(make(tmp_path, records))) < 300_000


def test_thin_keeps_the_ends_the_mean_and_the_range() -> None:
    images = np.arange(100_001.0)
    values = np.sin(images)
    values[[0, 777, 100_000]] = np.nan
    at, mean, low, high = thin(images, values)
    assert len(at) == len(mean) == len(low) == len(high) == MAX_POINTS
    assert at[-1] == 99_999
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert low.min() == np.nanmin(values)


@pytest.mark.parametrize("count", [0, 1, 2, MAX_POINTS])
def test_thin_leaves_short_ones_alone(count: int) -> None:
    images = np.arange(float(count))
    for column in thin(images, images):
        assert column.tolist() == images.tolist()


def test_defaults_are_in_the_report(tmp_path: Path) -> None:
    run = Run(FolderStore(tmp_path), "young")
    run.write_settings(Settings())
    assert "0 of 48,000" in build_report(run)
