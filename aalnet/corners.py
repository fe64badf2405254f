"""The other systems of the article, and the one readers will name, as corners of AALNet.

Each is AALNet's step, networks, loop and files with some parts fixed:

    vae      the proposal alone: conditional VAE with a learned prior (Sohn et al. 2015)
    gan      one sample of the prior, L1 (the likelihood of one sample) and a classical adversary
             from the first step: as pix2pix (Isola et al. 2017)
    vae-gan  the proposal, and an adversary from the first step that judges its sample and one of
             the prior, from which the code is read again: as BicycleGAN (Zhu et al. 2017)

They are what every AALNet claim is measured against; all that is not fixed here may be tuned.
"""

from __future__ import annotations

from typing import Any

from aalnet.settings import ObjectiveSettings, Settings

_NO_ENTROPY = {"K": 1, "eta": 0.0, "beta": 0.0, "gamma": 0.0, "flatness": 0.0, "offset_share": 0.0,
               "ignition_images": 0}  # fmt: skip
_CLASSICAL = {"adversary_from": 0.0, "relativistic": False, "lambda_warmup": 0.0}
CORNERS: dict[str, dict[str, Any]] = {
    "aalnet": {"code_recovery": 0.0},
    "vae": {**_NO_ENTROPY, "entropy_from": 1.0, "adversary_from": 1.0, "code_recovery": 0.0,
            "proposal": True},
    "gan": {**_NO_ENTROPY, **_CLASSICAL, "proposal": False, "entropy_from": 0.0,
            "code_recovery": 0.0},
    "vae-gan": {**_NO_ENTROPY, **_CLASSICAL, "proposal": True, "entropy_from": 1.0,
                "judges_proposal": True},
}  # fmt: skip


def objective_of(settings: Settings) -> ObjectiveSettings:
    """The objective that a run trains by: its settings, with what its model fixes in place."""
    return settings.objective.model_copy(update=CORNERS[settings.model])
