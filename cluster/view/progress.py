"""A run's log for a person: records as they come, in words and numbers."""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from cluster.runs.figures import figures, silence
from cluster.runs.log import PUT_EVERY_S
from cluster.runs.run import Record, Run, parse_records
from cluster.storage.store import StoreError

LINE_EVERY_S = 10.0  # plain train lines, by the records' own time
LINE_TERMS = 3  # raw terms in a line; the report has them all
LINE_FIGURES = 5  # of an evaluation, the first in order, likewise
BAR_FIGURES = ("energy_score", "diversity")


def follow(
    run: Run,
    *,
    from_records: int = 0,
    poll_s: float | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Record]:
    """Records of a run as they are appended, without the first `from_records` there are now.

    Ends after an "end" record that is new, or when `stop` is set, reading once more. A record
    comes once, also where a resumed run writes its log anew without its last part. Only what is
    new is read.
    """
    skipped = {_stamp(record) for record in run.records()[:from_records]}
    if poll_s is None:
        poll_s = 1.0 if run.store.appends else PUT_EVERY_S / 2
    return _follow(run, skipped, poll_s, stop or threading.Event())


def _follow(
    run: Run, skipped: set[tuple[Any, ...]], poll_s: float, stop: threading.Event
) -> Iterator[Record]:
    log, stamps = run.log_file(), set(skipped)
    last: Record = {"kind": "start", "images": 0}
    away = False
    while True:
        stopping = stop.is_set()
        records: list[Record] = []
        try:
            records, away = parse_records(log.read()), False
        except StoreError as error:  # training goes on meanwhile, so this does too
            if not away:
                text = f"the log cannot be read: {error}"
                yield {"kind": "warning", "images": last["images"], "text": text}
            away = True
        for record in records:
            last, stamp = record, _stamp(record)
            if stamp not in stamps:
                stamps.add(stamp)
                yield record
        ended = last["kind"] == "end" and _stamp(last) not in skipped
        if ended or stopping:
            return
        stop.wait(poll_s)


def _stamp(record: Record) -> tuple[Any, ...]:
    return record["kind"], record["images"], record.get("time_s")


class ProgressView:
    """Shows records: a bar on a terminal (stderr), plain lines elsewhere (stdout)."""

    def __init__(
        self,
        total_images: int = 0,
        *,
        live: bool | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.total_images = total_images
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.bar = self._make_bar() if (self.err.isatty() if live is None else live) else None
        self.task: TaskID | None = None
        if self.bar is not None:
            self.task = self.bar.add_task("", total=total_images, images="", speed="", figures="")
        self.next_line_s = -math.inf

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, record: Record) -> None:
        """Show one record, or leave it out where lines would come too thick."""
        if record["kind"] == "start":
            self.total_images = int(record.get("total_images") or self.total_images)
        if self.bar is not None:
            self._move_bar(self.bar, record)
        if record["kind"] != "train":
            self._print(describe(record, self.total_images))
        elif self.bar is None and record.get("time_s", math.inf) >= self.next_line_s:
            self.next_line_s = record.get("time_s", -math.inf) + LINE_EVERY_S
            self._print(describe(record, self.total_images))

    def _make_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.fields[images]}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False, style="cyan"),
            console=Console(file=self.err, highlight=False),
        )

    def _move_bar(self, bar: Progress, record: Record) -> None:
        assert self.task is not None
        fields: dict[str, Any] = {"speed": _speed(record)} if record["kind"] == "train" else {}
        if record["kind"] == "evaluation":
            fields["figures"] = _pairs((name, record.get(name)) for name in BAR_FIGURES)
        images = record["images"]
        fields["images"] = progress_of(images, self.total_images)
        bar.update(self.task, completed=images, total=self.total_images, **fields)

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(Text(line))
        else:
            print(line, file=self.out, flush=True)


def describe(record: Record, total_images: int) -> str:
    """One line for one record, free of control characters."""
    kind, images = record["kind"], progress_of(record["images"], total_images)
    if kind == "train":
        raw = [(name, value) for name, value in terms_of(record).items() if not is_norm(name)]
        line = f"images {images}  {_speed(record)}  {_pairs(raw[:LINE_TERMS])}"
    elif kind == "evaluation":
        measured = figures(record)[:LINE_FIGURES]
        line = f"evaluation at {images}  {_pairs((f.name, f.value) for f in measured)}"
        if silence(record, record["images"], total_images):
            line += "  samples no longer differ"
    elif kind == "checkpoint":
        mib = record.get("bytes", 0) / 2**20
        line = f"checkpoint at {images}  {mib:.1f} MiB in {duration(record.get('seconds', 0.0))}"
    elif kind == "start":
        keys = ("model", "device", "workers", "threads")
        line = f"start at {images}  {_pairs((key, record.get(key)) for key in keys)}"
        if record.get("cause"):
            line += (
                f"  after {record['cause']}, {duration(record.get('recovery_s', 0.0))} to "
                f"recover, {record.get('lost_images', 0):,} images again"
            )
    elif kind == "warning":
        line = f"warning: {record.get('text', '')}"
    elif kind == "end":
        after = f" after {duration(record.get('train_seconds', 0.0))}"
        reason = f": {record['error']}" if record.get("error") else ""
        line = f"{record.get('status', 'ended')} at {images}{after}{reason}"
    else:
        line = f"{kind} at {images}"
    return printable(line).rstrip()


def terms_of(record: Record) -> dict[str, float]:
    """The terms of a train record that are numbers."""
    terms = record.get("terms")
    items = terms.items() if isinstance(terms, dict) else ()
    return {name: value for name, value in items if isinstance(value, int | float)}


def is_norm(name: str) -> bool:
    """Whether a term is the norm of a gradient, not a part of an objective."""
    return name.endswith("_norm")


def progress_of(images: int, total_images: int) -> str:
    """`9,600/48,000`"""
    return f"{images:,}/{total_images:,}"


def number(value: Any) -> str:
    """Three digits that matter; words as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def duration(seconds: float) -> str:
    """`0.4s`, `45s`, `6m17s`, `2h05m`, `3d04h`"""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    minutes, hours, days = (int(seconds // size) for size in (60, 3600, 86400))
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{int(seconds) % 60:02d}s" if minutes else f"{int(seconds)}s"


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters become spaces or `?`."""
    spaced = re.sub(r"[\r\n\t]+", " ", text)
    return "".join(char if char.isprintable() else "?" for char in spaced)


def _speed(record: Record) -> str:
    rate, eta_s = record.get("images_per_s"), record.get("eta_s")
    words = [f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"] if rate else []
    return "  ".join([*words, *([f"eta {duration(eta_s)}"] if eta_s is not None else [])])


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in items if value is not None)
