"""PromQL that several panels share.

Pods come and go: `max by (...)` keeps one series where Prometheus still holds a dead pod's.
"""

from __future__ import annotations

from deploy.dashboards.panels import BAD, GOOD, PLAIN, WATCH

RATE = "[$__rate_interval]"
STATES = {
    "0": ("gone", "gray"),  # it told of no end, and tells nothing now
    "1": ("starting", PLAIN), "2": ("running", GOOD), "3": ("recovering", WATCH),
    "4": ("finished", "purple"), "5": ("stopped", "gray"), "6": ("failed", BAD),
}  # fmt: skip
ACCURACY_LIMITS = [(0, GOOD), (0.9, WATCH), (0.98, BAD)]  # of pairs rightly judged: D wins
GOODPUT_LIMITS = [(0, BAD), (0.5, WATCH), (0.8, GOOD)]


def by(how: str, labels: str, expr: str) -> str:
    """An aggregation that keeps these labels."""
    return f"{how} by ({labels}) ({expr})"


def max_of(metric: str, matcher: str = "", labels: str = "") -> str:
    """The largest of a metric's series now, of all or by labels."""
    series = f"{metric}{{{matcher}}}" if matcher else metric
    return by("max", labels, series) if labels else f"max({series})"


def rate_of(metric: str, matcher: str = "", labels: str = "") -> str:
    """How fast a counter grows per second, summed over all or by labels."""
    rate = f"rate({metric}{{{matcher}}}{RATE})" if matcher else f"rate({metric}{RATE})"
    return by("sum", labels, rate) if labels else f"sum({rate})"


def mean_of(histogram: str, matcher: str) -> str:
    """The mean of a histogram's values of the last minutes."""
    count = rate_of(f"{histogram}_count", matcher)
    return f"{rate_of(f'{histogram}_sum', matcher)} / ({count} > 0)"


def state_number(matcher: str, labels: str, over: str = "") -> str:
    """The state of each run as a number of STATES; `over`, such as `$__range`, looks back."""
    now = _state_number(matcher, labels, "{}")
    if not over:
        return now
    last = _state_number(matcher, labels, f"last_over_time({{}}[{over}])")
    return f"({last} > 3) or {now} or 0 * {last}"


def _state_number(matcher: str, labels: str, form: str) -> str:
    series = f'aalnet_run_state{{{{{matcher + "," if matcher else ""}state="{{}}"}}}}'
    parts = [f"{index} * ({form.format(series.format(state))} == 1)"
             for index, (state, _) in STATES.items() if index != "0"]  # fmt: skip
    return by("max", labels, " or ".join(parts))


def quantile(share: float, histogram: str, matcher: str, labels: str = "") -> str:
    """A quantile of a histogram's values of the last minutes."""
    buckets = rate_of(f"{histogram}_bucket", matcher, f"le, {labels}" if labels else "le")
    return f"histogram_quantile({share:g}, {buckets})"


def share_of_time(histogram: str, matcher: str) -> str:
    """Of each worker's time, the share that went into what a histogram of seconds counts."""
    return by("max", "worker", f"rate({histogram}_sum{{{matcher}}}{RATE})")


def gpu_busy(matcher: str, label: str) -> str:
    """How busy GPUs are by a label; one series called `no GPU` where there is none."""
    return or_called(by("avg", label, f"aalnet_gpu_busy_ratio{{{matcher}}}"), label, "no GPU")


def gpu_memory(matcher: str, labels: str) -> str:
    """Bytes of GPU memory by labels; one series called `no GPU` where there is none."""
    first, *_ = labels.split(",")
    return or_called(max_of("aalnet_gpu_memory_bytes", matcher, labels), first, "no GPU")


def or_called(expr: str, label: str, value: str) -> str:
    """An expression, or where it gives nothing one 0 whose label says so."""
    return f'{expr} or on() label_replace(vector(0), "{label}", "{value}", "", "")'
