"""`python -m tests.proof.campaign_kills`: kill a campaign at random moments; what is left of it?

The driver, the study's actor, the trials and all of Ray get SIGKILL, as a lost head node would;
then the same command again. `--study s3` keeps the journal in a real S3 server, `postgres` the
study in a real PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cluster.storage.location import open_store
from tests.support.postgres_server import postgres_server
from tests.support.processes import MARK, kill_marked
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_campaigns import write_campaign
from tests.support.tiny_runs import aalnet_command, command_environment, write_data
from tuner.campaign import Campaign, close_storage

TRIALS = 6
CAMPAIGN = {
    "pruning": {"kind": "asha"},
    "repeats": {"top": 1, "seeds": [1]},
    "trials_at_once": 2,
}
LONGEST_S = 400.0  # of one life, Ray's start and a busy machine included
START_SHARE = 0.2  # of the kills come while Ray is being started
WORK_S = 20.0  # the others within so long after the first of TRIALS began
SEEDS = {"folder": 1, "s3": 2, "postgres": 3}


@dataclass
class Shot:
    """One kill, or the end of a life that came before it."""

    after_s: float
    ended: int  # trials that were finished then
    running: int
    whole: bool = False  # the campaign came to its end first


@dataclass
class Range:
    """Where campaigns are killed."""

    folder: Path
    storage: str
    url: str | None
    random: random.Random
    trials: int
    shots: list[Shot] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    known: dict[str, dict[int, tuple[str, Any]]] = field(default_factory=dict)

    @property
    def killed(self) -> list[Shot]:
        return [shot for shot in self.shots if not shot.whole]

    @property
    def hits(self) -> int:
        return sum(shot.running > 0 for shot in self.killed)

    def study(self, name: str) -> list[FrozenTrial]:
        """The trials as anybody may read them; none before it was begun."""
        campaign = Campaign(open_store(self.storage), name, self.url)
        storage = campaign.open_storage(writes=False)
        try:
            found = optuna.load_study(study_name=name, storage=storage)
            return found.get_trials(deepcopy=False)
        except KeyError:
            return []
        finally:
            close_storage(storage)


@contextlib.contextmanager
def shooting_range(kind: str, seed: int | None = None, trials: int = TRIALS) -> Iterator[Range]:
    """Servers, data and settings for campaigns whose study is in `folder`, `s3` or `postgres`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chosen = random.Random(SEEDS[kind] if seed is None else seed)
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="aalnet-kills-", ignore_cleanup_errors=True)
        )
        folder = Path(root)
        settings = CAMPAIGN | {"budget.trials": trials}
        write_campaign(folder / "campaign.yaml", write_data(folder), settings)
        storage, url = str(folder / "store"), None
        if kind == "s3":
            server = stack.enter_context(s3_server(folder / "s3"))
            stack.enter_context(environment(server.environment))
            storage = f"s3://{server.bucket}/kills"
        if kind == "postgres":
            url = stack.enter_context(postgres_server()).url
        yield Range(folder, storage, url, chosen, trials)


class Life:
    """One start of the command, with everything that it starts."""

    def __init__(self, made: Range, name: str) -> None:
        mark = random.SystemRandom().randrange(10**6, 10**9)
        self._mark = str(mark)
        self._log = made.folder / f"{name}.{mark}.log"
        study = ["--study", made.url] if made.url else []
        command = aalnet_command("tune", "campaign.yaml", "--name", name,
                                 "--storage", made.storage, *study)  # fmt: skip
        marked = command_environment() | {MARK: self._mark}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=made.folder, env=marked, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float, *, for_trial: bool = False) -> bool:
        """Until it ends, a trial is under way, or so long; has it ended?"""
        end_s = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end_s:
            if for_trial and b" running " in self._log.read_bytes():
                return False
            time.sleep(0.05)
        return self._process.poll() is not None

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-600:]

    def kill(self) -> None:
        """All of it at once, and what it was starting meanwhile."""
        kill_marked(self._mark)
        self._process.wait()


def shoot(made: Range, kills: int, hits: int = 0) -> int:
    """Kill so many times, over as many campaigns as that takes, and see each to its end.

    `hits`: or more often, until so many kills met trials under way.
    Gives the number of campaigns. What is wrong is in `made.wrong`.
    """
    campaigns = 0
    while len(made.killed) < kills or made.hits < hits:
        campaigns += 1
        name = f"kills-{campaigns}"
        while len(made.killed) < kills or made.hits < hits:
            if _one_life(made, name):
                break
        last = Life(made, name)
        if not last.wait(LONGEST_S) or last.code != 0:
            made.wrong.append(f"{name}: its last start ended with {last.code}: {last.words()}")
        last.kill()
        _check_end(made, name)
    return campaigns


def _one_life(made: Range, name: str) -> bool:
    """Start it and kill it at a random moment; did it come to its end before that?"""
    life, began_s = Life(made, name), time.monotonic()
    if made.random.random() < START_SHARE:
        whole = life.wait(made.random.uniform(0.5, 12.0))
    else:
        whole = life.wait(LONGEST_S, for_trial=True) or life.wait(
            made.random.uniform(0, WORK_S * made.trials / TRIALS)
        )
    after_s = time.monotonic() - began_s
    life.kill()
    if whole and life.code != 0:
        made.wrong.append(f"{name}: ended with {life.code} by itself: {life.words()}")
    trials = made.study(name)
    _check_kept(made, name, trials)
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    ended = sum(trial.state.is_finished() for trial in trials)
    made.shots.append(Shot(after_s, ended, running, whole))
    return whole


def _check_kept(made: Range, name: str, trials: list[FrozenTrial]) -> None:
    """What was finished once stays as it was."""
    now = {t.number: (t.state.name, t.values) for t in trials if t.state.is_finished()}
    for number, before in made.known.get(name, {}).items():
        if now.get(number) != before:
            made.wrong.append(f"{name}: trial {number} was {before}, is {now.get(number)}")
    made.known[name] = now


def _check_end(made: Range, name: str) -> None:
    trials = made.study(name)
    _check_kept(made, name, trials)
    if [trial.number for trial in trials] != list(range(made.trials)):
        made.wrong.append(f"{name}: {len(trials)} trials, asked for {made.trials}")
    wrong = {trial.number: (trial.state.name, trial.user_attrs.get("reason")) for trial in trials
             if trial.state not in {TrialState.COMPLETE, TrialState.PRUNED}}  # fmt: skip
    if wrong:
        made.wrong.append(f"{name}: {wrong}")
    runs = {trial.user_attrs.get("run") for trial in trials}
    params = {tuple(sorted(trial.params.items())) for trial in trials}
    if len(runs) != made.trials or len(params) != made.trials:
        made.wrong.append(f"{name}: {len(runs)} runs and {len(params)} suggestions that differ")


def main() -> None:
    """Kill as often as asked, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof.campaign_kills", description=__doc__
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--study", choices=sorted(SEEDS), default="s3")
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    began_s = time.monotonic()
    with shooting_range(asked.study, asked.seed) as made:
        campaigns = shoot(made, asked.kills)
    for shot in made.shots:
        what = "came to its end" if shot.whole else "killed"
        print(f"{what} after {shot.after_s:5.1f} s: {shot.ended} ended, {shot.running} running")
    print(f"{asked.kills} kills ({made.hits} with trials under way) of {campaigns} campaigns of "
          f"{TRIALS} trials, study in {asked.study}, {time.monotonic() - began_s:.0f} s: "
          f"{len(made.wrong)} wrong")  # fmt: skip
    for line in made.wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    sys.exit(1 if made.wrong else 0)


if __name__ == "__main__":
    main()
