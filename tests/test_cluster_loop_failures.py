"""A storage that fails for a while stops nothing; one that stays so, a NaN, a bad picture do."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aalnet.batch import Batch
from aalnet.corners import CORNERS
from aalnet.errors import AalnetError, DataError, NonFiniteError
from aalnet.evaluation import Figures
from aalnet.settings import Settings
from aalnet.state import TrainState
from cluster.data.pairs import Pairs
from cluster.runs.checkpoint import checkpoints, restore, save
from cluster.runs.run import Run
from cluster.runs.saver import StorePatienceSpent
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreError
from tests.support.loop_runs import (
    CPU,
    assert_same_run,
    before_step,
    blobs,
    break_batch,
    go,
    of_kind,
    run_in,
    whole_run,
)
from tests.support.tiny_runs import (
    noise_rows,
    tiny_settings,
    without_clocks,
    write_data,
    write_pairs,
)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole_run(tmp_path_factory.mktemp("whole"), data)


# A storage that fails


class Failing(FolderStore):
    """A folder that takes no more writes from the first sample grid on, until it is repaired."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.down, self.met = False, threading.Event()

    def _written(self, key: str, path: Path, data: bytes) -> Any:
        self._check(key)
        return super()._written(key, path, data)

    def append(self, key: str, data: bytes) -> None:
        self._check(key)
        super().append(key, data)

    def _check(self, key: str) -> None:
        if self.down:
            self.met.set()
            raise StoreError(f"nobody takes {key}")


def test_a_storage_that_fails_for_a_while_stops_nothing(
    data: Path, tmp_path: Path, whole: Run
) -> None:
    store = Failing(tmp_path)
    run, settings = Run(store, "demo"), tiny_settings(data)

    def repair() -> None:
        assert store.met.wait(20), "nobody has noticed"
        store.down = False

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 12, lambda: setattr(store, "down", True))
        before_step(patch, 28, repair)
        assert go(run, settings) == "finished"
    texts = [record["text"] for record in of_kind(run, "warning")]
    assert any(text.startswith("storage fails, training goes on: nobody takes") for text in texts)
    assert any(text.startswith("storage answers again, after ") for text in texts)
    for kind in ("train", "evaluation"):
        assert without_clocks(run.records(), [kind]) == without_clocks(whole.records(), [kind])
    assert run.status() == "finished"
    assert blobs(checkpoints(run)[-1]) == blobs(checkpoints(whole)[-1])
    assert list(run.samples()) == [16, 32]


def test_a_storage_that_never_comes_back_ends_the_run(data: Path, tmp_path: Path) -> None:
    store = Failing(tmp_path)
    run = Run(store, "demo")
    changes = {"run.images": 100_000, "run.log_every_images": 1000}
    settings = tiny_settings(data, changes).model_copy(
        update={"failures": Settings().failures.model_copy(update={"storage_patience_s": 0.2})}
    )
    run.claim(settings)

    def fail(images: int, figures: Figures) -> None:
        store.down = True

    started_at_s = time.monotonic()
    with pytest.raises(
        StorePatienceSpent, match=r"longer than failures\.storage_patience_s"
    ) as why:
        go(run, settings, fail)
    assert time.monotonic() - started_at_s < 60
    assert "nobody takes" in str(why.value)
    assert isinstance(why.value, AalnetError)
    assert why.value.exit_code == 1


# Numbers and pictures


def poisoned(batch: Batch) -> Batch:
    floats = batch.to(CPU, torch.float32)  # bytes cannot hold it
    floats.target[0, 0, 0, 0] = math.nan
    return floats


def test_a_target_that_is_nan_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    break_batch(monkeypatch, 24, poisoned)

    with pytest.raises(NonFiniteError) as caught:
        go(run, settings)

    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    assert "nan at 24 images" in message
    assert "log_likelihood" in message
    assert "Last whole checkpoint of `demo`: 16 images" in message
    end = run.records()[-1]
    assert end | {"kind": "end", "images": 24, "status": "failed", "error": message} == end
    assert run.status() == "failed"
    (found,) = checkpoints(run)
    assert found.images == 16
    restore(TrainState(settings, Pairs(settings.data.train, 32).spec, CPU), found)


def test_a_nan_run_goes_on_once_the_cause_is_gone(
    data: Path, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data)
    with pytest.MonkeyPatch.context() as patch:
        break_batch(patch, 24, poisoned)
        with pytest.raises(NonFiniteError):
            go(run, settings)
    go(run, settings)
    assert_same_run(run, whole)


@pytest.mark.parametrize("model", sorted(CORNERS))
def test_a_parameter_that_is_nan_stops_the_run(data: Path, tmp_path: Path, model: str) -> None:
    run, settings = run_in(tmp_path), tiny_settings(data, {"model": model})
    state = TrainState(settings, Pairs(settings.data.train, 32).spec, CPU)
    with torch.no_grad():
        state.generator.output.weight[0, 0, 0, 0] = math.nan
    state.images_seen, state.steps = 16, 4
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    save(run, state, {})
    before = blobs(checkpoints(run)[-1])
    with pytest.raises(NonFiniteError, match="nan at 16 images"):
        go(run, settings)
    assert run.status() == "failed"
    assert [found.images for found in checkpoints(run)] == [16]
    assert blobs(checkpoints(run)[-1]) == before


def test_a_damaged_picture_stops_the_run(tmp_path: Path) -> None:
    rows = noise_rows(13)
    rows[12]["condition"] = b"damaged"
    write_data(tmp_path)
    write_pairs(tmp_path / "train.parquet", rows)
    run = run_in(tmp_path)
    with pytest.raises(DataError, match="`row-12`"):
        go(run, tiny_settings(tmp_path))
    lazy = {"data.memory_budget_mib": 1, "data.size_px": 256}
    run = run_in(tmp_path, "lazy")
    with pytest.raises(DataError, match="`row-12`"):
        go(run, tiny_settings(tmp_path, lazy))
    assert run.records()[-1]["status"] == "failed"
    assert "`row-12`" in run.records()[-1]["error"]
