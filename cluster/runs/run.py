"""One run in a store: its names, its settings, its log. The layout is the design's:

runs/<run>/run.yaml  metrics.jsonl  samples/<images>.png  report.html
runs/<run>/checkpoints/<images>/...                         (cluster/runs/checkpoint.py)
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import Settings, identity, parse_settings
from aalnet.yaml_io import parse_mapping
from cluster.storage.log_file import LogFile
from cluster.storage.store import BlobMissing, Store

RUN_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
MANIFEST = "MANIFEST.json"  # a checkpoint exists when this file of it does
ALIVE_S = 120.0  # a run that logged nothing for so long is not running any more

Record = dict[str, Any]  # one line of metrics.jsonl: `kind`, `images`, `time_s` and figures


@dataclass(frozen=True)
class Run:
    """A run by name. Making the object touches nothing."""

    store: Store
    name: str

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name):
            raise ConfigError(
                f"run name `{self.name}` must be 1 to 63 letters, digits, `.`, `_` or `-`, "
                "starting with a letter or digit; choose one with --run"
            )

    def key(self, *parts: str) -> str:
        """The store key of a file of this run."""
        return "/".join(("runs", self.name, *parts))

    @property
    def uri(self) -> str:
        """Of the run's folder, for people."""
        return f"{self.store.uri}/{self.key()}"

    def settings(self) -> Settings | None:
        """The resolved settings of `run.yaml`; None if the run was never started."""
        try:
            text = self.store.read(self.key("run.yaml")).decode()
        except BlobMissing:
            return None
        except UnicodeDecodeError as error:
            raise ConfigError(f"`{self.key('run.yaml')}` is damaged: {error}") from error
        return parse_settings(parse_mapping(text, origin=self.key("run.yaml")))

    def write_settings(self, settings: Settings) -> None:
        """Write `run.yaml` anew."""
        text = yaml.safe_dump(settings.to_dict(), sort_keys=False)
        self.store.write(self.key("run.yaml"), text.encode())

    def claim(self, settings: Settings) -> None:
        """Take this name for these settings, new or resumed.

        Raises:
            CheckpointError: the run exists with settings that decide its path differently.
        """
        self.require_same_path(settings)
        self.write_settings(settings)

    def require_same_path(self, settings: Settings) -> None:
        """Raises CheckpointError where this run's own settings decide its path differently."""
        before = self.settings()
        if before is None:
            return
        ours, theirs = identity(settings.to_dict()), identity(before.to_dict())
        changed = [key for key in ours if ours[key] != theirs.get(key)]
        if changed:
            key = changed[0]
            raise CheckpointError(
                f"run `{self.name}` was started with {key} {theirs.get(key)!r}, now it is "
                f"{ours[key]!r}; choose another name with --run, or put the old value back"
            )

    def log_file(self) -> LogFile:
        """The run's log, for who reads on as it grows; a writer takes cluster/runs/log.py."""
        return LogFile(self.store, self.key("metrics.jsonl"))

    def log(self, record: Record) -> None:
        """Append one record to metrics.jsonl while nobody trains (else: cluster/runs/log.py)."""
        line = json.dumps({**record, "time_s": round(time.time(), 3)}) + "\n"
        log = self.log_file()
        log.read()
        log.append(line.encode())
        log.finish()

    def records(self) -> list[Record]:
        """All whole records so far; a half-written last line is left out."""
        return parse_records(self.log_file().read())

    def close_log(self, status: str, error: str | None = None) -> None:
        """Say how the run ended, where its worker 0 could not: it was killed, or failed apart.

        A finished run's end replaces any other; else the end that is there says more.
        """
        records = self.records()
        if not records or run_status(records) == "finished":
            return
        if records[-1]["kind"] == "end" and status != "finished":
            return
        last = records[-1]
        starts = [record["time_s"] for record in records if record["kind"] == "start"]
        seconds = last["time_s"] - starts[-1] if starts else 0.0
        why = {} if error is None else {"error": error}
        self.log({"kind": "end", "images": last["images"], "status": status,
                  "train_seconds": seconds, **why})  # fmt: skip

    def status(self) -> str:
        """`finished`, `failed`, `running` or `stopped`, by the log."""
        return run_status(self.records())

    def checkpoint_images(self) -> list[int]:
        """Images of the checkpoints that have a manifest, ascending."""
        suffix = f"/{MANIFEST}"
        keys = self.store.keys(self.key("checkpoints/"))
        names = [
            key.removesuffix(suffix).rpartition("/")[2] for key in keys if key.endswith(suffix)
        ]
        return sorted(int(name) for name in names if name.isdecimal())

    def samples(self) -> dict[int, str]:
        """Keys of the sample grids by images seen, in that order."""
        keys = self.store.keys(self.key("samples/"))
        grids = {Path(key).stem: key for key in keys if key.endswith(".png")}
        return dict(sorted((int(stem), key) for stem, key in grids.items() if stem.isdecimal()))


def list_runs(store: Store) -> list[Run]:
    """All runs of a store, by name."""
    return [Run(store, name) for name in store.folders("runs/") if RUN_NAME.fullmatch(name)]


def find_run(store: Store, name: str) -> tuple[Run, Settings]:
    """An existing run and its settings.

    Raises:
        CheckpointError: there is none of that name, with the nearest that there is.
    """
    run = Run(store, name)
    settings = run.settings()
    if settings is None:
        names = [other.name for other in list_runs(store)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{close[0]}`?" if close else "see `aalnet runs list`"
        raise CheckpointError(f"run `{name}` does not exist in {store.uri}; {hint}")
    return run, settings


def latest(records: Sequence[Record], kind: str) -> Record | None:
    """The last record of a kind."""
    return next((record for record in reversed(records) if record["kind"] == kind), None)


def run_status(records: Sequence[Record]) -> str:
    """How a run stands, by its log: `finished`, `failed`, `running` or `stopped`."""
    last: Record = records[-1] if records else {"kind": "start", "time_s": 0.0}
    if last["kind"] == "end":
        return str(last["status"])
    return "running" if time.time() - last.get("time_s", 0.0) < ALIVE_S else "stopped"


def parse_records(text: bytes) -> list[Record]:
    """The whole records in a text of metrics.jsonl."""
    lines = text.decode(errors="replace").split("\n")
    return [record for line in lines if (record := _parse(line)) is not None]


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"kind", "images"} <= record.keys():
        return None
    proper = isinstance(record["images"], int) and isinstance(record.get("time_s", 0), int | float)
    return record if proper else None
