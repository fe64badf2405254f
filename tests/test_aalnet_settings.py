"""Settings as a run takes them: overrides, defaults, round trip, digest, schema."""

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from aalnet.settings import Settings, parse_settings, settings_schema
from aalnet.yaml_io import apply_overrides
from tests.support.settings_text import load, refusal


def test_what_just_fits() -> None:
    assert load("{run: {workers: 8}, data: {batch_images: 8, shift_px: 15}}").run.workers == 8
    assert load("network: {widths: [8, 8, 8, 8]}").network.widths == (8, 8, 8, 8)
    assert load("run: {workers: auto}").run.workers == "auto"
    assert load("run: {workers: 0}").run.workers == 0
    assert load("objective: {eta: 0, lambda: 0, beta: 0, gamma: 0, flatness: 0}").objective.eta == 0


def test_an_empty_section_means_its_defaults() -> None:
    assert load("objective:") == Settings()
    assert load("objective:", "objective.eta=0.4").objective.eta == 0.4


@pytest.mark.parametrize(
    ("workers", "found"),
    [("auto", None), ("0", (0, 0)), ("1", (1, 1)), ("24", (24, 24)), ("'1:1'", (1, 1)),
     ("'1:3'", (1, 3)), ("'2:24'", (2, 24))],
)  # fmt: skip
def test_the_range_of_workers(workers: str, found: tuple[int, int] | None) -> None:
    assert load("", f"run.workers={workers}").run.worker_range == found


def test_what_a_run_survives_by_default() -> None:
    failures = Settings().failures
    assert (failures.budget, "preemption" in failures.counted) == (10, False)
    assert load("", "failures.counted=[]").failures.counted == ()
    assert load("", "failures.counted=[preemption, crash]").failures.counted == (
        "preemption", "crash",
    )  # fmt: skip


def test_the_phases_and_terms_of_a_run_by_default() -> None:
    """What docs/objective.md tells, and every study is measured against."""
    objective = Settings().objective
    assert (objective.ignition_images, objective.entropy_from, objective.adversary_from) == (
        2500, 0.7, 1.0,
    )  # fmt: skip
    assert (objective.K, objective.lambda_, objective.eta) == (2, 3.0, 0.5)
    assert objective.proposal
    assert not objective.judges_proposal
    assert objective.relativistic


def test_without_a_proposal_the_prior_works_from_the_start() -> None:
    text = "objective: {proposal: false, entropy_from: 0}"
    assert not load(text).objective.proposal
    assert load("{model: gan, objective: {proposal: false}}").objective.entropy_from == 0.7


# Overrides.


def test_overrides_win_and_read_yaml() -> None:
    found = load(
        "objective: {eta: 0.1, K: 2}\nmodel: gan",
        "objective.eta=1e-2",
        "objective.lambda=0",
        "network.widths=[4, 8]",
        "model=vae",
        "data.flip=false",
        "evaluation.features=null",
        " run.workers = auto",
        "run.seed=1",
        "run.seed=2",
    )
    assert (found.objective.eta, found.objective.lambda_, found.objective.K) == (0.01, 0, 2)
    assert found.network.widths == (4, 8)
    assert (found.model, found.data.flip, found.run.seed) == ("vae", False, 2)


def test_overrides_leave_their_source_alone() -> None:
    values: dict[str, Any] = {"objective": {"eta": 0.1}}
    assert apply_overrides(values, ["objective.eta=1", "run.seed=3"])["objective"] == {"eta": 1}
    assert values == {"objective": {"eta": 0.1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.eta", "--set wants key=value, got `objective.eta`; e.g. objective.eta=0.3"),
        ("=3", "--set wants key=value, got `=3`; e.g. objective.eta=0.3"),
        ("model.eta=3", "--set model.eta: `model` is a value, not a group of settings"),
        ("objective.eta.x=3", "--set objective.eta.x: `eta` is a value, not a group of settings"),
        ("objective.etta=3", "`objective.etta` is not a setting; did you mean `objective.eta`?"),
        ("objective.eta=", "objective.eta must be a valid number, got None"),
        ("objective.eta=a", "objective.eta must be a valid number, got 'a'"),
        ("objective=3", None),
        ("objective.eta=[", None),
        ("objective.eta=a: b", None),
    ],
)
def test_bad_overrides(override: str, message: str | None) -> None:
    found = refusal("model: gan\nobjective: {eta: 0.2}", override)
    assert "\n" not in found
    if message is None:
        assert "objective" in found
    else:
        assert found == message


