"""Ray Tune makes the jobs that the study names."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.tune.search import Searcher

from aalnet.errors import AalnetError
from cluster.runs.run import Run
from cluster.storage.location import open_store
from tuner.capacity import Slots
from tuner.driver import environment, own_error
from tuner.study import Job, Outcome
from tuner.trial import cost_of, work

RETRIES = 2  # of a job whose process died: on a spot machine, say


class Jobs(Searcher):
    """Hands the study's jobs to Ray Tune, and tells the study whose process died for good."""

    def __init__(self, server: ActorHandle[Any], storage: str) -> None:
        super().__init__(metric="done", mode="max")
        self._server, self._storage = server, storage
        self._jobs: dict[str, dict[str, Any]] = {}
        self.error: AalnetError | None = None

    def suggest(self, trial_id: str) -> Any:
        try:
            answer: Any = ray.get(self._server.next.remote())
        except (RayError, AalnetError) as error:
            self.error = own_error(error)
            self._server.stop.remote()
            return str(Searcher.FINISHED)
        kind, job = answer
        if job is not None:
            self._jobs[trial_id] = job
            return {"job": job}
        return None if kind == "wait" else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._jobs.pop(trial_id, None)
        if error and job is not None:
            reason = f"its process died, {RETRIES + 1} times; its log is in Ray's dashboard"
            cost = cost_of(Run(open_store(self._storage), Job(**job).run), job["settings"])
            self._server.end.remote(job, Outcome("failed", cost=cost, reason=reason))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study knows all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""


def make_jobs(
    server: ActorHandle[Any], storage: str, place: Slots, working_folder: str, folder: str
) -> None:
    """Make jobs until there are none. `folder` takes Ray's own records, of no use to us.

    Raises:
        AalnetError: the study failed, or too many trials did.
    """
    for name in ("ray.tune", "ray.train"):  # they warn of records of Ray's own that we do not keep
        logging.getLogger(name).setLevel(logging.ERROR)
    jobs = Jobs(server, storage)
    constants = {
        "environment": environment(), "campaign": server, "storage": storage,
        "device": place.device, "working_folder": working_folder,
    }  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_work, constants=constants),
            tune.PlacementGroupFactory([place.resources]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=jobs, num_samples=-1, max_concurrent_trials=place.at_once,
            reuse_actors=True, trial_dirname_creator=_name, trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="jobs", storage_path=folder, verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    tuner.fit()
    if jobs.error is not None:
        raise jobs.error


def _work(config: dict[str, Any], constants: dict[str, Any]) -> None:
    os.environ.update(constants["environment"])  # on another machine: where the storage is
    work({**constants, "job": config["job"]})
    tune.report({"done": 1})


def _name(trial: Any) -> str:
    return str(trial.trial_id)
