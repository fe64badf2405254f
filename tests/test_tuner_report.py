"""The report of a campaign in every state it can be in; slow: looked at by a real browser."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aalnet.settings import load_settings
from cluster.storage.folder import FolderStore
from tests.support.made_campaigns import IMAGES, RUNG, campaign_settings, made_campaign
from tuner.best import choose
from tuner.report import costs, write_report
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus, RepeatResults, build_status, load_status, repeats_of

SEVERAL = {
    "objectives": [
        {"figure": "energy_score"},
        {"figure": "diversity", "direction": "maximise"},
    ],
    "pruning": {"kind": "none"},
}
THREE = SEVERAL | {"objectives": [*SEVERAL["objectives"], {"figure": "l1"}]}  # type: ignore[list-item]
USUAL = [
    "complete", "complete", "pruned", "complete", "pruned", "fail", "complete", "pruned",
    "complete", "running",
]  # fmt: skip
STATES: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "usual": (USUAL, {}),
    "nothing-yet": ([], {}),
    "one-trial": (["complete"], {}),
    "only-pruned": (["pruned", "pruned"], {}),
    "all-failed": (["fail"] * 3, {}),
    "one-choice": (["complete"] * 5, {"space": {"objective.K": {"choices": [2, 4, 8]}}}),
    "words": (["complete"] * 6, {"space": {
        "network.blocks": {"choices": ["resnet", "densenet"]},
        "data.flip": {"choices": [True, False]},
    }}),
    "front": ([*["complete"] * 8, "fail"], SEVERAL),
    "front-of-three": (["complete"] * 5, THREE),
    "larger-is-better": (USUAL, {"objectives": [{"figure": "ssim", "direction": "maximise"}]}),
}  # fmt: skip


def made_page(folder: Path, state: str) -> tuple[FolderStore, str]:
    outcomes, values = STATES[state]
    settings, store = campaign_settings(values), FolderStore(folder)
    return store, write_report(made_campaign(store, state, outcomes, settings), settings).decode()


def status_of(
    folder: Path,
    outcomes: Sequence[str],
    settings: CampaignSettings,
    repeats: dict[int, list[float]] | None = None,
) -> tuple[CampaignStatus, RepeatResults]:
    campaign = made_campaign(FolderStore(folder), "mine", outcomes, settings, repeats)
    (study,) = campaign.open_storage(writes=False).get_all_studies()
    trials = campaign.open_storage(writes=False).get_all_trials(study._study_id)
    attributes = study.user_attrs
    return build_status("mine", settings, trials, attributes), repeats_of(attributes)


@pytest.mark.parametrize("state", STATES)
def test_report_of_a_campaign_in_any_state(tmp_path: Path, state: str) -> None:
    store, page = made_page(tmp_path, state)
    outcomes, _ = STATES[state]
    assert store.read(f"campaigns/{state}/report.html").decode() == page
    for outcome in ("complete", "pruned", "fail", "running"):
        assert page.count(f'<span class="status {outcome}">') == outcomes.count(outcome)
    assert page.count("<b>Trial ") == min(outcomes.count("complete"), 4), "sample grids"
    assert ("The winner" in page or "The best by" in page) == ("complete" in outcomes)
    assert bool(store.keys(f"campaigns/{state}/best.yaml")) == ("complete" in outcomes)
    # One file: nothing is loaded, and nothing of the study is markup.
    page_of_ours, _, _ = page.partition("<script>")
    assert "default-src 'none'" in page_of_ours
    assert not re.search(r"<(link|iframe|object)\b", page)
    assert all(source.startswith("data:") for source in re.findall(r'<img src="([^"]*)"', page))
    assert "<b>lower</b>" not in page
    assert ("&lt;b&gt;lower&lt;/b&gt; optimizer.lr" in page) == ("fail" in outcomes)


@pytest.mark.parametrize(
    ("state", "titles"),
    [
        ("usual", ["History", "On the way", "What mattered", "The two that mattered most",
                   "Each setting by itself", "All settings at once"]),
        ("one-trial", ["History", "On the way"]),
        ("one-choice", ["History", "On the way", "What mattered", "Each setting by itself"]),
        ("front", ["Pareto front", "History", "What mattered", "The two that mattered most",
                   "Each setting by itself", "All settings at once"]),
        ("only-pruned", []),
        ("all-failed", []),
    ],
)  # fmt: skip
def test_plots_of_what_is_there(tmp_path: Path, state: str, titles: list[str]) -> None:
    _, page = made_page(tmp_path, state)
    assert re.findall(r"<h3>(.*?)</h3>", page) == titles
    assert page.count("Plotly.newPlot(") == len(titles) + page.count("Plotly.newPlot()")


def test_best_yaml_makes_the_winner_again(tmp_path: Path) -> None:
    store, _ = made_page(tmp_path, "usual")
    path = tmp_path / "best.yaml"
    path.write_bytes(store.read("campaigns/usual/best.yaml"))
    settings = load_settings(path)
    status, _ = status_of(tmp_path / "again", USUAL, campaign_settings())
    params = choose(status, campaign_settings()).params
    assert settings.objective.eta == params["objective.eta"]
    assert params["objective.K"] == settings.objective.K
    assert settings.run.images == IMAGES
    assert settings.run.workers == 0
    head = path.read_text(encoding="utf-8").splitlines()[:3]
    assert head[0].startswith("# Trial 0 of campaign usual: energy_score 0.1")
    assert head[2] == "# Into use: aalnet promote usual-0000 --model NAME"


def test_the_winner_has_the_best_mean_of_those_with_repeats(tmp_path: Path) -> None:
    # Trial 0 is the best with its own seed, and was lucky; trial 2 was never run again.
    settings, store = campaign_settings(), FolderStore(tmp_path)
    repeats = {0: [0.3, 0.2], 1: [0.12, 0.1]}
    campaign = made_campaign(store, "mine", ["complete"] * 3, settings, repeats)
    best = choose(load_status(campaign, settings)[0], settings)
    assert (best.number, best.repeats) == (1, {1: 0.12, 2: 0.1})
    assert best.mean == pytest.approx(0.11)
    page = write_report(campaign, settings).decode()
    _, _, table = page.partition("Again, with other seeds")
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[:3]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in rows]
    assert cells == [
        ["trial", "seed 0", "seed 1", "seed 2", "mean", "standard deviation"],
        ["1", "0.110", "0.120", "0.100", "0.110", "0.0100"],
        ["0", "0.100", "0.300", "0.200", "0.200", "0.100"],
    ]


def test_the_winner_of_what_should_be_large(tmp_path: Path) -> None:
    settings = campaign_settings({"objectives": [{"figure": "ssim", "direction": "maximise"}]})
    status, _ = status_of(tmp_path, ["complete", "complete", "fail"], settings)
    assert choose(status, settings).number == 1
    assert status.best == {"ssim": pytest.approx(0.11)}


def test_costs_by_how_trials_ended(tmp_path: Path) -> None:
    outcomes = ["complete", "pruned", "pruned", "fail"]
    status, repeats = status_of(tmp_path, outcomes, campaign_settings(), {0: [0.1]})
    work = {row.kind: (row.trials, row.images) for row in costs(status, repeats)}
    assert work == {
        "complete": (1, IMAGES), "pruned": (2, 2 * RUNG), "fail": (1, 1200), "repeats": (1, IMAGES),
    }  # fmt: skip
    assert sum(images for _, images in work.values()) == status.images
