"""The background writer: one under way, one waiting, the newest wins; outages, races, endings."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aalnet.errors import NonFiniteError
from aalnet.networks import DataSpec
from aalnet.settings import Settings, parse_settings
from aalnet.state import TrainState
from cluster.runs import checkpoint, saver
from cluster.runs.checkpoint import Checkpoint, CheckpointTaken, checkpoints, restore, save
from cluster.runs.log import RunLog
from cluster.runs.run import Record, Run
from cluster.runs.saver import PICTURES, Saver, StorePatienceSpent
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.tiny_runs import tiny_values

SOON_S = 20.0
CPU = torch.device("cpu")
SPEC = DataSpec(("a", "b"), 3, 3)


class Gated(FolderStore):
    """A folder whose writes of checkpoints wait at a gate, or fail, and say that they came."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.came: queue.Queue[str] = queue.Queue()
        self.down = False
        self.undeletable = False
        self.loses_reply = False

    def write(self, key: str, data: bytes) -> None:
        self._pass(key)
        super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._pass(key)
        super().create(key, data)
        if self.loses_reply:
            self.loses_reply = False
            raise StoreError("the reply was lost")

    def delete(self, key: str) -> None:
        if self.undeletable:
            raise StoreError("nobody deletes here")
        super().delete(key)

    def _pass(self, key: str) -> None:
        if "/checkpoints/" in key or "/samples/" in key:
            self.came.put(key)
            assert self.gate.wait(SOON_S)
            if self.down:
                raise StoreError(f"nobody takes {key}")

    def wait_for(self, part: str) -> None:
        while part not in self.came.get(timeout=SOON_S):
            continue


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "FIRST_AGAIN_S", 0.01)
    monkeypatch.setattr(saver, "LONGEST_AGAIN_S", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Gated:
    return Gated(tmp_path)


@pytest.fixture
def run(store: Gated) -> Run:
    return Run(store, "demo")


def settings_of(patience_s: float = 900.0, **run_settings: Any) -> Settings:
    values = tiny_values(Path(), {f"run.{key}": value for key, value in run_settings.items()})
    return parse_settings({**values, "failures": {"storage_patience_s": patience_s}})


def state_at(images: int, settings: Settings | None = None) -> TrainState:
    state = TrainState(settings or settings_of(), SPEC, CPU)
    state.images_seen, state.steps = images, images // 4
    return state


class Books:
    """A saver and its journal."""

    def __init__(self, run: Run, settings: Settings) -> None:
        self.run = run
        self.journal = RunLog(run, 0)
        self.saver = Saver(run, settings, self.journal)

    def records(self, kind: str) -> list[Record]:
        self.journal.flush()
        return [record for record in self.run.records() if record["kind"] == kind]

    def warnings(self) -> list[str]:
        return [record["text"] for record in self.records("warning")]


@pytest.fixture
def open_books(run: Run, store: Gated) -> Iterator[Callable[..., Books]]:
    begun: list[Books] = []

    def make(settings: Settings | None = None) -> Books:
        begun.append(Books(run, settings or settings_of()))
        return begun[-1]

    yield make
    store.gate.set()
    store.down = False
    for books in begun:
        books.saver._closing = True
        with books.saver._changed:
            books.saver._changed.notify_all()
        books.saver._thread.join(SOON_S)
        assert not books.saver._thread.is_alive()
        books.journal.close()


def move(state: TrainState, images: int) -> None:
    """As steps do: change every number in place."""
    with torch.no_grad():
        for tensors in state.tensors().values():
            for tensor in tensors.values():
                tensor.add_(1)
    state.images_seen = images


def numbers(state: TrainState) -> dict[str, Tensor]:
    return {f"{a}/{b}": t.clone() for a, ts in state.tensors().items() for b, t in ts.items()}


def restored(run: Run, images: int) -> dict[str, Tensor]:
    state = state_at(0)
    restore(state, Checkpoint(run, images))
    return numbers(state)


def images_of(run: Run) -> list[int]:
    return [found.images for found in checkpoints(run)]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# One under way, one waiting


def test_a_checkpoint_is_written_and_logged(open_books: Callable[..., Books], run: Run) -> None:
    books, state = open_books(), state_at(4)
    books.saver.save(state, {"kid_x": 0.5})
    books.saver.close()
    assert_equal(restored(run, 4), numbers(state))
    manifest = Checkpoint(run, 4).manifest()
    assert manifest.figures == {"kid_x": 0.5}
    (record,) = books.records("checkpoint")
    assert (record["images"], record["bytes"]) == (4, manifest.size_bytes)
    assert 0 < record["stall_s"] < record["seconds"] < SOON_S
    assert books.warnings() == []


def test_the_newest_wins_and_says_so(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.gate.clear()
    books.saver.save(state, {})
    store.wait_for("/4/")
    for images in (8, 12, 16):
        move(state, images)
        books.saver.save(state, {})
    assert images_of(run) == []
    store.gate.set()
    books.saver.close()
    assert images_of(run) == [4, 16]
    assert books.warnings() == [
        "checkpoint at 8 images waits: the one at 4 is still being written",
        "checkpoint at 12 images waits, in place of 8: the one at 4 is still being written",
        "checkpoint at 16 images waits, in place of 12: the one at 4 is still being written",
    ]
    assert [record["images"] for record in books.records("checkpoint")] == [4, 16]
    assert_equal(restored(run, 16), numbers(state))


def test_the_stall_is_a_copy(open_books: Callable[..., Books], run: Run, store: Gated) -> None:
    """The state may change right after save(), also where memory is used again."""
    books, state = open_books(settings_of(keep_last=99)), state_at(4)
    store.gate.clear()
    expected = {}
    for images in (4, 8, 12):
        state.images_seen = images
        expected[images] = numbers(state)
        books.saver.save(state, {})
        if images == 4:
            store.wait_for("/4/")
        move(state, images)
    store.gate.set()
    for images in (16, 20):  # one after the other: the memory of the one before is free again
        store.wait_for(f"/{images - 4}/MANIFEST")
        state.images_seen = images
        expected[images] = numbers(state)
        books.saver.save(state, {})
        move(state, images)
    books.saver.close()
    assert {4, 12, 20} <= set(images_of(run))
    for images in images_of(run):
        assert_equal(restored(run, images), expected[images])


def test_what_was_logged_before_is_stored_when_the_checkpoint_is(
    open_books: Callable[..., Books], run: Run, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, state = open_books(), state_at(4)
    monkeypatch.setattr(books.journal, "_due_s", lambda: 3600.0)  # as on an object store
    books.journal.log({"kind": "train", "images": 4})
    store.gate.clear()
    books.saver.save(state, {})
    store.wait_for("/4/")
    assert [record["kind"] for record in run.records()] == ["train"]


# A storage that fails


def test_a_storage_that_fails_and_comes_back(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.down = True
    books.saver.save(state, {})
    for _ in range(3):
        store.wait_for("/4/")
    books.saver.check()
    assert images_of(run) == []
    store.down = False
    books.saver.close()
    assert images_of(run) == [4]
    failing, back = books.warnings()
    assert failing.startswith("storage fails, training goes on: nobody takes runs/demo/check")
    assert back == "storage answers again, after 0 s"
    assert len(books.records("checkpoint")) == 1


def test_while_it_fails_the_newest_state_waits(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.down = True
    books.saver.save(state, {})
    store.wait_for("/4/")
    for images in (8, 12):
        move(state, images)
        books.saver.save(state, {})
    store.wait_for("/12/")
    store.down = False
    books.saver.close()
    assert images_of(run) == [12]
    assert_equal(restored(run, 12), numbers(state))


def test_patience_is_spent(open_books: Callable[..., Books], run: Run, store: Gated) -> None:
    books, state = open_books(settings_of(patience_s=0.1)), state_at(4)
    store.down = True
    books.saver.save(state, {})
    books.saver._thread.join(SOON_S)
    for call in (books.saver.check, books.saver.close):
        with pytest.raises(StorePatienceSpent, match=r"failures\.storage_patience_s") as caught:
            call()
        assert "nobody takes" in str(caught.value)
        assert caught.value.exit_code == 1
    books.saver.save(state, {})  # nobody is harmed by one more
    assert images_of(run) == []


def test_every_outage_has_its_own_patience(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(settings_of(patience_s=0.5)), state_at(0)
    for images in (4, 8):
        started_at_s = time.monotonic()
        store.down = True
        state.images_seen = images
        books.saver.save(state, {})
        while time.monotonic() < started_at_s + 0.3:
            store.wait_for(f"/{images}/")
        store.down = False
        store.wait_for(f"/{images}/MANIFEST")
    books.saver.close()
    assert images_of(run) == [4, 8]


def test_a_reply_that_was_lost_is_no_other_writer(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.loses_reply = True
    books.saver.save(state, {})
    books.saver.close()
    assert images_of(run) == [4]
    assert len(books.records("checkpoint")) == 1
    assert "the reply was lost" in books.warnings()[0]


@pytest.mark.parametrize("trouble", ["undeletable", "models", "foreign"])
def test_old_checkpoints_that_cannot_be_removed_stop_nothing(
    open_books: Callable[..., Books], run: Run, store: Gated, trouble: str
) -> None:
    settings = settings_of(keep_last=1, keep_best=0)
    books, state = open_books(settings), state_at(0)
    store.undeletable = trouble == "undeletable"
    if trouble != "undeletable":
        name = "broken" if trouble == "models" else "Not A Model"
        store.write(f"models/{name}.json", b"{")
    for images in (4, 8):
        state.images_seen = images
        books.saver.save(state, {})
        store.wait_for(f"/{images}/MANIFEST")
    books.saver.close()
    assert [record["images"] for record in books.records("checkpoint")] == [4, 8]
    told = [text for text in books.warnings() if text.startswith("old checkpoints stay: ")]
    if trouble == "foreign":
        assert (images_of(run), told) == ([8], [])
    else:
        assert images_of(run) == [4, 8], "what cannot be known is kept"
        assert told


# Two writers


def test_another_writer_of_other_numbers_ends_it(
    open_books: Callable[..., Books], run: Run
) -> None:
    theirs = state_at(4)
    move(theirs, 4)
    save(run, theirs, {})
    books = open_books()
    books.saver.save(state_at(4), {})
    with pytest.raises(CheckpointTaken, match="another process trains run `demo`"):
        books.saver.close()
    with pytest.raises(CheckpointTaken):
        books.saver.check()
    assert_equal(restored(run, 4), numbers(theirs))
    assert books.records("checkpoint") == []


def test_another_writer_of_equal_numbers_is_fine(
    open_books: Callable[..., Books], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, state_at(4), {})
    monkeypatch.setattr(checkpoint, "WRITER", "another")
    books = open_books()
    books.saver.save(state_at(4), {})
    books.saver.close()
    assert Checkpoint(run, 4).manifest().writer != "another"
    assert [record["images"] for record in books.records("checkpoint")] == [4]


# Closing


def test_closing_waits_for_all_that_was_asked(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.gate.clear()
    books.saver.save(state, {})
    store.wait_for("/4/")
    state.images_seen = 8
    books.saver.save(state, {})
    books.saver.picture("8.png", b"png")
    threading.Timer(0.2, store.gate.set).start()
    books.saver.close()
    assert images_of(run) == [4, 8]
    assert list(run.samples()) == [8]


def test_closing_has_an_end(open_books: Callable[..., Books], store: Gated) -> None:
    books = open_books()
    store.gate.clear()
    books.saver.save(state_at(4), {})
    store.wait_for("/4/")
    started_at_s = time.monotonic()
    with pytest.raises(StorePatienceSpent, match=r"not written to .* within 0 s; the same command"):
        books.saver.close(0.2)
    assert 0.2 <= time.monotonic() - started_at_s < 5
    started_at_s = time.monotonic()
    with pytest.raises(StorePatienceSpent):
        books.saver.close(10)
    assert time.monotonic() - started_at_s < 5, "who waited once waits no second time"


def test_nothing_asked_is_closed_at_once(open_books: Callable[..., Books], run: Run) -> None:
    books = open_books()
    started_at_s = time.monotonic()
    books.saver.close()
    assert time.monotonic() - started_at_s < 5
    assert images_of(run) == []


def test_an_error_of_another_kind_reaches_the_loop(
    open_books: Callable[..., Books], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise NonFiniteError("of the code itself")

    monkeypatch.setattr(checkpoint, "write", broken)
    books = open_books()
    books.saver.save(state_at(4), {})
    with pytest.raises(NonFiniteError, match="of the code itself"):
        books.saver.close()


# Pictures


def test_pictures_are_written(open_books: Callable[..., Books], run: Run) -> None:
    books = open_books()
    for images in (4, 8):
        books.saver.picture(f"{images}.png", b"png %d" % images)
    books.saver.close()
    assert {i: run.store.read(key) for i, key in run.samples().items()} == {
        4: b"png 4",
        8: b"png 8",
    }


def test_pictures_wait_bounded_and_behind_checkpoints(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books, state = open_books(), state_at(4)
    store.gate.clear()
    books.saver.save(state, {})
    store.wait_for("/4/")
    for number in range(PICTURES + 10):
        books.saver.picture(f"{number}.png", b"png")
    state.images_seen = 8
    books.saver.save(state, {})
    store.gate.set()
    books.saver.close()
    assert list(run.samples()) == list(range(10, PICTURES + 10))
    came = [store.came.get_nowait() for _ in range(store.came.qsize())]
    first_picture = next(i for i, key in enumerate(came) if "/samples/" in key)
    assert any("/8/MANIFEST" in key for key in came[:first_picture])


def test_a_picture_survives_an_outage(
    open_books: Callable[..., Books], run: Run, store: Gated
) -> None:
    books = open_books()
    store.down = True
    books.saver.picture("4.png", b"png")
    store.wait_for("/samples/4.png")
    store.wait_for("/samples/4.png")
    store.down = False
    books.saver.close()
    assert list(run.samples()) == [4]
    assert books.warnings()[0].startswith("storage fails, training goes on")
