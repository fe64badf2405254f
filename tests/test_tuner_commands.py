"""`aalnet campaigns`: what it tells, what it refuses, and that a winner can be made again."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from aalnet.errors import CheckpointError, ConfigError
from aalnet.settings import load_settings
from cluster.storage.folder import FolderStore
from tests.support.made_campaigns import IMAGES, REASON, campaign_settings, made_campaign
from tests.support.tiny_campaigns import write_campaign
from tests.support.tiny_runs import aalnet, write_data
from tuner.commands.campaigns import app
from tuner.commands.tune import _require_result
from tuner.dashboard import dashboard
from tuner.schema import campaign_schema
from tuner.settings import load_campaign
from tuner.status import load_status
from tuner.study import TooManyFailures

OUTCOMES = ["complete", "pruned", "fail", "complete", "running"]
RUNNER = CliRunner()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path)
    made_campaign(store, "mine", OUTCOMES, repeats={0: [0.2, 0.3]})
    return store


def told(store: FolderStore, *arguments: str) -> str:
    done = RUNNER.invoke(app, [*arguments, "--storage", store.uri], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_list_of_a_storage(store: FolderStore) -> None:
    store.write("campaigns/broken/campaign.yaml", b"space: 3")
    url = "postgresql://me@nowhere/studies"
    store.write("campaigns/shared/campaign.yaml", b"base: {}")
    store.write("campaigns/shared/study.json", json.dumps({"url": url}).encode())
    (broken, mine, shared) = json.loads(told(store, "list", "--json"))
    assert shared["status"] == "unreadable"
    assert f"give --study {url}" in shared["error"]
    assert broken["status"] == "unreadable"
    assert "space" in broken["error"]
    assert (mine["campaign"], mine["status"], mine["trials"]) == ("mine", "stopped", 16)
    assert mine["states"] == {
        "waiting": 0, "running": 1, "complete": 2, "pruned": 1, "fail": 1,
    }  # fmt: skip
    assert mine["best"] == {"energy_score": pytest.approx(0.1)}
    text = told(store, "list")
    assert "4/16" in text
    assert "energy_score 0.100" in text


def test_list_of_an_empty_storage_says_how_to_begin(tmp_path: Path) -> None:
    text = told(FolderStore(tmp_path), "list")
    assert "no campaigns in" in text
    assert "aalnet tune CAMPAIGN --storage" in text


def test_show_for_people_and_for_scripts(store: FolderStore) -> None:
    text = told(store, "show", "mine")
    assert "minimise energy_score" in text
    assert f"trial 2 failed: {REASON}" in text
    assert "aalnet campaigns best mine --storage" in text
    facts = json.loads(told(store, "show", "mine", "--json"))
    assert facts["winner"] == 0
    assert [row["state"] for row in facts["rows"]] == OUTCOMES
    assert facts["rows"][0]["mean"] == pytest.approx(0.2)
    assert facts["rows"][1]["images"] == 2400
    assert facts["settings"]["budget"]["images"] == IMAGES


def test_report_is_written_anew_and_where_wanted(store: FolderStore, tmp_path: Path) -> None:
    out = tmp_path / "here.html"
    assert told(store, "report", "mine", "--out", str(out)).strip() == str(out)
    assert out.read_bytes() == store.read("campaigns/mine/report.html")
    assert told(store, "report", "mine").strip() == f"{store.uri}/campaigns/mine/report.html"
    with pytest.raises(ConfigError, match="cannot be written"):
        told(store, "report", "mine", "--out", str(tmp_path / "no" / "where.html"))


def test_best_of_all_and_of_choice(store: FolderStore, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(told(store, "best", "mine"), encoding="utf-8")
    facts = json.loads(told(store, "best", "mine", "--json"))
    assert (facts["trial"], facts["run"]) == (0, "mine-0000")
    assert facts["repeats"] == [0.2, 0.3]
    assert load_settings(path).to_dict() == facts["settings"]
    assert json.loads(told(store, "best", "mine", "--trial", "3", "--json"))["trial"] == 3
    with pytest.raises(CheckpointError, match=r"trial 1 .* not a complete one; those are: 0, 3"):
        told(store, "best", "mine", "--trial", "1")


@pytest.mark.parametrize("command", ["show", "report", "best", "dashboard"])
def test_a_name_that_is_not_there(store: FolderStore, command: str) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean `mine`\? there are: mine") as error:
        told(store, command, "mime")
    assert error.value.exit_code == 2


def test_a_campaign_without_a_winner(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    made_campaign(store, "poor", ["fail"])
    with pytest.raises(CheckpointError, match="no complete trial yet"):
        told(store, "best", "poor")
    assert "campaigns best" not in told(store, "show", "poor")


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read()
        return json.loads(body) if "json" in answer.headers["Content-Type"] else body.decode()


# optuna-dashboard's own web framework, bottle, leaves these to Python 3.13.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dashboard_answers_with_the_trials(store: FolderStore) -> None:
    campaign = made_campaign(store, "seen", OUTCOMES, campaign_settings())
    with dashboard(campaign, 0) as address:
        assert "<html" in read(address).lower()
        base = address.removesuffix("/dashboard")
        (summary,) = read(f"{base}/api/studies")["study_summaries"]
        assert summary["study_name"] == "seen"
        study = read(f"{base}/api/studies/{summary['study_id']}?after=0")
        states = [trial["state"] for trial in study["trials"]]
        assert states == ["Complete", "Pruned", "Fail", "Complete", "Running"]
        assert study["trials"][0]["values"] == [pytest.approx(0.1)]
        port = base.rpartition(":")[2]
        with (
            pytest.raises(ConfigError, match=rf"port {port} .* choose another with --port"),
            dashboard(campaign, int(port)),
        ):
            pass


def test_schema_tells_an_editor_of_mistakes(repo_root: Path) -> None:
    checker = jsonschema.Draft202012Validator(campaign_schema())
    good = {"base": {"file": "demo.yaml", "run": {"images": 9}}, "budget": {"trials": 3}}
    assert list(checker.iter_errors(good)) == []
    assert list(checker.iter_errors({"base": "demo.yaml"})) == []
    for bad in ({"bas": "demo.yaml"}, {"budget": {"trials": 0}}, {"base": {"run": {"image": 1}}}):
        assert list(checker.iter_errors(bad)), bad


def test_a_base_is_a_file_and_what_is_changed_of_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("objective: {eta: 0.2}\nrun: {seed: 5}\n", encoding="utf-8")
    values = {"base": {"file": "run.yaml", "run": {"checkpoint_every_images": 1200}}}
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    run = load_campaign(path, ["base.objective.beta=0.7"]).run_settings({})
    assert (run.objective.eta, run.objective.beta) == (0.2, 0.7)
    assert (run.run.seed, run.run.checkpoint_every_images) == (5, 1200)
    path.write_text("base: nowhere.yaml", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml` does not exist"):
        load_campaign(path)


def test_a_campaign_of_failures_is_an_error(tmp_path: Path) -> None:
    settings = campaign_settings({"budget": {"trials": 2, "images": IMAGES}})
    campaign = made_campaign(FolderStore(tmp_path), "poor", ["fail", "fail"], settings)
    status, _ = load_status(campaign, settings)
    with pytest.raises(TooManyFailures, match="no trial of campaign `poor` is complete: 2 failed"):
        _require_result(status)
    good = made_campaign(FolderStore(tmp_path), "good", ["fail", "complete"], settings)
    _require_result(load_status(good, settings)[0])


def test_a_campaigns_file_is_read_before_it_is_submitted(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_campaign(tmp_path / "good.yaml", tmp_path)
    write_campaign(tmp_path / "typo.yaml", tmp_path, {"budget.trails": 3})
    nobody = ("submit", "--address", "http://127.0.0.1:1")
    rest = ("--storage", tmp_path / "storage")
    for file, code, wrong in [
        ("typo.yaml", 2, "did you mean `budget.trials`"),
        ("good.yaml", 1, "cannot be reached"),  # it is read, and there is nobody to send it to
    ]:
        done = aalnet(*nobody, "tune", file, *rest, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert wrong in done.stderr
