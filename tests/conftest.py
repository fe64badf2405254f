import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.fault_proxy import FaultProxy
    from tests.support.kube_api import KubeApi
    from tests.support.s3_server import S3Server

REQUIRE_ALL = os.environ.get("AALNET_REQUIRE_ALL") == "1"
MAY_SKIP = {  # no program that could be installed would run these
    "root may write everywhere",  # the others run as root only
    "this machine has a GPU",
    "JPEG has no such mode",
}

pytest_plugins = ["tests.support.schedule", "tests.support.stuck"]

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


@pytest.fixture(autouse=True)
def own_ray_variables() -> Iterator[None]:
    """What a command sets for Ray in its process ends with the test, as it ends with a command."""
    before = _ray_variables()
    yield
    for name in _ray_variables().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With AALNET_REQUIRE_ALL=1 a test that skips for what this machine lacks has failed."""
    report = yield
    if REQUIRE_ALL and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in MAY_SKIP:
            report.outcome = "failed"
            report.longrepr = f"skipped, and AALNET_REQUIRE_ALL is set: {reason}"
    return report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of 13 pairs to train with and 5 for tests."""
    from tests.support.tiny_runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Server"]:
    """A real S3 server for all tests of a process."""
    from tests.support.s3_server import s3_server

    with s3_server(tmp_path_factory.mktemp("s3"), volumes=400) as running:
        yield running


@pytest.fixture(scope="module")
def server(s3: "S3Server", request: pytest.FixtureRequest) -> Iterator["S3Server"]:
    """The S3 server with a bucket of the module's own; this process's AWS variables lead there."""
    from tests.support.s3_server import environment, with_bucket

    own = with_bucket(s3, request.module.__name__.rpartition(".")[2].replace("_", "-"))
    with environment(own.environment):
        yield own


@pytest.fixture
def proxy(server: "S3Server") -> Iterator["FaultProxy"]:
    """A proxy before the S3 server that fails on demand; the AWS variables lead through it."""
    from tests.support.fault_proxy import fault_proxy
    from tests.support.s3_server import environment

    with (
        fault_proxy(server.endpoint) as running,
        environment({"AWS_ENDPOINT_URL": running.endpoint}),
    ):
        yield running


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["KubeApi"]:
    """An API server with our namespace; KUBECONFIG leads to it."""
    from tests.support.kube_deploy import running_api

    with running_api(tmp_path, monkeypatch) as running:
        yield running
