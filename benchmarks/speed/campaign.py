"""What a campaign costs besides its trials, and how quick its study is.

A real campaign, one trial at a time on a warm local Ray: the time from a run's last record to the
next run's first, without the start that the run has of its own (its data and network; nested, Ray
Train's workers too, told below). It holds the report of the run, the study's calls, Ray Tune's turn
and the run's lease. Trials here are a few seconds long; the share is of trials of 60 s.

The study: 1,000 trials that do nothing, by 8 writers at once that call its actor as trials do, each
its next as soon as its last has ended, until TPE looks back on 1,000. A call's time is what its
writer waits, in the queue too. The study is in a folder, in an S3 server, or in PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Result, Row
from cluster.launch.ray_session import ray_session
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.view.progress import latest
from tests.support.postgres_server import postgres_server, programs
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_campaigns import campaign_settings, write_campaign
from tests.support.tiny_runs import aalnet_command, command_environment, write_data

TRIAL_S = 60.0
BAR = 0.03
WRITERS, TRIALS = 8, 1000
LAST = 100  # trials, of whose calls the p99 is taken: those at 1,000
CALL_BAR_MS = 100.0


def measure(quick: bool) -> Result:
    """Both, as real as they come."""
    rows: list[Row] = []
    raw: list[str] = []
    with tempfile.TemporaryDirectory(prefix="aalnet-bench-", ignore_cleanup_errors=True) as folder:
        write_data(Path(folder))
        for name, workers, trials in (("in-process", 1, 9), ("nested", 2, 4)):
            own_s, start_s = costs(Path(folder), name, workers, 3 if quick else trials)
            share = statistics.median(own_s) / TRIAL_S
            rows.append(Row(f"own cost of a trial of 60 s, {name}", share, bar=BAR))
            raw.append(f"{name}: own {_seconds(own_s)}; the run's own start {_seconds(start_s)}")
        count = 100 if quick else TRIALS
        for kind in ("folder", "s3", "postgres"):
            if kind == "postgres" and programs() is None:
                raw.append("postgres: not installed")
                continue
            with _kept_in(kind, Path(folder)) as (storage, url):
                calls = study_calls(storage, url, count)
            for call in ("ask", "tell"):
                found = sorted(calls[call][-LAST:])
                p99 = found[int(0.99 * (len(found) - 1))] * 1000
                rows.append(Row(f"{call}, p99 at {count:,} trials, {kind}", p99, "ms", CALL_BAR_MS))
                raw.append(f"{kind}: {call} p50 {statistics.median(found) * 1000:.1f} ms, p99 "
                           f"{p99:.1f} ms of the last {len(found)}")  # fmt: skip
            raw.append(f"{kind}: {calls['trials'][0]:.0f} of {count} trials, "
                       f"{calls['distinct'][0]:.0f} different suggestions; "
                       f"{count / calls['seconds'][0]:.0f} trials/s")  # fmt: skip
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
    starts = [_of(log, "start") for log in logs]
    between = [later["time_s"] - _of(before, "end")["time_s"]
               for before, later in zip(logs, starts[1:], strict=False)]  # fmt: skip
    own = [start["startup_s"] for start in starts[1:]]
    return [all_s - own_s for all_s, own_s in zip(between, own, strict=True)], own


def _of(records: Sequence[Record], kind: str) -> Record:
    found = latest(records, kind)
    assert found is not None, f"no {kind} in a run's log"
    return found


@contextlib.contextmanager
def _kept_in(kind: str, folder: Path) -> Iterator[tuple[str, str | None]]:
    """A storage and a database's URL for a study of this kind."""
    if kind == "s3":
        with s3_server(folder / "s3") as server, environment(server.environment):
            yield f"s3://{server.bucket}/study", None
    elif kind == "postgres":
        with postgres_server() as server:
            yield str(folder / "beside"), server.url
    else:
        yield str(folder / "study"), None


def study_calls(storage: str, url: str | None, count: int) -> dict[str, list[float]]:
    """Seconds of each ask and tell, in the order they ended, and what the study has then."""
    settings = campaign_settings(
        Path("data"), {"budget.trials": count, "sampler": {"startup_trials": 8}}
    ).to_dict()
    with ray_session(None, WRITERS + 1):
        import ray

        from tuner.server import StudyServer
        from tuner.server import environment as forwarded

        server: Any = ray.remote(StudyServer).options(
            num_cpus=0, runtime_env={"env_vars": forwarded()}
        ).remote(storage, None, "bench", url, settings)  # fmt: skip
        ray.get(server.status.remote())
        began_s = time.perf_counter()
        work = ray.remote(_write).options(num_cpus=1)
        parts = ray.get([work.remote(server, str(Path.cwd())) for _ in range(WRITERS)])
        seconds = time.perf_counter() - began_s
        status = ray.get(server.status.remote())
    calls = sorted(call for part in parts for call in part)  # by the moment of their end
    distinct = {tuple(sorted(row.params.items())) for row in status.rows}
    return {
        "ask": [took_s for _, kind, took_s in calls if kind == "ask"],
        "tell": [took_s for _, kind, took_s in calls if kind == "tell"],
        "seconds": [seconds],
        "trials": [float(status.states["complete"])],
        "distinct": [float(len(distinct))],
    }


def _write(server: Any, folder: str) -> list[tuple[float, str, float]]:
    """One writer, a process of its own: ask and tell until there is nothing left."""
    os.chdir(folder)
    import ray

    from tests.support.tiny_campaigns import figure_of, finished
    from tuner.study import TrialRun

    calls = []
    while True:
        started_s = time.perf_counter()
        kind, plain = ray.get(server.ask.remote())
        asked_s = time.perf_counter()
        if kind == "over":
            return calls
        if plain is None:
            time.sleep(0.01)
            continue
        calls.append((time.time(), "ask", asked_s - started_s))
        outcome = finished(figure_of(TrialRun(**plain)))
        started_s = time.perf_counter()
        ray.get(server.tell.remote(plain, outcome))
        calls.append((time.time(), "tell", time.perf_counter() - started_s))


def _seconds(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.2f} s (median of {len(found)}, most {max(found):.2f} s)"
