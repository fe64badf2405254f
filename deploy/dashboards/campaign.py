"""*Campaign*: is the search going on, what did it find, what does it cost?"""

from __future__ import annotations

from deploy.dashboards.frame import Item, assemble, label_variable, promotions
from deploy.dashboards.panels import BAD, GOOD, WATCH, Query, graph, number, row
from deploy.dashboards.queries import RATE, by

C = 'campaign="$campaign"'
ENDED = f'sum(max by (state) (aalnet_campaign_trials{{{C},state=~"complete|pruned|fail"}}))'
TARGET = f"max(aalnet_campaign_target_trials{{{C}}})"
NO_LIMIT = {"0": ("no limit", "text")}


def json_text() -> str:
    """The dashboard's JSON."""
    return assemble(
        "Campaign",
        "One campaign: its trials, the best value so far, and what it spent.",
        [*_now(), *_search(), *_cost()],
        variables=[label_variable("campaign", "aalnet_campaign_target_trials", "Campaign")],
        annotations=[promotions()],
        hours=24,
    )


def _trials(state: str) -> str:
    return f'max(aalnet_campaign_trials{{{C},state="{state}"}})'


def _now() -> list[Item]:
    spent = f"max(aalnet_campaign_spent_seconds{{{C}}})"
    quiet = f"time() - max(aalnet_campaign_last_progress_timestamp_seconds{{{C}}})"
    failed = f"{_trials('fail')} / ({ENDED} > 0) or {_trials('fail')}"
    return [
        row("Now"),
        number("Trials ended", "Complete, pruned or failed, of those asked for.",
               Query(ENDED, "ended"), Query(TARGET, "asked for"), decimals=0),
        number("Running", "Trials that train now.", Query(_trials("running")), decimals=0),
        number("Best value", "Of each objective that the campaign searches by; `aalnet campaigns "
               "best NAME` writes its settings.",
               Query(by("max", "objective", f"aalnet_campaign_best_value{{{C}}}"),
                     "{{objective}}"), decimals=4),
        number("Pruned", "Share of the ended trials that were stopped early. Near 0 the rungs are "
               "too lax, above 80 % nearly nothing is seen to its end.",
               Query(f"max(aalnet_campaign_pruned_ratio{{{C}}})"), unit="percentunit", decimals=0,
               limits=[(0, GOOD), (0.8, WATCH)]),
        number("Failed", "Share of the ended trials that failed: NaN, crash, no room. The "
               "campaign's report names the reasons.",
               Query(failed), unit="percentunit", decimals=0,
               limits=[(0, GOOD), (0.1, WATCH), (0.5, BAD)]),
        number("Silent for", "Since a trial last began, reported or ended. Long silence: the "
               "cluster has no room, or the driver is dead.",
               Query(quiet), unit="s", decimals=0, limits=[(0, GOOD), (900, WATCH), (1800, BAD)]),
        number("Time spent", "Over all starts of the campaign.", Query(spent), unit="s",
               decimals=0),
        number("Time limit", "What the campaign may take in all.",
               Query(f"max(aalnet_campaign_budget_seconds{{{C}}}) or on() vector(0)"), unit="s",
               decimals=0, texts=NO_LIMIT),
        number("Time left", "At the campaign's pace so far: time spent per trial ended, times "
               "those that are left.",
               Query(f"{spent} / ({ENDED} > 0) * ({TARGET} - {ENDED})"), unit="s", decimals=0),
        number("GPU hours", "Of GPUs held by trials.",
               Query(f"max(aalnet_campaign_gpu_seconds_total{{{C}}}) / 3600"), decimals=1),
        number("Images", "Trained on by all trials.",
               Query(f"max(aalnet_campaign_images_total{{{C}}})"), decimals=1),
        number("Suggestion", "Mean time that the sampler took for one trial's settings.",
               Query(f"sum(aalnet_campaign_suggestion_seconds_sum{{{C}}}) "
                     f"/ (sum(aalnet_campaign_suggestion_seconds_count{{{C}}}) > 0)"), unit="s",
               limits=[(0, GOOD), (1, WATCH), (10, BAD)]),
    ]  # fmt: skip


def _search() -> list[Item]:
    return [
        row("Search"),
        graph("Trials by state", "Stacked. `pruned` are stopped early by the rungs, `fail` are "
              "NaN and crashes.",
              Query(by("max", "state", f"aalnet_campaign_trials{{{C}}}"), "{{state}}"),
              stacked=True, span=12),
        graph("Best value so far", "Steps where a trial beat all before it. Flat for long: the "
              "search has found what it will find.",
              Query(by("max", "objective", f"aalnet_campaign_best_value{{{C}}}"),
                    "{{objective}}"), log_scale=True, span=12),
        graph("Pruned and failed", "Shares of the ended trials.",
              Query(f"max(aalnet_campaign_pruned_ratio{{{C}}})", "pruned"),
              Query(f"{_trials('fail')} / ({ENDED} > 0) or {_trials('fail')}", "failed"),
              unit="percentunit"),
        graph("Suggestions", "Settings suggested per second.",
              Query(f"sum(rate(aalnet_campaign_suggestion_seconds_count{{{C}}}{RATE}))",
                    "suggestions/s"), unit="ops"),
        graph("Suggestion time", "Mean over the campaign. It grows with the number of trials; "
              "beyond seconds, take a sampler that looks at fewer.",
              Query(f"sum(aalnet_campaign_suggestion_seconds_sum{{{C}}}) "
                    f"/ (sum(aalnet_campaign_suggestion_seconds_count{{{C}}}) > 0)", "mean"),
              unit="s"),
    ]  # fmt: skip


def _cost() -> list[Item]:
    return [
        row("Cost"),
        graph("Time", "Spent over all starts, and the limit (0 stands for none).",
              Query(f"max(aalnet_campaign_spent_seconds{{{C}}})", "spent"),
              Query(f"max(aalnet_campaign_budget_seconds{{{C}}}) or on() vector(0)", "limit"),
              unit="s"),
        graph("Images per second", "Trained on by all trials together.",
              Query(f"sum(rate(aalnet_campaign_images_total{{{C}}}{RATE}))", "images/s")),
        graph("GPUs held", "By trials, on average; 0 on CPU.",
              Query(f"sum(rate(aalnet_campaign_gpu_seconds_total{{{C}}}{RATE}))", "GPUs")),
    ]  # fmt: skip
