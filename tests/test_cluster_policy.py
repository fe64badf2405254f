"""The decision after a failure: every cause with every kind of settings, as a table."""

import pytest

from aalnet.errors import (
    AalnetError,
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    UserError,
)
from aalnet.settings import FailureSettings
from cluster.runs.checkpoint import CheckpointTaken
from cluster.runs.saver import StorePatienceSpent
from cluster.storage.store import BlobMissing, BlobTooLarge, StoreError, StoreUnavailable
from cluster.training.policy import FINAL, FailureCause, cause_of_project_error, counts, decide

DEFAULT = FailureSettings()
NONE = FailureSettings(budget=0)
FREE = FailureSettings(budget=0, counted=())
ALL = FailureSettings(budget=2, counted=("crash", "lost_node", "preemption", "start", "storage"))

# (cause, settings): the failures in a row after which the run is given up; None: never
RETRIES: dict[FailureCause, dict[str, int | None]] = {
    FailureCause.PREEMPTION: {"default": None, "none": None, "free": None, "all": 3},
    FailureCause.LOST_NODE: {"default": 11, "none": 1, "free": None, "all": 3},
    FailureCause.CRASH: {"default": 11, "none": 1, "free": None, "all": 3},
    FailureCause.START: {"default": 11, "none": 1, "free": None, "all": 3},
    FailureCause.STORAGE: {"default": 11, "none": 1, "free": None, "all": 3},
    FailureCause.NON_FINITE: {"default": 0, "none": 0, "free": 0, "all": 0},
    FailureCause.MISTAKE: {"default": 0, "none": 0, "free": 0, "all": 0},
    FailureCause.BUG: {"default": 0, "none": 0, "free": 0, "all": 0},
    FailureCause.GIVEN_UP: {"default": 0, "none": 0, "free": 0, "all": 0},
}
SETTINGS = {"default": DEFAULT, "none": NONE, "free": FREE, "all": ALL}
TABLE = [(cause, name, last) for cause, row in RETRIES.items() for name, last in row.items()]


def test_the_table_has_every_cause() -> None:
    assert RETRIES.keys() == set(FailureCause)
    assert {cause for cause, row in RETRIES.items() if set(row.values()) == {0}} == FINAL


@pytest.mark.parametrize(("cause", "name", "last"), TABLE, ids=str)
def test_every_cause_with_every_settings(cause: FailureCause, name: str, last: int | None) -> None:
    settings = SETTINGS[name]
    for spent in range(30):
        expected = last is None or spent < last
        decision = decide(cause, spent, settings)
        assert decision.retry is expected, (spent, decision)
        assert decision.reason
        assert "\n" not in decision.reason


def test_reasons_name_the_rule() -> None:
    assert decide(FailureCause.NON_FINITE, 0, DEFAULT).reason.startswith(
        "non_finite is not retried"
    )
    assert decide(FailureCause.PREEMPTION, 99, DEFAULT).reason == "preemption does not count"
    assert decide(FailureCause.CRASH, 3, DEFAULT).reason == "crash, 3 of 10 in a row"
    spent = decide(FailureCause.CRASH, 11, DEFAULT).reason
    assert spent.startswith("11 failures in a row")
    assert "failures.budget is 10" in spent


@pytest.mark.parametrize("cause", FailureCause)
def test_what_counts(cause: FailureCause) -> None:
    assert counts(cause, DEFAULT) is (cause in {"crash", "lost_node", "start", "storage"})
    assert not counts(cause, FREE)
    assert counts(cause, ALL) is (cause not in FINAL)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NonFiniteError("nan"), FailureCause.NON_FINITE),
        (StorePatienceSpent("15 minutes"), FailureCause.GIVEN_UP),
        (StoreError("503"), FailureCause.STORAGE),
        (BlobMissing("gone"), FailureCause.STORAGE),
        (BlobTooLarge("large"), FailureCause.STORAGE),
        (StoreUnavailable("no right"), FailureCause.MISTAKE),
        (CheckpointTaken("two writers"), FailureCause.CRASH),
        (CheckpointError("damaged"), FailureCause.MISTAKE),
        (ConfigError("key"), FailureCause.MISTAKE),
        (DataError("row"), FailureCause.MISTAKE),
        (UserError("any"), FailureCause.MISTAKE),
        (AalnetError("else"), FailureCause.BUG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_the_cause_behind_an_error_of_ours(error: AalnetError, cause: FailureCause) -> None:
    assert cause_of_project_error(error) is cause
