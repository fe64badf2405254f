"""Ray Tune's side of a campaign: it makes the runs that the study names, in processes of its own.

Ray Tune brings processes, resources and retries. What is tried, and what came of it, is the
study's (tuner/study.py).
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ray import tune
from ray.actor import ActorHandle
from ray.tune.search import Searcher

from aalnet.errors import AalnetError
from cluster.runs.run import Run
from cluster.storage.location import open_store
from tuner.capacity import Slots
from tuner.server import answer_of, environment
from tuner.study import Outcome, TrialRun
from tuner.trial import cost_of, make_run

RETRIES = 2  # of a run whose process died: on a spot machine, say


class StudySearcher(Searcher):
    """Hands the study's runs to Ray Tune, and tells the study whose process died for good."""

    def __init__(self, server: ActorHandle[Any], storage: str) -> None:
        super().__init__(metric="done", mode="max")
        self._server, self._storage = server, storage
        self._runs: dict[str, dict[str, Any]] = {}  # by Ray Tune's trial
        self.error: AalnetError | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next run as the trial's configuration; None: ask again; FINISHED: there is none."""
        try:
            state, run = answer_of(self._server.ask.remote(), timeout_s=None)
        except AalnetError as error:
            self.error = error
            self._server.stop.remote()
            return str(Searcher.FINISHED)
        if run is not None:
            self._runs[trial_id] = run
            return {"run": run}
        return None if state == "wait" else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study of a run whose process could not: it died too often."""
        run = self._runs.pop(trial_id, None)
        if error and run is not None:
            reason = f"its process died, {RETRIES + 1} times; its log is in Ray's dashboard"
            cost = cost_of(Run(open_store(self._storage), run["run"]), run["settings"])
            self._server.tell.remote(run, Outcome("failed", cost=cost, reason=reason))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study knows all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing either."""


def make_runs(
    server: ActorHandle[Any], storage: str, slots: Slots, working_folder: str, folder: str
) -> None:
    """Make the study's runs until there are none. `folder` takes Ray's own records, of no use here.

    Raises:
        AalnetError: the study failed, or too many trials did.
    """
    for name in ("ray.tune", "ray.train"):  # they warn of records of Ray's own that are not stored
        logging.getLogger(name).setLevel(logging.ERROR)
    searcher = StudySearcher(server, storage)
    constants = {
        "environment": environment(), "server": server, "storage": storage,
        "device": slots.device, "working_folder": working_folder,
    }  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trainable, constants=constants),
            tune.PlacementGroupFactory([slots.resources]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher, num_samples=-1, max_concurrent_trials=slots.at_once,
            reuse_actors=True, trial_dirname_creator=_name, trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="runs", storage_path=folder, verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    tuner.fit()
    if searcher.error is not None:
        raise searcher.error


def _trainable(config: dict[str, Any], constants: dict[str, Any]) -> None:
    os.environ.update(constants["environment"])  # on another machine: where the storage is
    make_run(
        constants["server"], TrialRun(**config["run"]), constants["storage"], constants["device"],
        constants["working_folder"],
    )  # fmt: skip
    tune.report({"done": 1})


def _name(trial: Any) -> str:
    return str(trial.trial_id)
