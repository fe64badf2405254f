"""Images made to break a decoder: `python -m tests.support.hostile_images URL LABEL [COUNT]`.

Bombs, truncated files, wrong types, huge and lying headers, flipped bits; each by its number alone.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
from PIL import Image, PngImagePlugin

Maker = Callable[[np.random.Generator], bytes]
FORMATS = ("PNG", "JPEG", "WEBP")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with a right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of any header over any pixel data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def whole(numbers: np.random.Generator) -> bytes:
    """A good file."""
    side = int(numbers.integers(1, 80))
    image = Image.fromarray(numbers.integers(0, 256, (side, side, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[int(numbers.integers(0, 3))])
    return buffer.getvalue()


def truncated(numbers: np.random.Generator) -> bytes:
    """A file cut off."""
    data = whole(numbers)
    return data[: int(numbers.integers(0, len(data)))]


def flipped(numbers: np.random.Generator) -> bytes:
    """A file with up to 20 bits flipped."""
    data = bytearray(whole(numbers))
    for at in numbers.integers(0, len(data), int(numbers.integers(1, 20))):
        data[at] ^= 1 << int(numbers.integers(0, 8))
    return bytes(data)


def spliced(numbers: np.random.Generator) -> bytes:
    """Half of one file and half of another."""
    one, other = whole(numbers), whole(numbers)
    return one[: len(one) // 2] + other[len(other) // 2 :]


def bomb(numbers: np.random.Generator) -> bytes:
    """A small file of very many pixels: just within the limit, or far beyond it."""
    side = int(numbers.choice([2000, 4096, 4097, 30000, 65535]))
    return png(side, side, bytes(min(side * (side * 3 + 1), 2**22)))


def huge_header(numbers: np.random.Generator) -> bytes:
    """A header of up to 2^31 px a side."""
    width, height = (int(x) for x in numbers.integers(0, 2**31, 2))
    return png(width, height, b"\0" * 100)


def thin(numbers: np.random.Generator) -> bytes:
    """One pixel high."""
    return png(int(numbers.integers(1, 5000)), 1, bytes(16000))


def odd_depth(numbers: np.random.Generator) -> bytes:
    """Depths and colour types of which most do not exist."""
    depth, colour = int(numbers.integers(0, 33)), int(numbers.integers(0, 8))
    return png(16, 16, bytes(4000), depth=depth, colour=colour)


def text_bomb(numbers: np.random.Generator) -> bytes:
    """A compressed text of up to 3 MB."""
    facts = PngImagePlugin.PngInfo()
    facts.add_text("k", "x" * int(numbers.integers(1, 3_000_000)), zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=facts)
    return buffer.getvalue()


def other_type(numbers: np.random.Generator) -> bytes:
    """A format that is not served."""
    buffer = io.BytesIO()
    kind = str(numbers.choice(["GIF", "BMP", "TIFF", "PPM", "ICO", "PCX", "PDF", "EPS", "TGA"]))
    Image.new("RGB", (16, 16)).save(buffer, kind)
    return buffer.getvalue()


def not_an_image(numbers: np.random.Generator) -> bytes:
    """Magic numbers before noise."""
    texts = [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04", b"%PDF-1.4", b"\0" * 64, b"MZ",
        b"{}", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ",
    ]  # fmt: skip
    start = texts[int(numbers.integers(0, len(texts)))]
    return start + numbers.integers(0, 256, int(numbers.integers(0, 300)), np.uint8).tobytes()


MAKERS: tuple[Maker, ...] = (
    whole, truncated, flipped, spliced, huge_header, thin, odd_depth, other_type, not_an_image,
    truncated, flipped, flipped, bomb, text_bomb,
)  # fmt: skip


def hostile(number: int) -> bytes:
    """The image of a number."""
    return MAKERS[number % len(MAKERS)](np.random.default_rng(number))


def send(url: str, label: str, count: int) -> Counter[int]:
    """Post `count` images; the answers by status."""
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        for number in range(count):
            fields = {"label": label, "num_samples": "1", "seed": "1"}
            files = {"image": ("image", hostile(number))}
            answer = client.post("/v1/samples", data=fields, files=files)
            seen[answer.status_code] += 1
    return seen


def main() -> None:
    """Send COUNT images; exit code 1 at any answer but 200 and 422."""
    url, label, *rest = sys.argv[1:]
    seen = send(url, label, int(rest[0]) if rest else 10_000)
    print(dict(sorted(seen.items())))
    sys.exit(1 if set(seen) - {200, 422} else 0)


if __name__ == "__main__":
    main()
