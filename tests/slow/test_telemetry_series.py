"""What finished runs leave in Prometheus: nothing but their past."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aalnet.settings import Settings, TelemetrySettings
from cluster.telemetry.exporter import serve
from cluster.telemetry.run_metrics import RunCollector
from cluster.telemetry.worker import WorkerTelemetry
from tests.slow.test_telemetry_live import OURS, SERIES_OF_A_RUN
from tests.support.metric_samples import LOG
from tests.support.prometheus_server import prometheus_server, query, value, wait_for
from tests.support.tiny_runs import tiny_settings, write_data


def test_a_hundred_finished_runs_leave_no_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lives for some scrapes, as many at once as a cluster has; then its series end."""
    settings = tiny_settings(write_data(tmp_path / "data"))
    monkeypatch.setenv("AALNET_CACHE", str(tmp_path / "cache"))
    at_once, every_s = 20, 1.0

    telemetry = TelemetrySettings()
    count = sum(len(metric.samples) for metric in full("run-0", settings).collect())

    def finish(number: int, base: str) -> None:
        collector = full(f"run-{number}", settings)
        with serve(f"run/{number}", telemetry, collector, pytest.fail):
            series = f"count({{__name__=~'aalnet_.*',run='run-{number}'}})"
            wait_for("a scrape", lambda: value(base, series), 120)

    with prometheus_server(tmp_path / "cache", every_s) as base:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(finish, range(100), [base] * 100))
        wait_for("the end", lambda: not query(base, OURS), 60)
        ever = f"count(last_over_time({OURS}[1h]))"
        each = "max(count by (run) (last_over_time({__name__=~'aalnet_.*'}[1h])))"
        assert value(base, "count(count by (run) (last_over_time(aalnet_run_info[1h])))") == 100
        assert value(base, each) == count < SERIES_OF_A_RUN
        assert (value(base, ever) or 0) < 100 * SERIES_OF_A_RUN


def full(run: str, settings: Settings) -> RunCollector:
    """A run of two workers that has sent all it can."""
    collector = RunCollector(run, settings, "cpu", 2)
    for worker in (0, 1):
        telemetry = WorkerTelemetry(run, settings, worker, None, pytest.fail)
        for record in LOG[:-1]:
            telemetry.add_record(record)
        telemetry.add_step(4, 0.1, 0.01, 0.01)
        collector.take(worker, telemetry.message())
    return collector
