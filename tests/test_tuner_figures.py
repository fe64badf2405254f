"""What campaigns search by, and campaigns of earlier versions, whose kernel distance was biased."""

from pathlib import Path

import pytest

from aalnet.errors import CheckpointError, ConfigError
from cluster.storage.folder import FolderStore
from tests.support.tiny_campaigns import campaign_settings, campaign_values, write_campaign
from tuner import search
from tuner.campaign import Campaign
from tuner.settings import SearchObjective, load_campaign, parse_campaign

DATA = Path("data")
OLD = {"kid_lite0": 0.1, "kid_lite0_condition": 0.6, "l1": 0.2}
NEW = {"energy_score": 14.0, "energy_score_se": 0.4, "kid_unpaired_net": 0.3, "l1": 0.2}


@pytest.mark.parametrize(
    ("figure", "value"), [("energy_score", 14.0), ("kid_unpaired", 0.3), ("l1", 0.2)]
)
def test_a_figure_is_looked_up_by_its_name(figure: str, value: float) -> None:
    objective = SearchObjective(figure=figure)
    assert search.value_of(NEW, objective) == value
    assert search.value_of(OLD, objective) == (value if figure == "l1" else None)


def test_kid_of_a_file_is_the_unbiased_one(tmp_path: Path) -> None:
    path = write_campaign(tmp_path / "campaign.yaml", DATA, {"objectives": [{"figure": "kid"}]})
    settings = load_campaign(path)
    assert settings.objectives[0].figure == "kid_unpaired"
    assert parse_campaign(settings.to_dict()).objectives == settings.objectives


def test_the_biased_figure_is_not_searched_by(tmp_path: Path) -> None:
    path = write_campaign(
        tmp_path / "campaign.yaml", DATA, {"objectives": [{"figure": "kid_lite0"}]}
    )
    with pytest.raises(ConfigError, match="no longer measured; search by energy_score or kid"):
        load_campaign(path)


@pytest.mark.parametrize("figure", ["kid", "kid_lite0"])
def test_a_campaign_by_the_biased_figure_is_read_and_not_gone_on_with(
    tmp_path: Path, figure: str
) -> None:
    campaign = Campaign(FolderStore(tmp_path), "old")
    campaign.claim(parse_campaign(campaign_values(DATA, {"objectives": [{"figure": figure}]})))
    stored = campaign.settings()
    assert stored is not None
    assert stored.objectives[0].figure == figure  # shown under the name it had
    assert search.value_of(NEW, stored.objectives[0]) is None
    path = write_campaign(tmp_path / "campaign.yaml", DATA, {"objectives": [{"figure": "kid"}]})
    for settings in (load_campaign(path), campaign_settings(DATA)):
        with pytest.raises(CheckpointError, match=r"begun with objectives .*kid.*, now it is"):
            campaign.claim(settings)
