"""`python -m tests.proof.alerts [NAME...]`: makes every alert fire for real, and notes it.

Real runs, campaigns and endpoints are hurt on purpose; a real Prometheus with the committed rules
scrapes them. Only time runs faster: where the rules say a minute, `MINUTE_S` seconds are taken.
What Prometheus' /api/v1/alerts says goes into docs/runbook.md, one line an alert.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proof.hurt import SCENARIOS, Stage
from tests.support.prometheus_server import prometheus_server, rules

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
HEAD = "| alert | what was done | fires after | Prometheus says |\n|---|---|---|---|\n"
TABLE = re.compile(re.escape(HEAD) + r"((?:\|.*\n)*)")
LONGEST_S = 400.0


@dataclass(frozen=True)
class Seen:
    """An alert that fired."""

    alert: str
    done: str
    after_s: float
    told: dict[str, Any]  # as Prometheus gives it

    def line(self) -> str:
        """A line of the runbook's table."""
        labels = {key: value for key, value in self.told["labels"].items() if key != "alertname"}
        said = {
            "labels": labels, "value": self.told["value"], "activeAt": self.told["activeAt"][:19],
            "description": self.told["annotations"]["description"],
        }  # fmt: skip
        return f"| `{self.alert}` | {self.done} | {self.after_s:.0f} s | `{json.dumps(said)}` |"


def main() -> None:
    """Run the scenarios named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.alerts", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    asked = parser.parse_args()
    failed = False
    for name in asked.names or SCENARIOS:
        try:
            for seen in fire(name):
                print(seen.line(), flush=True)
                note(seen)
        except TimeoutError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    sys.exit(failed)


def fire(name: str) -> Iterator[Seen]:
    """Hurt something, and give the alerts as they fire."""
    scenario, minute_s = SCENARIOS[name]
    with tempfile.TemporaryDirectory(prefix="aalnet-alerts-") as folder:
        stage = Stage(Path(folder))
        stage.cache.mkdir()
        os.environ["AALNET_CACHE"] = str(stage.cache)
        watching = prometheus_server(stage.cache, 1.0, quicker(minute_s))
        with watching as url, contextlib.closing(scenario(stage, url)) as hurts:
            for alert, done in hurts:
                started_s = time.monotonic()
                told = await_alert(url, alert)
                yield Seen(alert, done, time.monotonic() - started_s, told)


def quicker(minute_s: int) -> dict[str, Any]:
    """The committed rules, a minute of theirs taken for so many seconds."""
    alerts = rules()
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        expr = re.sub(r"(\d+)([mhd])(?=[\]:])", lambda m: _seconds(m[1], m[2], minute_s),
                      rule["expr"])  # fmt: skip
        rule["expr"] = expr.replace("* 60", f"* {minute_s}")
        if "for" in rule:
            rule["for"] = _seconds(rule["for"][:-1], rule["for"][-1], minute_s)
    return alerts


def _seconds(count: str, unit: str, minute_s: int) -> str:
    return f"{int(count) * {'m': 1, 'h': 60, 'd': 24 * 60}[unit] * minute_s}s"


def await_alert(url: str, name: str) -> dict[str, Any]:
    """The alert as soon as it fires. Raises TimeoutError."""
    end_s = time.monotonic() + LONGEST_S
    while time.monotonic() < end_s:
        with urllib.request.urlopen(f"{url}/api/v1/alerts", timeout=30) as answer:
            for alert in json.load(answer)["data"]["alerts"]:
                if alert["labels"]["alertname"] == name and alert["state"] == "firing":
                    found: dict[str, Any] = alert
                    return found
        time.sleep(0.5)
    raise TimeoutError(f"{name} does not fire within {LONGEST_S:.0f} s")


def note(seen: Seen) -> None:
    """Put a line into the runbook's table, for the one that was there of this alert."""
    text = RUNBOOK.read_text(encoding="utf-8")
    found = TABLE.search(text)
    assert found, f"{RUNBOOK.name} has no table of alerts that fired"
    others = [line for line in found[1].splitlines() if f"`{seen.alert}`" not in line]
    lines = sorted([*others, seen.line()])
    table = HEAD + "".join(f"{line}\n" for line in lines)
    RUNBOOK.write_text(text.replace(found[0], table), encoding="utf-8")


if __name__ == "__main__":
    main()
