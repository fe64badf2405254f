"""Ray jobs: our commands on a cluster, over its job server. Needs `ray[default]`, no torch.

Submit -> follow the log, across broken connections -> the job's own exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aalnet.errors import AalnetError, UserError
from cluster.launch.ray_internals import uploaded_paths
from cluster.launch.ray_session import ClusterError, forwarded

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

MIB = 2**20
LIMIT_BYTES = 100 * MIB  # of an upload; the job server refuses more
STOP_WAIT_S = 120  # Ray kills a stopped job after so long; training ends itself long before
ANSWER_S = 10.0  # for a job server to say anything at all; Ray's client would wait for ever
POLL_S, LAST_WORDS_S, PATIENCE_S = 1.0, 5.0, 120.0
# They name files or a role of the machine where the command is given, not of the cluster.
OF_THIS_MACHINE = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
                   "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE", "AWS_WEB_IDENTITY",
                   "AWS_CONTAINER")  # fmt: skip


class TokenRefused(UserError):
    """The cluster wants a token, and got none or another."""


def job_client(address: str) -> JobSubmissionClient:
    """A client of the job server at `address` (http://host:8265).

    Raises:
        TokenRefused, ClusterError: what to do about it is said.
    """
    address = address if "://" in address else f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address} is not a job server; give its dashboard's, http://HOST:8265"
        )
    _use_token()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # the command tells what is uploaded

    remedy = "is the head up, and the tunnel to it (`ssh -L 8265:localhost:8265 HEAD`)?"
    try:
        _require_answer(address)
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        sent = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
        token = "another token than the one given" if sent else "a token"
        raise TokenRefused(
            f"the Ray cluster at {address} wants {token}; set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's (on its head: ~/.ray/auth_token)"
        ) from error
    except (RuntimeError, ValueError, LookupError, TypeError) as error:  # of an answer of no sense
        raise ClusterError(f"{address} is no Ray job server: {_line(error)}; {remedy}") from error
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be reached: {_line(error)}; {remedy}"
        ) from error


def _require_answer(address: str) -> None:
    """Raises OSError or ValueError where nothing answers over HTTP in time, whatever it says."""
    import requests  # as Ray's client does: the same proxies and certificates

    requests.get(f"{address}/api/gcs_healthz", timeout=ANSWER_S)


def _use_token() -> None:
    """Have Ray send the token there is. Raises UserError where its file cannot be read."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is not None and "RAY_AUTH_TOKEN" not in os.environ and not os.access(path, os.R_OK):
        raise UserError(f"RAY_AUTH_TOKEN_PATH names `{path}`, which cannot be read; correct it")
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the job gets of this process's environment: access to storage, and ours."""
    ours = forwarded(environ) | {k: v for k, v in environ.items() if k.startswith("AALNET_")}
    of_the_job = {k: v for k, v in ours.items() if not k.startswith(OF_THIS_MACHINE)}
    wait_s = environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_WAIT_S))
    return of_the_job | {"RAY_JOB_STOP_WAIT_TIME_S": wait_s}


def upload_bytes(folder: Path) -> int:
    """Bytes of what Ray would upload of a folder, by its own rules (.rayignore, .gitignore).

    Raises:
        UserError: more than the job server takes; names the largest parts.
    """
    parts: Counter[str] = Counter()
    for path in uploaded_paths(folder):
        if path.is_file():
            parts["/".join(path.relative_to(folder).parts[:2])] += path.stat().st_size
    if (total := parts.total()) > LIMIT_BYTES:
        largest = ", ".join(f"{name} ({size / MIB:.0f} MiB)" for name, size in parts.most_common(3))
        raise UserError(
            f"{folder} has {total / MIB:.0f} MiB to upload, Ray takes {LIMIT_BYTES // MIB}; the "
            f"largest: {largest}. Name in .rayignore what the job does not need, and keep data "
            "in S3 (data.train: s3://...)"
        )
    return total


def submit_job(
    client: JobSubmissionClient, arguments: Sequence[str], folder: Path, job: str | None = None
) -> str:
    """Start `python -m aalnet ARGUMENTS` as a job in a copy of `folder`; gives its name.

    Raises:
        UserError: the name is taken.
        ClusterError: the job server refuses it.
    """
    job = job or f"aalnet-{arguments[0]}-{uuid.uuid4().hex[:8]}"
    try:
        return client.submit_job(
            entrypoint=shlex.join(["python", "-m", "aalnet", *arguments]),
            submission_id=job,
            runtime_env={
                "working_dir": str(folder),
                "env_vars": job_environment(os.environ),
            },
        )
    except (RuntimeError, ValueError, OSError) as error:
        if f"{job} already exists" in str(error):
            raise UserError(
                f"there is a job `{job}` on the cluster already; choose another --name"
            ) from error
        raise ClusterError(f"the job was not taken: {_line(error)}") from error


class JobFollower:
    """Shows a job's log from its beginning; a connection that breaks is made again."""

    def __init__(self, client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
        self._client, self.job, self._write = client, job, write
        self._shown = 0  # characters

    def follow(self) -> JobDetails:
        """Returns when the job has ended. Raises ClusterError where the cluster is gone."""
        return asyncio.run(self._follow())

    def stop(self) -> None:
        """Ask the job to end. Raises ClusterError where the cluster does not take it."""
        try:
            self._client.stop_job(self.job)
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"the job could not be stopped: {_line(error)}; try `ray job stop {self.job}`"
            ) from error

    async def _follow(self) -> JobDetails:
        tail = asyncio.create_task(self._tail())
        try:
            while True:
                details = await self._details()
                if details.status.is_terminal():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(tail, LAST_WORDS_S)
                    return details
                if tail.done():
                    tail = asyncio.create_task(self._tail())
                await asyncio.wait({tail}, timeout=POLL_S)
                await asyncio.sleep(POLL_S if tail.done() else 0)
        finally:
            tail.cancel()

    async def _tail(self) -> None:
        from aiohttp import ClientError

        read = 0  # characters, on this connection
        with contextlib.suppress(ClientError, RuntimeError, OSError):  # the caller tries again
            async for text in self._client.tail_job_logs(self.job):
                fresh = text[max(0, self._shown - read) :]
                read += len(text)
                if fresh:
                    self._shown += len(fresh)
                    self._write(fresh)

    async def _details(self) -> JobDetails:
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(self._client.get_job_info, self.job)
            except (OSError, RuntimeError, ValueError) as error:
                if time.monotonic() > end_s:
                    raise ClusterError(
                        f"the cluster has not answered for {PATIENCE_S:.0f} s: {_line(error)}; "
                        f"`ray job logs --follow {self.job}` once it does"
                    ) from error
            await asyncio.sleep(POLL_S)


def exit_code(details: JobDetails) -> int:
    """The job's own exit code; a stopped one's is that of SIGTERM.

    Raises:
        ClusterError: it never came to run, or died with its node.
    """
    if details.status == "STOPPED":
        return 128 + signal.SIGTERM
    code = details.driver_exit_code
    if code is None:
        raise ClusterError(f"the job did not run: {_line(details.message or 'no reason given')}")
    return code if code >= 0 else 128 - code


def _line(error: AalnetError | Exception | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if isinstance(error, str) else lines[0] if lines else repr(error))[:300]
