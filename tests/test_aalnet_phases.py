"""When each part of the objective works, and how a run falls into stretches of one phase."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest

from aalnet.corners import CORNERS, objective_of
from aalnet.phases import Phase, phase_at, spans
from aalnet.settings import ObjectiveSettings, parse_settings

QUIET, PRIOR = Phase(prior=False, adversary=False), Phase(prior=True, adversary=False)
ADVERSARY, ALL = Phase(prior=False, adversary=True), Phase(prior=True, adversary=True)


def objective(ignition: int, entropy: float, adversary: float) -> ObjectiveSettings:
    return ObjectiveSettings(
        ignition_images=ignition, entropy_from=entropy, adversary_from=adversary
    )


@pytest.mark.parametrize(
    ("images_seen", "phase"),
    [
        (0, PRIOR), (24, PRIOR), (29, PRIOR), (30, QUIET), (299, QUIET), (699, QUIET),
        (700, PRIOR), (849, PRIOR), (850, ALL), (999, ALL), (1000, ALL),
    ],
)  # fmt: skip
def test_each_part_works_from_its_image_on(images_seen: int, phase: Phase) -> None:
    assert phase_at(objective(30, 0.7, 0.85), 1000, images_seen) == phase


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((0, 0.0, 0.0), [(0, 1000, ALL)]),
        ((0, 1.0, 1.0), [(0, 1000, QUIET)]),
        ((0, 0.0, 1.0), [(0, 1000, PRIOR)]),
        ((0, 1.0, 0.0), [(0, 1000, ADVERSARY)]),
        ((1000, 1.0, 1.0), [(0, 1000, PRIOR)]),
        ((999, 1.0, 1.0), [(0, 999, PRIOR), (999, 1000, QUIET)]),
        ((1, 0.999, 1.0), [(0, 1, PRIOR), (1, 999, QUIET), (999, 1000, PRIOR)]),
        ((30, 0.7, 0.85), [(0, 30, PRIOR), (30, 700, QUIET), (700, 850, PRIOR), (850, 1000, ALL)]),
        # a short run: the adversary begins while it still ignites
        ((900, 0.7, 0.5), [(0, 500, PRIOR), (500, 1000, ALL)]),
        ((600, 0.9, 0.5), [(0, 500, PRIOR), (500, 600, ALL), (600, 900, ADVERSARY),
                           (900, 1000, ALL)]),
        ((2500, 0.7, 0.85), [(0, 850, PRIOR), (850, 1000, ALL)]),
        # entropy after the adversary, and both where ignition ends
        ((100, 0.8, 0.2), [(0, 100, PRIOR), (100, 200, QUIET), (200, 800, ADVERSARY),
                           (800, 1000, ALL)]),
        ((500, 0.5, 0.5), [(0, 500, PRIOR), (500, 1000, ALL)]),
    ],
    ids=str,
)  # fmt: skip
def test_a_run_by_its_phases(
    given: tuple[int, float, float], found: list[tuple[int, int, Phase]]
) -> None:
    """Neighbours of one phase are told as one stretch or as several."""
    told = spans(objective(*given), 1000)
    wanted = [phase for start, end, phase in found for _ in range(start, end)]
    ends = [*(span.images_seen for span in told[1:]), 1000]
    listed = [
        span.phase
        for span, end in zip(told, ends, strict=True)
        for _ in range(span.images_seen, end)
    ]
    assert listed == wanted


@pytest.mark.parametrize("run_images", [1, 7, 24, 100, 997, 14_400, 48_000])
@pytest.mark.parametrize("given", [(0, 0.0, 0.0), (24, 0.7, 0.85), (2500, 1 / 3, 0.1 + 0.2)])
def test_spans_hold_the_whole_run_once(given: tuple[int, float, float], run_images: int) -> None:
    settings = objective(*given)
    found = spans(settings, run_images)
    assert sum(span.share for span in found) == pytest.approx(1, abs=1e-12)
    starts = [span.images_seen for span in found]
    assert starts[0] == 0
    assert all(0 <= a < b < run_images for a, b in pairwise([*starts, run_images - 0.5]))
    for span, end in zip(found, [*starts[1:], run_images], strict=True):
        assert span.share == pytest.approx((end - span.images_seen) / run_images)
        for images in {span.images_seen, (span.images_seen + end) // 2, end - 1}:
            assert phase_at(settings, run_images, images) == span.phase


@pytest.mark.parametrize("share", [0.1 + 0.2, 0.7, 1 / 3, 0.999_999])
@pytest.mark.parametrize("run_images", [10, 97, 1000, 30_000])
def test_a_share_begins_at_the_first_image_that_reaches_it(run_images: int, share: float) -> None:
    """Also where share * images is no whole number."""
    settings = objective(0, share, 1.0)
    first = math.ceil(share * run_images)
    assert not phase_at(settings, run_images, first - 1).prior
    if first < run_images:
        assert phase_at(settings, run_images, first).prior
        assert [span.images_seen for span in spans(settings, run_images)] == [0, first]


@pytest.mark.parametrize("heeded", ["lambda", "beta", "gamma", None])
def test_d_works_only_where_g_heeds_it(heeded: str | None) -> None:
    weights = {"lambda": 0.0, "beta": 0.0, "gamma": 0.0} | ({heeded: 0.1} if heeded else {})
    weights["adversary_from"] = 0.85
    settings = parse_settings({"objective": weights})
    found = spans(settings.objective, settings.run.images)
    assert any(span.phase.adversary for span in found) == (heeded is not None)
    assert found[-1].phase == (ALL if heeded else PRIOR)
    assert phase_at(settings.objective, 1000, 999) == found[-1].phase


def test_a_share_of_1_is_never_reached() -> None:
    for images in (999, 1000, 50_000):
        assert phase_at(objective(0, 1.0, 1.0), 1000, images) == QUIET
        assert phase_at(objective(0, 0.999, 1.0), 1000, images) == PRIOR


@pytest.mark.parametrize(
    ("phase", "words"),
    [(QUIET, {"proposal"}), (PRIOR, {"prior"}), (ADVERSARY, {"adversary"}),
     (ALL, {"prior", "adversary"})],
)  # fmt: skip
def test_a_phase_has_a_name(phase: Phase, words: set[str]) -> None:
    assert set(re.findall(r"\w+", phase.name)) == words


@pytest.mark.parametrize(
    ("model", "phases"),
    [
        ("aalnet", [PRIOR, QUIET, PRIOR]),
        ("vae", [QUIET]),
        ("gan", [ALL]),
        ("vae-gan", [ADVERSARY]),
    ],
)
def test_the_phases_of_every_model(model: str, phases: list[Phase]) -> None:
    settings = parse_settings({"model": model})
    found = spans(objective_of(settings), settings.run.images)
    assert [span.phase for span in found] == phases


@pytest.mark.parametrize("model", sorted(CORNERS))
def test_a_corner_keeps_all_that_it_does_not_fix(model: str) -> None:
    given: dict[str, Any] = {
        "K": 5, "lambda": 0.7, "eta": 0.1, "beta": 0.2, "gamma": 0.3, "flatness": 0.4,
        "offset_share": 0.6, "scale": 0.2, "width": 3.0, "kl": 0.05, "kl_warmup": 0.5,
        "ignition_images": 7, "entropy_from": 0.2, "adversary_from": 0.3, "lambda_warmup": 0.4,
        "judges_proposal": True, "relativistic": True, "code_recovery": 0.9, "r1": 0.8,
        "r1_interval": 3, "penalty_method": "exact", "penalty_interval": 5, "penalty_step": 0.01,
    }  # fmt: skip
    settings = parse_settings({"model": model, "objective": given})
    wanted = settings.objective.model_dump() | CORNERS[model]
    assert objective_of(settings).model_dump() == wanted
    assert settings.objective == parse_settings({"objective": given}).objective
