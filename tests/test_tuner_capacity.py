"""What fits on which nodes: as a table, with no cluster."""

from pathlib import Path
from typing import Any

import pytest

from aalnet.errors import ConfigError
from tests.support.tiny_campaigns import campaign_settings
from tuner.capacity import Node, find_slots
from tuner.settings import CampaignSettings


def settings_of(**overrides: Any) -> CampaignSettings:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return campaign_settings(
        Path("data"), {"budget.trials": 20, "base.run.device": "auto"} | dotted
    )


@pytest.mark.parametrize(
    ("workers", "nodes", "at_once", "cpus", "gpus"),
    [
        (1, [Node(2, 0)], 2, 1, 0),
        (2, [Node(2, 0)], 1, 0, 0),
        (2, [Node(4, 0), Node(3, 0)], 3, 0, 0),
        (1, [Node(8, 1), Node(8, 1)], 2, 8, 1),
        (1, [Node(0, 0), Node(2, 4)], 4, 0, 1),  # fewer cores than GPUs: none is reserved
        (4, [Node(8, 4), Node(8, 4)], 2, 0, 1),
        (1, [Node(64, 0)], 20, 3, 0),  # no more than there are trials
    ],
)
def test_as_many_at_once_as_fit(
    workers: int, nodes: list[Node], at_once: int, cpus: int, gpus: int
) -> None:
    slots = find_slots(settings_of(workers=workers), nodes, "here")
    assert (slots.at_once, slots.cpus, slots.gpus) == (at_once, cpus, gpus)


def test_a_trial_gets_no_more_cores_than_one_node_has() -> None:
    slots = find_slots(settings_of(trials_at_once=1), [Node(2, 0), Node(4, 0), Node(2, 0)], "here")
    assert slots.resources == {"CPU": 4}
    slots = find_slots(settings_of(trials_at_once=3), [Node(2, 0), Node(4, 0), Node(2, 0)], "here")
    assert slots.resources == {"CPU": 2}


def test_a_nested_trial_asks_for_nothing_that_its_workers_need() -> None:
    slots = find_slots(settings_of(workers=2), [Node(2, 0)], "here")
    assert slots.resources == {"CPU": 0, "node:__internal_head__": 0.001}


@pytest.mark.parametrize(
    ("overrides", "nodes", "told"),
    [
        ({"workers": 2}, [Node(1, 0)], "2 workers needs as many CPUs, here has 1; lower workers"),
        ({"workers": 2}, [Node(8, 1)], "2 workers needs as many GPUs, here has 1"),
        ({"trials_at_once": 3}, [Node(2, 0)], "trials_at_once 3: .* here has 2; lower it to 2"),
        ({"base__run__device": "cuda"}, [Node(2, 0)], "here has no GPU; set run.device=cpu"),
        ({}, [], "a trial of 1 worker needs as many CPUs, here has 0"),
    ],
)
def test_what_never_fits_is_refused(
    overrides: dict[str, Any], nodes: list[Node], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        find_slots(settings_of(**overrides), nodes, "here")
