"""Following a log that grows, is cut and is torn; what a person gets to see of it."""

import io
import math
import threading
import time
from pathlib import Path

import pytest

from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.view.progress import (
    ProgressView,
    describe,
    duration,
    figures,
    follow,
    number,
    printable,
)

POLL_S = 0.01


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(FolderStore(tmp_path), "mine")


def train(images: int, **more: object) -> Record:
    terms = {"log_likelihood": -1.234, "entropy": 0.612, "response": 3e-6, "g_norm": 2.0}
    return {"kind": "train", "images": images, "terms": terms, "images_per_s": 102.4,
            "eta_s": 377.0, **more}  # fmt: skip


EVALUATION: Record = {
    "kind": "evaluation", "images": 9600, "k": 8, "energy_score": 15.9, "energy_score_se": 0.36,
    "energy_score_condition": 20.0, "kid_unpaired_lite0": 0.112,
    "kid_unpaired_lite0_condition": 0.245, "l1": 0.15, "l1_condition": 0.136,
    "best_of_k_l1": 0.12, "diversity": 0.014, "seconds": 6.0,
}  # fmt: skip
END: Record = {"kind": "end", "images": 48, "status": "finished", "train_seconds": 60.0}


class Follower:
    """`follow` in a thread, as the commands use it."""

    def __init__(self, run: Run, from_records: int = 0) -> None:
        self.stop = threading.Event()
        self.seen: list[int] = []
        self._records = follow(run, from_records=from_records, poll_s=POLL_S, stop=self.stop)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for record in self._records:
            self.seen.append(record["images"])

    def wait_for(self, count: int) -> None:
        end_s = time.monotonic() + 10
        while len(self.seen) < count:
            assert time.monotonic() < end_s, self.seen
            time.sleep(POLL_S)

    def join(self) -> list[int]:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.seen


# Following


def test_follow_yields_what_comes_and_ends(run: Run) -> None:
    follower = Follower(run)
    run.log(train(24))
    follower.wait_for(1)
    run.log(train(48))
    run.log(END)
    assert follower.join() == [24, 48, 48]


def test_follow_leaves_out_the_first_records(run: Run) -> None:
    run.log(train(24))
    run.log(train(48))
    follower = Follower(run, from_records=1)
    run.log(END)
    assert follower.join() == [48, 48]


def test_follow_drains_once_more_when_stopped(run: Run) -> None:
    stop = threading.Event()
    stop.set()
    run.log(train(24))
    assert [record["images"] for record in follow(run, stop=stop)] == [24]


def test_follow_of_a_run_that_never_started_can_be_stopped(run: Run) -> None:
    follower = Follower(run)
    follower.stop.set()
    assert follower.join() == []


def test_follow_survives_a_log_that_is_cut(run: Run) -> None:
    for images in (24, 48, 72):
        run.log(train(images))
    follower = Follower(run)
    follower.wait_for(3)
    RunLog(run, 24).close()
    time.sleep(3 * POLL_S)
    run.log({"kind": "start", "images": 24})
    for images in (48, 72, 96):
        run.log(train(images))
        time.sleep(0.002)  # a record is known by its time
    run.log({**END, "images": 96})
    assert follower.join() == [24, 48, 72, 24, 48, 72, 96, 96]


def test_follow_waits_past_the_failure_that_is_resumed(run: Run) -> None:
    run.log(train(24))
    run.log({"kind": "end", "images": 24, "status": "failed"})
    follower = Follower(run, from_records=2)
    time.sleep(3 * POLL_S)
    assert follower.thread.is_alive()
    run.log({"kind": "start", "images": 24})
    run.log(END)
    assert follower.join() == [24, 48]


def test_follow_reads_a_torn_record_once_it_is_whole(run: Run) -> None:
    follower = Follower(run)
    key = run.key("metrics.jsonl")
    run.store.append(key, b'{"kind": "train", "images": 24, "time_s"')
    time.sleep(3 * POLL_S)
    assert follower.seen == []
    run.store.append(key, b": 1.0}\n")
    run.log(END)
    assert follower.join() == [24, 48]


# Showing


def shown(records: list[Record], *, live: bool) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with ProgressView(48_000, live=live, out=out, err=err) as view:
        for record in records:
            view.show(record)
    return out.getvalue(), err.getvalue()


