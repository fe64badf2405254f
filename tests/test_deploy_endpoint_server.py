"""`aalnet serve` as a person types it: its mistakes, and a key's line."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.endpoint_models import folder_to_serve
from tests.support.tiny_runs import aalnet, command_environment

KEY = "a-long-enough-key-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_to_serve(tmp_path_factory.mktemp("serve"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either RUN|CHECKPOINT or --model NAME"),
        (["tiny", "--model", "m"], "give either RUN|CHECKPOINT or --model NAME"),
        (["nobody"], "run `nobody` does not exist"),
        (["--model", "nobody"], "model `nobody` does not exist"),
        (["tiny", "--host", "0.0.0.0"], "--allow-anonymous"),
        (["tiny", "--host", "::"], "--allow-anonymous"),
        (["tiny", "--keys", "missing"], "keys file `missing` cannot be read"),
        (["tiny", "--keys", "image.png"], "keys file `image.png` cannot be read"),
        (["tiny", "--set", "batch_sample=3"], "did you mean `batch_samples`"),
        (["tiny", "--set", "batch_samples=0"], "batch_samples"),
        (["tiny", "--host", "203.0.113.1", "--allow-anonymous"], "cannot listen on 203.0.113.1"),
    ],
)
def test_mistakes_get_one_line(folder: Path, arguments: list[str], says: str) -> None:
    done = aalnet("serve", *arguments, "--storage", "store", "--port", "0", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_hash_key_prints_a_line_for_the_file(folder: Path) -> None:
    command = [sys.executable, "-m", "aalnet", "serve", "--hash-key"]
    done = subprocess.run(
        command, input=f"{KEY}\n", env=command_environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == f"NAME:{hashlib.sha256(KEY.encode()).hexdigest()}\n"
