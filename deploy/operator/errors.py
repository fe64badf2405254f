"""What can go wrong between an operator and a cluster; docs/kubernetes.md has the exit codes."""

from __future__ import annotations

import json
import re
from typing import Any

from kubernetes.client import ApiException

from aalnet.errors import AalnetError, UserError

RETRIED_CODES = frozenset({429, 500, 502, 503, 504})  # answers that may be better the next time
MAX_MESSAGE_CHARS = 600
UNTYPED = "failed to create typed patch object"  # of a field that no schema has, with code 500
OTHER_MANAGER = re.compile(r'conflict with "(?P<manager>[^"]*)"')


class ManifestError(UserError):
    """Manifests, or options for them, that cannot be right; nothing has been sent."""


class AccessError(UserError):
    """The cluster does not know who asks, or does not let them."""


class KubernetesError(AalnetError):
    """The cluster cannot be reached, or refuses a request."""


class Unreachable(KubernetesError):
    """No answer after all retries, or none but `later`."""


class NotFound(KubernetesError):
    """The cluster has no such object, or no such kind."""


class ObjectChanged(KubernetesError):
    """Somebody else has changed an object since it was read."""


class TimedOut(AalnetError):
    """It was not done in time; it goes on in the cluster."""

    exit_code = 3


class FieldConflict(AalnetError):
    """Fields belong to another field manager; nothing has been changed."""

    exit_code = 4


def refusal(error: ApiException, request: str, missing_kind: str) -> AalnetError:
    """The error with its next move for what the server answered.

    request: what was asked, as `apply RayJob/x`. missing_kind: the message where the server does
    not know the kind at all.
    """
    status, code = _status(error), error.status
    message = " ".join(str(status.get("message") or f"answer {code}").split())[:MAX_MESSAGE_CHARS]
    if code == 401:
        return AccessError(
            f"{request}: the cluster does not accept these credentials; log in again (on EKS: `aws "
            "eks update-kubeconfig`), or check --context"
        )
    if code == 403 and "cannot" in message:  # RBAC; a quota or an admission speaks otherwise
        return AccessError(
            f"{request}: {message}; ask the cluster's administrator for the Role aalnet-operator "
            "(docs/kubernetes.md)"
        )
    if code == 404:  # of an object, its Status names it; of a kind, there is a bare page
        named = "name" in (status.get("details") or {})
        return NotFound(f"{request}: {message}" if named else missing_kind)
    if code == 409:
        fields = _foreign_fields(status)
        if fields:
            return FieldConflict(f"{request}: {'; '.join(fields)}")
        return ObjectChanged(f"{request}: {message}")
    if code in (400, 422) or UNTYPED in message:
        return ManifestError(f"{request}: the cluster refuses it: {message}")
    if code in RETRIED_CODES:
        return Unreachable(f"{request}: {message}; try again later")
    return KubernetesError(f"{request}: {message}")


def _status(error: ApiException) -> dict[str, Any]:
    """A Status; of an answer that is none (a proxy's page, say) its text."""
    try:
        status = json.loads(error.body or "")
    except ValueError:
        status = None
    return status if isinstance(status, dict) else {"message": str(error.body or error.reason)}


def _foreign_fields(status: dict[str, Any]) -> list[str]:
    """`.spec.x is helm's` for every field that another manager owns."""
    fields = []
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "FieldManagerConflict":
            message = str(cause.get("message", ""))
            owner = OTHER_MANAGER.search(message)
            manager = owner["manager"] if owner else message
            fields.append(f"{cause.get('field', '?')} is {manager}'s")
    return fields
