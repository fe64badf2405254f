"""Pictures made by hand: too large, without pixels, or growing when they are unpacked."""

from __future__ import annotations

import functools
import struct
import zlib


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def handmade_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(png_chunk(*chunk) for chunk in [(b"IHDR", header), *chunks, (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def packed_zeros() -> bytes:
    """256 MiB in 256 KiB."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
