"""YAML: numbers, empty, broken, hostile and endless files."""

import subprocess
import sys
from pathlib import Path

import pytest

from aalnet.errors import ConfigError
from aalnet.settings import Settings, load_settings
from aalnet.yaml_io import parse_mapping, read_mapping
from tests.support.settings_text import load, refusal


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


def test_merge_keys() -> None:
    values = parse_mapping("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "x")
    assert values["b"] == {"x": 1, "y": 3}
