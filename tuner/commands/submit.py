"""`aalnet submit`, which also reads a campaign's file before it sends one."""

from __future__ import annotations

from cluster.commands.submit import READERS, app
from tuner.settings import load_campaign

__all__ = ["app"]

READERS["tune"] = load_campaign
