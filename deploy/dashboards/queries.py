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


def by(how: str, labels: str, expr: str) -> str:
    """An aggregation that keeps these labels."""
    return f"{how} by ({labels}) ({expr})"


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
    kept = f"le, {labels}" if labels else "le"
    buckets = f"rate({histogram}_bucket{{{matcher}}}{RATE})"
    return f"histogram_quantile({share:g}, {by('sum', kept, buckets)})"


def share_of_time(histogram: str, matcher: str) -> str:
    """Of each worker's time, the share that went into what a histogram of seconds counts."""
    return by("max", "worker", f"rate({histogram}_sum{{{matcher}}}{RATE})")


def gpu_busy(matcher: str, label: str) -> str:
    """How busy GPUs are by a label; one series called `no GPU` where there is none."""
    return _or_no_gpu(by("avg", label, f"aalnet_gpu_busy_ratio{{{matcher}}}"), label)


def gpu_memory(matcher: str, labels: str) -> str:
    """Bytes of GPU memory by labels; one series called `no GPU` where there is none."""
    first = labels.split(",", maxsplit=1)[0]
    return _or_no_gpu(by("max", labels, f"aalnet_gpu_memory_bytes{{{matcher}}}"), first)


def or_called(expr: str, label: str, value: str) -> str:
    """An expression, or where it gives nothing one 0 whose label says so."""
    return f'{expr} or on() label_replace(vector(0), "{label}", "{value}", "", "")'


def accuracy_limits() -> list[tuple[float, str]]:
    """From which share of pairs rightly judged D is winning."""
    return [(0, GOOD), (0.9, WATCH), (0.98, BAD)]


def goodput_limits() -> list[tuple[float, str]]:
    """Below which goodput a run is worth a look."""
    return [(0, BAD), (0.5, WATCH), (0.8, GOOD)]


def _or_no_gpu(expr: str, label: str) -> str:
    return or_called(expr, label, "no GPU")
