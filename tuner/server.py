"""The study as a Ray actor: trials on any machine report to it, and ask it what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cluster.storage.fenced import fenced
from cluster.storage.location import open_store
from cluster.storage.segments import LogTaken
from cluster.storage.store import StoreError, StoreUnavailable
from tuner.campaign import Campaign, StudyUnavailable, database_errors
from tuner.settings import parse_campaign
from tuner.status import CampaignStatus, status_of
from tuner.study import Job, Outcome, Study, TooManyFailures, Verdict

PATIENCE_S = 30.0  # for a database that is started again, a storage that does not answer
AGAIN_S = 1.0

T = TypeVar("T")


class StudyServer:
    """One per campaign, beside its driver, and gone with it.

    What it is told is kept, or it raises, and from then on at every call: its driver ends then.
    """

    def __init__(
        self, storage: str, fence: dict[str, Any] | None, name: str, study: str | None,
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self._broken: Exception | None = None
        self._campaign = Campaign(fenced(open_store(storage), fence), name, study)
        with database_errors(study):
            self._study = Study(self._campaign, parse_campaign(settings))

    def next(self) -> tuple[str, dict[str, Any] | None]:
        """`job` and the next one; `wait`: later; `over`: there will be none."""
        job = self._kept(self._study.next)
        if job is not None:
            return "job", job.to_dict()
        return ("over" if self._study.over or self._study.stopping else "wait"), None

    def report(self, job: dict[str, Any], images: int, evaluation: Mapping[str, Any]) -> Verdict:
        """An evaluation of a job under way."""
        return self._kept(lambda: self._study.report(Job(**job), images, evaluation))

    def end(self, job: dict[str, Any], outcome: Outcome) -> None:
        """What a job's run came to."""
        self._kept(lambda: self._study.end(Job(**job), outcome))

    def stop(self) -> None:
        """No new jobs; those under way save a checkpoint and stop."""
        self._study.stopping = True

    def wants_jobs(self) -> bool:
        """May jobs under way go on?"""
        return not self._study.stopping

    def status(self) -> CampaignStatus:
        return self._kept(lambda: status_of(self._study))

    def _kept(self, act: Callable[[], T]) -> T:
        """What `act` gives; it may be done again, since all of it may be told twice."""
        if self._broken is not None:
            raise self._broken
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with database_errors(self._campaign.study):
                    return act()
            except TooManyFailures:
                raise  # nothing is broken: what is still under way may end
            except (StudyUnavailable, StoreError) as error:
                final = isinstance(error, StoreUnavailable | LogTaken)
                if final or time.monotonic() > end_s:
                    self._broken = error
                    raise
                time.sleep(AGAIN_S)
            except Exception as error:
                self._broken = error
                raise
