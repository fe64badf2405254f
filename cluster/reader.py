"""This worker's slices of the global batches, made one ahead in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray

from aalnet.batch import Batch
from aalnet.settings import Settings
from cluster.data import Pairs
from cluster.order import Order, augment, chance, worker_slice

AHEAD = 2  # batches


def make_batch(
    pairs: Pairs, order: Order, settings: Settings, first_position: int, offsets: range
) -> Batch:
    """The slice `offsets` of the global batch that starts at `first_position`."""
    data, seed, size = settings.data, settings.run.seed, (pairs.size_px, pairs.size_px)
    noise_shape = (settings.objective.K, settings.network.noise_size)
    conditions = np.empty((len(offsets), pairs.channels[0], *size), np.float32)
    targets = np.empty((len(offsets), pairs.channels[1], *size), np.float32)
    noise = np.empty((len(offsets), *noise_shape), np.float32)
    rows = [order.row(first_position + offset) for offset in offsets]
    condition_noise: dict[int, NDArray[np.float32]] = {}
    for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)):
        luck = chance(data, seed, first_position + offset, noise_shape, pairs.channels[0])
        condition, target = pairs.pair(row)
        conditions[i] = augment(condition, luck.flip, luck.shift)
        targets[i] = augment(target, luck.flip, luck.shift)
        noise[i] = luck.noise
        if luck.condition_noise is not None:
            condition_noise[i] = luck.condition_noise
    _to_unit_(conditions)
    _to_unit_(targets)
    for i, added in condition_noise.items():
        conditions[i] = np.clip(conditions[i] + added, -1, 1)
    return Batch(
        condition=torch.from_numpy(conditions),
        target=torch.from_numpy(targets),
        label=torch.from_numpy(order.labels[rows]),
        noise=torch.from_numpy(noise),
        global_images=data.batch_images,
    )


def _to_unit_(pixels: NDArray[np.float32]) -> None:
    """0..255 -> [-1, 1], in place: a batch at once, without copies of it."""
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)


def read_batches(
    pairs: Pairs, settings: Settings, images_seen: int, rank: int, workers: int
) -> Generator[Batch]:
    """Batches from `images_seen` to the end of the run, prepared ahead of their use."""
    labels = pairs.labels(pairs.label_names)
    order = Order(labels, settings.run.seed, settings.data.balanced_labels)
    size = settings.data.batch_images
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
                offer(make_batch(pairs, order, settings, first, offsets))
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
