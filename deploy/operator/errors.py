"""What can go wrong between an operator and a cluster; docs/kubernetes.md has the exit codes."""

from __future__ import annotations

from aalnet.errors import AalnetError, UserError


class ManifestError(UserError):
    """Manifests, or what is asked of them, that cannot be right; nothing has been sent."""


class AccessError(UserError):
    """The cluster does not know who asks, or does not let them."""


class ClusterError(AalnetError):
    """The cluster cannot be reached, or refuses what is asked."""


class Missing(ClusterError):
    """Something is not in the cluster."""


class WatchExpired(ClusterError):
    """A watch began at a version that the cluster no longer has."""


class Changed(ClusterError):
    """Somebody else has changed an object since it was read."""


class TimedOut(AalnetError):
    """It was not done in the given time; it goes on in the cluster."""

    exit_code = 3


class Conflict(AalnetError):
    """Fields belong to another field manager; nothing has been changed."""

    exit_code = 4
