"""A real PostgreSQL on loopback for tests and benchmarks: Debian's package, never as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.s3_server import free_ports

READY_S = 60.0
USER, PASSWORD, DATABASE = "aalnet", "aalnet-tests-secret", "studies"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them off the path; None: not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@dataclass
class PostgresServer:
    """A server that can be stopped and started; it keeps its port and its data."""

    folder: Path
    port: int
    owner: str | None = field(default=None)  # it refuses to run as root
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Returns once it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._program("postgres"), "-D", self.folder / "data", "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
                stdout=log, stderr=log, cwd="/", user=self.owner, start_new_session=True,
            )  # fmt: skip
        end_s = time.monotonic() + READY_S
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False):
            if self.process.poll() is not None or time.monotonic() > end_s:
                told = (self.folder / "server.log").read_text(encoding="utf-8")[-800:]
                raise RuntimeError(f"PostgreSQL does not answer: {told}")
            time.sleep(0.2)

    def stop(self) -> None:
        """At once, whoever is connected; what was committed stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None

    def make(self) -> None:
        """A fresh cluster with one database, whose user needs a password."""
        secret = self.folder / "secret"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)
        self._run("initdb", "-D", self.folder / "data", "-U", USER, "-A", "scram-sha-256",
                  f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "--no-sync")  # fmt: skip
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, DATABASE)

    def _run(self, name: str, *arguments: str | Path, check: bool = True) -> int:
        done = subprocess.run(
            [*self._program(name), *arguments], cwd="/", user=self.owner, check=False,
            env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-800:]}")
        return done.returncode

    def _program(self, name: str) -> list[str]:
        folder = programs()
        assert folder is not None
        return [str(folder / name)]


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server with data of its own, stopped and removed at the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    if programs() is None:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    owner = None
    folder = Path(tempfile.mkdtemp(prefix="aalnet-postgres-"))
    if os.geteuid() == 0:
        names = {user.pw_name for user in pwd.getpwall()}
        owner = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, owner)
    server = PostgresServer(folder, free_ports(1)[0], owner)
    try:
        server.make()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
