"""The study as a Ray actor: trials on any machine ask it what to do, and tell it their results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aalnet.errors import AalnetError
from cluster.launch.ray_session import QUIET, ClusterError, forwarded
from cluster.storage.fenced import fence_of, fenced
from cluster.storage.location import open_store
from cluster.storage.segments import LogTaken
from cluster.storage.store import StoreError, StoreUnavailable
from tuner.campaign import Campaign, StudyUnavailable, database_errors
from tuner.settings import CampaignSettings, parse_campaign
from tuner.status import CampaignStatus
from tuner.study import CampaignStudy, Outcome, TooManyFailures, TrialRun, Verdict

PATIENCE_S = 30.0  # for a database that is started again, a storage that does not answer
AGAIN_S = 1.0
ANSWER_S = 120.0  # the actor answers within this, or is given up
TUNE_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a trial's workers are few, and end soon
}

T = TypeVar("T")


class StudyServer:
    """One per campaign, beside its driver, and gone with it.

    What it is told is stored, or it raises, and from then on at every call: its driver ends then.
    """

    def __init__(
        self, storage: str, fence: dict[str, Any] | None, name: str, study: str | None,
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self._broken: Exception | None = None
        self._campaign = Campaign(fenced(open_store(storage), fence), name, study)
        with database_errors(study):
            self._study = CampaignStudy(self._campaign, parse_campaign(settings))

    def ask(self) -> tuple[str, dict[str, Any] | None]:
        """`run` and the next one; `wait`: later; `over`: there will be none."""
        run = self._patiently(self._study.ask)
        if run is not None:
            return "run", run.to_dict()
        return ("over" if self._study.over or self._study.stopping else "wait"), None

    def report(self, run: dict[str, Any], images: int, evaluation: Mapping[str, Any]) -> Verdict:
        """Take in an evaluation on the way; whether the run goes on."""
        return self._patiently(lambda: self._study.report(TrialRun(**run), images, evaluation))

    def tell(self, run: dict[str, Any], outcome: Outcome) -> None:
        """Take in how a run ended."""
        self._patiently(lambda: self._study.tell(TrialRun(**run), outcome))

    def stop(self) -> None:
        """Hand out no more runs; those under way save a checkpoint and stop."""
        self._study.stopping = True

    def goes_on(self) -> bool:
        """May runs under way go on?"""
        return not self._study.stopping

    def status(self) -> CampaignStatus:
        """How the campaign stands."""
        return self._patiently(self._study.status)

    def _patiently(self, call: Callable[[], T]) -> T:
        """What `call` gives; it may be called again, since the study takes all of it twice."""
        if self._broken is not None:
            raise self._broken
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with database_errors(self._campaign.study):
                    return call()
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


def start_server(campaign: Campaign, settings: CampaignSettings) -> Any:
    """The study's actor, on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(StudyServer).options(
        num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": environment()}
    )
    return actor.remote(
        campaign.store.uri, fence_of(campaign.store), campaign.name, campaign.study,
        settings.to_dict(),
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Environment variables of the processes of a campaign."""
    return QUIET | TUNE_QUIET | forwarded(os.environ)


def answer_of(reply: Any, timeout_s: float | None = ANSWER_S) -> Any:
    """The actor's answer. Its own errors are raised as they are.

    Raises:
        AalnetError: what the actor raised, or ClusterError where it is dead or silent.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reply, timeout=timeout_s)
    except (RayError, AalnetError) as error:
        from cluster.launch.failures import message_of, project_error  # takes torch

        raise project_error(error) or ClusterError(
            f"the study's process failed: {message_of(error)}; the same command goes on from here"
        ) from error
