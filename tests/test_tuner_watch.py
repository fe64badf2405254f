"""`aalnet watch --campaign`: a campaign on a terminal, from its study and its scrape address."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console
from typer.testing import CliRunner

from aalnet.settings import TelemetrySettings
from cluster.storage.folder import FolderStore
from cluster.telemetry.exporter import Exporter
from cluster.view import scrape
from cluster.view.scrape import samples_of
from cluster.view.screen import BARS
from tests.support.tiny_runs import tiny_values, write_data
from tuner.campaign import Campaign
from tuner.commands import watch
from tuner.screen import CampaignScreen
from tuner.settings import CampaignSettings, parse_campaign
from tuner.status import CampaignStatus
from tuner.telemetry import CampaignExport, snapshot_of

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


def status(ended: int, best: float) -> CampaignStatus:
    states = {"waiting": 0, "running": 1, "complete": ended, "pruned": 0, "fail": 0}
    return CampaignStatus("search", states, {"kid": best}, 4, 60.0, 3600.0, 128, 0.0,
                          suggestions=4, suggestion_s=0.1, progress_at_s=time.time())  # fmt: skip


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
    for word in ("campaign search", "finished", "trials 4/4", "100%", "best kid", "0.250", "pruned",
                 "25% of those ended", "spent"):  # fmt: skip
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


def test_mistakes(campaign: Campaign, told: tuple[CampaignExport, str]) -> None:
    store = campaign.store.uri
    for arguments, words in (
        ((), "a run, or --campaign NAME"),
        (("a", "--campaign", "b"), "and not both"),
        (("--campaign", "serach", "--storage", store), "did you mean `search`?"),
        (("--campaign", "other", "--url", told[1]), "tells of `search`, not of `other`"),
    ):
        result = CliRunner().invoke(watch.app, arguments)
        assert words in str(result.exception)


@pytest.fixture
def told() -> Iterator[tuple[CampaignExport, str]]:
    """A campaign's exporter, and where it is scraped."""
    export = CampaignExport("search")
    export.take(status(1, 0.5))
    with Exporter("campaign/search", TelemetrySettings(), export.read, pytest.fail) as exporter:
        yield export, f"http://127.0.0.1:{exporter.port}"


@pytest.mark.parametrize(("ended", "code"), [(4, 0), (3, 1)])
def test_lines_from_the_scrape_address_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, ended: int, code: int
) -> None:
    """With the last trial the watch ends well; an address that goes before is a failure."""
    monkeypatch.setattr(scrape, "POLL_S", 0.1)
    monkeypatch.setattr(scrape, "GIVEN_UP_S", 1.0)
    export = CampaignExport("search")
    export.take(status(1, 0.5))
    with Exporter("campaign/search", TelemetrySettings(), export.read, pytest.fail) as exporter:
        timers = [threading.Timer(0.7, lambda: export.take(status(ended, 0.25))),
                  threading.Timer(2.0, exporter._open.close)]  # fmt: skip
        for timer in timers:
            timer.start()
        url = f"http://127.0.0.1:{exporter.port}"
        lines = typed("--campaign", "search", "--url", url, code=code).splitlines()
        for timer in timers:
            timer.join()
    assert lines[0] == "running  trials 1/4  1 running, 1 complete  best kid 0.500"
    assert lines[-1].startswith(f"running  trials {ended}/4")
    assert lines[-1].endswith("best kid 0.250")


def test_the_page_from_a_scrape_has_suggestions(told: tuple[CampaignExport, str]) -> None:
    look = next(scrape.looks("campaign", "search", told[1]))
    out = io.StringIO()
    screen = CampaignScreen("search", Console(file=out, width=80, highlight=False))
    screen.take(look.samples, "running")
    screen.console.print(screen.page())
    assert "mean of 4" in out.getvalue()
    assert "25.0 ms" in out.getvalue()
    plain = {name: value for name, _, value in samples_of(snapshot_of(status(1, 0.5)))}
    assert plain["aalnet_campaign_budget_seconds"] == 3600
