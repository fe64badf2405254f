"""One Ray cluster for all tests of this folder, with token authentication."""

from collections.abc import Iterator

import pytest

from tests.support.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=4) as running:
        yield running
