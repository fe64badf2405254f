"""What a campaign costs beside its trials, and how quick its study answers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.table import Result, Row
from cluster.launch.ray_session import ray_session
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from tests.support.postgres_server import postgres_server, programs
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_campaigns import campaign_settings, figure_of, finished, write_campaign
from tests.support.tiny_runs import aalnet_command, command_environment, write_data
from tuner.study import TrialRun

TRIAL_S = 60.0
WRITERS, TRIALS = 8, 1000
LAST = 100  # trials, of whose calls the p99 is taken: those at 1,000


def campaign(quick: bool) -> Result:
    """What a campaign costs besides its trials, and how quick its study is.

    A real campaign, one trial at a time on a warm local Ray: the time from a run's last record to
    the next run's first, without the start that the run has of its own (its data and network;
    nested, Ray Train's workers too, told below). It holds the report of the run, the study's calls,
    Ray Tune's turn and the run's lease. Trials here are a few seconds long; the share is of trials
    of 60 s.

    The study: 1,000 trials that do nothing, by 8 writers at once that call its actor as trials do,
    each its next as soon as its last has ended, until TPE looks back on 1,000. A call's time is
    what its writer waits, in the queue too. The study is in a folder, in an S3 server, or in
    PostgreSQL.
    """
    rows: list[Row] = []
    raw: list[str] = []
    with tempfile.TemporaryDirectory(prefix="aalnet-bench-", ignore_cleanup_errors=True) as folder:
        write_data(Path(folder))
        for name, workers, trials in (("in-process", 1, 9), ("nested", 2, 4)):
            own_s, start_s = costs(Path(folder), name, workers, 3 if quick else trials)
            rows.append(
                Row(f"own cost of a trial of 60 s, {name}", median(own_s) / TRIAL_S, bar=0.03)
            )
            raw.append(f"{name}: own {_seconds(own_s)}; the run's own start {_seconds(start_s)}")
        for kind in ("folder", "s3", "postgres"):
            if kind == "postgres" and programs() is None:
                raw.append("postgres: not installed")
                continue
            with _study_place(kind, Path(folder)) as (storage, url):
                result = study_calls(kind, storage, url, 100 if quick else TRIALS)
            rows += result.rows
            raw += result.raw
    return Result(rows, raw)


def costs(folder: Path, name: str, workers: int, trials: int) -> tuple[list[float], list[float]]:
    """Seconds between two trials, and those that the later run needs to start; by trial."""
    overrides = {"budget.trials": trials, "workers": workers, "trials_at_once": 1}
    config = write_campaign(folder / f"{name}.yaml", folder, overrides)
    subprocess.run(
        aalnet_command("tune", config, "--storage", folder / name), cwd=folder, check=True,
        env=command_environment(), stdout=subprocess.DEVNULL, timeout=900,
    )  # fmt: skip
    logs = [Run(FolderStore(folder / name), f"{name}-{i:04d}").records() for i in range(trials)]
    ends, starts = ([_last(log, kind) for log in logs] for kind in ("end", "start"))
    own_s, start_s = [], []
    for end, start in zip(ends, starts[1:], strict=False):
        start_s.append(float(start["startup_s"]))
        own_s.append(start["time_s"] - end["time_s"] - start["startup_s"])
    return own_s, start_s


def _last(log: Sequence[Record], kind: str) -> Record:
    return [record for record in log if record["kind"] == kind][-1]


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.2f} s (median of {len(values)}, most {max(values):.2f} s)"


@contextlib.contextmanager
def _study_place(kind: str, folder: Path) -> Iterator[tuple[str, str | None]]:
    """A storage and a database's URL for a study of this kind."""
    if kind == "s3":
        with s3_server(folder / "s3") as server, environment(server.environment):
            yield f"s3://{server.bucket}/study", None
    elif kind == "postgres":
        with postgres_server() as server:
            yield str(folder / "beside"), server.url
    else:
        yield str(folder / "study"), None


def study_calls(kind: str, storage: str, url: str | None, count: int) -> Result:
    """How long `ask` and `tell` take at the last of `count` trials, and what the study has then."""
    overrides = {"budget.trials": count, "sampler": {"startup_trials": 8}}
    settings = campaign_settings(Path("data"), overrides).to_dict()
    with ray_session(None, WRITERS + 1):  # which sets what Ray reads when it is imported
        import ray

        from tuner.server import StudyServer
        from tuner.server import environment as study_environment

        options = {"num_cpus": 0, "runtime_env": {"env_vars": study_environment()}}
        server: Any = ray.remote(StudyServer).options(**options).remote(
            storage, None, "bench", url, settings
        )  # fmt: skip
        ray.get(server.status.remote())
        started_s = time.perf_counter()
        work = ray.remote(_write).options(num_cpus=1)
        parts = ray.get([work.remote(server, str(Path.cwd())) for _ in range(WRITERS)])
        trials_per_s = count / (time.perf_counter() - started_s)
        status = ray.get(server.status.remote())
    calls = sorted(call for part in parts for call in part)  # by the moment of their end
    distinct = {tuple(sorted(row.params.items())) for row in status.rows}
    rows: list[Row] = []
    raw: list[str] = []
    for call in ("ask", "tell"):
        times_ms = sorted([1e3 * seconds for _, name, seconds in calls if name == call][-LAST:])
        p99_ms = times_ms[int(0.99 * (len(times_ms) - 1))]
        rows.append(Row(f"{call}, p99 at {count:,} trials, {kind}", p99_ms, "ms", bar=100.0))
        raw.append(f"{kind}: {call} p50 {median(times_ms):.1f} ms, p99 {p99_ms:.1f} ms "
                   f"of the last {len(times_ms)}")  # fmt: skip
    raw.append(f"{kind}: {status.states['complete']} of {count} trials, {len(distinct)} different "
               f"suggestions; {trials_per_s:.0f} trials/s")  # fmt: skip
    return Result(rows, raw)


def _write(server: Any, folder: str) -> list[tuple[float, str, float]]:
    """One writer, a process of its own: ask and tell until there is nothing left.

    Gives each call: when it ended, its name, its seconds.
    """
    import ray

    os.chdir(folder)
    calls = []
    while True:
        started_s = time.perf_counter()
        kind, plain = ray.get(server.ask.remote())
        ask_s = time.perf_counter() - started_s
        if kind == "over":
            return calls
        if plain is None:
            time.sleep(0.01)
            continue
        calls.append((time.time(), "ask", ask_s))
        outcome = finished(figure_of(TrialRun(**plain)))
        started_s = time.perf_counter()
        ray.get(server.tell.remote(plain, outcome))
        calls.append((time.time(), "tell", time.perf_counter() - started_s))
