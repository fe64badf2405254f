"""Settings of a run: its data, evaluation, length, cadence, failures and telemetry."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from aalnet.section import Count, Positive, Section, Share, Weight

RetryCause = Literal["crash", "lost_node", "preemption", "start", "storage"]
FigureName = Literal[
    "energy_score", "pixel_energy_score", "kid", "l1", "best_of_k_l1", "diversity", "ssim", "psnr"
]  # fmt: skip
WORKERS = r"^(auto|[1-9][0-9]{0,4}:[1-9][0-9]{0,4})$"


class DataSettings(Section):
    """Where pairs come from and how a batch is drawn."""

    train: str = Field(
        "data/openmoji64/train.parquet",
        description="training pairs: a Parquet file or folder of them, local or s3://",
    )
    test: str = Field(
        "data/openmoji64/test.parquet",
        description="held-out pairs, as data.train; evaluation and sample grids use them, "
        "training never",
    )
    size_px: Literal[32, 64, 128, 256] = Field(
        32, description="side in pixels that images are resized to; cost grows with its square"
    )
    batch_images: Count = Field(
        24,
        description="conditions in a global batch, shared by all workers; raise it to fill "
        "GPUs, lower it when memory runs out",
    )
    balanced_labels: bool = Field(
        False,
        description="draw every label equally often; switch on where rare labels come out badly",
    )
    noised_share: Share = Field(
        0.1,
        description="share of conditions that get noise, for robustness against noisy input; 0 "
        "if yours are always clean",
    )
    noised_std: Weight = Field(
        0.1,
        description="standard deviation of that noise; images are in [-1, 1]. About that of the "
        "input's own noise",
    )
    flip: bool = Field(
        True,
        description="mirror x and y together, half of the time; off where left and right differ "
        "in meaning, as in text",
    )
    shift_px: Annotated[int, Field(ge=0)] = Field(
        1,
        description="shift x and y together by up to so many pixels; more helps small data "
        "sets, 0 keeps places exact",
    )
    memory_budget_mib: Count = Field(
        2048,
        description="MiB of memory a process gives to pictures; if all decoded pairs fit, none "
        "is decoded twice. Lower it where memory is short",
    )
    cache_gib: Weight = Field(
        20.0,
        description="GiB of local disk for copies of S3 or compressed shards, per machine "
        "(docs/data.md); at least the data set's size. 0: none",
    )


class EvaluationSettings(Section):
    """What is measured on the held-out pairs during a run and by `aalnet evaluate`."""

    samples: Count = Field(
        8,
        description="samples per condition; figures compare only at the same k",
    )
    max_images: Count = Field(
        1024,
        description="held-out pairs used, the first ones; fewer is faster, more gives steadier "
        "figures; with fewer than 100 a run warns",
    )
    features: str | None = Field(
        None,
        description="path of a TorchScript feature network for energy_score and kid; default: the "
        "small one built in, good for comparing runs of one data set",
    )


class RunSettings(Section):
    """Length, cadence, seed and place of a run."""

    images: Count = Field(
        48_000,
        description="conditions to train on, the length of the run; it ends at a whole batch",
    )
    checkpoint_every_images: Count = Field(
        8_000,
        description="images between two checkpoints, each with an evaluation and a grid; what a "
        "crash costs at most",
    )
    evaluate_every_images: Count | None = Field(
        None,
        description="images between two evaluations, which fall on checkpoints; default: at "
        "each. Raise it where evaluation is slow",
    )
    log_every_images: Count = Field(480, description="images between two lines of metrics.jsonl")
    keep_last: Count = Field(
        2, description="newest checkpoints that are kept; 2 leave one where the last is damaged"
    )
    keep_best: Annotated[int, Field(ge=0)] = Field(
        1, description="best checkpoints, by best_by, that are kept besides"
    )
    keep_every: Annotated[int, Field(ge=0)] = Field(
        0, description="every so many-th checkpoint is kept besides, to look back at; 0: none"
    )
    best_by: FigureName = Field(
        "energy_score",
        description="figure of the evaluation that says which checkpoint is best; kid: the kernel "
        "distance, whatever its features",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0,
        description="seed of weights, order, augmentation and noise; same seed and settings, "
        "same run",
    )
    workers: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=WORKERS)] = Field(
        "auto",
        description="training processes. auto: one per GPU, else per CPU core; 0: here, without "
        "Ray; MIN:MAX: as many as there are, while it trains",
    )
    threads: Count | Literal["auto"] = Field(
        "auto",
        description="CPU threads of torch in each worker; auto shares the cores. Set it where "
        "results must repeat to the bit on another machine",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to train; auto: cuda where there is a GPU, else cpu"
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32",
        description="number format of a step; bfloat16 (autocast) is faster on recent GPUs, "
        "float64 is slow and checks numbers",
    )
    channels_last: bool = Field(
        False,
        description="keep images in memory channel by channel (off) or pixel by pixel (on), "
        "which can be faster on GPUs with bfloat16",
    )
    grid_conditions: Count = Field(
        6, description="rows of the sample grid drawn at each checkpoint, one condition each"
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _check_workers(cls, value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(WORKERS, value):
            raise ValueError("auto, a number, or a range MIN:MAX")
        return value

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers; None for `auto`."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        fewest, _, most = self.workers.partition(":")
        return (int(fewest), int(most)) if most else None


class FailureSettings(Section):
    """What a run survives (docs/reliability.md)."""

    budget: Annotated[int, Field(ge=0)] = Field(
        10,
        description="failures in a row, with no new checkpoint between them, after which a run "
        "gives up; raise it on unreliable nodes",
    )
    counted: Annotated[tuple[RetryCause, ...], Field(strict=False)] = Field(
        ("crash", "lost_node", "start", "storage"),
        description="causes of failure that use up the budget; name preemption too where spot "
        "nodes should not retry for ever",
    )
    storage_patience_s: Positive = Field(
        900.0,
        description="seconds that training goes on while the storage fails, before the run "
        "fails; longer than your longest outage",
    )
    process_group_timeout_s: Annotated[int, Field(ge=5, le=60)] = Field(
        60,
        description="seconds of silence in a sum over workers after which one is taken for "
        "dead; raise it for slow or uneven machines",
    )
    grace_s: Positive = Field(
        20.0,
        description="seconds for a last checkpoint after SIGTERM or Ctrl-C; less than the pod's "
        "termination grace period",
    )


class TelemetrySettings(Section):
    """What a run tells of itself while it trains (docs/metrics.md)."""

    port: Literal["auto"] | Annotated[int, Field(ge=0, le=65535)] = Field(
        "auto",
        description="port of /metrics on each node; auto: 9464, or a free one where it is "
        "taken; 0: none",
    )
    host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1",
        description="address that /metrics is served on; 0.0.0.0 for all, as a pod must so that "
        "Prometheus can reach it",
    )
    linger_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        60.0,
        description="longest wait in seconds at the end for one more scrape, if there were any; "
        "the scrape interval or more",
    )
    tensorboard: bool = Field(False, description="write event files for TensorBoard too")

    @field_validator("port", mode="before")
    @classmethod
    def _check_port(cls, value: object) -> object:
        if isinstance(value, str) and value != "auto":
            raise ValueError("auto, or a number")
        return value
