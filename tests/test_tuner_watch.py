"""`aalnet watch --campaign`: a campaign on a terminal, from its study; and its metrics."""

import io
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from typer.testing import CliRunner

from cluster.storage.folder import FolderStore
from cluster.telemetry.catalogue import CAMPAIGN, series_names
from cluster.view.screen import BARS
from tests.support.tiny_runs import tiny_values, write_data
from tuner.campaign import Campaign
from tuner.commands import watch
from tuner.screen import CampaignScreen
from tuner.settings import CampaignSettings, parse_campaign
from tuner.status import CampaignStatus
from tuner.telemetry import CampaignCollector

ETA = "objective.eta"


@pytest.fixture
def settings(tmp_path: Path) -> CampaignSettings:
    return parse_campaign({
        "base": tiny_values(write_data(tmp_path / "data")),
        "space": {ETA: {"low": 0.1, "high": 1.0}},
        "budget": {"trials": 4, "images": 32},
        "repeats": {"top": 0},
    })  # fmt: skip


@pytest.fixture
def campaign(tmp_path: Path, settings: CampaignSettings) -> Campaign:
    """Four trials, all over: 0.5 and 0.25 were reached, one was pruned, one crashed."""
    found = Campaign(FolderStore(tmp_path / "store"), "search")
    found.claim(settings)
    study = optuna.create_study(storage=found.open_storage(writes=True), study_name=found.name)
    space = {ETA: optuna.distributions.FloatDistribution(0.1, 1.0)}
    for eta, value, state in (
        (0.3, 0.5, TrialState.COMPLETE), (0.5, None, TrialState.PRUNED),
        (0.4, 0.25, TrialState.COMPLETE), (0.9, None, TrialState.FAIL),
    ):  # fmt: skip
        study.add_trial(
            create_trial(state=state, value=value, params={ETA: eta}, distributions=space)
        )
    return found


def typed(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(watch.app, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_page_tells_what_the_study_knows(
    campaign: Campaign, settings: CampaignSettings, width: int
) -> None:
    from tuner.status import load_status

    found, _ = load_status(campaign, settings)
    out = io.StringIO()
    screen = CampaignScreen("search", Console(file=out, width=width, highlight=False))
    screen.show(found, settings, "finished")
    screen.console.print(screen.page())
    text = out.getvalue()
    for word in ("campaign search", "finished", "trials 4/4", "100%", "best energy_score", "0.250",
                 "pruned", "25% of those ended", "spent"):  # fmt: skip
        assert word in text, word
    assert BARS[-1] + BARS[0] in text  # the best fell
    assert max(map(len, text.splitlines())) <= width


def test_a_second_look_at_a_study_reads_what_is_new_alone(
    campaign: Campaign, settings: CampaignSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.status import current_status, load_status

    read: list[str] = []
    really = FolderStore.read

    def counted(store: FolderStore, key: str, limit_bytes: int | None = None) -> bytes:
        read.append(key)
        return really(store, key, limit_bytes)

    monkeypatch.setattr(FolderStore, "read", counted)
    found, study = load_status(campaign, settings)
    assert read  # the journal
    read.clear()
    again = current_status(campaign, settings, study)
    assert read == []
    assert again.states == found.states


def test_a_campaign_that_is_over_is_told_in_lines(campaign: Campaign) -> None:
    lines = typed("--campaign", "search", "--storage", campaign.store.uri).splitlines()
    assert [line.split()[2] for line in lines[:4]] == ["complete", "pruned", "complete", "fail"]
    assert lines[4].startswith("4/4 trials")
    assert len(lines) == 5


def test_mistakes(campaign: Campaign) -> None:
    store = campaign.store.uri
    for arguments, words in (
        ((), "a run, or --campaign NAME"),
        (("a", "--campaign", "b"), "and not both"),
        (("--campaign", "serach", "--storage", store), "did you mean `search`?"),
    ):
        result = CliRunner().invoke(watch.app, arguments)
        assert words in str(result.exception)


def test_the_last_status_is_what_is_scraped() -> None:
    collector = CampaignCollector()
    assert list(collector.collect()) == []
    states = {"waiting": 0, "running": 1, "complete": 2, "pruned": 1, "fail": 0}
    for best in (0.5, 0.25):
        collector.take(CampaignStatus(
            "search", states, {"kid": best}, 4, 60.0, None, 128, 3.0,
            suggestions=4, suggestion_s=0.1, progress_at_s=time.time(),
        ))  # fmt: skip
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    for line in ('aalnet_campaign_trials{campaign="search",state="complete"} 2.0',
                 'aalnet_campaign_best_value{campaign="search",objective="kid"} 0.25',
                 'aalnet_campaign_images_total{campaign="search"} 128.0',
                 'aalnet_campaign_suggestion_seconds_count{campaign="search"} 4.0',
                 'aalnet_campaign_suggestion_seconds_sum{campaign="search"} 0.1'):  # fmt: skip
        assert line in text
    assert "budget" not in text
    stored = {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert stored < series_names(CAMPAIGN)
