import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.kube_api import KubeApi
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.stuck"]

# Before torch is imported, here or in a child: tests run side by side, one core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Row groups that tests cache end with them, and never lie in the user's own cache.
CACHE = tempfile.TemporaryDirectory(prefix="aalnet-cache-")
os.environ["AALNET_CACHE"] = CACHE.name

# A runner in the background ignores Ctrl-C, and so would every process that a test starts: a
# handler of our own makes it the default for them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch to one thread where a test module has imported it; never import it here."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Server"]:
    """A real S3 server; the AWS variables of this process lead to it."""
    from tests.support.s3_server import environment, s3_server

    with (
        s3_server(tmp_path_factory.mktemp("s3")) as running,
        environment(running.environment),
    ):
        yield running


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["KubeApi"]:
    """An API server with our namespace; KUBECONFIG leads to it."""
    from tests.support.kube_deploy import running_api

    with running_api(tmp_path, monkeypatch) as running:
        yield running
