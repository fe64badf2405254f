"""*Campaign*: is the search going on, what did it find, what does it cost?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards.frame import Item, assemble, label_variable, promotions
from deploy.dashboards.panels import BAD, GOOD, WATCH, Query, graph, stat
from deploy.dashboards.queries import max_of, rate_of

C = 'campaign="$campaign"'
ENDED = f'sum(max by (state) (aalnet_campaign_trials{{{C},state=~"complete|pruned|fail"}}))'
TARGET = f"max(aalnet_campaign_target_trials{{{C}}})"
NO_LIMIT = {"0": ("no limit", "text")}


def _trials(state: str) -> str:
    return f'max(aalnet_campaign_trials{{{C},state="{state}"}})'


SPENT = max_of("aalnet_campaign_spent_seconds", C)
FAILED = f"{_trials('fail')} / ({ENDED} > 0) or {_trials('fail')}"
SUGGESTION = (
    f"sum(aalnet_campaign_suggestion_seconds_sum{{{C}}}) "
    f"/ (sum(aalnet_campaign_suggestion_seconds_count{{{C}}}) > 0)"
)
LIMIT = f"{max_of('aalnet_campaign_budget_seconds', C)} or on() vector(0)"

PANELS: list[Item] = [
    Row("Now"),
    stat("Trials ended", "Complete, pruned or failed, of those asked for.", Query(ENDED, "ended"),
         Query(TARGET, "asked for"), decimals=0),
    stat("Running", "Trials that train now.", _trials("running"), decimals=0),
    stat("Best value", "Of each objective that the campaign searches by; `aalnet campaigns best "
         "NAME` writes its settings.",
         Query(max_of("aalnet_campaign_best_value", C, "objective"), "{{objective}}"), decimals=4),
    stat("Pruned", "Share of the ended trials that were stopped early. Near 0 the rungs are too "
         "lax, above 80 % nearly nothing is seen to its end.",
         max_of("aalnet_campaign_pruned_ratio", C), unit="percentunit", decimals=0,
         limits=[(0, GOOD), (0.8, WATCH)]),
    stat("Failed", "Share of the ended trials that failed: NaN, crash, no room. The campaign's "
         "report names the reasons.", FAILED, unit="percentunit", decimals=0,
         limits=[(0, GOOD), (0.1, WATCH), (0.5, BAD)]),
    stat("Silent for", "Since a trial last began, reported or ended. Long silence: the cluster "
         "has no room, or the driver is dead.",
         f"time() - max(aalnet_campaign_last_progress_timestamp_seconds{{{C}}})", unit="s",
         decimals=0, limits=[(0, GOOD), (900, WATCH), (1800, BAD)]),
    stat("Time spent", "Over all starts of the campaign.", SPENT, unit="s", decimals=0),
    stat("Time limit", "What the campaign may take in all.", LIMIT, unit="s", decimals=0,
         texts=NO_LIMIT),
    stat("Time left", "At the campaign's pace so far: time spent per trial ended, times those "
         "that are left.", f"{SPENT} / ({ENDED} > 0) * ({TARGET} - {ENDED})", unit="s", decimals=0),
    stat("GPU hours", "Of GPUs held by trials.",
         f"max(aalnet_campaign_gpu_seconds_total{{{C}}}) / 3600", decimals=1),
    stat("Images", "Trained on by all trials.", max_of("aalnet_campaign_images_total", C),
         decimals=1),
    stat("Suggestion", "Mean time that the sampler took for one trial's settings.", SUGGESTION,
         unit="s", limits=[(0, GOOD), (1, WATCH), (10, BAD)]),
    Row("Search"),
    graph("Trials by state", "Stacked. `pruned` are stopped early by the rungs, `fail` are NaN "
          "and crashes.", Query(max_of("aalnet_campaign_trials", C, "state"), "{{state}}"),
          stacked=True, span=12),
    graph("Best value so far", "Steps where a trial beat all before it. Flat for long: the search "
          "has found what it will find.",
          Query(max_of("aalnet_campaign_best_value", C, "objective"), "{{objective}}"),
          log_scale=True, span=12),
    graph("Pruned and failed", "Shares of the ended trials.",
          Query(max_of("aalnet_campaign_pruned_ratio", C), "pruned"), Query(FAILED, "failed"),
          unit="percentunit"),
    graph("Suggestions", "Settings suggested per second.",
          Query(rate_of("aalnet_campaign_suggestion_seconds_count", C), "suggestions/s"),
          unit="ops"),
    graph("Suggestion time", "Mean over the campaign. It grows with the number of trials; beyond "
          "seconds, take a sampler that looks at fewer.", Query(SUGGESTION, "mean"), unit="s"),
    Row("Cost"),
    graph("Time", "Spent over all starts, and the limit (0 stands for none).",
          Query(SPENT, "spent"), Query(LIMIT, "limit"), unit="s"),
    graph("Images per second", "Trained on by all trials together.",
          Query(rate_of("aalnet_campaign_images_total", C), "images/s")),
    graph("GPUs held", "By trials, on average; 0 on CPU.",
          Query(rate_of("aalnet_campaign_gpu_seconds_total", C), "GPUs")),
]  # fmt: skip

BOARD = assemble(
    "Campaign",
    "One campaign: its trials, the best value so far, and what it spent.",
    PANELS,
    variables=[label_variable("campaign", "aalnet_campaign_target_trials", "Campaign")],
    annotations=[promotions()],
    hours=24,
)
