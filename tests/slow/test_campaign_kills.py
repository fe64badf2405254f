"""A campaign whose head node is lost: the same command ends it, and nothing is lost or doubled."""

import pytest

from tests.proof.campaign_kills import shoot, shooting_range
from tests.support.postgres_server import programs
from tests.support.repeats import repeats


@pytest.mark.parametrize("kind", ["s3", "postgres"])
def test_a_killed_campaign_has_exactly_the_trials_asked_for(kind: str) -> None:
    if kind == "postgres" and programs() is None:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    with shooting_range(kind, trials=repeats(3, 6)) as made:
        shoot(made, kills=repeats(1, 3), hits=1)
    assert made.wrong == []