def test_plain_lines_every_ten_seconds_and_every_event() -> None:
    steps = [train(images, time_s=images / 240) for images in range(240, 9601, 240)]
    out, err = shown([*steps, {**EVALUATION, "time_s": 40.1}, {**END, "time_s": 40.2}], live=False)
    lines = out.splitlines()
    assert err == ""
    assert [line.split()[0] for line in lines] == ["images"] * 4 + ["evaluation", "finished"]
    assert "kid_unpaired_lite0 0.112" in lines[-2]


def test_a_plain_train_line() -> None:
    out, _ = shown([train(9600)], live=False)
    assert out == (
        "images 9,600/48,000  102 images/s  eta 6m17s  "
        "log_likelihood -1.23  entropy 0.612  response 3.00e-06\n"
    )


def test_live_view_writes_to_stderr_only() -> None:
    checkpoint = {"kind": "checkpoint", "images": 9600, "bytes": 3 * 2**20, "seconds": 0.4}
    out, err = shown([train(9600), EVALUATION, checkpoint, END], live=True)
    assert out == ""
    assert "checkpoint at 9,600/48,000  3.0 MiB in 0.4s" in err
    assert "finished at 48/48,000 after 1m00s" in err


def test_not_a_terminal_means_plain_lines() -> None:
    assert ProgressView(48, out=io.StringIO(), err=io.StringIO()).bar is None


def test_total_comes_from_the_start_record() -> None:
    out, _ = shown([{"kind": "start", "images": 0, "total_images": 96}, train(48)], live=False)
    assert "images 48/96" in out


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        {"kind": "train", "images": 1},
        {"kind": "train", "images": 1, "terms": {"a": math.nan, "b": "x", "c": None}},
        {"kind": "train", "images": 1, "eta_s": math.inf, "images_per_s": 0.0},
        {"kind": "evaluation", "images": 1},
        {"kind": "end", "images": 1},
        {"kind": "of tomorrow", "images": 1},
    ],
)
def test_poor_records_are_shown_all_the_same(record: Record, live: bool) -> None:
    assert "".join(shown([record], live=live))


@pytest.mark.parametrize("live", [True, False])
def test_an_error_text_cannot_drive_the_terminal(live: bool) -> None:
    error = "bad\x1b]0;title\x07 [red]markup[/red] [/]\nsecond\x9b2J"
    text = "".join(shown([{**END, "status": "failed", "error": error}], live=live))
    assert "\x1b]0" not in text
    assert "\x9b" not in text
    assert "[red]markup[/red] [/] second" in text


# Words


def test_figures_against_their_floors() -> None:
    assert [(figure.name, figure.floor, figure.better) for figure in figures(EVALUATION)] == [
        ("energy_score", 20.0, True),
        ("kid_unpaired_lite0", 0.245, True),
        ("best_of_k_l1", 0.136, True),
        ("diversity", 0.0, True),
        ("l1", 0.136, False),
    ]


def test_figures_without_a_floor_or_a_number() -> None:
    found = figures({"kind": "evaluation", "images": 1, "kid_unpaired_mine": 1.0, "kid_lite0": 0.5,
                     "l1": math.nan, "l1_condition": 0.1, "ssim": None})  # fmt: skip
    assert [(figure.name, figure.better) for figure in found] == [
        ("kid_unpaired_mine", None),
        ("l1", None),
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0s"), (9.94, "9.9s"), (45.6, "45s"), (377, "6m17s"), (7500, "2h05m"),
     (273_700, "3d04h"), (math.inf, "?"), (-1, "0.0s")],
)  # fmt: skip
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.12, "0.120"), (102.4, "102"), (12345.6, "12,346"), (9600, "9,600"),
     (1e-6, "1.00e-06"), (math.nan, "nan"), (1e30, "1.00e+30"), ("cpu", "cpu"), (True, "True")],
)  # fmt: skip
def test_number(value: object, expected: str) -> None:
    assert number(value) == expected


def test_printable() -> None:
    assert printable("a\r\n\tb\x00c é ↓") == "a b?c é ↓"


def test_describe_start() -> None:
    start = {"kind": "start", "images": 0, "model": "gan", "device": "cpu", "workers": 2}
    assert describe(start, 96) == "start at 0/96  model gan  device cpu  workers 2"
