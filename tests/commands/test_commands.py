"""The front door: help, plans, schemas, signals and mistakes in what is typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aalnet.__main__ import COMMANDS
from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run, latest
from cluster.storage.folder import FolderStore
from tests.support.command_line import Aalnet, files_below
from tests.support.tiny_runs import (
    aalnet,
    aalnet_command,
    command_environment,
    tiny_values,
    write_config,
)

# Plans, schemas, help


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    type_: Aalnet, config: Path, here: Path
) -> None:
    before = files_below(here)
    done = type_("train", config, "--dry-run", "--workers", "2", "--run", "plan")
    assert (done.code, done.err) == (0, "")
    words = ["plan", "aalnet", "32 px", "13 training and 5 held-out", "3 labels", "2 Ray Train"]
    words += ["on cpu", "32 in batches of 4", "every 16 images", str(here / "aalnet-runs")]
    assert [word for word in words if word not in done.out] == []
    assert files_below(here) == before
    assert [path.name for path in here.iterdir()] == ["demo.yaml"]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_schema_prints_json(type_: Aalnet) -> None:
    done = type_("schema")
    assert (done.code, done.err) == (0, "")
    schema = json.loads(done.out)
    assert schema["additionalProperties"] is False
    assert {"model", "data", "objective", "run"} <= schema["properties"].keys()


RUNS = [["runs", name] for name in ("list", "show", "watch", "sweep")]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *RUNS], ids=" ".join)
def test_help(type_: Aalnet, command: list[str]) -> None:
    done = type_(*command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Usage: " in done.out


# Mistakes


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        ("train configs/demo.yaml", "safetensors", "train"),
        ("tune configs/campaign-laptop.yaml", "optuna", "tune"),
        ("serve demo", "fastapi", "endpoint"),
        ("deploy status trainer", "kubernetes", "deploy"),
    ],
)
def test_a_package_that_is_not_installed(words: str, missing: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['aalnet', *sys.argv[1:]]\n"
        "from aalnet.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    command = words.partition(" ")[0]
    assert done.stderr.startswith(f"error: `aalnet {command}` needs the package `{missing}`")
    assert f"pip install -e '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_does_not_exist(type_: Aalnet) -> None:
    done = type_("trian")
    assert (done.code, done.out) == (2, "")
    assert "trian" in done.err
    assert "Traceback" not in done.err


def test_a_mistake_typed_in_a_shell(here: Path) -> None:
    done = aalnet("train", "absent.yaml", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: settings file `absent.yaml` does not exist")
    assert len(done.stderr.splitlines()) == 1


# Signals


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "Ctrl-C: stopping after a checkpoint; Ctrl-C again ends it at once\n"),
        (signal.SIGTERM, 143, "SIGTERM: stopping after a checkpoint\n"),
    ],
)
def test_a_signal_without_ray(
    here: Path, data: Path, number: signal.Signals, code: int, told: str
) -> None:
    changes = {"run.images": 100_000, "run.checkpoint_every_images": 8, "run.log_every_images": 24}
    config = write_config(here / "demo.yaml", tiny_values(data, changes))
    run = Run(FolderStore(here / "aalnet-runs"), "demo")
    process = subprocess.Popen(
        aalnet_command("train", config), cwd=here, env=command_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        while not checkpoints(run) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=25)
    finally:
        process.kill()
    assert process.returncode == code
    assert err == told
    assert "checkpoint at 8/100,000" in out
    end, trained = run.records()[-1], latest(run.records(), "train")
    assert trained is not None
    assert (end["kind"], end["status"], run.status()) == ("end", "stopped", "stopped")
    newest = checkpoints(run)[-1]
    assert newest.images == end["images"] == trained["images"], "no step is lost"
    assert f"run `demo` is stopped at {newest.images:,} images; the same command goes on" in out
    for blob in newest.manifest().blobs.values():
        newest.tensors(blob)
    again = aalnet("train", config, "--dry-run", cwd=here)
    assert f"going on from {newest.images:,}" in again.stdout
