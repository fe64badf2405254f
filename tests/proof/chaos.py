"""`python -m tests.proof.chaos`: kill training at random moments, and write what came of it.

Against a real S3 server, through a proxy. The tables go into docs/reliability.md, between its
markers; `--kills`, `--stops`, `--worker-kills` and `--minutes` make it shorter, 0 leaves a part
out; `--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from tests.proof.kills import AT_ONCE, kills, scratch, shooting_range, single_threaded, tally
from tests.proof.lane import INTERVAL, STEPS_EACH, Case
from tests.proof.ray_kills import RayKills, Share, goodput, worker_kills
from tests.proof.victim import ROOT
from tests.support import machine
from tests.support.s3_server import environment, s3_server
from tests.support.tiny_runs import write_data

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"
SEED = 20
KILL_EVERY_S = 60.0


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of the training process")
    parser.add_argument("--stops", type=int, default=100, help="SIGTERM to it")
    parser.add_argument("--worker-kills", type=int, default=20, help="kill -9 of a Ray worker")
    parser.add_argument("--minutes", type=float, default=4.0, help="of goodput, for each side")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--dry", action="store_true", help="write no document")
    asked = parser.parse_args()
    single_threaded()
    os.environ["PYTHONPATH"] = str(ROOT)  # for processes that are forked and started
    texts: list[str] = []
    failed: list[str] = []
    with scratch() as folder:
        if asked.kills or asked.stops:
            texts += _processes(Path(folder) / "one", asked.kills, asked.stops, asked.seed, failed)
        if asked.worker_kills or asked.minutes:
            texts += _workers(
                Path(folder) / "ray", asked.worker_kills, asked.minutes, asked.seed, failed
            )
    block = "\n".join(texts)
    print(block)
    if not asked.dry:
        before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else f"{BEGIN}\n{END}\n"
        DOCUMENT.write_text(between(before, block), encoding="utf-8")
    for line in failed:
        print(f"WRONG: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def between(document: str, block: str) -> str:
    """The document with the block between its markers."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", document, count=1)


def _processes(
    folder: Path, kill_count: int, stop_count: int, seed: int, failed: list[str]
) -> list[str]:
    folder.mkdir()
    texts: list[str] = []
    with shooting_range(folder) as made:
        if kill_count:
            began_s, load = time.monotonic(), machine.load()
            cases = kills(made, kill_count, seed, signal.SIGKILL)
            texts += [*kill_table(cases), *_measured(began_s, load)]
            failed += _wrong("kill -9", cases)
        if stop_count:
            began_s, load = time.monotonic(), machine.load()
            cases = kills(made, stop_count, seed, signal.SIGTERM)
            texts += [*stop_table(cases), *_measured(began_s, load)]
            failed += _wrong("SIGTERM", cases)
    return texts


def _workers(
    folder: Path, kill_count: int, minutes: float, seed: int, failed: list[str]
) -> list[str]:
    folder.mkdir()
    write_data(folder)
    texts: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(s3_server(folder / "s3"))
        stack.enter_context(environment(server.environment))
        if minutes:
            began_s, load = time.monotonic(), machine.load()
            shares = goodput(server, folder, 60 * minutes, KILL_EVERY_S, seed)
            texts += [*goodput_table(shares), *_measured(began_s, load)]
        if kill_count:
            began_s, load = time.monotonic(), machine.load()
            found = worker_kills(server, folder, kill_count, seed)
            texts = [*worker_table(found), *_measured(began_s, load), *texts]
            failed += [f"worker: {text}" for text in found.wrong]
    return texts


def kill_table(cases: Sequence[Case]) -> list[str]:
    """What `kill -9` of the training process left."""
    good = [case for case in cases if not case.wrong]
    trained = [case for case in cases if case.images]
    lost = [case.lost_images / INTERVAL for case in trained] or [0.0]
    idle = [case.lost_images / INTERVAL for case in trained if not case.writing_images] or [0.0]
    return [
        f"### kill -9 of the training process, {len(cases)} times",
        "",
        "| what | figure |",
        "|---|---|",
        f"| every checkpoint that a reader saw whole, bit-equal to the undisturbed run; resumed to "
        f"the end, bit-equal | {len(good)} of {len(cases)} |",
        f"| checkpoints seen after the kills | {sum(case.seen for case in cases)} |",
        f"| what was hit | {tally(list(cases), lambda case: case.hit)} |",
        f"| network | {tally(list(cases), lambda case: case.network)} |",
        f"| process | {tally(list(cases), lambda c: 'forked' if c.forked else 'a program')} |",
        f"| steps lost, in intervals of {STEPS_EACH} steps, an upload that takes longer included: "
        f"median, most "
        f"| {statistics.median(lost):.2f}, {max(lost):.2f} |",
        f"| the same where no state was on its way to the storage | "
        f"{statistics.median(idle):.2f}, {max(idle):.2f} |",
        "",
    ]


def stop_table(cases: Sequence[Case]) -> list[str]:
    """What SIGTERM left."""
    good = [case for case in cases if not case.wrong]
    ends_s = [case.end_s for case in cases]
    return [
        f"### SIGTERM to the training process, {len(cases)} times",
        "",
        "| what | figure |",
        "|---|---|",
        f"| the checkpoint is at the last step made, bit-equal to the undisturbed run; exit code "
        f"143 | {len(good)} of {len(cases)} |",
        f"| seconds to the end: median, most "
        f"| {statistics.median(ends_s):.1f}, {max(ends_s):.1f} |",
        f"| what was hit | {tally(list(cases), lambda case: case.hit)} |",
        f"| network | {tally(list(cases), lambda case: case.network)} |",
        "",
    ]


def worker_table(found: RayKills) -> list[str]:
    """How fast a run comes back."""
    return [
        f"### kill -9 of one of two Ray Train workers, {len(found.to_step_s)} times in one run",
        "",
        "| what | figure |",
        "|---|---|",
        f"| every checkpoint and every logged number equal to a run left alone | "
        f"{'no: ' + '; '.join(found.wrong) if found.wrong else 'yes'} |",
        f"| seconds from the kill to the new start: median, most "
        f"| {statistics.median(found.to_start_s):.1f}, {max(found.to_start_s):.1f} |",
        f"| seconds from the kill to the first new step: median, most "
        f"| {statistics.median(found.to_step_s):.1f}, {max(found.to_step_s):.1f} |",
        "",
    ]


def goodput_table(shares: Sequence[Share]) -> list[str]:
    """What is left of the time for steps that count."""
    lines = [
        f"| {share.name} | {share.goodput:.2f} | {share.kills} | {share.images:,} | "
        f"{1e3 * share.step_s:.1f} ms |"
        for share in shares
    ]
    return [
        f"### One worker kill every {KILL_EVERY_S:.0f} s, {shares[0].seconds:.0f} s each",
        "",
        "The same model, step, data, workers, storage and images between checkpoints. Goodput is "
        "the share of the time, from the first step on, that went into steps which are still there "
        "at the end.",
        "",
        "| | goodput | kills | images reached | step, median |",
        "|---|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def _measured(began_s: float, load_before: float) -> list[str]:
    return [
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC in {time.monotonic() - began_s:.0f} s on "
        f"{machine.describe()}, {AT_ONCE} processes at a time; load average {load_before:.1f} "
        f"before, {machine.load():.1f} after.",
        "",
    ]


def _wrong(what: str, cases: Sequence[Case]) -> list[str]:
    return [f"{what} {c.number} ({c.network}, {c.moment}): {c.wrong}" for c in cases if c.wrong]


if __name__ == "__main__":
    main()
