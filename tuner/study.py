"""A campaign's study: the one place that decides what is tried, and keeps what came of it.

An Optuna study, asked and told here alone. Ray's OptunaSearch is not used, for what was measured
of it: opened again on its own storage it repeats its first suggestions, leaves trials in flight
RUNNING for ever, and tells trials that were stopped early as complete, without the values they had
on the way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from aalnet.errors import AalnetError
from tuner import search
from tuner.campaign import Campaign, find_campaign
from tuner.journal import StoreJournal
from tuner.settings import CampaignSettings, finite
from tuner.status import CampaignStatus, build_status

Verdict = Literal["go on", "prune"]
REASON, RUN, SEED, COST, FIGURES, FILES = "reason", "run", "seed", "cost", "figures", "files"
STOPPED_AT, REPEAT, SECONDS, HOME = "stopped_at_images", "repeat", "seconds", "campaign"
WARM = 3  # trials of an earlier campaign that are tried first


class TooManyFailures(AalnetError):
    """Trials fail one after the other."""


@dataclass(frozen=True)
class TrialRun:
    """One run to make: a trial, or the repeat of one with another seed."""

    trial: int
    run: str  # its name
    settings: dict[str, Any]
    repeat_seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for another process."""
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """What a trial took, over all its starts."""

    seconds: float = 0.0
    images: int = 0
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `pruned`, `failed`, or `stopped` to be gone on with."""

    status: Literal["finished", "pruned", "failed", "stopped"]
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # the last one
    cost: Cost = Cost()
    reason: str = ""  # of a failure
    files: Mapping[str, Any] = field(default_factory=dict)  # its settings, checkpoints, grid


class CampaignStudy:
    """The study of a campaign, opened for writing by the one process that may.

    What a database raises comes as it is: `campaign.database_errors` makes it plain.
    """

    def __init__(self, campaign: Campaign, settings: CampaignSettings) -> None:
        self.campaign, self.settings = campaign, settings
        self.stopping = False  # no more runs are handed out
        self._suggestions, self._suggestion_s = 0, 0.0
        self._started_s = time.monotonic()
        self._running: set[int] = set()  # trials that this process has handed out
        self._repeating: set[tuple[int, int]] = set()
        self._space = search.distributions(settings)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = campaign.open_storage(writes=True)
        backend = storage._backend if isinstance(storage, JournalStorage) else None
        self._journal = backend if isinstance(backend, StoreJournal) else None
        self.study = optuna.create_study(
            study_name=campaign.name, storage=storage, load_if_exists=True,
            directions=[search.direction_of(each) for each in settings.objectives],
            pruner=search.pruner(settings),
        )  # fmt: skip
        attributes = self.study.user_attrs
        campaign.require_own(attributes.get(HOME))
        self._seconds_before = float(attributes.get(SECONDS, 0.0))
        if "began_at_s" not in attributes:
            self._begin()

    def _begin(self) -> None:
        """Enqueue what is known to be good. May be done again where a process died in it."""
        first = self.settings.first
        trials = [self.settings.defaults()] if first is None else [dict(each) for each in first]
        if self.settings.warm_start is not None:
            trials += best_values(self.campaign, self.settings)
        with self._together():
            self.study.set_user_attr(HOME, self.campaign.uri)
            for values in trials[: self.settings.budget.trials]:
                self.study.enqueue_trial(search.inside(values, self._space), skip_if_exists=True)
            self.study.set_user_attr("began_at_s", time.time())

    # Ask: what to do next

    def ask(self) -> TrialRun | None:
        """A run to make; None where there is none now (more may come: see `over`).

        First what a process that died had under way, then new trials, then repeats.

        Raises:
            TooManyFailures: the last trials all failed.
        """
        if self.stopping:
            return None
        trials = self._trials()
        self._require_success(trials)
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.number not in self._running:
                return self._start(optuna.Trial(self.study, trial._trial_id))
        started = sum(trial.state != TrialState.WAITING for trial in trials)
        if started < self.settings.budget.trials and not self._late:
            return self._suggest()
        return None if self._running or self._late else self._next_repeat(trials)

    @property
    def over(self) -> bool:
        """Is there nothing to come, now that nothing is under way?"""
        return not self._running and not self._repeating

    @property
    def seconds(self) -> float:
        """Time that the campaign took so far, over all its starts."""
        return self._seconds_before + time.monotonic() - self._started_s

    def status(self) -> CampaignStatus:
        """How the campaign stands, with what only this process knows."""
        return build_status(
            self.campaign.name, self.settings, self._trials(), self.study.user_attrs,
            seconds=self.seconds, suggestions=self._suggestions, suggestion_s=self._suggestion_s,
        )  # fmt: skip

    @property
    def _late(self) -> bool:
        limit_s = self.settings.budget.seconds
        return limit_s is not None and self.seconds >= limit_s

    def _suggest(self) -> TrialRun:
        started_s = time.perf_counter()
        with self._together():
            run = self._start(self.study.ask())
        self._suggestion_s += time.perf_counter() - started_s
        self._suggestions += 1
        return run

    def _start(self, trial: optuna.Trial) -> TrialRun:
        """A trial that is new, or was left by a process that died, perhaps in this function."""
        with self._together():
            self.study.sampler = search.sampler(self.settings, trial.number, self._space)
            values = {name: trial._suggest(name, each) for name, each in self._space.items()}
            settings = self.settings.run_settings(values)
            name = self.campaign.run(trial.number).name
            if RUN not in trial.user_attrs:
                trial.set_user_attr(SEED, settings.run.seed)
                trial.set_user_attr(RUN, name)
        self._running.add(trial.number)
        return TrialRun(trial.number, name, settings.to_dict())

    def _next_repeat(self, trials: list[FrozenTrial]) -> TrialRun | None:
        attributes = self.study.user_attrs
        best = search.ranked(trials, self.settings.objectives[0])[: self.settings.repeats.top]
        for trial in best:
            for seed in self.settings.repeat_seeds:
                key = (trial.number, seed)
                if key in self._repeating or repeat_key(*key) in attributes:
                    continue
                self._repeating.add(key)
                settings = self.settings.run_settings(dict(trial.params), seed)
                name = self.campaign.run(trial.number, seed).name
                return TrialRun(trial.number, name, settings.to_dict(), seed)
        return None

    # Report and tell: what came of it

    def report(self, run: TrialRun, images: int, evaluation: Mapping[str, Any]) -> Verdict:
        """Take in an evaluation of a run under way, and say whether it goes on."""
        if run.repeat_seed is not None or len(self.settings.objectives) > 1:
            return "go on"
        trial = self._trials()[run.trial]
        if STOPPED_AT in trial.user_attrs:  # said before, by a process that died right then
            return "prune"
        value = search.value_of(evaluation, self.settings.objectives[0])
        if trial.state.is_finished() or value is None:
            return "go on"  # what is not finite fails the trial at its end
        storage, key = self.study._storage, trial._trial_id
        with self._together():
            storage.set_trial_intermediate_value(key, images, value)
            last = images >= self.settings.budget.images
            if last or not self.study.pruner.prune(self.study, storage.get_trial(key)):
                return "go on"
            storage.set_trial_user_attr(key, STOPPED_AT, images)
            return "prune"

    def tell(self, run: TrialRun, outcome: Outcome) -> None:
        """Take in how a run ended; told twice it counts once. What is not finite, or
        ends with samples that no longer differ, has failed."""
        if outcome.status == "stopped":
            self._release(run)
            return
        values = [search.value_of(outcome.evaluation, each) for each in self.settings.objectives]
        reason = outcome.reason
        if outcome.status == "finished" and not reason:
            reason = search.failure_of(outcome.evaluation, self.settings)
        facts: dict[str, Any] = {
            FIGURES: {name: each for name, each in outcome.evaluation.items() if finite(each)},
            COST: asdict(outcome.cost),
            FILES: dict(outcome.files),
        }
        if reason:
            facts[REASON] = reason
        if run.repeat_seed is not None:
            result = {"run": run.run, "value": None if reason else values[0], **facts}
            with self._together():
                self.study.set_user_attr(repeat_key(run.trial, run.repeat_seed), result)
                self.study.set_user_attr(SECONDS, self.seconds)
        elif reason:
            self._tell(run, TrialState.FAIL, None, facts)
        elif outcome.status == "pruned":
            self._tell(run, TrialState.PRUNED, None, facts)
        else:
            self._tell(run, TrialState.COMPLETE, values, facts)
        self._release(run)

    def _tell(
        self, run: TrialRun, state: TrialState, values: list[Any] | None, facts: dict[str, Any]
    ) -> None:
        trial = self._trials()[run.trial]
        if trial.state.is_finished():  # told before, by a process that died right then
            return
        with self._together():
            for name, fact in facts.items():
                self.study._storage.set_trial_user_attr(trial._trial_id, name, fact)
            self.study.tell(run.trial, values, state)
            self.study.set_user_attr(SECONDS, self.seconds)

    def _release(self, run: TrialRun) -> None:
        """It is no longer under way in this process."""
        if run.repeat_seed is None:
            self._running.discard(run.trial)
        else:
            self._repeating.discard((run.trial, run.repeat_seed))

    # The study itself

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _require_success(self, trials: list[FrozenTrial]) -> None:
        """Raises TooManyFailures where the last trials all failed."""
        limit = min(self.settings.failures_in_a_row, self.settings.budget.trials)
        ended = [trial for trial in trials if trial.state.is_finished()]
        last = sorted(ended, key=_ended_at_s)[-limit:]
        if len(last) == limit and all(trial.state == TrialState.FAIL for trial in last):
            raise TooManyFailures(
                f"the last {limit} trials of campaign `{self.campaign.name}` failed, the last one "
                f"with: {last[-1].user_attrs.get(REASON, 'unknown')}; mend that and choose another "
                "--name, or raise failures_in_a_row to go on with this one"
            )

    def _together(self) -> contextlib.AbstractContextManager[None]:
        """The block's writes are stored at once, all or none, where the study is a journal."""
        return contextlib.nullcontext() if self._journal is None else self._journal.together()


def _ended_at_s(trial: FrozenTrial) -> float:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0


def repeat_key(trial: int, seed: int) -> str:
    """Name of the study's attribute that holds the result of a repeat."""
    return f"{REPEAT}:{trial}:{seed}"


def best_values(campaign: Campaign, settings: CampaignSettings) -> list[dict[str, Any]]:
    """The values of the best trials of the campaign to start warm from."""
    assert settings.warm_start is not None
    other = find_campaign(campaign.store, settings.warm_start, campaign.study)
    study = optuna.load_study(study_name=other.name, storage=other.open_storage(writes=False))
    best = search.ranked(study.get_trials(deepcopy=False), settings.objectives[0])
    return [dict(trial.params) for trial in best[:WARM]]
