"""A Ray cluster for a while: the one at an address, or a local one that is stopped at the end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping

from aalnet.errors import AalnetError

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints of workers would come out twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative data paths keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a dead worker is found within about two
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # then with fewer workers, or again
}

# Ray takes 127.0.0.1 for its own address then, so that nobody else's machine reaches its ports.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

FORWARDED = ("AWS_", "GLOO_", "NCCL_")  # where the storage is; which network to use


class ClusterError(AalnetError):
    """Ray, or a worker's machine, failed."""


@contextlib.contextmanager
def ray_session(address: str | None, num_cpus: int | None) -> Iterator[None]:
    """Join the cluster at `address`, or start one of `num_cpus` here (None: as there are).

    Raises:
        ClusterError: it cannot be reached.
    """
    os.environ.update((QUIET if address else QUIET | LOOPBACK) | os.environ)
    import ray  # takes seconds: nothing that fails before needs it

    try:
        if address:
            require_listener(address)
        ray.init(
            address=address or "local", num_cpus=None if address else num_cpus,
            log_to_driver=False, configure_logging=False,
        )  # fmt: skip
    except Exception as error:  # Ray raises many kinds, and a bare Exception where it starts slowly
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        reason = str(error).strip().partition("\n")[0]
        token = "is RAY_AUTH_TOKEN set as it is there? " if address else ""
        raise ClusterError(
            f"{where} cannot be reached: {reason}; {token}try `aalnet doctor`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of this process that workers on other machines need too."""
    return {key: value for key, value in environ.items() if key.startswith(FORWARDED)}


def require_listener(address: str) -> None:
    """Raises OSError where nobody listens; ray.init would try for many minutes, and loudly."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
