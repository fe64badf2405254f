"""*Cluster overview*: every run, campaign and alert on one page."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards.frame import Item, assemble, promotions, restarts
from deploy.dashboards.panels import BAD, GOOD, PLAIN, WATCH, Column, Query, graph, stat, table
from deploy.dashboards.queries import (
    ACCURACY_LIMITS,
    GOODPUT_LIMITS,
    STATES,
    by,
    gpu_busy,
    max_of,
    or_called,
    quantile,
    rate_of,
    state_number,
)

ENERGY = 'figure="energy_score"'
ENERGY_RATIO = (
    f"{max_of('aalnet_evaluation_figure', ENERGY, 'run')} "
    f"/ {max_of('aalnet_evaluation_floor', ENERGY, 'run')}"
)
NOT_SCRAPED = "not scraped"
RAY = "Ray's own metric, by its node agents; `not scraped` where Prometheus does not ask them."


def _last(metric: str, label: str = "run") -> str:
    """The last value in the time that is looked at, of finished ones too."""
    return by("max", label, f"last_over_time({metric}[$__range])")


FIRING = by("count", "alertname", 'ALERTS{alertname=~"AALNet.*",alertstate="firing"}')
ENDED = 'aalnet_campaign_trials{state=~"complete|pruned|fail"}'
FAILED = _last('aalnet_campaign_trials{state="fail"}', "campaign")
USED, TOTAL = (
    f'sum by (run) (max by (run, worker) (aalnet_gpu_memory_bytes{{kind="{kind}"}}))'
    for kind in ("used", "total")
)
RESTARTS = "max by (run, cause) (aalnet_restarts_total) > 0 or max by (run) (0 * aalnet_run_info)"
NODE = "instance"
MEMORY = f"{by('max', NODE, 'ray_node_mem_used')} / {by('max', NODE, 'ray_node_mem_total')}"
NODES = "count(max by (instance) (ray_node_cpu_count))"
CPU = f"{by('max', NODE, 'ray_node_cpu_utilization')} / 100"
DISK = f"{by('max', NODE, 'ray_node_disk_utilization_percentage')} / 100"
LATENCY = ("aalnet_endpoint_seconds", 'part="total"')
SAMPLES = 'route="/v1/samples"'

RUN_COLUMNS = [
    Column("State", state_number("", "run", "$__range"), texts=STATES),
    Column("Progress", f"{_last('aalnet_run_images')} / "
           f"{_last('aalnet_run_target_images')}", "percentunit"),
    Column("Images/s", rate_of("aalnet_images_total", labels="run")),
    Column("Workers", _last("aalnet_workers")),
    Column("Wanted", _last("aalnet_workers_wanted")),
    Column("Goodput", _last("aalnet_goodput_ratio"), "percentunit", GOODPUT_LIMITS),
    Column("Energy score / floor",
           f"{_last(f'aalnet_evaluation_figure{{{ENERGY}}}')} / "
           f"{_last(f'aalnet_evaluation_floor{{{ENERGY}}}')}",
           limits=[(0, GOOD), (0.9, WATCH), (1, BAD)]),
    Column("Diversity", _last('aalnet_evaluation_figure{figure="diversity"}')),
    Column("D is right", _last('aalnet_discriminator_accuracy_ratio{on="pairs"}'),
           "percentunit", ACCURACY_LIMITS),
    Column("Checkpoint age",
           "time() - max by (run) (aalnet_checkpoint_timestamp_seconds)", "s",
           [(0, GOOD), (3600, WATCH), (7200, BAD)]),
    Column("Restarts", by("sum", "run", _last("aalnet_restarts_total", "run, cause"))),
]  # fmt: skip
CAMPAIGN_COLUMNS = [
    Column("Ended", by("sum", "campaign", _last(ENDED, "campaign, state"))),
    Column("Asked for", _last("aalnet_campaign_target_trials", "campaign")),
    Column("Best value", _last("aalnet_campaign_best_value", "campaign")),
    Column("Pruned", _last("aalnet_campaign_pruned_ratio", "campaign"), "percentunit"),
    Column("Failed", FAILED, limits=[(0, GOOD), (1, WATCH)]),
    Column("Time spent", _last("aalnet_campaign_spent_seconds", "campaign"), "s"),
]  # fmt: skip
PANELS: list[Item] = [
    Row("Now"),
    stat("Runs", "That start, run or recover.", "count(max by (run) "
         '(aalnet_run_state{state=~"starting|running|recovering"}) == 1) or vector(0)', decimals=0),
    stat("Workers", "Of all runs: there now, and wanted.",
         Query("sum(max by (run) (aalnet_workers)) or vector(0)", "now"),
         Query("sum(max by (run) (aalnet_workers_wanted)) or vector(0)", "wanted"), decimals=0),
    stat("Images per second", "Trained on by all runs together.",
         f"{rate_of('aalnet_images_total')} or vector(0)", decimals=1),
    stat("Campaigns", "That have trials waiting or running.", "count(sum by (campaign) "
         '(aalnet_campaign_trials{state=~"waiting|running"}) > 0) or vector(0)', decimals=0),
    stat("Requests", "Answered by the endpoint per second.",
         f"{rate_of('aalnet_endpoint_requests_total', SAMPLES)} or vector(0)", unit="reqps",
         decimals=1),
    stat("Alerts", "Ours that fire now; the runbook says what to do.",
         Query(or_called(FIRING, "alertname", "none fires"), "{{alertname}}"), decimals=0,
         limits=[(0, GOOD), (1, BAD)]),
    Row("Runs and campaigns"),
    table("Runs", "Every run in the time that is looked at, finished ones too; a name leads to "
          "its dashboard.", "run", RUN_COLUMNS,
          "/d/aalnet-training-run?var-run=${__value.text}&${__url_time_range}"),
    table("Campaigns", "Every campaign in the time that is looked at; a name leads to its "
          "dashboard.", "campaign", CAMPAIGN_COLUMNS,
          "/d/aalnet-campaign?var-campaign=${__value.text}&${__url_time_range}", height=6),
    Row("Training"),
    graph("Images per second", "By run, stacked.",
          Query(rate_of("aalnet_images_total", labels="run"), "{{run}}"), stacked=True),
    graph("Energy score / floor", "By run, at its last evaluation. Below 1 (dashed) a model is "
          "worth something; lower is better.", Query(ENERGY_RATIO, "{{run}}"),
          limits=[(0, GOOD), (1, BAD)]),
    graph("D is right", "Share of sample-target pairs that D tells apart, by run: above the "
          "dashed line D has won.",
          Query(by("max", "run", 'aalnet_discriminator_accuracy_ratio{on="pairs"}'), "{{run}}"),
          unit="percentunit", limits=ACCURACY_LIMITS),
    graph("Missing workers", "Wanted but not there, by run.",
          Query("max by (run) (aalnet_workers_wanted) - max by (run) (aalnet_workers)", "{{run}}"),
          stacked=True),
    graph("Goodput", "By run, over all its starts.",
          Query(by("max", "run", "aalnet_goodput_ratio"), "{{run}}"), unit="percentunit",
          limits=GOODPUT_LIMITS),
    graph("Restarts", "By run and cause, over all of each run. Many runs at once: a node or the "
          "storage.", Query(RESTARTS, "{{run}} {{cause}}"), stacked=True),
    Row("Machines"),
    graph("GPU busy", "Mean over each run's workers; what is paid for and idle is below 50 %. `no "
          "GPU` where every run is on CPU.", Query(gpu_busy("", "run"), "{{run}}"),
          unit="percentunit", limits=[(0, BAD), (0.5, WATCH), (0.8, GOOD)]),
    graph("GPU memory", "Used of each run's GPUs. `no GPU` where every run is on CPU.",
          Query(or_called(f"{USED} / {TOTAL}", "run", "no GPU"), "{{run}}"), unit="percentunit"),
    graph("Nodes", f"Nodes that report. {RAY}",
          Query(or_called(NODES, NODE, NOT_SCRAPED), "nodes {{instance}}")),
    graph("Node CPU", f"By node. {RAY}", Query(or_called(CPU, NODE, NOT_SCRAPED), "{{instance}}"),
          unit="percentunit"),
    graph("Node memory", f"Used share by node; near 100 % the kernel kills workers. {RAY}",
          Query(or_called(MEMORY, NODE, NOT_SCRAPED), "{{instance}}"), unit="percentunit",
          limits=[(0, PLAIN), (0.9, BAD)]),
    graph("Node disk", f"Used share by node. {RAY}",
          Query(or_called(DISK, NODE, NOT_SCRAPED), "{{instance}}"), unit="percentunit",
          limits=[(0, PLAIN), (0.9, BAD)]),
    Row("Serving"),
    graph("Requests by code", "POST /v1/samples per second, all instances.",
          Query(rate_of("aalnet_endpoint_requests_total", SAMPLES, "code"), "{{code}}"),
          unit="reqps", stacked=True, span=12),
    graph("Latency", "All instances; dashed: the objective.", Query(quantile(0.5, *LATENCY), "p50"),
          Query(quantile(0.99, *LATENCY), "p99"), unit="s", limits=[(0, GOOD), (1.0, BAD)],
          span=12),
]  # fmt: skip

BOARD = assemble(
    "Cluster overview",
    "What trains, what searches, what answers, and what is wrong.",
    PANELS,
    annotations=[restarts(""), promotions()],
)
