"""The alert rules: each fires on a bad history, is silent on a good one, and is in the runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.promql import unknown

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "deploy/kubernetes/base/monitoring/alert-rules.yaml"
RUNBOOK = ROOT / "docs/runbook.md"
HISTORIES = sorted((ROOT / "tests/alerts").glob("*.yaml"))
SPEC: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
ALL = [rule for group in SPEC["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
RECORDED = {rule["record"] for rule in ALL if "record" in rule}


def promtool(folder: Path, *arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    (folder / "alert-rules.yaml").write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_rules_good(tmp_path: Path) -> None:
    promtool(tmp_path, "check", "rules", "--lint=all", "--lint-fatal", "alert-rules.yaml")


@pytest.mark.parametrize("history", HISTORIES, ids=lambda path: path.stem)
def test_alerts_fire_on_bad_histories_only(history: Path, tmp_path: Path) -> None:
    shutil.copy(history, tmp_path)
    promtool(tmp_path, "test", "rules", history.name)


def test_every_alert_has_a_history_that_fires_it_and_a_time_when_it_is_silent() -> None:
    fired, silent = set(), set()
    for history in HISTORIES:
        for test in yaml.safe_load(history.read_text(encoding="utf-8"))["tests"]:
            for expected in test["alert_rule_test"]:
                name = expected["alertname"]
                severities = {alert["exp_labels"]["severity"] for alert in expected["exp_alerts"]}
                fired |= {(name, severity) for severity in severities}
                silent |= set() if severities else {name}
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS}
    assert silent == set(NAMES)


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.get("alert") or rule["record"])
def test_what_a_rule_asks_for_exists(rule: dict[str, Any]) -> None:
    assert list(unknown(rule["expr"], RECORDED)) == []


def test_a_wrong_name_or_label_would_be_seen() -> None:
    wrong = "sum by (job, colour) (rate(aalnet_steps{run='a'}[5m])) / aalnet_workers{worker='0'}"
    assert sorted(unknown(wrong, RECORDED)) == [
        "aalnet_workers has no label worker", "no metric aalnet_steps",
        "nothing here has a label colour",
    ]  # fmt: skip


def test_recorded_series_are_all_used() -> None:
    used = " ".join(rule["expr"] for rule in ALERTS)
    assert [name for name in RECORDED if name not in used] == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_has_a_part_for_every_alert_and_no_other() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    parts = dict(re.findall(r"^### (AALNet\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(parts) == NAMES
    for name, part in parts.items():
        for says in ("**Means.**", "**Look.**", "**Do.**"):
            assert says in part, f"{name} has no {says}"
