"""`aalnet monitor up | down | status | metrics`: a Prometheus of one's own, wired to local runs."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from cluster.commands.options import Json
from cluster.telemetry import monitor
from cluster.telemetry.catalogue import markdown
from cluster.telemetry.targets import targets, targets_folder
from cluster.training.stop import Stop
from cluster.view.progress import printable

LOOK_S = 1.0

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Start, stop and look at a local Prometheus (and Grafana, where it is installed).",
)  # fmt: skip


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="default: 9090, or a free one")
    ] = None,
    every_s: Annotated[float, typer.Option(min=1.0, help="seconds between scrapes")] = 5.0,
    detach: Annotated[bool, typer.Option("--detach", help="leave it running")] = False,
) -> None:
    """Start a Prometheus that scrapes every run, campaign and endpoint of this machine.

    Ctrl-C ends it; with --detach, `aalnet monitor down` does. What it has stored stays.
    """
    if already := monitor.running():
        _tell(already)
        print("it was running already; end it with: aalnet monitor down")
        return
    servers = monitor.start(port, every_s)
    _tell(servers)
    if detach:
        print("end it with: aalnet monitor down")
        return
    print("Ctrl-C ends it", flush=True)
    try:
        with Stop():  # SIGTERM too
            while all(server.alive for server in servers):
                time.sleep(LOOK_S)
    finally:
        monitor.stop()
    raise monitor.MonitorError(f"a server ended by itself; see {monitor.state_folder()}")


@app.command()
def down() -> None:
    """End the servers that `aalnet monitor up` started."""
    ended = monitor.stop()
    print("\n".join(f"{server.name} at {server.url} is ended" for server in ended) or "none runs")


@app.command()
def status(as_json: Json = False) -> None:
    """Say what runs, what it scrapes, and whether that answers. Exit code 1 if none runs."""
    servers = monitor.running()
    scraped = monitor.scraped(servers[0].url) if servers else []
    if as_json:
        told = [{"instance": entry["labels"].get("instance"), "url": entry["scrapeUrl"],
                 "health": entry["health"], "error": entry["lastError"]}
                for entry in scraped]  # fmt: skip
        urls = {server.name.lower(): server.url for server in servers}
        print(json.dumps({"servers": urls, "scraped": told}, indent=2))
    else:
        _tell(servers)
        for entry in scraped:
            labels = entry["labels"]
            line = f"{entry['health']:<8}{labels['job']:<8}{labels['instance']:<28}"
            print(printable(f"{line}{entry['scrapeUrl']}  {entry['lastError']}").rstrip())
        if not servers:
            for target in targets():
                print(printable(f"announced       {target.instance:<28}{target.address}"))
            print("no Prometheus of ours runs; start it with: aalnet monitor up")
    raise typer.Exit(0 if servers else 1)


@app.command()
def metrics() -> None:
    """Print every metric as the tables of docs/metrics.md."""
    print(markdown())


def _tell(servers: list[monitor.Server]) -> None:
    for server in servers:
        print(f"{server.name:<12}{server.url}")
    print(f"{'finds':<12}{targets_folder()}/*.json", flush=True)
