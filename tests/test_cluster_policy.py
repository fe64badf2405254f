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
from cluster.training.policy import FINAL, Cause, cause_of_own, counts, decide

DEFAULT = FailureSettings()
NONE = FailureSettings(budget=0)
FREE = FailureSettings(budget=0, counted=())
ALL = FailureSettings(budget=2, counted=("crash", "lost_node", "preemption", "start", "storage"))

# (cause, settings): the failures in a row after which the run is given up; None: never
RETRIES: dict[Cause, dict[str, int | None]] = {
    Cause.PREEMPTION: {"default": None, "none": None, "free": None, "all": 3},
    Cause.LOST_NODE: {"default": 11, "none": 1, "free": None, "all": 3},
    Cause.CRASH: {"default": 11, "none": 1, "free": None, "all": 3},
    Cause.START: {"default": 11, "none": 1, "free": None, "all": 3},
    Cause.STORAGE: {"default": 11, "none": 1, "free": None, "all": 3},
    Cause.NON_FINITE: {"default": 0, "none": 0, "free": 0, "all": 0},
    Cause.MISTAKE: {"default": 0, "none": 0, "free": 0, "all": 0},
    Cause.BUG: {"default": 0, "none": 0, "free": 0, "all": 0},
    Cause.GIVEN_UP: {"default": 0, "none": 0, "free": 0, "all": 0},
}
SETTINGS = {"default": DEFAULT, "none": NONE, "free": FREE, "all": ALL}
TABLE = [(cause, name, last) for cause, row in RETRIES.items() for name, last in row.items()]


def test_the_table_has_every_cause() -> None:
    assert RETRIES.keys() == set(Cause)
    assert {cause for cause, row in RETRIES.items() if set(row.values()) == {0}} == FINAL


@pytest.mark.parametrize(("cause", "name", "last"), TABLE, ids=str)
def test_every_cause_with_every_settings(cause: Cause, name: str, last: int | None) -> None:
    settings = SETTINGS[name]
    for spent in range(30):
        expected = last is None or spent < last
        decision = decide(cause, spent, settings)
        assert decision.retry is expected, (spent, decision)
        assert decision.reason
        assert "\n" not in decision.reason


def test_reasons_name_the_rule() -> None:
    assert decide(Cause.NON_FINITE, 0, DEFAULT).reason.startswith("non_finite is not retried")
    assert decide(Cause.PREEMPTION, 99, DEFAULT).reason == "preemption does not count"
    assert decide(Cause.CRASH, 3, DEFAULT).reason == "crash, 3 of 10 in a row"
    spent = decide(Cause.CRASH, 11, DEFAULT).reason
    assert spent.startswith("11 failures in a row")
    assert "failures.budget is 10" in spent


@pytest.mark.parametrize("cause", Cause)
def test_what_counts(cause: Cause) -> None:
    assert counts(cause, DEFAULT) is (cause in {"crash", "lost_node", "start", "storage"})
    assert not counts(cause, FREE)
    assert counts(cause, ALL) is (cause not in FINAL)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NonFiniteError("nan"), Cause.NON_FINITE),
        (StorePatienceSpent("15 minutes"), Cause.GIVEN_UP),
        (StoreError("503"), Cause.STORAGE),
        (BlobMissing("gone"), Cause.STORAGE),
        (BlobTooLarge("large"), Cause.STORAGE),
        (StoreUnavailable("no right"), Cause.MISTAKE),
        (CheckpointTaken("two writers"), Cause.CRASH),
        (CheckpointError("damaged"), Cause.MISTAKE),
        (ConfigError("key"), Cause.MISTAKE),
        (DataError("row"), Cause.MISTAKE),
        (UserError("any"), Cause.MISTAKE),
        (AalnetError("else"), Cause.BUG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_the_cause_behind_an_error_of_ours(error: AalnetError, cause: Cause) -> None:
    assert cause_of_own(error) is cause
