"""Where a run's time went, from its log: training steps against everything else.

A start's record holds what the log itself cannot show: how long it took from the launch
(`startup_s`), or since the last sign of life of workers that died (`recovery_s`), and how long
ago the state was made that it went on from (`lost_s`, `lost_images`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.runs import Record

PARTS = ("step", "data", "evaluation", "checkpoint", "start", "recovery", "lost work", "other")


@dataclass(frozen=True)
class Goodput:
    """Seconds by part, over all starts of a run; times when nobody trained do not count."""

    seconds: dict[str, float]
    restarts: dict[str, int]  # by cause

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    def rounded(self) -> dict[str, float]:
        """Seconds by part, as they are logged."""
        return {part: round(seconds, 3) for part, seconds in self.seconds.items()}

    @property
    def share(self) -> float:
        """The share of the time that went into steps which count."""
        return self.seconds["step"] / self.total_s if self.total_s else 0.0


def goodput(records: Sequence[Record], batch_images: int) -> Goodput:
    """Add up a run's log."""
    seconds = dict.fromkeys(PARTS, 0.0)
    restarts: Counter[str] = Counter()
    before_images, whole_s, began_s = 0, 0.0, None
    for record in records:
        kind = record["kind"]
        if kind == "start":
            for part, key in (("start", "startup_s"), ("recovery", "recovery_s"),
                              ("lost work", "lost_s")):  # fmt: skip
                seconds[part] += record.get(key, 0.0)
            if record.get("cause"):
                restarts[str(record["cause"])] += 1
        elif kind == "train":
            steps = max(record["images"] - before_images, 0) / batch_images
            before_images = record["images"]
            seconds["step"] += steps * record.get("step_s", 0.0)
            seconds["data"] += steps * record.get("data_s", 0.0)
        elif kind == "evaluation":
            seconds["evaluation"] += record.get("seconds", 0.0)
        elif kind == "checkpoint":
            seconds["checkpoint"] += record.get("stall_s", 0.0)
    for record in records:
        now_s = record.get("time_s")
        if now_s is None:
            continue
        if record["kind"] == "start" or began_s is None:
            began_s = last_s = now_s
        whole_s += max(now_s - last_s, 0.0)
        last_s = max(now_s, last_s)
    known_s = sum(seconds[part] for part in ("step", "data", "evaluation", "checkpoint"))
    seconds["other"] = max(whole_s - known_s, 0.0)
    return Goodput(seconds, dict(restarts))


def before_start(
    kept: Sequence[Record], dropped: Sequence[Record], images: int, launched_at_s: float
) -> Record:
    """What a start's record says of the time before it; `images` is where it goes on from."""
    times = [record["time_s"] for record in (*kept, *dropped) if "time_s" in record]
    now_s = time.time()
    last = max((*kept, *dropped), key=lambda record: record.get("time_s", 0.0), default=None)
    # An end in this launch: workers that told why they failed are started again.
    if last is None or (last["kind"] == "end" and last.get("time_s", 0.0) < launched_at_s):
        return {"startup_s": round(now_s - launched_at_s, 3)}
    state_s = max((record["time_s"] for record in kept if "time_s" in record), default=times[0])
    seen_s = max(times)
    # A driver that was started again only later: nobody held any machine in between.
    down_s = max(launched_at_s - seen_s, 0.0)
    reached = max((record["images"] for record in dropped), default=images)
    return {
        "recovery_s": round(max(now_s - seen_s - down_s, 0.0), 3),
        "down_s": round(down_s, 3),
        "lost_s": round(max(seen_s - state_s, 0.0), 3),
        "lost_images": max(reached - images, 0),
    }
