"""Overlays as `aalnet deploy` sends them: rendered once, then edited by its options."""

from __future__ import annotations

from typing import Any

from deploy.operator.edits import edit_manifests
from deploy.operator.objects import Component, Object
from deploy.operator.options import DeployOptions
from tests.support.kubernetes_objects import render

IMAGE = "registry.example:5000/team/aalnet:0.1.0-cuda"
FILLED: dict[str, Any] = {"image": IMAGE, "storage": "s3://bucket/prefix"}


def edit(overlay: str, component: Component, **options: Any) -> list[Object]:
    """The objects of an overlay's component, with these options of `aalnet deploy`."""
    objects = render(f"overlays/{overlay}/{component}")
    return edit_manifests(objects, component, DeployOptions(**options))
