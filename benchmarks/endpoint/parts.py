"""What `python -m benchmarks.endpoint` measures: in turns with rivals, overload, slow clients."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from statistics import median

from benchmarks.endpoint.servers import Server, module, servers
from benchmarks.table import Result, Row
from tests.support.load import SLOW_CLIENTS, slow_clients

RIVALS = "benchmarks.endpoint.rivals"
SAMPLES = (1, 8)  # per request
SERVE = """
import sys, signal, ray
from ray import serve
from deploy.endpoint.serve_app import build
storage, port = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(port)}, logging_config={"enable_access_log": False})
serve.run(build({"storage": storage, "checkpoint": "demo", "allow_anonymous": "true"}))
signal.sigwait([signal.SIGTERM])
serve.shutdown()
ray.shutdown()
"""
Figures = dict[str, dict[str, list[float]]]  # server: figure: one value a round


def turns(store: str, images: list[str], quick: bool) -> Result:
    """Every server, round by round, the others stopped meanwhile.

    A ratio is the median over rounds: both sides of a round stood side by side.
    """
    rounds, seconds = _effort(quick)
    commands = {
        "endpoint": _serve(store),
        "LitServe": ["-m", "benchmarks.endpoint.lit", store, "demo", "PORT"],
        "plain": ["-m", RIVALS, "plain", store, "demo", "PORT"],
    }
    figures: Figures = {}
    with servers(commands, images) as running:
        for server in running.values():
            server.signal(signal.SIGSTOP)
        for _ in range(rounds):
            _append(figures, "bare", module(RIVALS, "bare", store, "demo", seconds))
            for name, server in running.items():
                server.signal(signal.SIGCONT)
                _append(figures, name, _measured(server, images, seconds))
                server.signal(signal.SIGSTOP)
            print(".", end="", file=sys.stderr, flush=True)
    rows = [row for k in SAMPLES for row in _turn_rows(figures, k)]
    return Result(rows, _medians(figures))


def _turn_rows(figures: Figures, k: int) -> list[Row]:
    requests, rate = f"{k} sample{'s' * (k > 1)} a request", f"images_per_s {k}"

    def both(name: str, figure: str, base: str, base_figure: str) -> list[tuple[float, float]]:
        return list(zip(figures[name][figure], figures[base][base_figure], strict=True))

    rows = []
    for what, bar, base, figure in (
        ("bare loop, as one writes it", 0.9, "bare", f"eager_{rate}"),
        ("bare loop, as the endpoint runs it", None, "bare", f"served_{rate}"),
        ("LitServe", 1.0, "LitServe", rate),
        ("plain", 1.0, "plain", rate),
    ):
        share = median(a / b for a, b in both("endpoint", rate, base, figure))
        rows.append(Row(f"images/s at 8 clients / {what}, {requests}", share, "", bar, True))
    for percent, bar_ms in (("p50", 3.0), ("p99", 10.0)):
        pairs = both("endpoint", f"{percent}_ms {k}", "bare", f"served_one_ms {k}")
        what = f"{percent} over the model's own time, 1 client, {requests}"
        rows.append(Row(what, median(a - b for a, b in pairs), "ms", bar_ms))
    return rows


def overload(store: str, images: list[str], quick: bool) -> Result:
    """Three times what it can carry, 8 samples a request, and right afterwards."""
    with servers({"endpoint": _serve(store)}, images) as running:
        endpoint = running["endpoint"]
        peak = endpoint.load(images, 8, "--clients", "8", "--seconds", "10")
        before_mib = endpoint.resident_mib()
        rate, seconds = str(3 * peak["per_s"]), "5" if quick else "60"
        over = endpoint.load(images, 8, "--rate", rate, "--seconds", seconds)
        grown_mib = endpoint.resident_mib() - before_mib
        after = endpoint.load(images, 8, "--clients", "8", "--seconds", "5", "--warm-s", "0")
    times = "three times its capacity"
    p50_ms, p99_ms = (over[f"{percent}_ms"].get("429", 0.0) for percent in ("p50", "p99"))
    rows = [
        Row(f"{times}: answered / peak", over["per_s"] / peak["per_s"], "", 0.9, True),
        Row(f"{times}: refused within, p50", p50_ms, "ms", 50),
        Row(f"{times}: refused within, p99", p99_ms, "ms", 50),
        Row(f"{times}: memory grows by", grown_mib, "MiB"),
        Row("right afterwards: answered / peak", after["per_s"] / peak["per_s"], "", 0.9, True),
    ]
    return Result(rows, [])


def slow(store: str, images: list[str], quick: bool) -> Result:
    """A healthy client alone, and beside SLOW_CLIENTS that send a byte every half second."""
    options = ("--clients", "1", "--seconds", "5")
    with servers({"endpoint": _serve(store)}, images) as running:
        endpoint = running["endpoint"]
        alone = endpoint.load(images, 1, *options)
        with slow_clients(endpoint.url):
            beside = endpoint.load(images, 1, *options)
    rows, raw = [], []
    for percent in ("p50", "p99"):
        alone_ms, beside_ms = (report[f"{percent}_ms"]["200"] for report in (alone, beside))
        what = f"{percent} beside {SLOW_CLIENTS} slow clients / alone"
        rows.append(Row(what, beside_ms / alone_ms, "", 2))
        raw.append(f"{percent}_ms alone {alone_ms:.1f}, {percent}_ms beside {beside_ms:.1f}")
    return Result(rows, [f"slow clients: {', '.join(raw)}"])


def ray(store: str, images: list[str], quick: bool) -> Result:
    """uvicorn and Ray Serve, both while Ray runs; without a bar."""
    commands = {"uvicorn": _serve(store), "Ray Serve": ["-c", SERVE, store, "PORT"]}
    figures: Figures = {}
    with servers(commands, images) as running:
        for name, server in running.items():
            _append(figures, name, _measured(server, images, _effort(quick)[1]))
    rows = []
    for k in SAMPLES:
        for figure, unit in (("images_per_s", "images/s"), ("p50_ms", "ms p50")):
            both = [f"{figures[name][f'{figure} {k}'][0]:.1f}" for name in ("Ray Serve", "uvicorn")]
            rows.append(Row(f"Ray Serve against uvicorn, {unit}, {k} a request", " / ".join(both)))
    return Result(rows, _medians(figures))


def _serve(store: str) -> list[str]:
    return ["-m", "aalnet", "serve", "demo", "--storage", store, "--port", "PORT"]


def _effort(quick: bool) -> tuple[int, str]:
    """Rounds, and seconds of each load."""
    return (1, "1") if quick else (3, "2")


def _measured(server: Server, images: list[str], seconds: str) -> dict[str, float]:
    """Images per second at 8 clients, latencies at 1, for 1 and 8 samples."""
    figures: dict[str, float] = {}
    for k in SAMPLES:
        busy = server.load(images, k, "--clients", "8", "--seconds", seconds)
        alone = server.load(images, k, "--clients", "1", "--seconds", seconds)
        figures[f"images_per_s {k}"] = k * busy["per_s"]
        figures[f"p50_ms {k}"] = alone["p50_ms"]["200"]
        figures[f"p99_ms {k}"] = alone["p99_ms"]["200"]
    return figures


def _append(figures: Figures, name: str, values: Mapping[str, float]) -> None:
    for figure, value in values.items():
        figures.setdefault(name, {}).setdefault(figure, []).append(value)


def _medians(figures: Figures) -> list[str]:
    """The medians behind the ratios."""
    return [
        f"{name}: " + ", ".join(f"{figure} {median(values):.1f}" for figure, values in of.items())
        for name, of in figures.items()
    ]
