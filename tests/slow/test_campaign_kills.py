"""A campaign whose head node is lost again and again: the same command ends it, nothing is lost."""

import pytest

from tests.proof.campaign_kills import shoot, shooting_range
from tests.support.postgres_server import programs


@pytest.mark.parametrize("kind", ["s3", "postgres"])
def test_a_killed_campaign_has_exactly_the_trials_asked_for(kind: str) -> None:
    if kind == "postgres" and programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with shooting_range(kind) as made:
        shoot(made, kills=3, hits=1)
    assert made.wrong == []
