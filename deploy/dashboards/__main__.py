"""Writes the dashboards' JSON: `python -m deploy.dashboards`."""

from __future__ import annotations

from pathlib import Path

from deploy.dashboards import campaign, cluster_overview, endpoint, training_run

FOLDER = Path(__file__).resolve().parents[1] / "kubernetes/base/monitoring/dashboards"
DASHBOARDS = {
    "training-run": training_run.BOARD,
    "campaign": campaign.BOARD,
    "endpoint": endpoint.BOARD,
    "cluster-overview": cluster_overview.BOARD,
}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in DASHBOARDS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
