"""Every metric of the project: what Prometheus sees, what docs/metrics.md lists.

`python -m cluster.telemetry.catalogue` prints the tables of that page.

Base units, `_total` for counters, `_seconds`, `_bytes`, `_ratio` (0 to 1). Labels are bounded: a
run, a campaign or a model by name, a worker by rank, and the short lists in LABEL_VALUES.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "summary"]

STEP_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
WAIT_S = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
SAVE_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
REQUEST_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class MetricSpec:
    """One metric: the name as PromQL has it, its labels, and what it means."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """The base unit that the name ends with; empty for a plain number."""
        stem = self.name.removesuffix("_total")
        units = ("seconds", "bytes", "ratio", "images", "samples")
        return next((unit for unit in units if stem.endswith(f"_{unit}")), "")


def _counter(name: str, help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, "counter", help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, "gauge", help_, labels)


def _histogram(name: str, buckets: tuple[float, ...], help_: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, "histogram", help_, labels, buckets)


LABEL_VALUES = {
    "term": "a raw term of the objective: `log_likelihood`, `realism`, `entropy`, ...",
    "side": "`generator`, `discriminator`",
    "on": "`real`, `generated`; `pairs`: a sample against its target, what the loss sees",
    "figure": "`energy_score`, `pixel_energy_score`, `kid_unpaired_lite0`, `best_of_k_l1`, "
    "`diversity`, `feature_diversity`, `label_following`, `l1`, `ssim`, `psnr`",
    "part": "of a run: `step`, `data`, `evaluation`, `checkpoint`, `start`, `recovery`, "
    "`lost work`, `other`; of a request: `queue`, `model`, `total`",
    "cause": "`crash`, `lost_node`, `preemption`, `start`, `storage`, `resize`, `driver`",
    "state": "of a run: `starting`, `running`, `recovering`, `finished`, `failed`, `stopped`; "
    "of trials: `waiting`, `running`, `complete`, `pruned`, `fail`",
    "kind": "`allocated` and `reserved` by the worker, `used` by all, `total`",
    "model": "of a run: `aalnet`, `gan`, `vae`; of the endpoint: the promoted model's name",
    "device": "`cpu`, `cuda`",
    "objective": "what a campaign searches by, such as `energy_score`",
    "route": "a path of the endpoint",
    "code": "the HTTP status",
    "reason": "why a request was refused (docs/endpoint.md)",
    "outcome": "`swapped`, `refused`",
}

TRAINING = (
    _gauge("aalnet_run_info", "1; what kind of model the run trains, and on what.",
           "run", "model", "device"),
    _gauge("aalnet_run_state", "1 for the state that the run is in, 0 for the others.",
           "run", "state"),
    _gauge("aalnet_run_images", "Images the state has seen; goes back where work was lost.", "run"),
    _gauge("aalnet_run_target_images", "Images the run ends at.", "run"),
    _gauge("aalnet_run_start_timestamp_seconds", "When this launch began.", "run"),
    _gauge("aalnet_run_last_progress_timestamp_seconds", "When the last step ended.", "run"),
    _counter("aalnet_images_total", "Images trained on, those trained on again counted again.",
             "run"),
    _counter("aalnet_steps_total", "Steps taken.", "run"),
    _histogram("aalnet_step_seconds", STEP_S, "One step, without the wait for its batch.",
               "run", "worker"),
    _histogram("aalnet_data_wait_seconds", WAIT_S, "Wait for the batch of one step.",
               "run", "worker"),
    _histogram("aalnet_communication_seconds", WAIT_S,
               "In the sums over workers of one step, waiting for slower ones included. "
               "On CUDA the sums run beside the caller: then it is the time to launch them.",
               "run", "worker"),
    _gauge("aalnet_run_seconds", "Where the run's time went, over all its starts. (The share in "
           "steps of late: `rate(aalnet_step_seconds_sum{worker=\"0\"}[10m])`.)", "run", "part"),
    _gauge("aalnet_goodput_ratio",
           "Share of the run's time, over all its starts, in steps that count.", "run"),
    _gauge("aalnet_term", "Mean of a raw term, unweighted, since the log's line before.",
           "run", "term"),
    _gauge("aalnet_gradient_norm", "Mean norm of the summed gradient, before clipping.",
           "run", "side"),
    _gauge("aalnet_learning_rate", "Learning rate, the same on both sides.", "run"),
    _gauge("aalnet_discriminator_accuracy_ratio",
           "Share that D judges rightly: 0.5 is a draw, 1 is D winning outright.", "run", "on"),
    _gauge("aalnet_evaluation_figure", "A figure of the last evaluation, on held-out pairs.",
           "run", "figure"),
    _gauge("aalnet_evaluation_floor", "The same figure of returning the condition.",
           "run", "figure"),
    _gauge("aalnet_evaluation_spread_ratio",
           "Distance between samples of a condition over that to the target, at the last "
           "evaluation: about 1 is right, 0 is one picture again and again.", "run"),
    _gauge("aalnet_run_silent",
           "1 where samples no longer differ: the spread is below 0.1, and a fifth of the run, or "
           "6,000 images, are behind it.", "run"),
    _gauge("aalnet_evaluation_at_images", "Where the last evaluation was made.", "run"),
    _histogram("aalnet_evaluation_seconds", SAVE_S, "One evaluation with its sample grid.", "run"),
    _gauge("aalnet_ema_distance_ratio",
           "Distance of G from its moving average, relative to the latter, at the last "
           "evaluation.", "run"),
    _counter("aalnet_non_finite_total", "Times that a term or gradient was NaN or infinite.",
             "run"),
    _gauge("aalnet_workers", "Workers that sent their metrics of late.", "run"),
    _gauge("aalnet_workers_wanted", "Workers the run would have.", "run"),
    _counter("aalnet_restarts_total", "Starts that went on from earlier ones, over all of the run.",
             "run", "cause"),
    _counter("aalnet_lost_images_total", "Images trained on again after restarts.", "run"),
    _counter("aalnet_warnings_total", "Warnings in the run's log.", "run"),
    _gauge("aalnet_checkpoint_images", "Where the newest whole checkpoint stands.", "run"),
    _gauge("aalnet_checkpoint_timestamp_seconds",
           "When the newest checkpoint became whole; before the first, when the launch began.",
           "run"),
    _gauge("aalnet_checkpoint_interval_images", "Images between two checkpoints.", "run"),
    _gauge("aalnet_checkpoint_bytes", "Size of the newest checkpoint.", "run"),
    _counter("aalnet_checkpoints_total", "Checkpoints written.", "run"),
    _counter("aalnet_checkpoint_written_bytes_total", "Bytes of them.", "run"),
    _counter("aalnet_checkpoint_failures_total",
             "Tries of the background writer that the storage refused.", "run"),
    _histogram("aalnet_checkpoint_seconds", SAVE_S, "From the wish for a checkpoint until it is "
               "whole, in the background.", "run"),
    _histogram("aalnet_checkpoint_stall_seconds", SAVE_S, "For which training stood still.", "run"),
    _gauge("aalnet_upload_queue", "Checkpoints and pictures being written, or waiting.", "run"),
    _gauge("aalnet_gpu_memory_bytes", "Memory of a worker's GPU; absent without a GPU.",
           "run", "worker", "kind"),
    _gauge("aalnet_gpu_busy_ratio",
           "Share of the last moment in which the worker's GPU ran a kernel; absent without "
           "a GPU or NVML.", "run", "worker"),
)  # fmt: skip

CAMPAIGN = (
    _gauge("aalnet_campaign_trials", "Trials in each state.", "campaign", "state"),
    _gauge("aalnet_campaign_target_trials", "Trials asked for.", "campaign"),
    _gauge("aalnet_campaign_best_value", "Best value so far of what is searched by.",
           "campaign", "objective"),
    MetricSpec("aalnet_campaign_suggestion_seconds", "summary",
           "Seconds to suggest a trial's settings; the count is of suggestions.", ("campaign",)),
    _gauge("aalnet_campaign_pruned_ratio", "Share of the ended trials that were pruned.",
           "campaign"),
    _gauge("aalnet_campaign_spent_seconds", "Time spent so far, over all starts.", "campaign"),
    _gauge("aalnet_campaign_budget_seconds", "Time the campaign may take; absent without a limit.",
           "campaign"),
    _counter("aalnet_campaign_images_total", "Images trained on by all trials.", "campaign"),
    _counter("aalnet_campaign_gpu_seconds_total", "What it cost: seconds of GPUs held by trials.",
             "campaign"),
    _gauge("aalnet_campaign_start_timestamp_seconds", "When the campaign began.", "campaign"),
    _gauge("aalnet_campaign_last_progress_timestamp_seconds",
           "When a trial last began, reported or ended.", "campaign"),
)  # fmt: skip

ENDPOINT = (
    _counter("aalnet_endpoint_requests_total", "Answered requests.", "route", "code"),
    _counter("aalnet_endpoint_rejected_total", "Requests refused, by reason.", "reason"),
    _histogram("aalnet_endpoint_seconds", REQUEST_S,
               "An answered POST /v1/samples: in the queue, in the model, in all.", "part"),
    _histogram("aalnet_endpoint_batch_samples", BATCH_SAMPLES, "Samples in a batch."),
    _histogram("aalnet_endpoint_batch_fill", SHARES,
               "Share of the largest batch that a batch filled."),
    _counter("aalnet_endpoint_samples_total", "Samples drawn."),
    _gauge("aalnet_endpoint_queued_samples", "Samples that wait for a batch."),
    _gauge("aalnet_endpoint_queue_limit_samples", "Samples that may wait; beyond it 429."),
    _gauge("aalnet_endpoint_model_info", "1 for the model that new requests get.",
           "model", "run", "images", "digest"),
    _gauge("aalnet_endpoint_model_promoted_timestamp_seconds",
           "When the newest promotion was made that was seen; absent without a name to follow.",
           "model"),
    _gauge("aalnet_endpoint_model_served_timestamp_seconds",
           "When the promotion was made whose model new requests get.", "model"),
    _counter("aalnet_endpoint_swaps_total", "Promotions met: swapped in, or refused.", "outcome"),
)  # fmt: skip

SECTIONS = {"Training": TRAINING, "Campaigns": CAMPAIGN, "Endpoint": ENDPOINT}
CATALOGUE = {metric.name: metric for section in SECTIONS.values() for metric in section}


def series_names(metrics: Iterable[MetricSpec]) -> set[str]:
    """The names of the series that Prometheus stores for these metrics."""
    parts = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {metric.name + part for metric in metrics for part in parts.get(metric.kind, ("",))}


def markdown() -> str:
    """The tables of docs/metrics.md."""
    lines: list[str] = []
    for title, metrics in SECTIONS.items():
        lines += [f"## {title}", "", "| metric | type | unit | labels | |", "|---|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(
                f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |"
            )
        lines.append("")
    lines += ["## Labels", "", "`run`, `campaign`: its name. `worker`: the rank, from 0.", ""]
    lines += ["| label | values |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in LABEL_VALUES.items())])


if __name__ == "__main__":
    print(markdown())
