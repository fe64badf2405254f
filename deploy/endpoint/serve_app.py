"""The same application hosted by Ray Serve: the only module of deploy that imports ray.

serve run deploy.endpoint.serve_app:build model=NAME storage=s3://bucket/prefix keys=/keys
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from aalnet.errors import ConfigError
from aalnet.yaml_io import apply_overrides, validate
from deploy.endpoint.settings import parse_endpoint_settings


class ServeArguments(BaseModel):
    """What stands under `args` of a Serve application."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: str
    model: str = ""
    checkpoint: str = ""
    keys: str = ""
    allow_anonymous: bool = False
    replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(256, ge=1)
    settings: str = Field("", description="as for aalnet serve --set, divided by commas")


def build(args: dict[str, str]) -> serve.Application:
    """The Serve application. Replicas follow a model's name each for itself.

    Raises:
        ConfigError: an argument is unknown or missing.
    """
    arguments = validate(ServeArguments, args)
    if bool(arguments.model) == bool(arguments.checkpoint):
        raise ConfigError("give either model=NAME or checkpoint=RUN")
    if not arguments.keys and not arguments.allow_anonymous:
        raise ConfigError("Serve listens to other machines: give keys=FILE or allow_anonymous=true")
    settings = parse_endpoint_settings(
        apply_overrides({}, [item for item in arguments.settings.split(",") if item])
    )

    def application() -> Any:  # in the replica: torch and the model stay out of the controller
        from cluster.storage.location import open_store
        from deploy.endpoint.app import Application
        from deploy.endpoint.follow import ModelSource
        from deploy.endpoint.security import Keys
        from deploy.endpoint.service import Service

        name, promoted = arguments.model or arguments.checkpoint, bool(arguments.model)
        source = ModelSource(open_store(arguments.storage), name, promoted=promoted)
        keys = Keys(Path(arguments.keys) if arguments.keys else None)
        return Application(Service(source, settings, keys))

    hosted = serve.deployment(
        name="endpoint",
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
    )(serve.ingress(application)())
    app: serve.Application = hosted.bind()
    return app
