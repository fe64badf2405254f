"""Settings: what is refused and how it is said, overrides, digest, hostile YAML."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aalnet.errors import ConfigError, UserError
from aalnet.settings import Settings, load_settings, parse_settings, settings_schema
from aalnet.yaml_io import apply_overrides, parse_mapping, read_mapping


def load(text: str, *overrides: str) -> Settings:
    return parse_settings(apply_overrides(parse_mapping(text, "run.yaml"), overrides))


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    return str(caught.value)


def as_is(text: str) -> str:
    return rf"^{re.escape(text)}$"


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
        ("model: aalnett", "model must be 'aalnet', 'gan' or 'vae', got 'aalnett'"),
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


@pytest.mark.parametrize(
    ("text", "start", "value"),
    [
        ("{run: {workers: 9}, data: {batch_images: 8}}", "run.workers must be <= data.batch", "9"),
        ("network: {widths: [8, 8, 8, 8, 8]}", "network.widths must have at most 4 levels", "5"),
        ("data: {size_px: 32, shift_px: 16}", "data.shift_px must be < half of data.size_px", "16"),
    ],
)  # fmt: skip
def test_settings_that_conflict(text: str, start: str, value: str) -> None:
    message = refusal(text)
    assert message.startswith(start)
    assert f"got {value}" in message
    assert "\n" not in message


def test_what_just_fits() -> None:
    assert load("{run: {workers: 8}, data: {batch_images: 8, shift_px: 15}}").run.workers == 8
    assert load("network: {widths: [8, 8, 8, 8]}").network.widths == (8, 8, 8, 8)
    assert load("run: {workers: auto}").run.workers == "auto"
    assert load("run: {workers: 0}").run.workers == 0
    assert load("objective: {eta: 0, lambda: 0, beta: 0, gamma: 0, flatness: 0}").objective.eta == 0


# YAML.


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), ("+2e2", 2e2), ("1.5e-4", 1.5e-4), ("5.e1", 50.0), ("2", 2.0)],
)
def test_floats_of_yaml_1_2(text: str, value: float) -> None:
    assert load(f"optimizer: {{lr: {text}}}").optimizer.lr == value
    assert load("", f"optimizer.lr={text}").optimizer.lr == value


def test_words_that_only_look_like_floats_stay_words() -> None:
    assert parse_mapping("{a: e3, b: 1e, c: 1e-3x, d: '1e-3'}", "x") == {
        "a": "e3", "b": "1e", "c": "1e-3x", "d": "1e-3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["run: {seed: 1}\nrun: {images: 2}", "objective: {eta: 1, beta: 2, eta: 1}"]
)
def test_repeated_keys_are_refused(text: str) -> None:
    assert "stands twice" in refusal(text)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "{}", "---\n"])
def test_an_empty_file_means_the_defaults(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_settings(path) == Settings()


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b", "list"), ("word", "str"), ("3", "int"), ("1: 2", "dict")]
)
def test_no_mapping(text: str, kind: str) -> None:
    assert refusal(text) == f"`run.yaml` must hold `key: value` settings, got a {kind}"


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\ta: 1", "a: \x00", "? [1]\n: 2", "a: *b"])
def test_broken_yaml_is_one_line_with_the_files_name(text: str) -> None:
    message = refusal(text)
    assert message.startswith("`run.yaml` is not valid YAML: ")
    assert "\n" not in message


def test_missing_unreadable_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_mapping(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mapping(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mapping(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/object/new:pathlib.Path [{path}]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
    ],
)
def test_python_tags_run_nothing(tag: str, tmp_path: Path) -> None:
    path = tmp_path / "touched"
    message = refusal(f"run: {tag.format(path=path)}")
    assert "could not determine a constructor" in message
    assert not path.exists()


def run_bounded(text: str, seconds: float = 20) -> str:
    """Load settings in a process of 2 GiB; its words, or a failure."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from aalnet.settings import parse_settings\n"
        "from aalnet.yaml_io import apply_overrides, parse_mapping\n"
        "from aalnet.errors import ConfigError\n"
        "try:\n"
        "    values = parse_mapping(sys.stdin.read(), 'run.yaml')\n"
        "    parse_settings(apply_overrides(values, ['run.seed=1']))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, cwd=root, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


