"""The background writer while its storage fails: the newest state waits, until patience ends."""

import time
from collections.abc import Callable

import pytest

from cluster.runs.run import Run
from cluster.runs.saver import StorePatienceSpent
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
