"""*Endpoint*: requests, errors, durations; and which model answers."""

from __future__ import annotations

from deploy.dashboards.frame import Item, assemble, label_variable, promotions
from deploy.dashboards.panels import BAD, GOOD, PLAIN, WATCH, Query, graph, number, row
from deploy.dashboards.queries import RATE, by, quantile

I = 'instance=~"$instance"'  # noqa: E741, it is written into every query
SAMPLES = f'{I},route="/v1/samples"'
REQUESTS = f"sum(rate(aalnet_endpoint_requests_total{{{SAMPLES}}}{RATE}))"
ERRORS = f'sum(rate(aalnet_endpoint_requests_total{{{SAMPLES},code=~"5.."}}{RATE}))'
ERROR_RATIO = f"({ERRORS} or on() vector(0)) / ({REQUESTS} > 0)"
REFUSED = f'sum(rate(aalnet_endpoint_requests_total{{{SAMPLES},code="429"}}{RATE}))'
REFUSED_RATIO = f"({REFUSED} or on() vector(0)) / ({REQUESTS} > 0)"
ERROR_LIMITS = [(0.0, GOOD), (0.001, WATCH), (0.0144, BAD)]
LATENCY_LIMITS = [(0.0, GOOD), (0.5, WATCH), (1.0, BAD)]
FILL = (
    f"sum(rate(aalnet_endpoint_batch_fill_sum{{{I}}}{RATE})) "
    f"/ (sum(rate(aalnet_endpoint_batch_fill_count{{{I}}}{RATE})) > 0)"
)
BEHIND = (
    f"max(aalnet_endpoint_model_promoted_timestamp_seconds{{{I}}}) "
    f"- min(aalnet_endpoint_model_served_timestamp_seconds{{{I}}})"
)


def json_text() -> str:
    """The dashboard's JSON."""
    instances = "aalnet_endpoint_queue_limit_samples"
    return assemble(
        "Endpoint",
        "The sampling endpoint: rate, errors and duration of POST /v1/samples, the queue before "
        "the model, and which promotion answers.",
        [*_now(), *_requests(), *_batches(), *_model()],
        variables=[label_variable("instance", instances, "Instance", several=True)],
        annotations=[promotions()],
    )


def _part(share: float, part: str) -> str:
    return quantile(share, "aalnet_endpoint_seconds", f'{I},part="{part}"')


def _now() -> list[Item]:
    return [
        row("Now"),
        number("Requests", "POST /v1/samples answered per second, whatever the answer.",
               Query(REQUESTS), unit="reqps", decimals=1),
        number("Errors", "Share of answers that are the endpoint's fault (5xx). The objective is "
               "99.9 % good.", Query(ERROR_RATIO), unit="percentunit", decimals=2,
               limits=ERROR_LIMITS),
        number("Refused", "Share refused with 429: the queue is full, or a key calls too often.",
               Query(REFUSED_RATIO), unit="percentunit", decimals=1,
               limits=[(0, GOOD), (0.01, WATCH), (0.05, BAD)]),
        number("Latency p99", "From a request's arrival to its answer. The objective is 99 % "
               "within a second.", Query(_part(0.99, "total")), unit="s", limits=LATENCY_LIMITS),
        number("Samples", "Drawn per second.",
               Query(f"sum(rate(aalnet_endpoint_samples_total{{{I}}}{RATE}))"), unit="ops",
               decimals=1),
        number("Instances", "That answer scrapes.",
               Query(f"count(aalnet_endpoint_queue_limit_samples{{{I}}})"), decimals=0),
        number("Model", "Images that the model which answers was trained on, by model and run.",
               Query(by("max", "model, run, images", f"aalnet_endpoint_model_info{{{I}}}"),
                     "{{model}} {{run}}@{{images}}"), texts={"1": ("serves", GOOD)}, span=8),
        number("Behind the promotion", "Between the newest promotion seen and the one that "
               "answers: 0 where they are the same.", Query(BEHIND), unit="s", decimals=0,
               limits=[(0, GOOD), (1, WATCH)]),
        number("Queue", "Share of the queue that is taken, on the fullest instance; full, it "
               "refuses.",
               Query(f"max(aalnet_endpoint_queued_samples{{{I}}} "
                     f"/ aalnet_endpoint_queue_limit_samples{{{I}}})"), unit="percentunit",
               decimals=0, limits=[(0, GOOD), (0.5, WATCH), (0.9, BAD)]),
        number("Batch fill", "Mean share of the largest batch that batches fill. Near 100 % the "
               "model is the limit: add instances.", Query(FILL), unit="percentunit", decimals=0),
        number("Swaps", "Promotions met since the start: swapped in, or refused because the model "
               "is damaged.",
               Query(by("sum", "outcome", f"aalnet_endpoint_swaps_total{{{I}}}"), "{{outcome}}"),
               decimals=0),
    ]  # fmt: skip


