"""`glyphs`: a character in one plain typeface, and the same in the typeface that the label names.

The label alone decides the shape; weight, slant and ink vary freely, so one condition with one
label has many plausible targets. Held-out characters occur in training under no label.
"""

from __future__ import annotations

import colorsys
import io
import random
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from benchmarks.data_sets.pairs import Pair, Split, files_of

DEJAVU = "DejaVu 2.35 (Bitstream Vera licence)"
SOURCES = (
    f"matplotlib, which the project brings: {DEJAVU}; STIX 1.0 (SIL OFL 1.1)",
    "font-amatic-sc 0.0.4: Amatic SC (SIL OFL 1.1)",
    "font-fredoka-one 0.0.4: Fredoka One (SIL OFL 1.1)",
)
PACKAGES = {
    "matplotlib": ("matplotlib", "mpl-data/fonts/ttf"),
    "font-amatic-sc": ("font_amatic_sc", "files"),
    "font-fredoka-one": ("font_fredoka_one", "files"),
}


@dataclass(frozen=True)
class Typeface:
    """Font files of one typeface, of several weights and slants, in an installed package."""

    package: str
    files: tuple[str, ...]


PLAIN = Typeface("matplotlib", ("DejaVuSans.ttf",))
TYPEFACES = {  # by label
    "serif": Typeface("matplotlib", tuple(
        f"DejaVuSerif{kind}.ttf" for kind in ("", "-Bold", "-Italic", "-BoldItalic"))),
    "mono": Typeface("matplotlib", tuple(
        f"DejaVuSansMono{kind}.ttf" for kind in ("", "-Bold", "-Oblique", "-BoldOblique"))),
    "book": Typeface("matplotlib", tuple(
        f"STIXGeneral{kind}.ttf" for kind in ("", "Bol", "Italic", "BolIta"))),
    "hand": Typeface("font-amatic-sc", ("AmaticSC-Regular.ttf", "AmaticSC-Bold.ttf")),
    "round": Typeface("font-fredoka-one", ("FredokaOne-Regular.ttf",)),
}  # fmt: skip
TRAIN_PAIRS, TEST_PAIRS = 4000, 200
FINE = 4  # drawn this many times larger, then averaged down
CAPITAL = 0.46  # height of an H, as a share of the picture: accents and tails have room
BASELINE = 0.7  # from the top
KINDS = ("L", "Nd", "Sc", "Sm")  # letters, digits, money, mathematics
FROM_FAMILY = 3  # held-out characters of one letter, at most


def make(size_px: int, seed: int = 0) -> Split:
    """4,000 pairs, and 200: forty characters, each in all typefaces."""
    return draw(TYPEFACES, size_px, TRAIN_PAIRS, TEST_PAIRS, seed)


def draw(
    typefaces: Mapping[str, Typeface], size_px: int, train: int, test: int, seed: int
) -> Split:
    """Pairs of characters in `typefaces`, the same number for each label."""
    rng = random.Random(seed)
    families = _families(size_px, typefaces)
    names = sorted(families)
    rng.shuffle(names)
    held_out: list[str] = []
    names_left = iter(names)
    per_label = test // len(typefaces)
    while len(held_out) < per_label:
        family = families[next(names_left)]
        shared = [one for one in family if all(_has(face, one) for face in typefaces.values())]
        held_out += shared[:FROM_FAMILY]
    kept = [character for name in names_left for character in families[name]]
    labels = list(typefaces)
    test_pairs = [
        _pair(character, label, typefaces[label], size_px, rng)
        for character in held_out[:per_label]
        for label in labels
    ]
    train_pairs: dict[str, Pair] = {}
    for label in labels:
        face = typefaces[label]
        usable = [character for character in kept if _has(face, character)]
        for i in range(train // len(labels)):
            pair = _pair(usable[i % len(usable)], label, face, size_px, rng, i // len(usable))
            train_pairs[pair.id] = pair
    return Split(list(train_pairs.values()), test_pairs)


def _families(size_px: int, typefaces: Mapping[str, Typeface]) -> dict[str, list[str]]:
    """Characters by their letter without accents and case, each picture once.

    A family is held out as a whole, since an A is hardly new to who has seen an A with an accent;
    the Cyrillic A looks like the Latin one and is left out.
    """
    families: dict[str, list[str]] = defaultdict(list)
    seen: set[bytes] = set()
    for code in sorted(_codes(PLAIN, 0)):
        character = chr(code)
        kind = unicodedata.category(character)
        if not kind.startswith(KINDS) or not any(
            _has(one, character) for one in typefaces.values()
        ):
            continue
        picture = _glyph(character, PLAIN, 0, size_px, (0, 0, 0)).convert("L")
        if picture.tobytes() in seen or picture.getextrema() == (255, 255):
            continue
        seen.add(picture.tobytes())
        plain = unicodedata.normalize("NFKD", character)[0].casefold()
        families[plain].append(character)
    return families


def _pair(
    character: str, label: str, face: Typeface, size_px: int, rng: random.Random, turn: int = 0
) -> Pair:
    ink = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.6, 1), rng.uniform(0.35, 0.85))
    usable = [i for i in range(len(face.files)) if ord(character) in _codes(face, i)]
    target = _glyph(
        character, face, rng.choice(usable), size_px, tuple(round(255 * one) for one in ink)
    )
    condition = _glyph(character, PLAIN, 0, size_px, (0, 0, 0)).convert("L")
    return Pair(f"{ord(character):04x}-{label}-{turn}", label, condition, target)


def _has(face: Typeface, character: str) -> bool:
    return ord(character) in _codes(face, 0)


def _glyph(
    character: str, face: Typeface, file: int, size_px: int, ink: Sequence[int]
) -> Image.Image:
    """The character on white, its middle in the middle, its baseline where all have theirs."""
    fine_px = FINE * size_px
    font = _font(face, file, fine_px)
    picture = Image.new("RGB", (fine_px, fine_px), "white")
    left, _, right, _ = font.getbbox(character, anchor="ls")
    at = (fine_px - (left + right)) / 2, BASELINE * fine_px
    ImageDraw.Draw(picture).text(at, character, fill=tuple(ink), font=font, anchor="ls")
    return picture.resize((size_px, size_px), Image.Resampling.BOX)


@cache
def _font(face: Typeface, file: int, fine_px: int) -> ImageFont.FreeTypeFont:
    """At the size where an H is as high in every typeface."""
    data = io.BytesIO(_data(face, file))
    trial = ImageFont.truetype(data, 1000, layout_engine=ImageFont.Layout.BASIC)
    capital = -trial.getbbox("H", anchor="ls")[1]
    return trial.font_variant(size=1000 * CAPITAL * fine_px / capital)


@cache
def _codes(face: Typeface, file: int) -> frozenset[int]:
    return frozenset(TTFont(io.BytesIO(_data(face, file)), lazy=True).getBestCmap())


def _data(face: Typeface, file: int) -> bytes:
    module, folder = PACKAGES[face.package]
    return (files_of(module, face.package) / folder / face.files[file]).read_bytes()
