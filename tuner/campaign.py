"""One campaign in a storage: its name, its file, its study, and the runs of its trials.

campaigns/<name>/campaign.yaml  study.json  study/  lease/  report.html  best.yaml
runs/<name>-<number>            one trial, an ordinary run
runs/<name>-<number>-seed-<s>   its repeat with another seed
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from aalnet.errors import AalnetError, CheckpointError, ConfigError
from aalnet.yaml_io import parse_mapping
from cluster.runs.run import RUN_NAME, Run
from cluster.storage.store import BlobMissing, Store
from tuner.journal import StoreJournal
from tuner.settings import CampaignSettings, parse_campaign

LIMITS: dict[str, Any] = {  # of libpq: a database that is silent is one that is away
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "options": "-c statement_timeout=20000 -c lock_timeout=10000",
}


class StudyUnavailable(AalnetError):
    """The study's database cannot be reached."""


@dataclass(frozen=True)
class Campaign:
    """A campaign by name. Making the object touches nothing. `study`: a database's URL, or None
    for the journal in the storage."""

    store: Store
    name: str
    study: str | None = None

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name) or len(self.name) > 40:
            raise ConfigError(
                f"campaign name `{self.name}` must be 1 to 40 letters, digits, `.`, `_` or `-`, "
                "starting with a letter or digit; choose one with --name"
            )

    def key(self, *parts: str) -> str:
        """The store key of a file of this campaign."""
        return "/".join(("campaigns", self.name, *parts))

    @property
    def uri(self) -> str:
        """Where its files are."""
        return f"{self.store.uri}/{self.key()}"

    def run(self, trial: int, seed: int | None = None) -> Run:
        """The run of a trial, or of its repeat with another seed."""
        repeat = "" if seed is None else f"-seed-{seed}"
        return Run(self.store, f"{self.name}-{trial:04d}{repeat}")

    def settings(self) -> CampaignSettings | None:
        """Its campaign.yaml, as the last start wrote it; None before the first.

        Raises:
            ConfigError: it is damaged.
        """
        try:
            text = self.store.read(self.key("campaign.yaml")).decode()
        except BlobMissing:
            return None
        except UnicodeDecodeError as error:
            raise ConfigError(f"`{self.key('campaign.yaml')}` is damaged: {error}") from error
        return parse_campaign(parse_mapping(text, origin=self.key("campaign.yaml")))

    def claim(self, settings: CampaignSettings) -> None:
        """Take this name for these settings, new or gone on with.

        Raises:
            CheckpointError: it exists, and what its trials have in common is different now; or its
                study is kept elsewhere.
            StudyUnavailable: the database does not answer.
        """
        before = self.settings()
        if before is not None:
            ours, theirs = settings.decides(), before.decides()
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise CheckpointError(
                        f"campaign `{self.name}` was begun with {key} {_text(theirs.get(key))}, "
                        f"now it is {_text(ours.get(key))}: its trials could not be compared; put "
                        "the old value back, or choose another name with --name"
                    )
        self._claim_study(new=before is None)
        text = yaml.safe_dump(settings.to_dict(), sort_keys=False)
        self.store.write(self.key("campaign.yaml"), text.encode())

    def study_url(self) -> str | None:
        """Where its study is: a database's URL without the password, or None for the journal."""
        try:
            url = json.loads(self.store.read(self.key("study.json")))["url"]
        except BlobMissing:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"`{self.key('study.json')}` is damaged: {error}") from error
        return None if url is None else str(url)

    def _claim_study(self, *, new: bool) -> None:
        url = None if self.study is None else without_password(self.study)
        if not new:
            self.require_study()
        if self.study is not None:
            _require_answer(self.study)
        self.store.write(self.key("study.json"), json.dumps({"url": url}).encode())

    def require_study(self) -> None:
        """Raises ConfigError where --study is not where the campaign's study is."""
        url = self.study_url()
        if _place(url) != _place(self.study):
            where = "the journal in its storage" if url is None else url
            remedy = "leave --study away" if url is None else f"give --study {url}"
            raise ConfigError(
                f"the study of campaign `{self.name}` is kept in {where}; {remedy}, or choose "
                "another name"
            )

    def require_own(self, owner: str | None) -> None:
        """Raises CheckpointError where the study in a database is another campaign's."""
        if self.study is not None and owner not in {None, self.uri}:
            raise CheckpointError(
                f"{without_password(self.study)} has a study `{self.name}` of {owner}; choose "
                "another name with --name, or another database"
            )

    def open_storage(self, *, writes: bool) -> BaseStorage:
        """Optuna's storage of the study.

        Raises:
            StudyUnavailable: the database does not answer.
            CheckpointError: the journal is damaged.
        """
        if self.study is None:
            return JournalStorage(StoreJournal(self.store, self.key("study"), writes=writes))
        return _database(self.study)


def find_campaign(store: Store, name: str, study: str | None = None) -> Campaign:
    """An existing campaign. Raises CheckpointError, with the names that there are."""
    campaign = Campaign(store, name, study)
    if campaign.settings() is None:
        names = list_campaigns(store)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        others = f"there are: {', '.join(names)}" if names else "there is none at all"
        raise CheckpointError(f"campaign `{name}` does not exist in {store.uri}; {hint}{others}")
    campaign.require_study()
    return campaign


def list_campaigns(store: Store) -> list[str]:
    """Names of the campaigns in a storage."""
    return [name for name in store.folders("campaigns/") if RUN_NAME.fullmatch(name)]


@contextlib.contextmanager
def database_errors(url: str | None) -> Iterator[None]:
    """Turn what a database raises into one line, without the password in its URL."""
    if url is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
        raise StudyUnavailable(
            f"the study's database {without_password(url)} fails: {reason}; the same command goes "
            "on once it answers"
        ) from error


def _database(url: str) -> BaseStorage:
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    scheme, separator, rest = url.partition("://")
    driver = "postgresql+psycopg" if scheme in {"postgres", "postgresql"} else scheme
    if not separator or not driver.startswith("postgresql"):
        raise ConfigError(
            f"--study must be a URL such as postgresql://user@host/database, got "
            f"`{without_password(url)}`"
        )
    options = {"pool_pre_ping": True, "connect_args": LIMITS}
    with database_errors(url):
        try:
            return RDBStorage(f"{driver}://{rest}", engine_kwargs=options)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ConfigError(
                f"--study `{without_password(url)}` is not a database's URL: {error}"
            ) from error


def _require_answer(url: str) -> None:
    """Raises StudyUnavailable soon, before anything is started for nothing."""
    close_storage(_database(url))


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a database's; a journal has none."""
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def without_password(url: str) -> str:
    """The URL as it may be printed."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.partition("?")[0].rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}{at}{host}"


def _place(url: str | None) -> str:
    """Host and database: whoever asks, it is the same study."""
    return "" if url is None else url.rpartition("://")[2].rpartition("@")[2].partition("?")[0]


def _text(value: Any) -> str:
    return "not there" if value is None else f"{value}"
