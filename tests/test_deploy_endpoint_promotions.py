"""The endpoint follows a promoted name: it swaps good models in and refuses damaged ones."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import CheckpointError, NonFiniteError
from aalnet.networks import DataSpec
from cluster.runs.promotions import promote, roll_back
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from deploy.endpoint.follow import ModelFollower, ModelSource
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import Loader
from tests.support.endpoint_models import (
    QUICK,
    corrupt,
    make_checkpoint,
    make_nan,
    remembered_graph,
    service_of,
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def one_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.endpoint.model.build_graph", remembered_graph)


class Followed:
    """A follower that looks when told to."""

    def __init__(self, store: FolderStore, name: str = "m") -> None:
        self.metrics = Metrics()
        source = ModelSource(store, name, promoted=True)
        self.holder, follower = source.open(QUICK, self.metrics)
        assert follower is not None
        self.follower: ModelFollower = follower

    @property
    def serving(self) -> tuple[str, int]:
        return self.holder.current.run, self.holder.current.images

    def swaps(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "aalnet_endpoint_swaps_total", {"outcome": outcome}
        )
        assert value is not None
        return value


@pytest.fixture
def followed(store: FolderStore, one_export: None) -> Followed:
    promote(store, make_checkpoint(store, "first", 10), "m")
    return Followed(store)


def test_a_promotion_is_swapped_in_and_back(store: FolderStore, followed: Followed) -> None:
    followed.follower.look()
    assert followed.serving == ("first", 10)
    promote(store, make_checkpoint(store, "second", 20, seed=2), "m")
    followed.follower.look()
    assert followed.serving == ("second", 20)
    roll_back(store, "m")
    followed.follower.look()
    assert followed.serving == ("first", 10)
    assert (followed.swaps("swapped"), followed.swaps("refused")) == (2, 0)


def test_a_model_of_other_labels_and_size_is_swapped_in(
    store: FolderStore, followed: Followed
) -> None:
    other = DataSpec(("x", "y"), 1, 3)
    found = make_checkpoint(store, "other", spec=other, overrides={"data.size_px": 64})
    promote(store, found, "m")
    followed.follower.look()
    assert followed.holder.current.spec == other
    assert followed.holder.current.size_px == 64


def promote_corrupted(store: FolderStore) -> None:
    found = make_checkpoint(store, "bad", 5)
    promote(store, found, "m")
    corrupt(found)


def promote_nan(store: FolderStore) -> None:
    promote(store, make_checkpoint(store, "bad", 5, change=make_nan), "m")


def promote_and_remove(store: FolderStore) -> None:
    found = make_checkpoint(store, "bad", 5)
    promote(store, found, "m")
    store.delete(found.key("MANIFEST.json"))


def damage_the_name(store: FolderStore) -> None:
    store.write("models/m.json", b'{"promotions": [')


@pytest.mark.parametrize(
    "spoil", [promote_corrupted, promote_nan, promote_and_remove, damage_the_name]
)
def test_a_bad_promotion_is_refused_once_and_the_old_model_stays(
    store: FolderStore, followed: Followed, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    spoil(store)
    for _ in range(3):
        followed.follower.look()
    assert followed.serving == ("first", 10)
    assert (followed.swaps("swapped"), followed.swaps("refused")) == (0, 1)
    assert caplog.text.count("refused, first@10") == 1
    if spoil is damage_the_name:
        store.delete("models/m.json")
    promote(store, make_checkpoint(store, "good", 30), "m")
    followed.follower.look()
    assert followed.serving == ("good", 30)


def test_storage_that_fails_for_now_is_asked_again(
    store: FolderStore, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, make_checkpoint(store, "second", 20), "m")

    def fail(*_: Any) -> bytes:
        raise StoreError("the server does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(FolderStore, "read", fail)
        followed.follower.look()
        assert followed.serving == ("first", 10)
    followed.follower.look()
    assert followed.serving == ("second", 20)
    assert followed.swaps("refused") == 0


@pytest.mark.parametrize(("change", "error"), [(make_nan, NonFiniteError)])
def test_a_bad_checkpoint_is_not_served_at_the_start(
    store: FolderStore, one_export: None, change: Any, error: type[Exception]
) -> None:
    make_checkpoint(store, "bad", change=change)
    with pytest.raises(error, match="not finite"):
        service_of(store, "bad")


def test_a_name_that_was_never_promoted(store: FolderStore) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        service_of(store, "nobody", promoted=True)


def test_the_digest_served_is_the_manifest_s(store: FolderStore, one_export: None) -> None:
    found = make_checkpoint(store, "tiny")
    model = Loader(QUICK).load(found, "tiny")
    assert model.digest == found.manifest().digest
    assert len(model.digest) == len(hashlib.sha256().hexdigest())
