"""Where a run's time went, from its log: training steps against everything else.

A start's record holds what the log itself cannot show: how long it took from the launch
(`startup_s`), or since the last sign of life of workers that died (`recovery_s`), and how long
ago the state was made that it went on from (`lost_s`, `lost_images`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.runs.run import Record

PARTS = ("step", "data", "evaluation", "checkpoint", "start", "recovery", "lost work", "other")


@dataclass(frozen=True)
class Goodput:
    """Seconds by part, over all starts of a run; times when nobody trained do not count."""

    seconds: dict[str, float]
    restarts: dict[str, int]  # by cause

    @property
    def total_s(self) -> float:
        """Of all parts."""
        return sum(self.seconds.values())

    def rounded(self) -> dict[str, float]:
        """Seconds by part, as they are logged."""
        return {part: round(seconds, 3) for part, seconds in self.seconds.items()}

    @property
    def share(self) -> float:
        """The share of the time that went into steps which count."""
        return self.seconds["step"] / self.total_s if self.total_s else 0.0


class Account:
    """A run's time, added up record by record."""

    def __init__(self, batch_images: int) -> None:
        self._batch_images = batch_images
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._restarts: Counter[str] = Counter()
        self._before_images, self._whole_s = 0, 0.0
        self._last_s: float | None = None

    def add(self, record: Record) -> None:
        """Count the time that a record tells of."""
        kind, seconds = record["kind"], self._seconds
        if kind == "start":
            for part, key in (("start", "startup_s"), ("recovery", "recovery_s"),
                              ("lost work", "lost_s")):  # fmt: skip
                seconds[part] += record.get(key, 0.0)
            if record.get("cause"):
                self._restarts[str(record["cause"])] += 1
        elif kind == "train":
            steps = max(record["images"] - self._before_images, 0) / self._batch_images
            self._before_images = record["images"]
            seconds["step"] += steps * record.get("step_s", 0.0)
            seconds["data"] += steps * record.get("data_s", 0.0)
        elif kind == "evaluation":
            seconds["evaluation"] += record.get("seconds", 0.0)
        elif kind == "checkpoint":
            seconds["checkpoint"] += record.get("stall_s", 0.0)
        now_s = record.get("time_s")
        if now_s is None:
            return
        if kind == "start" or self._last_s is None:
            self._last_s = now_s
        self._whole_s += max(now_s - self._last_s, 0.0)
        self._last_s = max(now_s, self._last_s)

    def goodput(self) -> Goodput:
        """What was counted so far."""
        seconds = dict(self._seconds)
        known_s = sum(seconds[part] for part in ("step", "data", "evaluation", "checkpoint"))
        seconds["other"] = max(self._whole_s - known_s, 0.0)
        return Goodput(seconds, dict(self._restarts))


def goodput(records: Iterable[Record], batch_images: int) -> Goodput:
    """Add up a run's log."""
    account = Account(batch_images)
    for record in records:
        account.add(record)
    return account.goodput()


def before_start(
    history: Sequence[Record], void: Sequence[Record], images: int, launched_at_s: float
) -> Record:
    """What a start's record says of the time before it; `images` is where it goes on from."""
    times = [record["time_s"] for record in (*history, *void) if "time_s" in record]
    now_s = time.time()
    last = max((*history, *void), key=lambda record: record.get("time_s", 0.0), default=None)
    # An end in this launch: workers that told why they failed are started again.
    if last is None or (last["kind"] == "end" and last.get("time_s", 0.0) < launched_at_s):
        return {"startup_s": round(now_s - launched_at_s, 3)}
    state_s = max((record["time_s"] for record in history if "time_s" in record), default=times[0])
    seen_s = max(times)
    # A driver that was started again only later: nobody held any machine in between.
    down_s = max(launched_at_s - seen_s, 0.0)
    reached = max((record["images"] for record in void), default=images)
    return {
        "recovery_s": round(max(now_s - seen_s - down_s, 0.0), 3),
        "down_s": round(down_s, 3),
        "lost_s": round(max(seen_s - state_s, 0.0), 3),
        "lost_images": max(reached - images, 0),
    }
