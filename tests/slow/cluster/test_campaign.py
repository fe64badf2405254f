"""A whole campaign, as a Ray job: its winner can be made again, and is promoted."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.ray_cluster import RayCluster
from tests.support.ray_jobs import Submitted
from tests.support.tiny_runs import aalnet, without_clocks


@pytest.mark.timeout(600)
def test_a_campaign_as_a_job_and_its_winner_trained_again_and_promoted(
    cluster: RayCluster, checkout: Path, tmp_path: Path
) -> None:
    storage = ("--storage", str(tmp_path / "all"))
    job = Submitted(cluster, checkout, tmp_path / "log", "tune", "search.yaml", *storage)
    assert job.ends(200) == 0, job.told
    assert "2/2 trials" in job.told
    assert (tmp_path / "all/campaigns/search/report.html").is_file()

    def typed(*words: str) -> str:
        done = aalnet(*words, cwd=checkout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "campaign `search` is finished" in typed("tune", "search.yaml", *storage)
    best = typed("campaigns", "best", "search", *storage)
    (checkout / "best.yaml").write_text(best, encoding="utf-8")
    facts = json.loads(typed("campaigns", "best", "search", "--json", *storage))
    typed("train", "best.yaml", "--workers", "0", "--storage", str(tmp_path / "again"))

    def figures(folder: str, run: str) -> list[Any]:
        records = Run(FolderStore(tmp_path / folder), run).records()
        return without_clocks(records, ["evaluation"])

    made = figures("again", "best")
    assert made == figures("all", facts["run"])
    assert made[-1]["energy_score"] == facts["values"]["energy_score"]

    told = typed("promote", facts["run"], "--model", "chosen", *storage)
    assert f"model `chosen` is {facts['run']}@32" in told
