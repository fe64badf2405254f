"""Campaigns as they lie in a storage, made within a second: their study by Optuna itself."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from PIL import Image

from cluster.storage.store import Store
from tuner.campaign import Campaign
from tuner.search import direction_of, distributions
from tuner.settings import CampaignSettings, parse_campaign

IMAGES = 9600
RUNG = 2400
REASON = "term `realism` is not finite at 1,200 images; <b>lower</b> optimizer.lr"
BASE = {"run": {"checkpoint_every_images": RUNG}}


def campaign_settings(values: Mapping[str, Any] | None = None) -> CampaignSettings:
    """Settings of the campaigns here; `values`: sections of a campaign's file instead."""
    plain: dict[str, Any] = {"base": BASE, "budget": {"trials": 16, "images": IMAGES}}
    return parse_campaign(plain | dict(values or {}))


def made_campaign(
    store: Store,
    name: str,
    outcomes: Sequence[str],
    settings: CampaignSettings | None = None,
    repeats: Mapping[int, Sequence[float]] | None = None,
) -> Campaign:
    """A campaign with a trial for each outcome: `complete`, `pruned`, `fail` or `running`.

    repeats: by trial, the first objective with seeds 1, 2...
    """
    settings = settings or campaign_settings()
    campaign = Campaign(store, name)
    campaign.claim(settings)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = campaign.open_storage(writes=True)
    study = optuna.create_study(
        study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=1),
        directions=[direction_of(each) for each in settings.objectives],
    )  # fmt: skip
    for number, outcome in enumerate(outcomes):
        _add_trial(study, campaign, settings, number, outcome)
    for number, values in (repeats or {}).items():
        for seed, value in enumerate(values, start=1):
            result = {"run": campaign.run(number, seed).name, "value": value,
                      "cost": {"seconds": 300.0, "images": IMAGES, "gpu_seconds": 0.0}}  # fmt: skip
            study.set_user_attr(f"repeat:{number}:{seed}", result)
    study.set_user_attr("seconds", 1500.0)
    study.set_user_attr("began_at_s", 1_750_000_000.0)
    return campaign


def _add_trial(
    study: optuna.Study, campaign: Campaign, settings: CampaignSettings, number: int, outcome: str
) -> None:
    trial = study.ask(distributions(settings))
    run = campaign.run(number)
    trial.set_user_attr("run", run.name)
    trial.set_user_attr("seed", 0)
    if outcome == "running":
        return
    reached = {"complete": IMAGES, "pruned": RUNG, "fail": 1200}[outcome]
    cost = {"seconds": reached / 32, "images": reached, "gpu_seconds": 0.0}
    trial.set_user_attr("cost", cost)
    if outcome == "fail":
        trial.set_user_attr("reason", REASON)
        study.tell(trial, state=TrialState.FAIL)
        return
    end = 0.1 + 0.01 * number
    if len(settings.objectives) == 1:
        for images in range(RUNG, reached + 1, RUNG):
            trial.report(end + 0.2 * (1 - images / IMAGES), images)
    run.store.write(run.key("samples", f"{reached}.png"), _grid(number))
    values = [end + 0.05 * (i + 1) * (-1) ** (number + i) for i in range(len(settings.objectives))]
    if outcome == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, values if len(values) > 1 else end)


def _grid(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (8, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((480, 160), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
