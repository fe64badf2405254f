"""Settings of the endpoint, all in one place; docs/endpoint.md explains them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from aalnet.yaml_io import validate

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EndpointSettings(BaseModel):
    """Limits and paces of one endpoint. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    max_samples: Annotated[int, Field(ge=1, le=256)] = Field(
        64, description="largest num_samples of a request"
    )
    batch_samples: Count = Field(32, description="largest batch, in samples")
    batch_wait_s: Annotated[float, Field(ge=0, le=1)] = Field(
        0.004, description="longest wait for requests that are being read when a batch starts"
    )
    queue_samples: Count = Field(256, description="samples that may wait; beyond it 429")
    in_flight: Count = Field(512, description="requests being read or answered; beyond it 429")
    body_bytes: Count = Field(10 * 2**20, description="largest body of a request")
    bodies_bytes: Count = Field(256 * 2**20, description="all bodies in memory; beyond it 429")
    image_side_px: Count = Field(4096, description="largest side of a condition")
    header_bytes: Count = Field(64 * 2**10, description="largest head of a request")
    header_timeout_s: Seconds = Field(10.0, description="for the head of a request to arrive")
    body_timeout_s: Seconds = Field(15.0, description="for the body of a request to arrive")
    request_timeout_s: Seconds = Field(30.0, description="from the head to the answer")
    drain_s: Seconds = Field(30.0, description="from SIGTERM to the end, for accepted work")
    notice_s: Annotated[float, Field(ge=0)] = Field(
        3.0, description="after SIGTERM, /readyz says 503 this long before the port closes"
    )
    poll_s: Seconds = Field(2.0, description="pause between looks at a model's name")
    rate_per_s: Seconds = Field(100.0, description="requests per second of one API key")
    rate_burst: Count = Field(200, description="requests that one API key may save up")
    remember_s: Seconds = Field(120.0, description="answers are kept for retries this long")
    remember_bytes: Count = Field(64 * 2**20, description="all kept answers together")
    threads: Count = Field(1, description="torch's threads on a CPU")
    compile: bool = Field(False, description="run by torch.compile instead: minutes at the start")


def parse_endpoint_settings(values: dict[str, Any]) -> EndpointSettings:
    """Check plain data. Raises ConfigError with the key, the value and the nearest known key."""
    return validate(EndpointSettings, values)
