"""What /openapi.json says beyond what FastAPI reads off the functions."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from deploy.endpoint.request_body import HIGHEST_TEMPERATURE, LARGEST_SEED

Responses = dict[int | str, dict[str, Any]]


class Error(BaseModel):
    """Why a request was refused: one word, and a line for people."""

    reason: str
    message: str


class ModelFacts(BaseModel):
    """The model that new requests get."""

    model: str
    run: str
    images_seen: int
    checkpoint: str
    execution: str
    labels: list[str]
    size_px: int
    condition_channels: int
    target_channels: int
    max_samples: int
    figures: dict[str, Any]
    settings: dict[str, Any]


REFUSALS = {
    401: "no valid API key", 408: "the body came too slowly", 409: "the id is another request's",
    413: "the body is too large", 415: "neither multipart nor JSON",
    422: "a field, the image or the label will not do", 429: "too many requests; see Retry-After",
    500: "the endpoint failed", 503: "it took too long, or the endpoint is stopping",
}  # fmt: skip
HEADERS = {
    "x-model": "name of the model", "x-checkpoint": "digest of its checkpoint",
    "x-aalnet-execution": "program, processor and precision it ran by: same name, same bytes",
    "x-seed": "the seed, given or chosen", "x-resized": "how the image was brought into form",
    "x-batch-samples": "samples in the batch that this request was in",
    "server-timing": "milliseconds in the queue, in the model, and in all",
}  # fmt: skip


def _refusals(*codes: int) -> Responses:
    return {code: {"model": Error, "description": REFUSALS[code]} for code in codes}


ANSWERS: dict[str, Responses] = {
    "ready": {503: {"description": "stopping, or not started yet"}},
    "model": _refusals(401, 503),
    "samples": {
        200: {
            "description": "The pictures: a PNG grid row by row, a zip of PNGs, or JSON",
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": {"$ref": "#/components/schemas/Samples"}},
            },
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in HEADERS.items()
            },
        },
        **_refusals(*REFUSALS),
    },
}


def samples_body(max_samples: int) -> dict[str, Any]:
    """The two forms of a request's body, and the header that makes retries safe."""
    fields: dict[str, Any] = {
        "label": {"type": "string", "minLength": 1, "maxLength": 200},
        "num_samples": {"type": "integer", "minimum": 1, "maximum": max_samples, "default": 4},
        "seed": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED},
        "temperature": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": HIGHEST_TEMPERATURE,
            "default": 1,
            "description": "spread of the noise: higher is more varied",
        },
        "format": {"type": "string", "enum": ["png", "zip", "json"], "default": "png"},
    }

    def body(image: dict[str, Any]) -> dict[str, Any]:
        return {
            "schema": {
                "type": "object",
                "required": ["image", "label"],
                "additionalProperties": False,
                "properties": {"image": image, **fields},
            }
        }

    as_file = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"}
    as_text = {"type": "string", "format": "byte", "description": "the same in base64"}
    return {
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "an id of your choice; a retry with it gets the first answer",
                "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,128}$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": body(as_file), "application/json": body(as_text)},
        },
    }


SAMPLES: dict[str, Any] = {
    "type": "object",
    "required": ["model", "checkpoint", "execution", "label", "seed", "num_samples", "samples"],
    "properties": {
        "model": {"type": "string"},
        "checkpoint": {"type": "string"},
        "execution": {"type": "string"},
        "label": {"type": "string"},
        "seed": {"type": "integer"},
        "num_samples": {"type": "integer"},
        "temperature": {"type": "number"},
        "size_px": {"type": "integer"},
        "resized_from": {
            "anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]
        },
        "samples": {"type": "array", "items": {"type": "string", "format": "byte"}},
    },
}


def describe(app: FastAPI) -> None:
    """Have the application's schema name the answer in JSON and the API key."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema_ = get_openapi(
                title=app.title, version=app.version, description=app.description,
                routes=app.routes,
            )  # fmt: skip
            components = schema_.setdefault("components", {})
            components.setdefault("schemas", {})["Samples"] = SAMPLES
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema_["paths"].items():
                for operation in methods.values() if path.startswith("/v1/") else ():
                    operation["security"] = [{"key": []}, {}]
            app.openapi_schema = schema_
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
