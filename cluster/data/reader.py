"""This worker's slices of the global batches, made one ahead in a background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from functools import partial

import numpy as np
import torch

from aalnet.batch import Batch
from aalnet.corners import objective_of
from aalnet.settings import Settings
from cluster.data.order import Chances, Order, augment, worker_slice
from cluster.data.pairs import Pairs
from cluster.storage.store import StoreError

AHEAD = 2  # batches
AGAIN_S = 2.0  # between two tries while the storage of the data fails


class BatchMaker:
    """Makes this worker's slices of global batches."""

    def __init__(self, pairs: Pairs, settings: Settings) -> None:
        labels = pairs.labels(pairs.label_names)
        self.pairs = pairs
        self.order = Order(labels, settings.run.seed, settings.data.balanced_labels)
        noise_shape = (1 + objective_of(settings).K, settings.network.noise_size)
        self.chances = Chances(settings.data, settings.run.seed, noise_shape, pairs.channels[0])
        self.global_images = settings.data.batch_images

    def make(self, first: int, offsets: range) -> Batch:
        """The slice `offsets` of the global batch that starts at position `first`."""
        count, size_px = len(offsets), self.pairs.size_px
        conditions, targets = (
            np.empty((count, channels, size_px, size_px), np.uint8)
            for channels in self.pairs.channels
        )
        noise = np.empty((count, *self.chances.noise_shape), np.float32)
        positions = range(first + offsets.start, first + offsets.stop)
        rows = [self.order.row(position) for position in positions]
        # One kind of work after another: the processor keeps its code at hand.
        pictures = [self.pairs.views(row) for row in rows]
        lucks = list(self.chances.at(positions))
        for i, ((condition, target), luck) in enumerate(zip(pictures, lucks, strict=True)):
            noise[i] = luck.noise
            augment(conditions[i], condition, luck.flip, luck.shift)
            augment(targets[i], target, luck.flip, luck.shift)
        noised = [i for i, luck in enumerate(lucks) if luck.condition_noise is not None]
        added = [torch.from_numpy(lucks[i].condition_noise) for i in noised]
        return Batch(
            condition=torch.from_numpy(conditions),
            target=torch.from_numpy(targets),
            label=torch.from_numpy(self.order.labels[rows]),
            noise=torch.from_numpy(noise),
            global_images=self.global_images,
            noised=torch.tensor(noised) if noised else None,
            condition_noise=torch.stack(added) if added else None,
        )


def patiently(
    make: Callable[[], Batch], settings: Settings, closed: threading.Event
) -> Batch | None:
    """What `make` makes, tried again while the storage of the data fails; None once closed.

    Raises:
        StoreError: it has failed for longer than `failures.storage_patience_s`.
    """
    end_s: float | None = None
    while not closed.is_set():
        try:
            return make()
        except StoreError:
            now_s = time.monotonic()
            end_s = end_s or now_s + settings.failures.storage_patience_s
            if now_s > end_s:
                raise
            closed.wait(AGAIN_S)
    return None


def read_batches(
    pairs: Pairs, settings: Settings, images_seen: int, rank: int, workers: int
) -> Generator[Batch]:
    """Batches from `images_seen` to the end of the run, prepared ahead of their use."""
    maker, size = BatchMaker(pairs, settings), settings.data.batch_images
    offsets = worker_slice(size, rank, workers)
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(AHEAD)
    closed = threading.Event()

    def offer(item: Batch | Exception | None) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def prepare() -> None:
        try:
            for first in range(images_seen, settings.run.images, size):
                offer(patiently(partial(maker.make, first, offsets), settings, closed))
                if closed.is_set():
                    return
            offer(None)
        except Exception as error:  # noqa: BLE001, handed to the consumer, which raises it
            offer(error)

    thread = threading.Thread(target=prepare, name="batch-reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