def bomb(levels: int, target: str) -> str:
    """Ten aliases a level: 10 ** levels words, if anything spells them out."""
    lines = ["x0: &x0 [lol]"]
    for i in range(1, levels + 1):
        lines.append(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]")
    return "\n".join(lines) + f"\n{target.format(top=f'*x{levels}')}\n"


def test_an_alias_bomb_under_unknown_keys_is_harmless() -> None:
    assert "`x9` is not a setting" in run_bounded(bomb(9, "zzzz: {top}"))


@pytest.mark.parametrize("target", ["data: {{train: {top}}}", "objective: {top}"])
def test_an_alias_bomb_as_a_value_is_not_spelled_out(target: str) -> None:
    message = refusal(bomb(4, target))
    assert len(message) < 2000


def test_a_long_value_is_cut_short() -> None:
    message = refusal(f"objective: {{eta: {'x' * 100_000}}}")
    assert message.startswith("objective.eta must be a valid number, got 'xxx")
    assert len(message) < 500


def test_values_that_hold_themselves() -> None:
    assert "data.train must be a valid string" in refusal("data: &d {train: *d}")
    assert "`a` is not a setting" in refusal("a: &a [*a]")


def test_deep_nesting_is_refused() -> None:
    message = refusal("run: " + "[" * 20_000 + "]" * 20_000)
    assert "nested too deeply" in message


@pytest.mark.parametrize(
    "text",
    [
        "model: 2026-13-45",
        "model: !!int x",
        "model: !!float x",
        "model: !!bool maybe",
        "model: 0x_",
        "model: " + "9" * 5000,
        "? !!set {a: null}\n: 1",
    ],
)
def test_scalars_that_yaml_cannot_build(text: str) -> None:
    assert refusal(text).startswith("`run.yaml` is not valid YAML: ")


def test_an_empty_section_means_its_defaults() -> None:
    assert load("objective:") == Settings()
    assert load("objective:", "objective.eta=0.4").objective.eta == 0.4


def test_merge_keys() -> None:
    values = parse_mapping("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "x")
    assert values["b"] == {"x": 1, "y": 3}


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
    assert load("objective: {eta: 1}", "objective={beta: 0.5}").objective.eta == 0.3
    assert load("", "objective={beta: 0.5}").objective.beta == 0.5


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


@pytest.mark.parametrize(
    ("workers", "found"),
    [("auto", None), ("0", (0, 0)), ("1", (1, 1)), ("24", (24, 24)), ("'1:1'", (1, 1)),
     ("'1:3'", (1, 3)), ("'2:24'", (2, 24))],
)  # fmt: skip
def test_the_range_of_workers(workers: str, found: tuple[int, int] | None) -> None:
    assert load("", f"run.workers={workers}").run.worker_range == found


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


def test_what_a_run_survives_by_default() -> None:
    failures = Settings().failures
    assert (failures.budget, "preemption" in failures.counted) == (10, False)
    assert load("", "failures.counted=[]").failures.counted == ()
    assert load("", "failures.counted=[preemption, crash]").failures.counted == (
        "preemption", "crash",
    )  # fmt: skip


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
        seen.add(load("", f"{key}={other_value(key, value)}").digest())
    assert len(seen) == 2 + len(decisive)


def test_schema_names_settings_as_the_file_does() -> None:
    schema = settings_schema()
    objective = schema["$defs"]["ObjectiveSettings"]["properties"]
    assert {"lambda", "eta", "beta", "gamma", "K"} <= objective.keys()
    assert "lambda_" not in objective
    assert objective["lambda"]["minimum"] == 0
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Settings().to_dict())
    json.dumps(schema)


def test_lambda_has_one_name_in_a_file() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `objective\.lambda`"):
        load("objective: {lambda_: 0.5}")
