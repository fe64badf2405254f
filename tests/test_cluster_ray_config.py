"""`ray_config.yaml`: valid by Ray itself, and by what this project promises of it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.tiny_runs import ROOT

Config = dict[str, Any]


@pytest.fixture(scope="module")
def shipped() -> Config:
    text = (ROOT / "ray_config.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def check(config: Config) -> Config:
    """Ray's own two steps before it starts anything; no network."""
    prepared: Config = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def promises(config: Config) -> list[str]:
    """What Ray would accept and we do not."""
    broken = []
    head = config["head_node_type"]
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot == (name == head):
            broken.append(f"{name}: the head is on demand, workers are on spot")
        for needed in ("SecurityGroupIds", "IamInstanceProfile", "ImageId"):
            if not node.get(needed):
                broken.append(f"{name}: {needed}: else Ray makes an open one, or an old one")
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            broken.append(f"{name}: instance metadata without a token")
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in config[part] if "ray start" in line]
        if not starts or not all("RAY_AUTH_MODE=token" in line for line in starts):
            broken.append(f"{part}: no token authentication")
        if any("0.0.0.0" in line for line in starts):
            broken.append(f"{part}: an open port")
    installs = '-c ~/aalnet/constraints.txt -e "$HOME/aalnet[tune]"'
    if not any(installs in line for line in config["setup_commands"]):
        broken.append("setup_commands: other versions than the tested ones")
    if not any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"]):
        broken.append("file_mounts: no token")
    return broken


def test_ray_accepts_it(shipped: Config) -> None:
    prepared = check(shipped)
    worker = prepared["available_node_types"]["gpu-worker"]
    assert 1 <= worker["min_workers"] <= worker["max_workers"] <= prepared["max_workers"]
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_it_keeps_our_promises(shipped: Config) -> None:
    assert promises(shipped) == []


def test_what_it_mounts_and_installs_exists(shipped: Config) -> None:
    assert shipped["file_mounts"]["/home/ubuntu/aalnet"] == "."
    assert (ROOT / "constraints.txt").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "aalnet-cloud[train]" in project["optional-dependencies"]["tune"]


def unknown_key(config: Config) -> None:
    config["aalnet"] = {"run": "demo"}


def no_such_head(config: Config) -> None:
    config["head_node_type"] = "haed"


def wrong_type(config: Config) -> None:
    config["max_workers"] = "two"


def misspelt_key(config: Config) -> None:
    workers = config["available_node_types"]["gpu-worker"]
    workers["min_worker"] = workers.pop("min_workers")


def no_provider(config: Config) -> None:
    del config["provider"]


def node_without_config(config: Config) -> None:
    del config["available_node_types"]["gpu-worker"]["node_config"]


def nodes_in_words(config: Config) -> None:
    config["available_node_types"]["gpu-worker"]["max_workers"] = "eight"


@pytest.mark.parametrize(
    "damage",
    [unknown_key, no_such_head, wrong_type, misspelt_key, no_provider, node_without_config,
     nodes_in_words],
)  # fmt: skip
def test_ray_refuses_it_broken(shipped: Config, damage: Callable[[Config], None]) -> None:
    broken = copy.deepcopy(shipped)
    damage(broken)
    with pytest.raises((jsonschema.ValidationError, ValueError, TypeError, KeyError)):
        check(broken)


def head_on_spot(config: Config) -> None:
    node = config["available_node_types"]["head"]["node_config"]
    node["InstanceMarketOptions"] = {"MarketType": "spot"}


def no_token(config: Config) -> None:
    lines = config["worker_start_ray_commands"]
    lines[-1] = lines[-1].replace("RAY_AUTH_MODE=token", "")


def open_dashboard(config: Config) -> None:
    lines = config["head_start_ray_commands"]
    lines[-1] = lines[-1].replace("127.0.0.1", "0.0.0.0")


def rays_security_group(config: Config) -> None:
    del config["available_node_types"]["gpu-worker"]["node_config"]["SecurityGroupIds"]


def other_versions(config: Config) -> None:
    config["setup_commands"][-1] = "pip install ray[default] torch"


@pytest.mark.parametrize(
    "damage", [head_on_spot, no_token, open_dashboard, rays_security_group, other_versions]
)
def test_we_refuse_it_broken(shipped: Config, damage: Callable[[Config], None]) -> None:
    broken = copy.deepcopy(shipped)
    damage(broken)
    check(broken)  # Ray would take it
    assert len(promises(broken)) == 1
