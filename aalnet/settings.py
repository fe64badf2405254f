"""Settings: read from YAML once, checked once, frozen plain data afterwards.

`load_settings` is the only reader. Keys keep the article's names (`lambda`, `eta`, `beta`,
`gamma`, `K`); a unit stands in each name that has one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aalnet.yaml_io import apply_overrides, read_mapping, validate

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # limits: a hostile checkpoint names sizes too
Blocks = Annotated[int, Field(ge=1, le=64)]
Widths = Annotated[tuple[Width, ...], Field(strict=False, min_length=2, max_length=8)]
Cause = Literal["crash", "lost_node", "preemption", "start", "storage"]
WORKERS = r"^(auto|[1-9][0-9]{0,4}:[1-9][0-9]{0,4})$"


class Section(BaseModel):
    """A frozen, strict group of settings: unknown keys and silent casts are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class DataSettings(Section):
    """Where pairs come from and how a batch is drawn."""

    train: str = Field(
        "data/openmoji64/train.parquet", description="Parquet file or folder, local or s3://"
    )
    test: str = Field("data/openmoji64/test.parquet", description="held-out pairs")
    size_px: Literal[32, 64, 128, 256] = Field(32, description="images are resized to this")
    batch_images: Count = Field(24, description="conditions in a global batch")
    balanced_labels: bool = Field(False, description="draw every label equally often")
    noised_share: Share = Field(0.1, description="share of conditions that get noise")
    noised_std: Weight = Field(0.1, description="its standard deviation; images are in [-1, 1]")
    flip: bool = Field(True, description="mirror x and y together, half of the time")
    shift_px: Annotated[int, Field(ge=0)] = Field(1, description="shift x and y by up to this")
    memory_budget_mib: Count = Field(2048, description="decoded pairs are kept if they fit")
    cache_gib: Weight = Field(20.0, description="local disk for row groups; 0: none (docs/data.md)")


class NetworkSettings(Section):
    """Sizes of generator and discriminator. `preset` fills what is not given."""

    preset: Literal["tiny", "base", "large"] = Field("tiny", description="tiny is for CPUs")
    blocks: Literal["resnet", "densenet", "inception"] = Field(
        "resnet", description="block family of G and D"
    )
    widths: Widths | None = Field(None, description="channels per level, full size first")
    encoder_blocks: Blocks | None = Field(None, description="blocks per encoder level")
    decoder_blocks: Blocks | None = Field(None, description="blocks per decoder level")
    embedding_size: Width | None = Field(None, description="size of the noise and label embedding")
    noise_size: Width = Field(32, description="Z, the length of one noise vector")
    start_from_condition: bool = Field(
        True, description="add a learned map of x to the output, so generation starts from x"
    )


class ObjectiveSettings(Section):
    """Weights of the AALNet objective (docs/objective.md). Each may be 0 on its own."""

    K: Count = Field(4, description="samples drawn per condition")
    lambda_: Weight = Field(0.3, alias="lambda", description="weight of realism")
    eta: Weight = Field(0.3, description="weight of entropy, and of offset by offset_share")
    beta: Weight = Field(0.1, description="weight of reward")
    gamma: Weight = Field(1e-6, description="weight of the response penalty")
    flatness: Weight = Field(1e-5, description="weight of the density_flatness penalty")
    offset_share: Weight = Field(0.01, description="offset is weighed by eta * offset_share")
    scale: Positive = Field(0.1, description="b, the width of the Laplace kernels")
    r1: Weight = Field(0.5, description="discriminator's zero-centred gradient penalty")
    r1_interval: Count = Field(4, description="steps between two such penalties")
    penalty_method: Literal["finite_difference", "exact"] = Field(
        "finite_difference", description="exact: double backward, more memory"
    )
    penalty_interval: Count = Field(16, description="steps between two gradient penalties of G")
    penalty_step: Positive = Field(5e-4, description="h of the central differences")


class BaselineSettings(Section):
    """Weights of the two baselines, used only with `model: gan` or `model: vae`."""

    l1: Weight = Field(10.0, description="gan: weight of the mean absolute difference")
    adversarial: Weight = Field(1.0, description="gan: weight of the adversarial term")
    kl: Weight = Field(0.02, description="vae: weight of the KL divergence")


class OptimizerSettings(Section):
    """How gradients become steps. Schedules count images, so workers do not move them."""

    name: Literal["adam", "sgd"] = Field("adam", description="one for G and one for D")
    lr: Positive = Field(5e-4, description="learning rate after warm-up")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of adam")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="of adam")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd")
    warmup_images: Annotated[int, Field(ge=0)] = Field(2400, description="lr rises linearly")
    decay_share: Share = Field(0.3, description="last share of the run, in which lr falls to 0")
    clip_norm: Positive = Field(5.0, description="largest norm of a summed gradient")
    ema_halflife_images: Positive = Field(5000.0, description="half-life of the moving average")


class EvaluationSettings(Section):
    """What is measured on the held-out pairs during a run and by `aalnet evaluate`."""

    samples: Count = Field(8, description="k of best-of-k and diversity")
    max_images: Count = Field(1024, description="held-out pairs used, the first ones")
    features: str | None = Field(None, description="TorchScript feature network; default lite0")