def test_an_override_of_a_whole_section() -> None:
    assert load("objective: {eta: 1}", "objective={beta: 0.25}").objective.eta == 0.5
    assert load("", "objective={beta: 0.25}").objective.beta == 0.25


# The settings themselves.


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.objective.eta = 3.0


def test_round_trip_through_json() -> None:
    settings = load(
        "network: {widths: [4, 8]}\nobjective: {lambda: 0.7}\nrun: {workers: 3}\nmodel: vae"
    )
    plain = json.loads(json.dumps(settings.to_dict()))
    assert plain["objective"]["lambda"] == 0.7
    assert "lambda_" not in plain["objective"]
    assert parse_settings(plain) == settings
    assert parse_settings(plain).digest() == settings.digest()
    assert parse_settings(Settings().to_dict()) == Settings()


def test_schema_names_settings_as_the_file_does() -> None:
    schema = settings_schema()
    objective = schema["$defs"]["ObjectiveSettings"]["properties"]
    assert {"lambda", "eta", "beta", "gamma", "K"} <= objective.keys()
    assert "lambda_" not in objective
    assert objective["lambda"]["minimum"] == 0
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Settings().to_dict())
    json.dumps(schema)


# The digest: what a resumed run may change.

RESUMABLE = [
    "data.memory_budget_mib=1", "run.checkpoint_every_images=7", "run.log_every_images=7",
    "run.evaluate_every_images=480",
    "run.keep_last=9", "run.keep_best=3", "run.keep_every=4", "run.best_by=l1", "run.workers=2",
    "run.workers='1:3'", "run.device=cpu", "run.grid_conditions=1", "data.cache_gib=1",
    "failures.budget=0", "failures.counted=[storage]", "failures.storage_patience_s=5",
    "failures.process_group_timeout_s=9", "failures.grace_s=1",
    "evaluation.samples=2", "evaluation.max_images=9", "evaluation.features=x",
    "telemetry.port=0", "telemetry.host=0.0.0.0", "telemetry.linger_s=1",
    "telemetry.tensorboard=true", "run.threads=1",
]  # fmt: skip


@pytest.mark.parametrize("override", RESUMABLE)
def test_a_resumed_run_may_change_this(override: str) -> None:
    assert load("", override) != Settings()
    assert load("", override).digest() == Settings().digest()


def other_value(key: str, value: object) -> str:
    words = {
        "data.size_px": "64", "network.preset": "base", "network.blocks": "densenet",
        "network.widths": "[4, 8]", "objective.penalty_method": "exact",
        "optimizer.name": "sgd", "run.precision": "bfloat16", "data.train": "x", "data.test": "x",
    }  # fmt: skip
    if key in words:
        return words[key]
    if isinstance(value, bool):
        return str(not value).lower()
    if value is None:
        return "3"
    assert isinstance(value, int | float)
    return str(value + 1) if isinstance(value, int) else str(value / 2 + 0.001)


def test_nothing_else_may_change() -> None:
    wanted, resumable = Settings().digest(), {text.partition("=")[0] for text in RESUMABLE}
    assert re.fullmatch(r"[0-9a-f]{64}", wanted)
    seen = {wanted, load("model: gan").digest()}
    keys = [
        (f"{section}.{key}", value)
        for section, values in Settings().to_dict().items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    decisive = [(key, value) for key, value in keys if key not in resumable]
    for key, value in decisive:
        # An aalnet without a proposal has other phases too.
        text = "model: gan" if key == "objective.proposal" else ""
        seen.add(load(text, f"{key}={other_value(key, value)}").digest())
    assert len(seen) == 2 + len(decisive)
