"""*Endpoint*: requests, errors, durations; and which model answers."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Row

from deploy.dashboards.frame import Item, assemble, label_variable, promotions
from deploy.dashboards.panels import BAD, GOOD, PLAIN, WATCH, Query, graph, stat
from deploy.dashboards.queries import by, max_of, mean_of, quantile, rate_of

I = 'instance=~"$instance"'  # noqa: E741, it is written into every query
SAMPLES = f'{I},route="/v1/samples"'
REQUESTS = rate_of("aalnet_endpoint_requests_total", SAMPLES)
ERRORS = rate_of("aalnet_endpoint_requests_total", f'{SAMPLES},code=~"5.."')
ERROR_RATIO = f"({ERRORS} or on() vector(0)) / ({REQUESTS} > 0)"
REFUSED = rate_of("aalnet_endpoint_requests_total", f'{SAMPLES},code="429"')
REFUSED_RATIO = f"({REFUSED} or on() vector(0)) / ({REQUESTS} > 0)"
ERROR_LIMITS = [(0.0, GOOD), (0.001, WATCH), (0.0144, BAD)]
LATENCY_LIMITS = [(0.0, GOOD), (0.5, WATCH), (1.0, BAD)]
FILL = mean_of("aalnet_endpoint_batch_fill", I)
QUEUE = f"max(aalnet_endpoint_queued_samples{{{I}}} / aalnet_endpoint_queue_limit_samples{{{I}}})"
MODEL = "{{model}} {{run}}@{{images}}"
INSTANCES = "aalnet_endpoint_queue_limit_samples"
BEHIND = (
    f"max(aalnet_endpoint_model_promoted_timestamp_seconds{{{I}}}) "
    f"- min(aalnet_endpoint_model_served_timestamp_seconds{{{I}}})"
)


def _part(share: float, part: str) -> str:
    return quantile(share, "aalnet_endpoint_seconds", f'{I},part="{part}"')


PANELS: list[Item] = [
    Row("Now"),
    stat("Requests", "POST /v1/samples answered per second, whatever the answer.", REQUESTS,
         unit="reqps", decimals=1),
    stat("Errors", "Share of answers that are the endpoint's fault (5xx). The objective is 99.9 % "
         "good.", ERROR_RATIO, unit="percentunit", decimals=2, limits=ERROR_LIMITS),
    stat("Refused", "Share refused with 429: the queue is full, or a key calls too often.",
         REFUSED_RATIO, unit="percentunit", decimals=1,
         limits=[(0, GOOD), (0.01, WATCH), (0.05, BAD)]),
    stat("Latency p99", "From a request's arrival to its answer. The objective is 99 % within a "
         "second.", _part(0.99, "total"), unit="s", limits=LATENCY_LIMITS),
    stat("Samples", "Drawn per second.", rate_of("aalnet_endpoint_samples_total", I), unit="ops",
         decimals=1),
    stat("Instances", "That answer scrapes.", f"count(aalnet_endpoint_queue_limit_samples{{{I}}})",
         decimals=0),
    stat("Model", "Images that the model which answers was trained on, by model and run.",
         Query(max_of("aalnet_endpoint_model_info", I, "model, run, images"), MODEL),
         texts={"1": ("serves", GOOD)}, span=8),
    stat("Behind the promotion", "Between the newest promotion seen and the one that answers: 0 "
         "where they are the same.", BEHIND, unit="s", decimals=0, limits=[(0, GOOD), (1, WATCH)]),
    stat("Queue", "Share of the queue that is taken, on the fullest instance; full, it refuses.",
         QUEUE, unit="percentunit", decimals=0, limits=[(0, GOOD), (0.5, WATCH), (0.9, BAD)]),
    stat("Batch fill", "Mean share of the largest batch that batches fill. Near 100 % the model "
         "is the limit: add instances.", FILL, unit="percentunit", decimals=0),
    stat("Swaps", "Promotions met since the start: swapped in, or refused because the model is "
         "damaged.",
         Query(by("sum", "outcome", f"aalnet_endpoint_swaps_total{{{I}}}"), "{{outcome}}"),
         decimals=0),
    Row("Requests"),
    graph("Requests by code", "POST /v1/samples per second. 429 is back-pressure, 422 a client's "
          "mistake, 5xx ours.",
          Query(rate_of("aalnet_endpoint_requests_total", SAMPLES, "code"), "{{code}}"),
          unit="reqps", stacked=True),
    graph("Latency", "From a request's arrival to its answer; answered ones only. Dashed: the "
          "objective.",
          *(Query(_part(share, "total"), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
          unit="s", limits=[(0, GOOD), (1.0, BAD)]),
    graph("Queue and model", "Where the time goes, 95th percentile. Queue above model: more "
          "instances, or larger batches.",
          *(Query(_part(0.95, part), part) for part in ("queue", "model", "total")), unit="s"),
    graph("Error ratio", "Share of answers with 5xx. Dashed: the pace that uses up a month's "
          "budget of 0.1 % in two days.", Query(ERROR_RATIO, "errors"), unit="percentunit",
          limits=[(0, GOOD), (0.0144, BAD)]),
    graph("Refused by reason", "Requests refused per second: queue and rate are back-pressure, "
          "the others are clients' mistakes.",
          Query(rate_of("aalnet_endpoint_rejected_total", I, "reason"), "{{reason}}"), unit="reqps",
          stacked=True),
    graph("Requests by route", "All routes, probes and scrapes too.",
          Query(rate_of("aalnet_endpoint_requests_total", I, "route"), "{{route}}"), unit="reqps"),
    Row("Queue and batches"),
    graph("Queue", "Samples that wait for a batch, by instance, and how many may wait; beyond the "
          "limit requests get 429.",
          Query(max_of("aalnet_endpoint_queued_samples", I, "instance"), "{{instance}}"),
          Query(f"min(aalnet_endpoint_queue_limit_samples{{{I}}})", "limit")),
    graph("Batch size", "Samples in a batch: mean, and 95th percentile.",
          Query(mean_of("aalnet_endpoint_batch_samples", I), "mean"),
          Query(quantile(0.95, "aalnet_endpoint_batch_samples", I), "p95")),
    graph("Batch fill", "Mean share of the largest batch that batches fill.", Query(FILL, "fill"),
          unit="percentunit"),
    graph("Samples per second", "Drawn, by instance.",
          Query(rate_of("aalnet_endpoint_samples_total", I, "instance"), "{{instance}}"),
          unit="ops", span=12),
    graph("Model time per batch", "Seconds in the model, by request: median and 99th percentile.",
          Query(_part(0.5, "model"), "p50"), Query(_part(0.99, "model"), "p99"), unit="s", span=12),
    Row("Model"),
    graph("Instances by model", "How many instances answer with which promotion. Two for more "
          "than a minute: one does not follow.",
          Query(by("count", "model, run, images", f"aalnet_endpoint_model_info{{{I}}}"), MODEL),
          stacked=True),
    graph("Behind the promotion", "Seconds between the newest promotion seen and the one that "
          "answers; 0 where they are the same.", Query(BEHIND, "behind"), unit="s",
          limits=[(0, PLAIN), (1, WATCH)]),
    graph("Swaps", "Promotions met: swapped in, or refused because the model is damaged or not "
          "finite.",
          Query(by("sum", "outcome", f"aalnet_endpoint_swaps_total{{{I}}}"), "{{outcome}}")),
]  # fmt: skip

BOARD = assemble(
    "Endpoint",
    "The sampling endpoint: rate, errors and duration of POST /v1/samples, the queue before "
    "the model, and which promotion answers.",
    PANELS,
    variables=[label_variable("instance", INSTANCES, "Instance", several=True)],
    annotations=[promotions()],
)