def _requests() -> list[Item]:
    codes = f"rate(aalnet_endpoint_requests_total{{{SAMPLES}}}{RATE})"
    return [
        row("Requests"),
        graph("Requests by code", "POST /v1/samples per second. 429 is back-pressure, 422 a "
              "client's mistake, 5xx ours.",
              Query(by("sum", "code", codes), "{{code}}"), unit="reqps", stacked=True),
        graph("Latency", "From a request's arrival to its answer; answered ones only. Dashed: the "
              "objective.",
              *(Query(_part(share, "total"), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
              unit="s", limits=[(0, GOOD), (1.0, BAD)]),
        graph("Queue and model", "Where the time goes, 95th percentile. Queue above model: more "
              "instances, or larger batches.",
              *(Query(_part(0.95, part), part) for part in ("queue", "model", "total")), unit="s"),
        graph("Error ratio", "Share of answers with 5xx. Dashed: the pace that uses up a month's "
              "budget of 0.1 % in two days.",
              Query(ERROR_RATIO, "errors"), unit="percentunit",
              limits=[(0, GOOD), (0.0144, BAD)]),
        graph("Refused by reason", "Requests refused per second: queue and rate are "
              "back-pressure, the others are clients' mistakes.",
              Query(by("sum", "reason", f"rate(aalnet_endpoint_rejected_total{{{I}}}{RATE})"),
                    "{{reason}}"), unit="reqps", stacked=True),
        graph("Requests by route", "All routes, probes and scrapes too.",
              Query(by("sum", "route",
                       f"rate(aalnet_endpoint_requests_total{{{I}}}{RATE})"), "{{route}}"),
              unit="reqps"),
    ]  # fmt: skip


def _batches() -> list[Item]:
    size = (
        f"sum(rate(aalnet_endpoint_batch_samples_sum{{{I}}}{RATE})) "
        f"/ (sum(rate(aalnet_endpoint_batch_samples_count{{{I}}}{RATE})) > 0)"
    )
    return [
        row("Queue and batches"),
        graph("Queue", "Samples that wait for a batch, by instance, and how many may wait; beyond "
              "the limit requests get 429.",
              Query(by("max", "instance", f"aalnet_endpoint_queued_samples{{{I}}}"),
                    "{{instance}}"),
              Query(f"min(aalnet_endpoint_queue_limit_samples{{{I}}})", "limit")),
        graph("Batch size", "Samples in a batch: mean, and 95th percentile.",
              Query(size, "mean"),
              Query(quantile(0.95, "aalnet_endpoint_batch_samples", I), "p95")),
        graph("Batch fill", "Mean share of the largest batch that batches fill.",
              Query(FILL, "fill"), unit="percentunit"),
        graph("Samples per second", "Drawn, by instance.",
              Query(by("sum", "instance", f"rate(aalnet_endpoint_samples_total{{{I}}}{RATE})"),
                    "{{instance}}"), unit="ops", span=12),
        graph("Model time per batch", "Seconds in the model, by request: median and 99th "
              "percentile.",
              Query(_part(0.5, "model"), "p50"), Query(_part(0.99, "model"), "p99"), unit="s",
              span=12),
    ]  # fmt: skip


def _model() -> list[Item]:
    info = by("count", "model, run, images", f"aalnet_endpoint_model_info{{{I}}}")
    return [
        row("Model"),
        graph("Instances by model", "How many instances answer with which promotion. Two for more "
              "than a minute: one does not follow.",
              Query(info, "{{model}} {{run}}@{{images}}"), stacked=True),
        graph("Behind the promotion", "Seconds between the newest promotion seen and the one that "
              "answers; 0 where they are the same.", Query(BEHIND, "behind"), unit="s",
              limits=[(0, PLAIN), (1, WATCH)]),
        graph("Swaps", "Promotions met: swapped in, or refused because the model is damaged or "
              "not finite.",
              Query(by("sum", "outcome", f"aalnet_endpoint_swaps_total{{{I}}}"), "{{outcome}}")),
    ]  # fmt: skip
