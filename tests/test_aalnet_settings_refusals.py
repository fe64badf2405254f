"""Settings that are refused, each in one line that names the key, the rule and the value."""

import re

import pytest

from aalnet.errors import ConfigError
from tests.support.settings_text import load, refusal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objectiv: {eta: 1}", "`objectiv` is not a setting; did you mean `objective`?"),
        ("data: {flipp: 1}", "`data.flipp` is not a setting; did you mean `data.flip`?"),
        ("optimizer: {lr_: 1}", "`optimizer.lr_` is not a setting; did you mean `optimizer.lr`?"),
        ("lr: 1", "`lr` is not a setting; did you mean `optimizer.lr`?"),
        ("run: {eta: 1}", "`run.eta` is not a setting; did you mean `objective.eta`?"),
        ("qqqq: 1", "`qqqq` is not a setting; see `aalnet schema` for all settings"),
    ],
)  # fmt: skip
def test_unknown_keys_are_refused_with_a_hint(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective: {eta: '0.3'}", "objective.eta must be a valid number, got '0.3'"),
        ("objective: {eta: true}", "objective.eta must be a valid number, got True"),
        ("objective: {K: 2.0}", "objective.K must be a valid integer, got 2.0"),
        ("objective: {K: true}", "objective.K must be a valid integer, got True"),
        ("data: {flip: 1}", "data.flip must be a valid boolean, got 1"),
        ("data: {train: 3}", "data.train must be a valid string, got 3"),
        ("data: {shift_px: 1.5}", "data.shift_px must be a valid integer, got 1.5"),
        ("network: {widths: 4}", "network.widths must be a valid tuple, got 4"),
        ("optimizer: {lr: null}", "optimizer.lr must be a valid number, got None"),
        ("model: aalnett", "model must be 'aalnet', 'vae', 'gan' or 'vae-gan', got 'aalnett'"),
        ("data: {size_px: 48}", "data.size_px must be 32, 64, 128 or 256, got 48"),
        ("run: {device: tpu}", "run.device must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("evaluation: {features: 3}", "evaluation.features must be a valid string, got 3"),
    ],
)
def test_wrong_types_are_refused(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("text", ["objective: 3", "objective: [1]", "objective: word"])
def test_a_section_must_be_a_mapping(text: str) -> None:
    assert refusal(text).startswith("objective must be a group of settings, got ")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("optimizer.lr", "0", "> 0"),
        ("optimizer.lr", "-1", "> 0"),
        ("optimizer.lr", ".inf", "a finite number"),
        ("optimizer.beta2", "1", "< 1"),
        ("optimizer.beta1", ".nan", "< 1"),
        ("optimizer.decay_share", "1.5", "<= 1"),
        ("optimizer.decay_share", ".nan", "<= 1"),
        ("optimizer.clip_norm", "0", "> 0"),
        ("objective.eta", "-0.1", ">= 0"),
        ("objective.lambda", "-0.1", ">= 0"),
        ("objective.gamma", ".nan", "a finite number"),
        ("objective.K", "0", ">= 1"),
        ("objective.scale", "0", "> 0"),
        ("data.noised_share", "1.1", "<= 1"),
        ("data.batch_images", "0", ">= 1"),
        ("data.shift_px", "-1", ">= 0"),
        ("objective.width", "0.5", ">= 1"),
        ("objective.width", "1001", "<= 1000"),
        ("objective.entropy_from", "1.1", "<= 1"),
        ("objective.adversary_from", "-0.1", ">= 0"),
        ("objective.ignition_images", "-1", ">= 0"),
        ("objective.kl_warmup", "2", "<= 1"),
        ("objective.code_recovery", "-1", ">= 0"),
        ("run.images", "0", ">= 1"),
        ("run.seed", "-1", ">= 0"),
        ("run.seed", str(2**63), f"< {2**63}"),
    ],
)
def test_ranges_name_key_rule_and_value(key: str, value: str, rule: str) -> None:
    message = refusal("", f"{key}={value}")
    assert message.startswith(f"{key} must be {rule}, got ")
    assert value.lstrip(".") in message
    assert "\n" not in message


