"""The body of POST /v1/samples: multipart or JSON, into one checked request."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.endpoint.errors import HttpError

LARGEST_SEED = 2**53 - 1  # every JSON reader keeps such whole numbers exact
MOST_PARTS = 16
PART_NAME = re.compile(
    rb'^content-disposition:[^\r\n]*[;\s]name="([^"\r\n]*)"', re.IGNORECASE | re.MULTILINE
)
BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")
DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,3})?")
NUMBERS = ("num_samples", "seed")
HIGHEST_TEMPERATURE = 4.0  # noise is spread no wider: samples become arbitrary long before
Format = Literal["png", "zip", "json"]


class SampleRequest(BaseModel):
    """What is asked of the model. `image` holds the bytes of a PNG, JPEG or WebP file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: bytes
    label: Annotated[str, Field(min_length=1, max_length=200)]
    num_samples: Annotated[int, Field(ge=1)] = 4
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    temperature: Annotated[float, Field(gt=0, le=HIGHEST_TEMPERATURE)] = 1.0
    format: Format = "png"


def parse_request(content_type: str, body: bytes, max_samples: int) -> SampleRequest:
    """A request from a whole body.

    Raises:
        HttpError: the type is another one, the body is malformed, a field is missing or wrong.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        boundary = BOUNDARY.search(content_type)
        values = _multipart((boundary[1] or boundary[2]).encode() if boundary else b"", body)
    elif kind == "application/json":
        values = _json(body)
    else:
        raise HttpError(415, "type", "send multipart/form-data or application/json")
    try:
        request = SampleRequest.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "body"
        raise HttpError(422, "field", f"{field:.60}: {problem['msg']}") from None
    if request.num_samples > max_samples:
        raise HttpError(422, "field", f"num_samples: at most {max_samples}")
    return request


def _json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(422, "body", "the body is not JSON") from error
    if not isinstance(values, dict):
        raise HttpError(422, "body", "the body must be a JSON object")
    if isinstance(values.get("image"), str):
        try:
            values["image"] = base64.b64decode(values["image"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise HttpError(422, "field", "image: must be base64") from error
    return values


def _multipart(boundary: bytes, body: bytes) -> dict[str, Any]:
    """The fields of a whole body (RFC 2046): each part is a head, an empty line, and data."""
    delimiter = b"\r\n--" + boundary
    _, *parts = (b"\r\n" + body).split(delimiter)
    if not boundary or not parts or not parts[-1].startswith(b"--") or len(parts) > MOST_PARTS:
        raise HttpError(422, "body", f"the body is not multipart of 1 to {MOST_PARTS - 1} fields")
    values: dict[str, Any] = {}
    for part in parts[:-1]:
        head, blank, data = part.partition(b"\r\n\r\n")
        named = PART_NAME.search(head)
        if not blank or named is None:
            raise HttpError(422, "body", "a part of the body has no name")
        name = named[1].decode("utf-8", "replace")
        if name in values:
            raise HttpError(422, "field", f"{name:.60}: given twice")
        values[name] = data if name == "image" else _value(name, data)
    return values


def _value(name: str, data: bytes) -> str | int | float:
    text = data.decode("utf-8", "replace")
    if name == "temperature" and DECIMAL.fullmatch(text):
        return float(text)
    return int(text) if name in NUMBERS and WHOLE_NUMBER.fullmatch(text) else text
