"""Conditions from bytes that anybody may have sent: by content, by header, then decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aalnet.networks import DataSpec
from cluster.data.pictures import FORMATS, MODES, decode_image
from deploy.endpoint.errors import HttpError

SMALL_PIXELS = 256 * 256  # decoded in about a millisecond


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say."""

    width_px: int
    height_px: int

    @property
    def small(self) -> bool:
        """Is it decoded faster than it could be handed to another thread?"""
        return max(self.width_px, self.height_px) ** 2 <= SMALL_PIXELS


def read_header(data: bytes, largest_side_px: int) -> Header:
    """The size of a picture, with nothing decoded.

    Raises:
        HttpError: not a PNG, JPEG or WebP by content, or too large.
    """
    if not data:
        raise HttpError(422, "image", "the image is empty; send a PNG, JPEG or WebP file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            header = Header(*image.size)
    except Exception as error:  # on hostile bytes Pillow raises nearly anything
        raise _undecodable() from error
    if not 1 <= max(header.width_px, header.height_px) <= largest_side_px:
        raise HttpError(
            422,
            "image",
            f"the image is {header.width_px}x{header.height_px}; it may have at most "
            f"{largest_side_px} px a side",
        )
    return header


def decode_condition(data: bytes, spec: DataSpec, size_px: int) -> NDArray[np.uint8]:
    """A checked picture as the pixels [Cx, S, S] that `aalnet sample --convert` would take.

    Raises:
        HttpError: it is damaged.
    """
    try:
        pixels, _ = decode_image(data, "image", size_px, convert_to=MODES[spec.condition_channels])
    except Exception as error:  # as above; MemoryError is one of them
        raise _undecodable() from error
    return pixels


def _undecodable() -> HttpError:
    return HttpError(422, "image", "the image is not a whole PNG, JPEG or WebP file")
