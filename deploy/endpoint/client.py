"""A client of the sampling endpoint: POST /v1/samples, tried again where that is safe."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aalnet.errors import AalnetError, UserError
from aalnet.sampling import from_uint8
from cluster.data.pictures import decode_image

TRIES = 5
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
TIMEOUT_S = 60.0
AGAIN = frozenset({408, 429, 502, 503, 504})


class EndpointError(AalnetError):
    """The endpoint cannot be reached, or failed, at every try."""


class EndpointRefused(UserError):
    """The endpoint refuses the request: the key, the image, the label or a number."""


@dataclass(frozen=True)
class RemoteSamples:
    """An answer of the endpoint."""

    images: Tensor  # [k, 3, S, S] in [-1, 1]
    model: str
    checkpoint: str  # its digest


class EndpointClient:
    """Calls one endpoint. A request keeps its id over all tries: none is drawn twice."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises EndpointRefused where the URL is not one of HTTP."""
        if not url.startswith(("http://", "https://")):
            raise EndpointRefused(f"--url {url} must start with http:// or https://")
        self.url = url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def sample(
        self, image: bytes, label: str, num_samples: int, seed: int, temperature: float = 1.0
    ) -> RemoteSamples:
        """Draw samples for the bytes of an image file.

        Raises:
            EndpointRefused: the endpoint says what is wrong with the request.
            EndpointError: it did not answer, or failed, `TRIES` times.
        """
        body = json.dumps({
            "image": base64.b64encode(image).decode(),
            "label": label,
            "num_samples": num_samples,
            "seed": seed,
            "temperature": temperature,
            "format": "json",
        }).encode()  # fmt: skip
        facts = self._call(body, uuid.uuid4().hex)
        try:
            pictures = [base64.b64decode(sample) for sample in facts["samples"]]
            images = torch.stack([_pixels(picture) for picture in pictures])
            return RemoteSamples(images, str(facts["model"]), str(facts["checkpoint"]))
        except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise EndpointError(f"{self.url} is not a sampling endpoint: {error}") from error

    def _call(self, body: bytes, id_: str) -> Mapping[str, Any]:
        headers = {**self._headers, "Content-Type": "application/json", "Idempotency-Key": id_}
        request = urllib.request.Request(f"{self.url}/v1/samples", body, headers)
        reason = ""
        for attempt in range(TRIES):
            pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    facts: Mapping[str, Any] = json.load(answer)
                    return facts
            except urllib.error.HTTPError as error:
                reason = _message(error)
                if error.code not in AGAIN:
                    kind = EndpointRefused if error.code < 500 else EndpointError
                    raise kind(f"{self.url} answered {error.code}: {reason}") from error
                pause_s = min(float(error.headers.get("Retry-After") or pause_s), LONGEST_PAUSE_S)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error))
            if attempt + 1 < TRIES:
                time.sleep(pause_s)
        raise EndpointError(f"{self.url} did not answer {TRIES} times; last: {reason}")


def _pixels(picture: bytes) -> Tensor:
    with Image.open(io.BytesIO(picture)) as image:
        side_px = image.width
    pixels, _ = decode_image(picture, "the endpoint's picture", side_px)
    return from_uint8(pixels)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return error.reason
