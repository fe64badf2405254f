"""What `python -m benchmarks.endpoint` measures: in turns with rivals, overload, slow clients."""

from __future__ import annotations

import signal
import sys

from benchmarks.endpoint.contenders import Contender, contenders, load, module, resident_mib, warm
from tests.support.load import slow_clients

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
Figures = dict[str, dict[str, list[float]]]  # contender: figure: one value per round


def serving(store: str) -> list[str]:
    """The arguments of an `aalnet serve`."""
    return ["-m", "aalnet", "serve", "demo", "--storage", store, "--port", "PORT"]


def in_turns(store: str, images: list[str], rounds: int, seconds: str) -> Figures:
    """Every contender, round by round, the others stopped meanwhile."""
    rivals = ["-m", "benchmarks.endpoint.rivals"]
    commands = {
        "endpoint": serving(store),
        "LitServe": [*rivals, "lit", store, "demo", "PORT"],
        "plain": [*rivals, "plain", store, "demo", "PORT"],
    }
    figures: Figures = {}
    with contenders(commands) as running:
        for name, contender in running.items():  # warm, then stopped
            warm(contender, images)
            contender.signal(signal.SIGSTOP)
            print(f"{name} is up", file=sys.stderr, flush=True)
        for _ in range(rounds):
            bare = module("benchmarks.endpoint.rivals", "bare", store, "demo", seconds)
            _append(figures, "bare", {f"{n} {k}": v for k, f in bare.items() for n, v in f.items()})
            for name, contender in running.items():
                contender.signal(signal.SIGCONT)
                _append(figures, name, _one(contender, images, seconds))
                contender.signal(signal.SIGSTOP)
            print(".", end="", file=sys.stderr, flush=True)
    return figures


def beside_ray_serve(store: str, images: list[str], rounds: int, seconds: str) -> Figures:
    """uvicorn and Ray Serve, both while Ray runs."""
    commands = {"uvicorn": serving(store), "Ray Serve": ["-c", SERVE, store, "PORT"]}
    figures: Figures = {}
    with contenders(commands) as running:
        for contender in running.values():
            warm(contender, images)
        for _ in range(rounds):
            for name, contender in running.items():
                _append(figures, name, _one(contender, images, seconds))
    return figures


def overloaded(store: str, images: list[str], seconds: str) -> dict[str, float]:
    """Three times what it can carry, 8 samples a request, and right afterwards."""
    many = ("--field", "num_samples=8")
    with contenders({"endpoint": serving(store)}) as running:
        endpoint = running["endpoint"]
        warm(endpoint, images)
        peak = load(endpoint, images, "--clients", "8", "--seconds", "10", *many)
        before_mib = resident_mib(endpoint)
        over = load(endpoint, images, "--rate", str(3 * peak["per_s"]), "--seconds", seconds, *many)
        grown_mib = resident_mib(endpoint) - before_mib
        at_once = ("--clients", "8", "--seconds", "5", "--warm-s", "0")
        after = load(endpoint, images, *at_once, *many)
    return {
        "answered": over["per_s"] / peak["per_s"],
        "refused_p50_ms": over["p50_ms"].get("429", 0.0),
        "refused_p99_ms": over["p99_ms"].get("429", 0.0),
        "grown_mib": grown_mib,
        "after": after["per_s"] / peak["per_s"],
    }


def beside_slow_clients(store: str, images: list[str]) -> dict[str, float]:
    """A healthy client alone, and beside SLOW_CLIENTS that send a byte every half second."""
    options = ("--clients", "1", "--seconds", "5", "--field", "num_samples=1")
    with contenders({"endpoint": serving(store)}) as running:
        endpoint = running["endpoint"]
        warm(endpoint, images)
        alone = load(endpoint, images, *options)
        with slow_clients(endpoint.url):
            beside = load(endpoint, images, *options)
    return {
        f"{percent}_ms {who}": seen[f"{percent}_ms"]["200"]
        for percent in ("p50", "p99")
        for who, seen in (("alone", alone), ("beside", beside))
    }


def _one(contender: Contender, images: list[str], seconds: str) -> dict[str, float]:
    """Images per second at 8 clients, latencies at 1, for 1 and 8 samples."""
    figures: dict[str, float] = {}
    for k in SAMPLES:
        options = ("--seconds", seconds, "--warm-s", "1", "--field", f"num_samples={k}")
        busy = load(contender, images, "--clients", "8", *options)
        alone = load(contender, images, "--clients", "1", *options)
        figures[f"images_per_s {k}"] = k * busy["per_s"]
        figures[f"p50_ms {k}"] = alone["p50_ms"]["200"]
        figures[f"p99_ms {k}"] = alone["p99_ms"]["200"]
    return figures


def _append(figures: Figures, name: str, values: dict[str, float]) -> None:
    for figure, value in values.items():
        figures.setdefault(name, {}).setdefault(figure, []).append(value)
