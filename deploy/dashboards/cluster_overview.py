"""*Cluster overview*: every run, campaign and alert on one page."""

from __future__ import annotations

from deploy.dashboards.frame import Item, assemble, promotions, restarts
from deploy.dashboards.panels import (
    BAD,
    GOOD,
    PLAIN,
    WATCH,
    Column,
    Query,
    graph,
    number,
    row,
    rows,
)
from deploy.dashboards.queries import (
    RATE,
    STATES,
    accuracy_limits,
    by,
    goodput_limits,
    gpu_busy,
    or_called,
    quantile,
    state_number,
)

KID = 'figure=~"kid_.*"'
KID_RATIO = (
    f"max by (run) (aalnet_evaluation_figure{{{KID}}}) "
    f"/ max by (run) (aalnet_evaluation_floor{{{KID}}})"
)
NOT_SCRAPED = "not scraped"
RAY = "Ray's own metric, by its node agents; `not scraped` where Prometheus does not ask them."


def json_text() -> str:
    """The dashboard's JSON."""
    return assemble(
        "Cluster overview",
        "What trains, what searches, what answers, and what is wrong.",
        [*_now(), *_tables(), *_runs(), *_machines(), *_serving()],
        annotations=[restarts(""), promotions()],
    )


def _last(metric: str, label: str = "run") -> str:
    """The last value in the time that is looked at, of finished ones too."""
    return by("max", label, f"last_over_time({metric}[$__range])")


def _now() -> list[Item]:
    firing = by("count", "alertname", 'ALERTS{alertname=~"AALNet.*",alertstate="firing"}')
    return [
        row("Now"),
        number("Runs", "That start, run or recover.",
               Query('count(max by (run) (aalnet_run_state{state=~"starting|running|recovering"})'
                     " == 1) or vector(0)"), decimals=0),
        number("Workers", "Of all runs: there now, and wanted.",
               Query("sum(max by (run) (aalnet_workers)) or vector(0)", "now"),
               Query("sum(max by (run) (aalnet_workers_wanted)) or vector(0)", "wanted"),
               decimals=0),
        number("Images per second", "Trained on by all runs together.",
               Query(f"sum(rate(aalnet_images_total{RATE})) or vector(0)"), decimals=1),
        number("Campaigns", "That have trials waiting or running.",
               Query('count(sum by (campaign) (aalnet_campaign_trials{state=~"waiting|running"})'
                     " > 0) or vector(0)"), decimals=0),
        number("Requests", "Answered by the endpoint per second.",
               Query('sum(rate(aalnet_endpoint_requests_total{route="/v1/samples"}'
                     f"{RATE})) or vector(0)"), unit="reqps", decimals=1),
        number("Alerts", "Ours that fire now; the runbook says what to do.",
               Query(or_called(firing, "alertname", "none fires"), "{{alertname}}"), decimals=0,
               limits=[(0, GOOD), (1, BAD)]),
    ]  # fmt: skip


def _tables() -> list[Item]:
    ended = 'aalnet_campaign_trials{state=~"complete|pruned|fail"}'
    failed = _last('aalnet_campaign_trials{state="fail"}', "campaign")
    return [
        row("Runs and campaigns"),
        rows("Runs", "Every run in the time that is looked at, finished ones too; a name leads "
             "to its dashboard.", "run", [
            Column("State", state_number("", "run", "$__range"), texts=STATES),
            Column("Progress", f"{_last('aalnet_run_images')} / "
                   f"{_last('aalnet_run_target_images')}", "percentunit"),
            Column("Images/s", by("sum", "run", f"rate(aalnet_images_total{RATE})")),
            Column("Workers", _last("aalnet_workers")),
            Column("Wanted", _last("aalnet_workers_wanted")),
            Column("Goodput", _last("aalnet_goodput_ratio"), "percentunit", goodput_limits()),
            Column("Kernel distance / floor",
                   f"{_last(f'aalnet_evaluation_figure{{{KID}}}')} / "
                   f"{_last(f'aalnet_evaluation_floor{{{KID}}}')}",
                   limits=[(0, GOOD), (0.8, WATCH), (1, BAD)]),
            Column("Diversity", _last('aalnet_evaluation_figure{figure="diversity"}')),
            Column("D is right", _last('aalnet_discriminator_accuracy_ratio{on="pairs"}'),
                   "percentunit", accuracy_limits()),
            Column("Checkpoint age",
                   "time() - max by (run) (aalnet_checkpoint_timestamp_seconds)", "s",
                   [(0, GOOD), (3600, WATCH), (7200, BAD)]),
            Column("Restarts", by("sum", "run", _last("aalnet_restarts_total", "run, cause"))),
        ], ("/d/aalnet-training-run?var-run=${__value.text}&${__url_time_range}", "Its dashboard")),
        rows("Campaigns", "Every campaign in the time that is looked at; a name leads to its "
             "dashboard.", "campaign", [
            Column("Ended", by("sum", "campaign", _last(ended, "campaign, state"))),
            Column("Asked for", _last("aalnet_campaign_target_trials", "campaign")),
            Column("Best value", _last("aalnet_campaign_best_value", "campaign")),
            Column("Pruned", _last("aalnet_campaign_pruned_ratio", "campaign"), "percentunit"),
            Column("Failed", failed, limits=[(0, GOOD), (1, WATCH)]),
            Column("Time spent", _last("aalnet_campaign_spent_seconds", "campaign"), "s"),
        ], ("/d/aalnet-campaign?var-campaign=${__value.text}&${__url_time_range}", "Its dashboard"),
             height=6),
    ]  # fmt: skip


