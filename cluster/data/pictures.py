"""One picture: from the bytes of a file to pixels, checked by its header before it is decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aalnet.errors import DataError

CHANNELS = {"L": 1, "RGB": 3}
MODES = {channels: mode for mode, channels in CHANNELS.items()}
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_PX = 4096  # checked from the header, before anything is decoded
BY_LINE = {"L": "L", "RGB": "RGB;L"}  # Pillow's raw modes: each line's planes one after another
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is larger, and warns first
Encoded = bytes | memoryview


def decode_image(
    data: Encoded, name: str, size_px: int, *, convert_to: str | None = None
) -> tuple[NDArray[np.uint8], int]:
    """One picture as uint8 [C, size_px, size_px], and the width it had.

    `convert_to` (L or RGB) brings another mode or shape into form: on white, centred.

    Raises:
        DataError: not a picture of a known format, not grey or RGB, not square, or too large.
    """
    image = open_picture(data, name, convert_to=convert_to)
    # A copy: writable and in one piece, unlike the view.
    return np.array(planes(resized(image, size_px)), order="C"), image.width


def open_picture(data: Encoded, name: str, *, convert_to: str | None = None) -> Image.Image:
    """The decoded picture, grey or RGB and square. Raises DataError as `decode_image` does."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_picture(image, name, strict=convert_to is None)
        image.load()
        return image if convert_to is None else _squared_on_white(image).convert(convert_to)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not a PNG, JPEG or WebP" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{name} cannot be decoded: {reason or 'damaged'}; replace it") from error


def check_picture(image: Image.Image, name: str, *, strict: bool = True) -> None:
    """Refuse, by its header alone, a picture that is too large or, if strict, out of form."""
    if not 1 <= max(image.size) <= LARGEST_PX:
        raise DataError(
            f"{name} is {image.width}x{image.height}; it may have at most {LARGEST_PX} px a side: "
            "shrink it"
        )
    if strict and image.mode not in CHANNELS:
        raise DataError(f"{name} has mode {image.mode}; it must be grey (L) or RGB: convert it")
    if strict and image.width != image.height:
        raise DataError(f"{name} is {image.width}x{image.height}; it must be square: pad it")


def png(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def resized(image: Image.Image, size_px: int) -> Image.Image:
    """The picture at `size_px` a side: averaged down, or smoothly up."""
    if image.width == size_px:
        return image
    shrinks = image.width > size_px
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return image.resize((size_px, size_px), how)


def planes(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a grey or RGB picture as a view [C, H, W] that cannot be written to."""
    lines = np.frombuffer(image.tobytes("raw", BY_LINE[image.mode]), np.uint8)
    return lines.reshape(image.height, -1, image.width).transpose(1, 0, 2)


def _squared_on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    side = max(layer.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(layer, ((side - layer.width) // 2, (side - layer.height) // 2))
    return square
