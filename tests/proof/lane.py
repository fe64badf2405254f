"""Part of `chaos`: runs behind a proxy, one after the other, and what a kill left of each."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from cluster.storage.location import open_store
from tests.proof.victim import BEGIN, DONE, STEP, Event, Victim
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.s3_server import S3Server
from tests.support.tiny_runs import without_clocks

BATCH, STEPS_EACH, INTERVALS = 4, 8, 4  # images a step, steps an interval, intervals a run
INTERVAL = BATCH * STEPS_EACH
IMAGES = INTERVAL * INTERVALS
LONGEST_S = 120.0
SETTINGS = {
    "run.images": IMAGES,
    "run.checkpoint_every_images": INTERVAL,
    "run.log_every_images": BATCH,
    "objective.penalty_interval": 8,
}
# What the network is like while the victim lives: as it is; slow, so that an upload takes about
# an interval; slow, and a tenth of all requests fails.
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": {"latency_s": 0.02, "bytes_per_s": 400_000.0},
    "slow and failing": {"latency_s": 0.01, "bytes_per_s": 800_000.0, "share": 0.1},
}

Blobs = dict[str, str]  # digest of each part of a checkpoint


@dataclass
class Range:
    """A server, two proxies, settings, and the states that an undisturbed run had."""

    server: S3Server
    folder: Path
    config: Path
    reference: dict[int, Blobs]
    records: list[dict[str, Any]]
    phases_s: dict[tuple[str, bool], tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """`delay_share` of a phase's length, or of two steps', after it (or the step) began."""

    phase: str
    after_step: int
    delay_share: float


@dataclass
class Case:
    """One kill: when it came, what it hit, what was left."""

    number: int
    network: str
    forked: bool
    moment: Moment
    code: int | None = None
    hit: str = ""
    images: int = 0  # reached when it died
    visible: int = 0  # images of the newest checkpoint that a reader saw then
    seen: int = 0  # checkpoints that a reader saw
    writing_images: int = 0  # steps that were made while a state was being written
    end_s: float = 0.0  # from the signal to the end
    wrong: list[str] = field(default_factory=list)

    @property
    def lost_images(self) -> int:
        """Images that were trained and are in no checkpoint that a reader saw."""
        return max(self.images - self.visible, 0)


def blobs_of(found: Checkpoint) -> Blobs:
    """The digests of a checkpoint's blobs, each checked against its bytes."""
    manifest = found.manifest()
    for blob in manifest.blobs.values():
        found.tensors(blob)  # raises where the bytes do not have the digest
    return {part: blob.sha256 for part, blob in manifest.blobs.items()}


class Lane:
    """Cases one after the other, behind a proxy of their own."""

    def __init__(self, made: Range, proxy: FaultProxy) -> None:
        self.made, self.proxy = made, proxy

    def victim(self, name: str, *, forked: bool) -> Victim:
        """Start a run of this name, whose storage is behind the proxy."""
        words = ["train", self.made.config, "--run", name, "--workers", 0]
        return Victim(
            [*words, "--storage", f"s3://{self.made.server.bucket}/chaos"],
            {"AWS_ENDPOINT_URL": self.proxy.endpoint},
            self.made.folder / f"{name}.{time.monotonic_ns()}.trace",
            forked=forked,
        )

    def run_of(self, name: str) -> Run:
        """The run, seen past the proxy."""
        return Run(open_store(f"s3://{self.made.server.bucket}/chaos"), name)

    def shoot(self, case: Case, number: signal.Signals, name: str) -> None:
        """Start a run, send it the signal at its moment, and look at what is left."""
        self.proxy.rule = Rule(**NETWORKS[case.network], seed=case.number)
        target = self.victim(name, forked=case.forked)
        self._await(target, case.moment, self.made.phases_s[case.network, case.forked])
        sent_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            target.send(number)
        case.code = target.wait(LONGEST_S)
        case.end_s = time.monotonic() - sent_s
        if case.code is None:
            target.send(signal.SIGKILL)
            case.wrong.append(f"did not end within {LONGEST_S:.0f} s")
        self.proxy.rule = Rule()
        events = [event for event in target.events() if event.time_s <= sent_s + case.end_s]
        self._look(case, name, events, target)

    def _await(self, target: Victim, moment: Moment, lengths_s: tuple[float, ...]) -> None:
        """Sleep until the moment has come, or the process has ended."""
        start_s, steps_s, end_s = lengths_s
        steps = {"start": 0, "steps": moment.after_step, "end": IMAGES // BATCH}[moment.phase]
        while sum(event.kind == STEP for event in target.events()) < steps:
            if target.wait(0) is not None:
                return
            time.sleep(0.005)
        length_s = {"start": start_s, "steps": 2 * steps_s * BATCH / IMAGES, "end": end_s}
        target.wait(moment.delay_share * length_s[moment.phase])

    def _look(self, case: Case, name: str, events: list[Event], target: Victim) -> None:
        steps = [event for event in events if event.kind == STEP]
        begun = [event for event in events if event.kind == BEGIN]
        done = [event.images for event in events if event.kind == DONE]
        case.images = steps[-1].images if steps else 0
        writing = [event for event in begun if event.images > max(done, default=0)]
        case.hit = (
            "before the first step" if not steps
            else "an upload" if writing
            else "after the last step" if case.images >= IMAGES
            else "a step"
        )  # fmt: skip
        if writing:
            case.writing_images = case.images - writing[0].images
        found = checkpoints(self.run_of(name))
        case.seen, case.visible = len(found), found[-1].images if found else 0
        for one in found:
            self._compare(case, one)
        if done and case.visible < done[-1]:
            case.wrong.append(f"lost the checkpoint at {done[-1]}, written before the kill")
        allowed = INTERVAL + case.writing_images
        if case.lost_images > allowed:
            case.wrong.append(f"lost {case.lost_images} images, {allowed} are allowed")
        if case.wrong or case.code not in {
            0,
            128 + signal.SIGTERM,
            -signal.SIGTERM,
            -signal.SIGKILL,
        }:
            case.wrong.append(f"code {case.code}: {target.output()[-2000:]}")

    def _compare(self, case: Case, found: Checkpoint) -> None:
        try:
            if blobs_of(found) != self.made.reference.get(found.images):
                case.wrong.append(f"the checkpoint at {found.images} has other numbers")
        except Exception as error:  # noqa: BLE001, whatever a reader meets is the finding
            case.wrong.append(f"the checkpoint at {found.images} cannot be read: {error}")

    def finish(self, case: Case, name: str) -> None:
        """Resume a run to its end, which must be the reference's."""
        again = self.victim(name, forked=True)
        code = again.wait(LONGEST_S)
        run = self.run_of(name)
        if code != 0:
            case.wrong.append(f"resumed, it ended with {code}: {again.output()[-2000:]}")
            return
        for one in checkpoints(run):
            self._compare(case, one)
        if run.status() != "finished" or checkpoints(run)[-1].images != IMAGES:
            case.wrong.append(f"resumed, it is {run.status()}")
        logged = without_clocks(run.records(), ["train"])
        if logged != [r for r in self.made.records if r["images"] in {x["images"] for x in logged}]:
            case.wrong.append("resumed, its log has other numbers")

    def forget(self, name: str) -> None:
        """Remove the run, so that listings stay short."""
        run = self.run_of(name)
        for key in run.store.keys(run.key("")):
            run.store.delete(key)
