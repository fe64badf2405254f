"""A study in a real PostgreSQL: kept once, the same suggestions, and a server that goes away."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import CheckpointError, ConfigError
from cluster.storage.folder import FolderStore
from tests.support.postgres_server import PASSWORD, PostgresServer, postgres_server, programs
from tests.support.tiny_campaigns import (
    campaign_settings,
    figure_of,
    finished,
    open_study,
    params,
    run_all,
    runs,
)
from tuner import campaign
from tuner import server as study_server
from tuner.campaign import Campaign, StudyUnavailable, find_campaign, without_password
from tuner.search import sampler
from tuner.server import StudyServer
from tuner.settings import CampaignSettings

DATA = Path("data")  # nothing is read of it


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_server() as running:
        yield running


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes every connection that a test leaves open, as the end of a process does."""
    opened: list[Any] = []
    real = campaign._database

    def remember(url: str) -> Any:
        opened.append(real(url))
        return opened[-1]

    monkeypatch.setattr(campaign, "_database", remember)
    yield
    for storage in opened:
        storage.engine.dispose()


def settings_of(**budget: Any) -> CampaignSettings:
    return campaign_settings(DATA, {f"budget.{key}": value for key, value in budget.items()})


def test_it_suggests_as_the_journal_does_across_crashes(
    database: PostgresServer, tmp_path: Path
) -> None:
    settings = settings_of(trials=6)
    whole = open_study(tmp_path / "journal", settings)
    run_all(whole)
    study = open_study(tmp_path, settings, "crashes", database.url)
    for run in runs(study):
        study.tell(run, finished(figure_of(run)))
        if run.trial == 3:
            break
    half = study.study.ask()  # it dies with two of five parameters told
    study.study.sampler = sampler(settings, half.number, study._space)
    for name, each in list(study._space.items())[:2]:
        half._suggest(name, each)
    again = open_study(tmp_path, settings, "crashes", database.url)
    run_all(again)
    assert params(again) == params(whole)
    assert [trial.state.name for trial in again.study.trials] == ["COMPLETE"] * 6


def test_a_restart_of_the_server_is_waited_for(database: PostgresServer, tmp_path: Path) -> None:
    server = StudyServer(
        str(tmp_path), None, "restarts", database.url, settings_of(trials=2).to_dict()
    )
    kind, run = server.ask()
    assert (kind, run is not None) == ("run", True)
    database.stop()
    back = threading.Timer(3.0, database.start)
    back.start()
    try:
        assert run is not None
        assert server.report(run, 16, {"energy_score": 0.5}) == "go on"
    finally:
        back.join()
    assert server.status().rows[0].values == (0.5,)


def test_a_server_that_stays_away_ends_it_with_one_line(
    database: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_server, "PATIENCE_S", 2.0)
    server = StudyServer(str(tmp_path), None, "away", database.url, settings_of(trials=2).to_dict())
    _, run = server.ask()
    database.stop()
    try:
        started_s = time.monotonic()
        with pytest.raises(StudyUnavailable) as caught:
            server.report(run or {}, 16, {"energy_score": 0.5})
        assert time.monotonic() - started_s < 30
        assert PASSWORD not in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(StudyUnavailable):  # from then on at once
            server.status()
        with pytest.raises(StudyUnavailable, match="the same command goes on once it answers"):
            Campaign(FolderStore(tmp_path), "other", database.url).claim(settings_of(trials=2))
    finally:
        database.start()


def test_one_database_keeps_campaigns_of_two_storages_apart(
    database: PostgresServer, tmp_path: Path
) -> None:
    open_study(tmp_path / "one", settings_of(), "shared", database.url)
    with pytest.raises(CheckpointError, match=r"has a study `shared` of .*one/campaigns/shared"):
        open_study(tmp_path / "two", settings_of(), "shared", database.url)


def test_the_campaign_tells_where_its_study_is(database: PostgresServer, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    Campaign(store, "told", database.url).claim(settings_of())
    with pytest.raises(ConfigError, match=f"give --study {without_password(database.url)}"):
        find_campaign(store, "told")
    assert find_campaign(store, "told", database.url).study_url() == without_password(database.url)
    assert PASSWORD not in store.read("campaigns/told/study.json").decode()


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense", "postgresql:/x"])
def test_what_is_no_database_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--study must be a URL such as postgresql://"):
        open_study(tmp_path, settings_of(), "x", url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s@h:5/d", "postgresql://me@h:5/d"),
        ("postgresql://h/d?user=me&password=s", "postgresql://h/d"),
        ("postgresql://me:a@b@h/d", "postgresql://me@h/d"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
