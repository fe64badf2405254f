"""The background writer: one under way, one waiting, the newest wins; races, closing, pictures."""

import threading
import time
from collections.abc import Callable

import pytest

from aalnet.errors import NonFiniteError
from cluster.runs import checkpoint
from cluster.runs.checkpoint import Checkpoint, CheckpointTaken, save
from cluster.runs.run import Run
from cluster.runs.saver import PICTURES, StorePatienceSpent
from tests.support.saver_books import (
    SOON_S,
    Books,
    Gated,
    assert_equal,
    images_of,
    move,
    numbers,
    restored,
    settings_of,
    state_at,
)

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
