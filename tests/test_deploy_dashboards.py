"""The Grafana dashboards: fresh, valid by Grafana's types, and every query gets real data."""

import json
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import units

from deploy.dashboards.__main__ import DASHBOARDS
from tests.support.grafana import (
    BUILT_IN,
    PATHS,
    VARIABLE,
    Board,
    Window,
    filled,
    load,
    panels,
    queries,
    variables,
)
from tests.support.promql import unknown

BOARDS = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
GRID = 24
UNITS = {value for name, value in vars(units).items() if name[0].isupper()}
FALLBACK = "or on() label_replace(vector(0)"


def expressions(board: Board) -> list[str]:
    return [
        *(query.expr for query in queries(board)),
        *(item["expr"] for item in board["annotations"]["list"]),
        *(variable["query"]["query"] for variable in variables(board).values()),
    ]


def texts(thing: Any) -> list[str]:
    """Every string in a dashboard."""
    if isinstance(thing, dict):
        return [text for value in thing.values() for text in texts(value)]
    if isinstance(thing, list):
        return [text for value in thing for text in texts(value)]
    return [thing] if isinstance(thing, str) else []


def test_the_committed_files_are_what_the_code_makes() -> None:
    assert {path.stem for path in PATHS} == set(DASHBOARDS)
    for path in PATHS:
        written = path.read_text(encoding="utf-8")
        assert written == DASHBOARDS[path.stem], "python -m deploy.dashboards writes them anew"


@BOARDS
def test_grafanas_own_types_read_it_without_loss(path: Path) -> None:
    register_default_plugins()
    board = load(path)
    again = json.loads(json.dumps(grafana.Dashboard.from_json(board), cls=JSONEncoder))
    for item in board["annotations"]["list"]:  # Prometheus' own fields, unknown to the types
        for name in ("step", "titleFormat", "useValueForTime"):
            item.pop(name, None)
    assert again == board


@BOARDS
def test_ids_are_unique_and_panels_lie_beside_each_other(path: Path) -> None:
    board = load(path)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= GRID
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        )  # fmt: skip
        assert apart, (a, b)


def test_uids_are_stable_and_links_lead_somewhere() -> None:
    boards = {path.stem: load(path) for path in PATHS}
    assert {board["uid"] for board in boards.values()} == {f"aalnet-{name}" for name in boards}
    for board in boards.values():
        (ours, *rays) = board["links"]
        assert (ours["type"], ours["tags"], ours["includeVars"], ours["keepTime"]) == (
            "dashboards", ["aalnet"], True, True,
        )  # fmt: skip
        assert {link["url"] for link in rays} <= {"/d/rayTrainDashboard", "/d/rayDefaultDashboard"}
        assert "aalnet" in board["tags"]
    inner = [text.split("?")[0] for text in texts(boards["cluster-overview"]) if "/d/aa" in text]
    assert set(inner) == {"/d/aalnet-training-run", "/d/aalnet-campaign"}


@BOARDS
def test_every_panel_says_what_it_shows_in_a_unit_that_grafana_knows(path: Path) -> None:
    titles = []
    for panel in panels(load(path)):
        titles.append((panel["title"], panel["type"]))
        assert len(panel["description"]) > 15
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0
    assert len(titles) == len(set(titles))


@BOARDS
def test_no_variable_is_dead_and_none_is_missing(path: Path) -> None:
    board = load(path)
    named = {item["name"] for item in board["templating"]["list"]}
    used = {name[1] or name[2] for text in texts(board) for name in VARIABLE.finditer(text)}
    used -= {"__value", "__url_time_range"} | BUILT_IN
    assert used == named
    text = " ".join(expressions(board))
    assert all(f"${name}" in text for name in variables(board))
    for variable in variables(board).values():  # finds finished runs too
        assert "last_over_time" in variable["query"]["query"]
        assert "$__range" in variable["query"]["query"]
        assert variable["refresh"] == grafana.VariableRefresh.ON_TIME_RANGE_CHANGED


@BOARDS
def test_what_a_query_asks_for_exists(path: Path) -> None:
    wrong = {expr: list(unknown(expr, set())) for expr in expressions(load(path))}
    assert {expr: words for expr, words in wrong.items() if words} == {}


@BOARDS
def test_every_query_is_promql(path: Path, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    board = load(path)
    values = Window(0, 3600).values() | dict.fromkeys(variables(board), "a")
    exprs = [
        *(query.expr for query in queries(board)),
        *(item["expr"] for item in board["annotations"]["list"]),
    ]
    rules = [
        {"record": f"a:query:{number}", "expr": filled(expr, values)}
        for number, expr in enumerate(exprs)
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_has_the_metrics_that_are_asked_of_it() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    metrics = {
        word.removeprefix("ray_")
        for path in PATHS
        for expr in expressions(load(path))
        for word in expr.replace("(", " ").replace(")", " ").split()
        if word.startswith("ray_")
    }
    assert metrics
    assert metrics <= METRICS_GAUGES.keys()


def test_only_what_a_machine_may_lack_has_a_fallback() -> None:
    """A fallback answers for GPUs, Ray's own metrics and alerts, and for nothing else."""
    fallen = [
        query.expr for path in PATHS for query in queries(load(path)) if FALLBACK in query.expr
    ]
    lacking = ("aalnet_gpu_", "ray_node_", "ALERTS")
    assert [expr for expr in fallen if not any(name in expr for name in lacking)] == []
