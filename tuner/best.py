"""The winner: which trial it is, and settings that make it again."""

from __future__ import annotations

from typing import Any

import yaml

from aalnet.errors import CheckpointError
from cluster.runs.run import latest
from tuner.campaign import Campaign
from tuner.settings import CampaignSettings
from tuner.status import CampaignStatus, TrialRow, by_mean


def choose(
    status: CampaignStatus, settings: CampaignSettings, number: int | None = None
) -> TrialRow:
    """The complete trial of that number; by default the winner.

    The winner is the best by the mean over seeds where trials were repeated. Of several objectives
    it is the best by the first; which of a front it should be, its owner says.

    Raises:
        CheckpointError: no trial is complete, or not the one of that number.
    """
    best = by_mean(status.rows, settings)
    if number is None and not best:
        raise CheckpointError(
            f"campaign `{status.campaign}` has no complete trial yet; see `aalnet campaigns show "
            f"{status.campaign}`"
        )
    if number is None:
        return best[0]
    complete = {row.number: row for row in best}
    if number not in complete:
        numbers = ", ".join(map(str, sorted(complete))) or "none yet"
        raise CheckpointError(
            f"trial {number} of campaign `{status.campaign}` is not a complete one; those are: "
            f"{numbers}"
        )
    return complete[number]


def best_settings(campaign: Campaign, settings: CampaignSettings, row: TrialRow) -> dict[str, Any]:
    """Run settings that give a trial's figures again, to the bit on a machine of the same kind."""
    plain = settings.run_settings(row.params).to_dict()
    start = latest(campaign.run(row.number).records(), "start")
    if start is not None:
        plain["run"]["threads"] = start["threads"]  # sums round by how they are split
    return plain


def best_yaml(campaign: Campaign, settings: CampaignSettings, row: TrialRow) -> str:
    """A settings file with a trial's settings, and what it reached."""
    figures = ", ".join(
        f"{objective.figure} {value:.6g}"
        for objective, value in zip(settings.objectives, row.values, strict=True)
    )
    mean = f"; mean of {len(row.repeats) + 1} seeds {row.mean:.6g}" if row.repeats else ""
    head = (
        f"# Trial {row.number} of campaign {campaign.name}: {figures}{mean}.\n"
        "# Again: aalnet train best.yaml\n"
        f"# Into use: aalnet promote {row.run} --model NAME\n"
    )
    return head + yaml.safe_dump(best_settings(campaign, settings, row), sort_keys=False)


def best_facts(campaign: Campaign, settings: CampaignSettings, row: TrialRow) -> dict[str, Any]:
    """A trial for a script to read."""
    names = [objective.figure for objective in settings.objectives]
    return {
        "trial": row.number,
        "run": row.run,
        "values": dict(zip(names, row.values, strict=True)),
        "repeats": list(row.repeats.values()),
        "mean": row.mean,
        "params": row.params,
        "settings": best_settings(campaign, settings, row),
    }
