"""Who is compared: names, tuned files on the shared task, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from aalnet.errors import ConfigError
from aalnet.settings import Settings
from cluster.runs.contestants import KNOWN, contestants, named
from tests.support.tiny_runs import tiny_values, write_config


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(write_config(tmp_path / "demo.yaml", tiny_values(tmp_path)))


def tuned(folder: Path, **overrides: Any) -> str:
    """A settings file as a campaign writes it: every setting stands in it."""
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    return write_config(folder / "best.yaml", tiny_values(folder, values)).name


def test_models_are_those_of_the_settings() -> None:
    assert set(KNOWN) == set(get_args(Settings.model_fields["model"].annotation))
    assert named("aalnet, vae=tuned/vae.yaml") == {"aalnet": None, "vae": "tuned/vae.yaml"}


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ("", "must name models"),
        ("vae,vae=x.yaml", "each once"),
        ("aalnet,dcgan", "`dcgan`; another name needs a settings file: dcgan=FILE"),
        ("vae=", "NAME=FILE, got `vae=`"),
    ],
)
def test_models_that_cannot_be(models: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        named(models)


def test_a_name_alone_takes_the_files_settings(config: str) -> None:
    gan, vae = contestants(config, "gan,vae", ["optimizer.lr=0.01"])
    assert (gan.settings.model, vae.settings.model) == ("gan", "vae")
    assert gan.settings.optimizer == vae.settings.optimizer
    assert gan.settings.optimizer.lr == 0.01


def test_a_tuned_file_keeps_its_own_and_takes_task_and_run(config: str, tmp_path: Path) -> None:
    file = tuned(
        tmp_path, model="vae", optimizer__lr=0.03, data__batch_images=3, run__images=999,
        run__seed=7, evaluation__samples=5,
    )  # fmt: skip
    first, second = contestants(config, f"aalnet,vae={file}", [], tmp_path)
    assert (second.settings.model, second.file) == ("vae", file)
    assert second.settings.optimizer.lr == 0.03
    assert second.settings.data.batch_images == 3
    assert second.settings.run == first.settings.run
    assert second.settings.evaluation == first.settings.evaluation


def test_a_file_says_nothing_of_the_task(config: str, tmp_path: Path) -> None:
    write_config(tmp_path / "short.yaml", {"optimizer": {"lr": 0.03}, "network": {"noise_size": 8}})
    (one,) = contestants(config, "plain=short.yaml", [], tmp_path)
    assert one.settings.model == "aalnet"
    assert one.settings.network.widths == (4, 8)
    assert one.settings.network.noise_size == 8
    assert one.settings.data.train == str(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.size_px", 64),
        ("data.test", "elsewhere.parquet"),
        ("network.widths", [4, 16]),
        ("network.embedding_size", 16),
    ],
)
def test_another_task_is_refused_unless_both_are_set(
    config: str, tmp_path: Path, key: str, value: Any
) -> None:
    file = tuned(tmp_path, model="vae", **{key.replace(".", "__"): value})
    with pytest.raises(ConfigError, match=rf"best.yaml` has {key} .*same task.*--set {key}="):
        contestants(config, f"vae={file}", [], tmp_path)
    contestants(config, f"vae={file}", [f"{key}={value}"], tmp_path)


def test_a_file_of_another_model_is_refused(config: str, tmp_path: Path) -> None:
    file = tuned(tmp_path, model="gan")
    with pytest.raises(ConfigError, match="is of model gan, --models says vae"):
        contestants(config, f"vae={file}", [], tmp_path)
    (one,) = contestants(config, f"sharp={file}", [], tmp_path)
    assert (one.name, one.settings.model) == ("sharp", "gan")


def test_runs_differ_in_seed_and_images_alone(config: str) -> None:
    (one,) = contestants(config, "vae", [])
    run = one.with_run(seed=3, images=64)
    assert (run.run.seed, run.run.images) == (3, 64)
    back = run.to_dict()
    back["run"] |= {"seed": 0, "images": 32}
    assert back == one.settings.to_dict()
