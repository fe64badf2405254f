"""What a scrape address tells, read by a person's command instead of by Prometheus."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from aalnet.errors import AalnetError, UserError
from cluster.telemetry.catalogue import CATALOGUE

POLL_S = 2.0
GIVEN_UP_S = 10.0  # an address that is silent for so long is gone
LIMIT_BYTES = 2**24
ENDED = frozenset({"finished", "failed", "stopped"})
SUMS = {"images_per_s": ("aalnet_images_total", ""),
        "step_s": ("aalnet_step_seconds_sum", "aalnet_step_seconds_count"),
        "data_s": ("aalnet_data_wait_seconds_sum", "aalnet_data_wait_seconds_count")}  # fmt: skip

Sample = tuple[str, Mapping[str, str], float]


class AddressGone(AalnetError):
    """A scrape address stopped to answer before what it told of had ended."""


@dataclass(frozen=True)
class Look:
    """One scrape: the samples of a run or a campaign."""

    at_s: float
    samples: list[Sample]

    @property
    def state(self) -> str:
        """A run's, as `aalnet_run_state` has it."""
        states = (labels["state"] for name, labels, value in self.samples
                  if name == "aalnet_run_state" and value)  # fmt: skip
        return next(states, "starting")

    def total(self, name: str) -> float:
        """A metric's value, over all that it is told by."""
        return sum(value for found, _, value in self.samples if found == name)


def looks(kind: str, name: str, url: str) -> Iterator[Look]:
    """Scrapes of a `run` or a `campaign`, one every few seconds, until one says that a run ended.

    Raises:
        UserError: nobody answers there, or of others only.
        AddressGone: nobody answers any more.
    """
    address = url if url.endswith("/metrics") else f"{url.rstrip('/')}/metrics"
    before, heard_s = None, time.monotonic()
    while True:
        try:
            look = _look(kind, name, address)
        except (OSError, ValueError) as error:
            if before is None:
                raise UserError(
                    f"{address} cannot be read: {error}; is it the {kind}'s?"
                ) from error
            if time.monotonic() - heard_s > GIVEN_UP_S:
                told = f"{address} does not answer any more; the storage may know: aalnet {kind}s"
                raise AddressGone(f"{told} show {name}") from error
        else:
            heard_s = time.monotonic()
            yield Look(look.at_s, [*look.samples, *_paces(before, look)])
            before = look
            if look.state in ENDED:
                return
        time.sleep(POLL_S)


def samples_of(snapshot: Mapping[str, Any]) -> list[Sample]:
    """The values of a tally's snapshot with their labels by name, as a scrape would have them."""
    return [
        (name, dict(zip(CATALOGUE[name].labels, key, strict=True)), value)
        for name, key, value in snapshot["values"]
    ]


def _look(kind: str, name: str, address: str) -> Look:
    with urllib.request.urlopen(address, timeout=GIVEN_UP_S) as answer:
        text = answer.read(LIMIT_BYTES).decode()
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    ]
    found = {labels[kind] for _, labels, _ in samples if kind in labels}
    if name not in found:
        others = ", ".join(f"`{other}`" for other in sorted(found)) or f"no {kind}"
        raise UserError(f"{address} tells of {others}, not of `{name}`")
    return Look(time.monotonic(), [sample for sample in samples if sample[1].get(kind) == name])


def _paces(before: Look | None, now: Look) -> Iterator[Sample]:
    """Means since the scrape before, under the names they have in the log."""
    if before is None:
        return
    for name, (above, below) in SUMS.items():
        passed = now.total(above) - before.total(above)
        over = now.total(below) - before.total(below) if below else now.at_s - before.at_s
        if over > 0 and passed >= 0:
            yield name, {}, passed / over