def test_every_problem_gets_a_line_of_its_own() -> None:
    message = refusal("objective: {eta: -1, betta: 2, K: x}\noptimizer: {lr: 0}\nzzzz: 1")
    assert sorted(message.splitlines()) == [
        "`objective.betta` is not a setting; did you mean `objective.beta`?",
        "`zzzz` is not a setting; see `aalnet schema` for all settings",
        "objective.K must be a valid integer, got 'x'",
        "objective.eta must be >= 0, got -1",
        "optimizer.lr must be > 0, got 0",
    ]


def test_the_former_section_of_the_other_models_is_refused() -> None:
    assert refusal("baseline: {l1: 3}") == (
        "`baseline` is not a setting; see `aalnet schema` for all settings"
    )


def test_a_long_value_is_cut_short() -> None:
    message = refusal(f"objective: {{eta: {'x' * 100_000}}}")
    assert message.startswith("objective.eta must be a valid number, got 'xxx")
    assert len(message) < 500


@pytest.mark.parametrize(
    ("text", "start", "value"),
    [
        ("{run: {workers: 9}, data: {batch_images: 8}}", "run.workers must be <= data.batch", "9"),
        ("network: {widths: [8, 8, 8, 8, 8]}", "network.widths must have at most 4 levels", "5"),
        ("data: {size_px: 32, shift_px: 16}", "data.shift_px must be < half of data.size_px", "16"),
        ("objective: {proposal: false}",
         "objective.entropy_from must be 0 where objective.proposal is false", "0.7"),
        ("objective: {proposal: false, entropy_from: 0.01, ignition_images: 9}",
         "objective.entropy_from must be 0 where objective.proposal is false", "0.01"),
    ],
)  # fmt: skip
def test_settings_that_conflict(text: str, start: str, value: str) -> None:
    message = refusal(text)
    assert message.startswith(start)
    assert f"got {value}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "objective: {1: 2}",
        "run: {workers: many}",
        "run: {workers: -1}",
        "network: {widths: [4]}",
        "network: {widths: [4, x]}",
    ],
)
def test_one_problem_is_one_line_in_the_users_words(text: str) -> None:
    message = refusal(text)
    assert "\n" not in message
    assert not re.search("should|Tuple|Settings|after validation", message)


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ("'3:2'", "run.workers must be MIN:MAX with MIN <= MAX, got 3:2"),
        ("'1:25'", "run.workers must be <= data.batch_images (24), got 25"),
        *((text, "auto, a number, or a range MIN:MAX") for text in (
            "'0:2'", "'1:'", "':2'", "'1:2:3'", "'-1:2'", "'1-3'", "'1:2\\n'", "' 1:2'", "'01:2'",
            "'1:100000'", "'\u0661:\u0662'", "many", "'2'",
        )),
        ("-1", "run.workers"),
        ("1.5", "run.workers"),
        ("null", "run.workers"),
        ("true", "run.workers"),
        ("[1, 2]", "run.workers"),
    ],
)  # fmt: skip
def test_workers_that_cannot_be(workers: str, words: str) -> None:
    found = refusal("", f"run.workers={workers}")
    assert words in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("run.keep_last=0", "run.keep_last"),
        ("run.keep_best=-1", "run.keep_best"),
        ("run.keep_every=-1", "run.keep_every"),
        ("run.best_by=loss", "run.best_by"),
        ("failures.budget=-1", "failures.budget"),
        ("failures.counted=[non_finite]", "failures.counted"),
        ("failures.counted=crash", "failures.counted"),
        ("failures.storage_patience_s=0", "failures.storage_patience_s"),
        ("failures.storage_patience_s=.inf", "failures.storage_patience_s"),
        ("failures.process_group_timeout_s=61", "failures.process_group_timeout_s"),
        ("failures.process_group_timeout_s=4", "failures.process_group_timeout_s"),
        ("failures.grace_s=0", "failures.grace_s"),
        ("network.widths=[16385, 4]", "network.widths"),
        ("network.widths=[4, 4, 4, 4, 4, 4, 4, 4, 4]", "network.widths"),
        ("network.encoder_blocks=65", "network.encoder_blocks"),
        ("network.noise_size=16385", "network.noise_size"),
    ],
)
def test_rules_of_checkpoints_failures_and_sizes(override: str, name: str) -> None:
    assert name in refusal("", override)


def test_lambda_has_one_name_in_a_file() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `objective\.lambda`"):
        load("objective: {lambda_: 0.5}")
