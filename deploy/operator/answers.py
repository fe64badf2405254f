"""A Status, what the API server says when it says no, made into an error with the next move."""

from __future__ import annotations

import json
import re
from typing import Any

from aalnet.errors import AalnetError
from deploy.operator.errors import (
    AccessError,
    Changed,
    ClusterError,
    Conflict,
    ManifestError,
    Missing,
    WatchExpired,
)

LONGEST = 600  # characters of a server's own words
UNTYPED = "failed to create typed patch object"  # of a field that no schema has, with code 500
OWNER = re.compile(r'conflict with "(?P<manager>[^"]*)"')


def of_status(code: int, status: dict[str, Any], what: str) -> AalnetError:
    """The error for a Status; `what` says what was asked, as `apply RayJob/x`."""
    told = " ".join(str(status.get("message") or f"answer {code}").split())[:LONGEST]
    if code == 401:
        return AccessError(
            f"{what}: the cluster does not accept these credentials; log in again (on EKS: `aws "
            "eks update-kubeconfig`), or check --context"
        )
    if code == 403 and "cannot" in told:  # RBAC; a quota or an admission speaks otherwise
        return AccessError(
            f"{what}: {told}; ask the cluster's administrator for the Role aalnet-operator "
            "(docs/kubernetes.md)"
        )
    if code == 404:
        return Missing(f"{what}: {told}")
    if code == 410:
        return WatchExpired(f"{what}: {told}")
    if code == 409:
        owned = conflicts(status)
        return Conflict(f"{what}: {'; '.join(owned)}") if owned else Changed(f"{what}: {told}")
    if code in (400, 422) or UNTYPED in told:
        return ManifestError(f"{what}: the cluster refuses it: {told}")
    return ClusterError(f"{what}: {told}")


def conflicts(status: dict[str, Any]) -> list[str]:
    """`.spec.x is helm's` for every field that another manager owns."""
    causes = (status.get("details") or {}).get("causes") or []
    found = []
    for cause in causes:
        if cause.get("reason") == "FieldManagerConflict":
            message = str(cause.get("message", ""))
            owner = OWNER.search(message)
            found.append(f"{cause.get('field', '?')} is {owner['manager'] if owner else message}'s")
    return found


def retry_after_s(status: dict[str, Any], header: str | None) -> float | None:
    """How long the server wants to be left alone, if it says so."""
    told = header or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(told)) if told is not None else None
    except ValueError:  # a date: the usual pauses will do
        return None


def read_status(body: bytes) -> dict[str, Any]:
    """A Status; of an answer that is none (a proxy's page, say) its text."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"message": body[:LONGEST].decode("utf-8", "replace")}
