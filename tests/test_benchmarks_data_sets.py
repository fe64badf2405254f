"""The data sets of comparisons: seeded, in the form of a pack, their two halves apart.

On made-up maps and on the typefaces that matplotlib brings, so nothing has to be installed.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from aalnet.errors import ConfigError
from benchmarks.data_sets import aerial, glyphs
from benchmarks.data_sets.pairs import Pair, Split, files_of, write
from cluster.data.inspection import inspect

HEIGHT, WIDTH = 1200, 2400
FACES = {label: glyphs.TYPEFACES[label] for label in ("serif", "mono", "book")}


@pytest.fixture(scope="module")
def maps() -> tuple[aerial.Picture, aerial.Picture]:
    """Land on the left two thirds, blue sea on the right; the photograph is noise."""
    relief = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    relief[:, : 2 * WIDTH // 3] = (200, 180, 100)
    relief[:, 2 * WIDTH // 3 :] = (0, 80, 180)
    return relief, np.random.default_rng(0).integers(0, 256, relief.shape, np.uint8)


@pytest.fixture(scope="module")
def tiles(maps: tuple[aerial.Picture, aerial.Picture]) -> Split:
    return aerial.cut(*maps, size_px=8, train=200, test=40, seed=0)


@pytest.fixture(scope="module")
def drawn() -> Split:
    return glyphs.draw(FACES, size_px=16, train=300, test=30, seed=0)


def contents(split: Split) -> list[tuple[str, str, bytes, bytes]]:
    pairs = [*split.train, *split.test]
    return [(p.id, p.label, p.condition.tobytes(), p.target.tobytes()) for p in pairs]


def corners(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """[N, 2] rows and columns where the tiles of train and test begin."""
    train, test = (
        np.array([[int(part) for part in pair.id.split("-")] for pair in pairs])
        for pairs in (split.train, split.test)
    )
    return train, test


def test_no_held_out_tile_meets_another_tile(tiles: Split) -> None:
    train, test = corners(tiles)
    assert (len(train), len(test)) == (200, 40)
    for i, at in enumerate(test):
        others = np.concatenate([train, np.delete(test, i, axis=0)])
        apart = np.abs(others - at).max(axis=1)
        assert apart.min() >= aerial.TILE_PX


def test_tiles_show_land_in_their_zones(
    tiles: Split, maps: tuple[aerial.Picture, aerial.Picture]
) -> None:
    sea_from = 2 * WIDTH // 3
    for pair in [*tiles.train, *tiles.test]:
        y, x = (int(part) for part in pair.id.split("-"))
        assert x + aerial.TILE_PX * aerial.LEAST_LAND <= sea_from
        assert pair.label == aerial.zone(90 - 180 * (y + aerial.TILE_PX / 2) / HEIGHT)
        size = pair.target.size
        tile = maps[1][y : y + aerial.TILE_PX, x : x + aerial.TILE_PX]
        mean = tile.reshape(8, aerial.TILE_PX // 8, 8, aerial.TILE_PX // 8, 3).mean(axis=(1, 3))
        assert size == (8, 8)
        assert np.abs(np.asarray(pair.target) - mean).max() <= 1


@pytest.mark.parametrize(
    ("latitude", "label"), [(0, "tropics"), (-23, "tropics"), (-40, "temperate"), (60, "north")]
)
def test_zones(latitude: float, label: str) -> None:
    assert aerial.zone(latitude) == label


def test_held_out_letters_occur_in_training_under_no_accent_or_case(drawn: Split) -> None:
    def letters(pairs: list[Pair]) -> set[str]:
        return {
            unicodedata.normalize("NFKD", chr(int(pair.id.split("-")[0], 16)))[0].casefold()
            for pair in pairs
        }

    assert not letters(drawn.train) & letters(drawn.test)
    conditions = {pair.condition.tobytes() for pair in drawn.train}
    assert not conditions & {pair.condition.tobytes() for pair in drawn.test}


def test_held_out_characters_stand_in_every_typeface_with_shapes_of_their_own(drawn: Split) -> None:
    by_character: dict[str, dict[str, bytes]] = {}
    for pair in drawn.test:
        by_character.setdefault(pair.id.split("-")[0], {})[pair.label] = pair.target.tobytes()
    assert len(by_character) == 10
    assert all(len(set(targets.values())) == len(FACES) for targets in by_character.values())
    labels = [pair.label for pair in drawn.train]
    assert {label: labels.count(label) for label in FACES} == dict.fromkeys(FACES, 100)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides(
    seed: int, tiles: Split, drawn: Split, maps: tuple[aerial.Picture, aerial.Picture]
) -> None:
    again = aerial.cut(*maps, size_px=8, train=200, test=40, seed=seed)
    assert (contents(again) == contents(tiles)) is (seed == 0)
    again = glyphs.draw(FACES, size_px=16, train=300, test=30, seed=seed)
    assert (contents(again) == contents(drawn)) is (seed == 0)


def test_files_have_the_form_of_a_pack(drawn: Split, tmp_path: Path) -> None:
    write(drawn, tmp_path)
    for split, count in (("train", 300), ("test", 30)):
        report = inspect(str(tmp_path / f"{split}.parquet"), lambda *_: None)
        assert report.problems == []
        assert sum(part.rows for part in report.splits.values()) == count


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ConfigError, match="pip install no-such-fonts"):
        files_of("no_such_fonts", "no-such-fonts")
