"""The endpoint hosted by Ray Serve."""

import subprocess
import sys
from pathlib import Path

import pytest

from aalnet.errors import ConfigError
from tests.support.endpoint_models import folder_to_serve, free_port
from tests.support.ray_cluster import RayCluster

SERVE = """
import sys
import httpx
import ray
from ray import serve
from deploy.endpoint.serve_app import build

storage, port, address = sys.argv[1:]
ray.init(address=address)
serve.start(http_options={"port": int(port)})
arguments = {"storage": storage, "checkpoint": "tiny", "allow_anonymous": "true"}
serve.run(build({**arguments, "settings": "batch_samples=8,max_samples=16"}))
url = f"http://127.0.0.1:{port}"
assert httpx.get(f"{url}/v1/model").json()["max_samples"] == 16
with open("image.png", "rb") as image:
    answer = httpx.post(
        f"{url}/v1/samples", files={"image": image}, data={"label": "a", "seed": "1"}, timeout=30
    )
assert answer.status_code == 200, answer.text
print("drawn", answer.headers["x-batch-samples"])
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_to_serve(tmp_path_factory.mktemp("hosting"))


@pytest.mark.timeout(240)
def test_ray_serve_hosts_it(cluster: RayCluster, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, folder / "store", str(free_port()), cluster.address],
        cwd=folder, env=cluster.environment, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "drawn 4" in done.stdout


# Ray Serve 2.60 declares its settings in a way that pydantic deprecates.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"storage": "s"}, "give either model=NAME or checkpoint=RUN"),
        ({"storage": "s", "model": "m", "checkpoint": "r"}, "give either"),
        ({"storage": "s", "model": "m"}, "allow_anonymous"),
        ({"storage": "s", "modle": "m"}, "did you mean `model`"),
        ({"storage": "s", "model": "m", "keys": "k", "settings": "poll=1"}, "poll"),
    ],
)
def test_mistakes_in_a_serve_application(arguments: dict[str, str], says: str) -> None:
    from deploy.endpoint.serve_app import build

    with pytest.raises(ConfigError, match=says):
        build(arguments)