class RunSettings(Section):
    """Length, cadence, seed and place of a run."""

    images: Count = Field(48_000, description="conditions to train on; ends at a whole batch")
    checkpoint_every_images: Count = Field(
        8_000, description="save, evaluate and draw the grid, at the first batch at or past it"
    )
    evaluate_every_images: Count | None = Field(
        None, description="evaluate only at the first checkpoint at or past it; default: at each"
    )
    log_every_images: Count = Field(480, description="one line of metrics.jsonl")
    keep_last: Count = Field(2, description="newest checkpoints kept")
    keep_best: Annotated[int, Field(ge=0)] = Field(1, description="best ones kept besides")
    keep_every: Annotated[int, Field(ge=0)] = Field(
        0, description="every so many-th checkpoint is kept besides; 0: none"
    )
    best_by: Literal["kid", "l1", "best_of_k_l1", "diversity", "ssim", "psnr"] = Field(
        "kid", description="the figure that says which checkpoint is best"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of weights, order, augmentation and noise"
    )
    workers: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=WORKERS)] = Field(
        "auto",
        description="auto: one per GPU, else one per CPU core; 0: no Ray; MIN:MAX: as many as "
        "there are, while the run trains",
    )
    threads: Count | Literal["auto"] = Field(
        "auto", description="of torch, a worker's; figures repeat to the bit with as many"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="cuda where there is a GPU")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="bfloat16: autocast; float64: slow, to check numbers"
    )
    channels_last: bool = Field(False, description="memory layout of images")
    grid_conditions: Count = Field(6, description="rows of the sample grid")

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
        10, description="failures in a row, with no new checkpoint between them, that are retried"
    )
    counted: Annotated[tuple[Cause, ...], Field(strict=False)] = Field(
        ("crash", "lost_node", "start", "storage"),
        description="causes that use up the budget; preemption may be named too",
    )
    storage_patience_s: Positive = Field(
        900.0, description="training goes on for so long while the storage fails"
    )
    process_group_timeout_s: Annotated[int, Field(ge=5, le=60)] = Field(
        60, description="a worker that is silent for so long in a sum is taken for dead"
    )
    grace_s: Positive = Field(
        20.0, description="after SIGTERM or Ctrl-C, the time for a last checkpoint"
    )


class TelemetrySettings(Section):
    """What a run tells of itself while it trains (docs/metrics.md)."""

    port: Literal["auto"] | Annotated[int, Field(ge=0, le=65535)] = Field(
        "auto", description="of /metrics; auto: 9464, or a free one where it is taken; 0: none"
    )
    host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1", description="address to serve it on; 0.0.0.0: all, as a pod must"
    )
    linger_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        60.0, description="at the end, the longest wait for one more scrape, if there were any"
    )
    tensorboard: bool = Field(False, description="write event files for TensorBoard too")

    @field_validator("port", mode="before")
    @classmethod
    def _check_port(cls, value: object) -> object:
        if isinstance(value, str) and value != "auto":
            raise ValueError("auto, or a number")
        return value


class Settings(Section):
    """Everything that decides a run. `digest()` covers all but where and how long it runs."""

    model: Literal["aalnet", "gan", "vae"] = "aalnet"
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    baseline: BaselineSettings = BaselineSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()
    failures: FailureSettings = FailureSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        fewest, most = self.run.worker_range or (0, 0)
        if fewest > most:
            raise ValueError(f"run.workers must be MIN:MAX with MIN <= MAX, got {fewest}:{most}")
        if most > self.data.batch_images:
            raise ValueError(
                f"run.workers must be <= data.batch_images ({self.data.batch_images}), "
                f"got {most}: each worker needs a condition of every batch"
            )
        widths = self.network.widths
        if widths is not None and self.data.size_px >> (len(widths) - 1) < 4:
            raise ValueError(
                f"network.widths must have at most {self.data.size_px.bit_length() - 2} levels "
                f"at data.size_px {self.data.size_px}, got {len(widths)}"
            )
        if self.data.shift_px >= self.data.size_px // 2:
            raise ValueError(
                f"data.shift_px must be < half of data.size_px, got {self.data.shift_px}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of the YAML file."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 over every setting that a run may not change when it is resumed."""
        text = json.dumps(identity(self.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


RESUMABLE_SECTIONS = frozenset({"evaluation", "failures", "telemetry"})
RESUMABLE_KEYS = frozenset({"data.memory_budget_mib", "data.cache_gib", *(f"run.{key}" for key in (
    "checkpoint_every_images", "evaluate_every_images", "log_every_images", "keep_last",
    "keep_best", "keep_every", "best_by", "workers", "threads", "device", "grid_conditions",
))})  # fmt: skip


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings (dotted keys) without those that a resumed run may change."""
    flat = {
        f"{section}.{key}": value
        for section, values in settings.items()
        if isinstance(values, dict) and section not in RESUMABLE_SECTIONS
        for key, value in values.items()
    }
    flat = {key: value for key, value in flat.items() if key not in RESUMABLE_KEYS}
    return {"model": settings["model"], **flat}


def load_settings(path: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown (with a "did you
            mean"), a value has a wrong type or is out of range.
    """
    return parse_settings(apply_overrides(read_mapping(path), overrides))


def parse_settings(values: dict[str, Any]) -> Settings:
    """Check plain data as it stands in YAML or in a checkpoint's `state.json`."""
    return validate(Settings, values)


def settings_schema() -> dict[str, Any]:
    """JSON schema of a settings file, for editors."""
    return Settings.model_json_schema(by_alias=True)
