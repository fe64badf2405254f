"""A whole campaign: its winner can be made again, and is promoted."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.tiny_campaigns import write_campaign
from tests.support.tiny_runs import aalnet, without_clocks, write_data


@pytest.mark.timeout(600)
def test_the_winner_trains_to_the_same_figures_and_is_promoted(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    write_campaign(tmp_path / "tiny.yaml", data, {"budget.trials": 2, "trials_at_once": 1})
    done = aalnet("tune", "tiny.yaml", "--storage", "all", cwd=tmp_path, timeout_s=400)
    assert done.returncode == 0, done.stderr
    assert "2/2 trials" in done.stdout

    told_again = aalnet("tune", "tiny.yaml", "--storage", "all", cwd=tmp_path)
    assert told_again.returncode == 0, told_again.stderr
    assert "campaign `tiny` is finished" in told_again.stdout

    best = aalnet("campaigns", "best", "tiny", "--storage", "all", cwd=tmp_path)
    (tmp_path / "best.yaml").write_text(best.stdout, encoding="utf-8")
    facts = json.loads(
        aalnet("campaigns", "best", "tiny", "--json", "--storage", "all", cwd=tmp_path).stdout
    )
    again = aalnet("train", "best.yaml", "--storage", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr

    def figures(folder: str, run: str) -> list[Any]:
        records = Run(FolderStore(tmp_path / folder), run).records()
        return without_clocks(records, ["evaluation"])

    made = figures("again", "best")
    assert made == figures("all", facts["run"])
    assert made[-1]["kid_lite0"] == facts["values"]["kid_lite0"]

    now = aalnet("promote", facts["run"], "--model", "chosen", "--storage", "all", cwd=tmp_path)
    assert now.returncode == 0, now.stderr
    assert f"model `chosen` is {facts['run']}@32" in now.stdout
