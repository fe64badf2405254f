"""`aalnet submit`, which also reads a campaign's file before it sends one."""

from __future__ import annotations

from cluster.commands.submit import submit_app
from tuner.settings import load_campaign

app = submit_app({"tune": load_campaign})
