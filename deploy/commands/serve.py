"""`aalnet serve`: a model behind HTTP, with a page to try it on."""

from __future__ import annotations

import getpass
import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from aalnet.errors import ConfigError
from aalnet.yaml_io import apply_overrides
from cluster.commands.options import Set, Storage
from cluster.storage.location import open_store
from cluster.telemetry.targets import Target, announced
from deploy.endpoint.security import Keys, hash_key
from deploy.endpoint.settings import parse_endpoint_settings

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="run, run@images, run@best or a path", metavar="RUN|CHECKPOINT"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="follow a promoted model instead", metavar="NAME")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="file of API keys, one `name:sha256hex` a line")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="serve everybody, from every address")
    ] = False,
    make_hash: Annotated[
        bool, typer.Option("--hash-key", help="print a key's line for the keys file, and end")
    ] = False,
    set_: Set = None,
    storage: Storage = "./aalnet-runs",
) -> None:
    """Serve a model over HTTP: POST /v1/samples, and a page at /. Without keys, to this machine.

    Settings for --set are listed in docs/endpoint.md: batch_samples=64, rate_per_s=20 ...
    """
    if make_hash:
        secret = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
        if len(secret) < SHORTEST_KEY:
            raise ConfigError(f"a key must have at least {SHORTEST_KEY} characters")
        print(f"NAME:{hash_key(secret)}")
        return
    if (checkpoint is None) == (model is None):
        raise ConfigError("give either RUN|CHECKPOINT or --model NAME")
    settings = parse_endpoint_settings(apply_overrides({}, set_ or []))
    if keys is None and not allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"--host {host} is reachable from other machines: give --keys FILE, or say "
            "--allow-anonymous to let everybody in"
        )
    key_file = Keys(keys)
    from deploy.endpoint.follow import ModelSource  # torch takes a second: mistakes come first
    from deploy.endpoint.server import bind
    from deploy.endpoint.server import serve as run
    from deploy.endpoint.service import Service

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # tells where it found credentials
    listening = bind(host, port)
    source = ModelSource(open_store(storage), model or checkpoint or "", promoted=model is not None)
    service = Service(source, settings, key_file)
    shown = f"[{host}]" if ":" in host else host
    logging.getLogger("aalnet.endpoint").info(
        "serving %s (%s) at http://%s:%d",
        service.model.name, service.model.title, shown, listening.getsockname()[1],
    )  # fmt: skip
    heard_on, heard_at = listening.getsockname()[:2]
    target = Target(f"endpoint/{heard_on}:{heard_at}", heard_on, heard_at, os.getpid())
    with announced(target, logging.getLogger("aalnet.endpoint").warning):
        run(service, listening)


SHORTEST_KEY = 16


def is_loopback(host: str) -> bool:
    """Can only this machine reach the address?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
