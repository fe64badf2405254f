"""A campaign in plain lines: what they say, and that they say it once."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.storage.folder import FolderStore
from tests.support.made_campaigns import REASON, campaign_settings
from tests.test_tuner_report import status_of
from tuner.campaign import Campaign
from tuner.commands.tune import _view
from tuner.screen import CampaignScreen
from tuner.status import CampaignStatus
from tuner.table import CampaignLines, budget_line, headline, plan_lines, trial_line

OUTCOMES = ["complete", "complete", "pruned", "fail", "running"]


@pytest.fixture
def status(tmp_path: Path) -> CampaignStatus:
    return status_of(tmp_path, OUTCOMES, campaign_settings(), {0: [0.2, 0.3]})[0]


def test_plan_says_what_is_searched_for_what_and_how_long(tmp_path: Path) -> None:
    settings = campaign_settings({
        "budget": {"trials": 12, "images": 9600, "seconds": 3600},
        "space": {"objective.eta": {"low": 0.1, "high": 1, "log": True},
                  "objective.K": {"choices": [2, 4]}},
    })  # fmt: skip
    text = "\n".join(plan_lines(Campaign(FolderStore(tmp_path), "mine"), settings))
    assert "objective.eta (0.1 to 1, log), objective.K (2 | 4)" in text
    assert "minimise energy_score" in text
    assert "12 of 9,600 images, none starts after 3,600 s; tpe" in text
    assert "asha, the first rung at 2,400 images; the best 1/2 of each go on" in text
    assert "the best 2 with seeds 1, 2" in text


def test_plan_of_what_is_switched_off(tmp_path: Path) -> None:
    values = {"pruning": {"kind": "none"}, "repeats": {"top": 0}}
    text = "\n".join(plan_lines(Campaign(FolderStore(tmp_path), "mine"), campaign_settings(values)))
    assert "pruning  none" in text
    assert "repeats  none" in text


def test_headline_and_budget(status: CampaignStatus) -> None:
    text = headline(status)
    assert text.startswith(
        "4/16 trials · 1 running, 2 complete, 1 pruned, 1 fail · best energy_score"
    )
    assert "repeats 2/4" in text
    # 1,500 s for 4 trials and 2 repeats: 14 are left at 250 s each.
    assert text.endswith("58m20s left")
    assert budget_line(status) == "spent 25m00s, 42,000 images"
    limited = replace(status, budget_s=1800.0, gpu_seconds=3600.0)
    assert headline(limited).endswith("5m00s left")
    assert budget_line(limited) == "spent 25m00s of 30m00s, 42,000 images, 1h00m of GPUs"


def test_lines_elsewhere_tell_each_change_once(
    status: CampaignStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = campaign_settings()
    running = replace(status.rows[3], state="running", values=(), reason="", images=0)
    before = replace(status, rows=(*status.rows[:3], running, status.rows[4]), repeats_made=0)
    with CampaignLines(settings) as view:
        for state in (before, before, status, status):
            view.show(state)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("trial   3 running") for line in lines) == 1
    assert sum(line.startswith("trial   3 fail") for line in lines) == 1
    assert sum(line.startswith("trial   0 complete") for line in lines) == 1
    assert sum(line.startswith("repeats 2 of 4") for line in lines) == 1
    assert any(REASON in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_line_of_a_pruned_trial_says_where_it_stood(status: CampaignStatus) -> None:
    text = trial_line(status.rows[2], campaign_settings())
    assert text.startswith("trial   2 pruned")
    assert text.endswith("-> energy_score 0.270 at 2,400 images")


@pytest.mark.parametrize(("trials", "word"), [(16, "running"), (4, "finished")])
def test_a_terminal_shows_the_page_that_watch_shows(
    status: CampaignStatus, monkeypatch: pytest.MonkeyPatch, trials: int, word: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    view, show = _view("mine", campaign_settings())
    assert isinstance(view, CampaignScreen)
    states = status.states | {"running": int(word == "running")}
    show(replace(status, trials=trials, repeats_wanted=2, states=states))
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(view.page())
    assert "campaign mine" in out.getvalue()
    assert word in out.getvalue().splitlines()[0]
    assert "0.200 (3)" in out.getvalue()