def _runs() -> list[Item]:
    return [
        row("Training"),
        graph("Images per second", "By run, stacked.",
              Query(by("sum", "run", f"rate(aalnet_images_total{RATE})"), "{{run}}"),
              stacked=True),
        graph("Kernel distance / floor", "By run, at its last evaluation. Below 1 (dashed) a model "
              "is worth something; lower is better.",
              Query(KID_RATIO, "{{run}}"), limits=[(0, GOOD), (1, BAD)]),
        graph("D is right", "Share of sample-target pairs that D tells apart, by run: above the "
              "dashed line D has won.",
              Query(by("max", "run", 'aalnet_discriminator_accuracy_ratio{on="pairs"}'),
                    "{{run}}"), unit="percentunit", limits=accuracy_limits()),
        graph("Missing workers", "Wanted but not there, by run.",
              Query("max by (run) (aalnet_workers_wanted) - max by (run) (aalnet_workers)",
                    "{{run}}"), stacked=True),
        graph("Goodput", "By run, over all its starts.",
              Query(by("max", "run", "aalnet_goodput_ratio"), "{{run}}"), unit="percentunit",
              limits=goodput_limits()),
        graph("Restarts", "By run and cause, over all of each run. Many runs at once: a node or "
              "the storage.",
              Query(by("max", "run, cause", "aalnet_restarts_total") + " > 0"
                    " or max by (run) (0 * aalnet_run_info)", "{{run}} {{cause}}"),
              stacked=True),
    ]  # fmt: skip


def _machines() -> list[Item]:
    used, total = (
        f'sum by (run) (max by (run, worker) (aalnet_gpu_memory_bytes{{kind="{kind}"}}))'
        for kind in ("used", "total")
    )
    node = "instance"
    memory = f"{by('max', node, 'ray_node_mem_used')} / {by('max', node, 'ray_node_mem_total')}"
    cpu = f"{by('max', node, 'ray_node_cpu_utilization')} / 100"
    disk = "max by (instance) (ray_node_disk_utilization_percentage) / 100"
    return [
        row("Machines"),
        graph("GPU busy", "Mean over each run's workers; what is paid for and idle is below 50 %. "
              "`no GPU` where every run is on CPU.",
              Query(gpu_busy("", "run"), "{{run}}"), unit="percentunit",
              limits=[(0, BAD), (0.5, WATCH), (0.8, GOOD)]),
        graph("GPU memory", "Used of each run's GPUs. `no GPU` where every run is on CPU.",
              Query(or_called(f"{used} / {total}", "run", "no GPU"), "{{run}}"),
              unit="percentunit"),
        graph("Nodes", f"Nodes that report. {RAY}",
              Query(or_called("count(max by (instance) (ray_node_cpu_count))", "instance",
                              NOT_SCRAPED), "nodes {{instance}}")),
        graph("Node CPU", f"By node. {RAY}", Query(or_called(cpu, node, NOT_SCRAPED),
              "{{instance}}"), unit="percentunit"),
        graph("Node memory", f"Used share by node; near 100 % the kernel kills workers. {RAY}",
              Query(or_called(memory, node, NOT_SCRAPED), "{{instance}}"), unit="percentunit",
              limits=[(0, PLAIN), (0.9, BAD)]),
        graph("Node disk", f"Used share by node. {RAY}",
              Query(or_called(disk, node, NOT_SCRAPED), "{{instance}}"), unit="percentunit",
              limits=[(0, PLAIN), (0.9, BAD)]),
    ]  # fmt: skip


def _serving() -> list[Item]:
    samples = 'route="/v1/samples"'
    return [
        row("Serving"),
        graph("Requests by code", "POST /v1/samples per second, all instances.",
              Query(by("sum", "code", f"rate(aalnet_endpoint_requests_total{{{samples}}}{RATE})"),
                    "{{code}}"), unit="reqps", stacked=True, span=12),
        graph("Latency", "All instances; dashed: the objective.",
              *(Query(quantile(share, "aalnet_endpoint_seconds", 'part="total"'),
                      f"p{share * 100:g}") for share in (0.5, 0.99)),
              unit="s", limits=[(0, GOOD), (1.0, BAD)], span=12),
    ]  # fmt: skip
