"""One writer at a time: a lease on a run or a campaign, kept in its storage.

The lease is a chain of blobs `<folder>/<number>.json`; the highest number holds. To take it is to
create the next number, which of several contenders only one can. Its holder puts a
heartbeat into its blob every few seconds. Nobody compares clocks: a contender watches whether the
heartbeat changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aalnet.errors import UserError
from cluster.background import in_background
from cluster.storage.store import BlobExists, BlobMissing, Store, StoreError, StoreUnavailable

HEARTBEAT_S = 10.0
TTL_S = 45.0  # a holder elsewhere that shows no heartbeat for so long is dead
LOOK_S = 1.0  # between two looks at another's heartbeat
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own, set in the process of a job's command


class LeaseHeld(UserError):
    """Somebody else is at work there."""


class LeaseLost(StoreUnavailable):
    """Somebody else has taken the lease over: this process must not write any more."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its blob tells."""

    host: str
    machine: str  # one boot of one machine, and its table of processes
    pid: int
    process_started: str
    job: str
    since: str  # for people; in UTC
    token: str  # tells two holders apart whatever else is alike
    heartbeats: int = 0  # `beat` in the blob
    released: bool = False

    @classmethod
    def myself(cls) -> Holder:
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(
            socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or "",
            ray_job(), since, uuid.uuid4().hex,
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """What a blob tells; of a damaged one, nobody that can be judged."""
        try:
            facts = json.loads(data)
            return cls(heartbeats=facts.pop("beat"), **facts)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls("an unknown host", "", 0, "", "", "an unknown time", "")

    @property
    def name(self) -> str:
        """Process, host, Ray job and time, for people."""
        job = f" (Ray job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def alive(self) -> bool | None:
        """Is it? None: it is on another machine, and only its heartbeat can tell."""
        if self.machine != _machine():
            return None
        return _started(self.pid) == self.process_started

    def bytes(self) -> bytes:
        """The blob."""
        facts = asdict(self)
        facts["beat"] = facts.pop("heartbeats")
        return json.dumps(facts).encode()


class Lease:
    """A lease that this process holds. Made by `hold`."""

    def __init__(self, store: Store, folder: str, what: str, number: int, holder: Holder) -> None:
        self.store, self.folder, self.what, self.number = store, folder, what, number
        self._holder = holder

    def check(self) -> None:
        """Raises LeaseLost where somebody else has it now, StoreError where that cannot be told."""
        check(self.store, self.folder, self.number)

    def heartbeat(self) -> None:
        """Show that this process lives. Raises LeaseLost, StoreError."""
        self.check()
        self._holder = replace(self._holder, heartbeats=self._holder.heartbeats + 1)
        self.store.write(key_of(self.folder, self.number), self._holder.bytes())

    def release(self) -> None:
        """Let the next one have it at once. The blob stays: numbers must only ever grow."""
        with contextlib.suppress(StoreError):  # then it runs out by itself
            self.check()
            data = replace(self._holder, released=True).bytes()
            self.store.write(key_of(self.folder, self.number), data)


@contextlib.contextmanager
def hold(
    store: Store,
    folder: str,
    what: str,
    tell: Callable[[str], None] = print,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[Lease]:
    """Hold the lease in `folder` while the block runs; `what` is it for (run `mine`).

    `tell` is given a line where this takes a while. `on_lost` is called, in another thread, when
    somebody else has taken the lease over; the block ends with LeaseLost then.

    Raises:
        LeaseHeld: somebody else holds it and lives.
        StoreError: the storage fails.
    """
    lease = _take(store, folder, what, tell)
    lost = threading.Event()

    def keep_alive(stopping: threading.Event) -> None:
        while not stopping.wait(HEARTBEAT_S):
            try:
                lease.heartbeat()
            except LeaseLost:
                lost.set()
                on_lost()
                return
            except StoreError:
                continue  # an outage; nobody can take over meanwhile, and the saver tells of it

    try:
        with in_background(keep_alive, "lease"):
            yield lease
            if lost.is_set():
                lease.check()
    finally:
        lease.release()


def holder_of(store: Store, folder: str) -> Holder | None:
    """Who holds the lease in `folder`, living or not; None where nobody does."""
    newest = _newest(store, folder)
    holder = None if newest is None else Holder.parse(newest[1])
    return None if holder is None or holder.released else holder


def key_of(folder: str, number: int) -> str:
    """The key of the lease's blob of that number."""
    return f"{folder}/{number:08d}.json"


def check(store: Store, folder: str, number: int) -> None:
    """Raises LeaseLost where a higher number than this one holds the lease."""
    newest = _numbers(store, folder)[-1:]
    if newest and newest[0] > number:
        try:
            who = Holder.parse(store.read(key_of(folder, newest[0]))).name
        except BlobMissing:  # taken over once more just now
            who = "another process"
        raise LeaseLost(f"{who}, has taken over {folder.rpartition('/')[0]}; this process ends")


def _take(store: Store, folder: str, what: str, tell: Callable[[str], None]) -> Lease:
    while True:
        newest = _newest(store, folder)
        number = 1 if newest is None else newest[0] + 1
        if newest is not None:
            _require_dead(store, folder, what, newest, tell)
        me = Holder.myself()
        try:
            store.create(key_of(folder, number), me.bytes())
        except BlobExists:
            continue  # another contender was quicker: judge that one
        numbers = _numbers(store, folder)
        if numbers[-1:] == [number]:
            for old in numbers[:-1]:
                store.delete(key_of(folder, old))
            return Lease(store, folder, what, number, me)
        store.delete(key_of(folder, number))  # what was judged above was out of date


def _require_dead(
    store: Store,
    folder: str,
    what: str,
    blob: tuple[int, bytes],
    tell: Callable[[str], None],
) -> None:
    """Returns once the lease may be taken. Raises LeaseHeld where its holder lives."""
    number, before = blob
    holder = Holder.parse(before)
    if holder.released:
        return
    alive = holder.alive()
    if alive is None:
        tell(f"{what} was held by {holder.name}: watching up to {TTL_S:.0f} s whether it lives")
        end_s = time.monotonic() + TTL_S
        while alive is None and time.monotonic() < end_s:
            time.sleep(LOOK_S)
            newest = _newest(store, folder)
            if newest is None or newest[0] != number:
                return  # the next try to take it judges whoever is there now
            if Holder.parse(newest[1]).released:
                return
            alive = True if newest[1] != before else None
    if alive:
        raise LeaseHeld(
            f"{what} is being worked on by {holder.name}; wait for its end or stop it, then give "
            "the same command again"
        )
    tell(f"{what} is taken over from {holder.name}, which has died")


def _newest(store: Store, folder: str) -> tuple[int, bytes] | None:
    """The highest number and its blob."""
    while numbers := _numbers(store, folder):
        with contextlib.suppress(BlobMissing):  # a newer holder has just removed it
            return numbers[-1], store.read(key_of(folder, numbers[-1]))
    return None


def _numbers(store: Store, folder: str) -> list[int]:
    names = [Path(key).stem for key in store.keys(f"{folder}/")]
    return sorted(int(name) for name in names if name.isdecimal())


def ray_job() -> str:
    """Name of the Ray job that this process is; empty where it is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(os.environ[RAY_JOB])["metadata"]["job_submission_id"])
    return ""


def _machine() -> str:
    """One boot of one machine and one table of processes: a pid means the same there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _started(pid: int) -> str | None:
    """When a process was started, in its machine's own count; None where it is dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return None
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
        return ""
    state, *rest = text.rpartition(") ")[2].split()
    return None if state in "ZX" else rest[18]
