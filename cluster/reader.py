"""This worker's slices of the global batches, made one ahead in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

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
    data, seed = settings.data, settings.run.seed
    noise_shape = (settings.objective.K, settings.network.noise_size)
    conditions, targets, rows, noises = [], [], [], []
    for position in range(first_position + offsets.start, first_position + offsets.stop):
        row = order.row(position)
        luck = chance(data, seed, position, noise_shape, pairs.channels[0])
        condition, target = (augment(image, luck.flip, luck.shift) for image in pairs.pair(row))
        clean = _to_unit(condition)
        if luck.condition_noise is not None:
            clean = np.clip(clean + luck.condition_noise, -1, 1)
        conditions.append(clean)
        targets.append(_to_unit(target))
        rows.append(row)
        noises.append(luck.noise)
    return Batch(
        condition=torch.from_numpy(np.stack(conditions)),
        target=torch.from_numpy(np.stack(targets)),
        label=torch.from_numpy(order.labels[rows]),
        noise=torch.from_numpy(np.stack(noises)),
        global_images=data.batch_images,
    )


def _to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0..255 -> [-1, 1]"""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def read_batches(
    pairs: Pairs, settings: Settings, images_seen: int, rank: int, workers: int
) -> Iterator[Batch]:
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
