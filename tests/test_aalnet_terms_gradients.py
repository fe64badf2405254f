"""What the gradient of each term does to samples, networks and scores."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from aalnet import ddm, mem, terms
from aalnet.batch import ALONE, Batch
from aalnet.density import Density
from aalnet.phases import Phase
from aalnet.settings import parse_settings
from aalnet.state import TrainState
from tests.support.slow_terms import SCALE, uniform
from tests.support.tiny_steps import SPEC, TINY

DENSITY = Density(SCALE)
ALL = Phase(prior=True, adversary=True)


def tiny_state(model: str = "aalnet", **objective: object) -> TrainState:
    off = {"lambda": 0.0, "eta": 0.0, "beta": 0.0, "gamma": 0.0, "flatness": 0.0, "r1": 0.0}
    kept = {"K": 4, "scale": SCALE, "width": 1.0, "adversary_from": 0.85}
    values = {"model": model, "network": TINY, "objective": off | kept | objective}
    return TrainState(parse_settings(values), SPEC, torch.device("cpu"))


def tiny_batch(k: int = 4) -> Batch:
    """Grey shapes well inside [-1, 1], where no clamp acts."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, 1 + k, 4, generator=generator)
    coarse = 0.4 * torch.rand(2, 3, 1, 8, 8, generator=generator) - 0.2
    condition, target = (nn.functional.interpolate(x, scale_factor=4.0) for x in coarse)
    return Batch(condition, target, torch.tensor([0, 1, 0]), noise, 3)


def draw(state: TrainState, batch: Batch) -> Tensor:
    samples: Tensor = state.generator(batch.condition, batch.label, batch.noise[:, 1:])
    return samples


def spread(samples: Tensor) -> float:
    samples = samples.detach()
    return DENSITY.distance(samples[:, :, None], samples[:, None]).mean().item()


def ascend(value: Tensor, parameters: Sequence[Tensor], rate: float) -> None:
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter += rate * gradient


def test_entropy_drives_samples_apart_and_no_further_than_the_clamp() -> None:
    samples = uniform(1, 4, 1, 4, 4, dtype=torch.float32, reach=0.1)
    before = [spread(samples)]
    for _ in range(40):
        ascend(terms.entropy(samples, DENSITY).sum(), [samples], 0.2)
        before.append(spread(samples))
    assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(before))
    assert before[-1] > 10 * before[0]
    ends = samples.detach().clone()
    for _ in range(300):
        ascend(terms.entropy(samples, DENSITY).sum(), [samples], 0.2)
    assert ends.abs().max() < 1.5
    assert samples.abs().max() < 1.5


def test_entropy_drives_the_generators_samples_apart() -> None:
    state, batch = tiny_state(), tiny_batch()
    before = spread(draw(state, batch))
    for _ in range(10):
        value = terms.entropy(draw(state, batch), DENSITY).mean()
        ascend(value, list(state.generator.parameters()), 0.02)
    assert spread(draw(state, batch)) > 1.5 * before


def test_reward_makes_better_scored_samples_likelier_than_worse_ones() -> None:
    samples = uniform(1, 4, 1, 4, 4, dtype=torch.float64, reach=0.5)
    points = samples.detach().clone()
    fake, real = torch.tensor([[[3.0], [-1.0], [0.5], [-3.0]]]), torch.tensor([[0.0]])

    def advantage_of_the_best() -> float:
        log_p = DENSITY.log(points, samples.detach())[0]
        return (log_p[0] - log_p[3]).item()

    before = advantage_of_the_best()
    for _ in range(5):
        ascend(terms.reward(samples, fake, real, DENSITY).sum(), [samples], 1.0)
    assert advantage_of_the_best() > before + 0.05


def test_reward_of_equal_scores_is_no_reward() -> None:
    samples = uniform(1, 3, 1, 4, 4, dtype=torch.float64)
    value = terms.reward(samples, torch.full((1, 3, 2), 0.7), torch.zeros(1, 2), DENSITY)
    (gradient,) = torch.autograd.grad(value.sum(), samples)
    assert gradient.abs().max() < 1e-7


def test_realism_raises_the_judges_score_of_samples() -> None:
    state, batch = tiny_state(**{"lambda": 1.0}), tiny_batch()
    judged = []
    for _ in range(10):
        fake = ddm.judge(state, batch, draw(state, batch))
        real = ddm.judge(state, batch, batch.target[:, None])[:, 0]
        judged.append((fake - real[:, None]).mean().item())
        ascend(terms.realism(fake, real).mean(), list(state.generator.parameters()), 0.05)
    assert all(later > earlier for earlier, later in itertools.pairwise(judged))


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize(("name", "key"), [("density_flatness", "flatness"), ("response", "gamma")])
def test_a_penalty_alone_shrinks_the_norm_it_names(name: str, key: str, method: str) -> None:
    state = tiny_state(**{key: 1.0, "penalty_method": method, "penalty_interval": 1})
    batch = tiny_batch()
    norms = []
    for _ in range(6):
        measured = mem.add_penalty_gradients(state, batch, ALL, ALONE)
        assert measured.keys() == {name}
        norms.append(measured[name].item())
        parameters = list(state.generator.parameters())
        size = torch.stack([p.grad.square().sum() for p in parameters]).sum()
        with torch.no_grad():  # a twentieth of the way to a norm of 0, along the gradient
            for p in parameters:
                p -= 0.05 * norms[-1] / size * p.grad
                p.grad = None
    assert all(later < earlier for earlier, later in itertools.pairwise(norms))
    assert norms[-1] < 0.9 * norms[0]


def test_offset_pulls_both_encoders_together() -> None:
    state, batch = tiny_state(eta=0.5, offset_share=1.0, **{"lambda": 1.0}), tiny_batch()
    samples = ddm.draw(state, batch, ALL)
    d_terms, real = ddm.discriminator_terms(state, batch, samples.prior.detach())
    fake = ddm.judge(state, batch, samples.prior)
    sides = {
        "generator": (
            ddm.adversarial_terms(state, batch, samples, fake, real)["offset"],
            ddm.generator_weights(state)["offset"],
        ),
        "discriminator": (
            d_terms["discriminator_offset"],
            ddm.discriminator_weights(state.objective)["discriminator_offset"],
        ),
    }
    for side, (value, weight) in sides.items():
        assert value.shape == (3,)
        assert weight == -0.5
        own = state.networks[side]
        other = state.networks["discriminator" if side == "generator" else "generator"]
        names = [name for name, _ in own.named_parameters()]
        gradients = torch.autograd.grad(
            weight * value.mean(),
            [*own.parameters(), *other.parameters()],
            allow_unused=True,
        )
        assert all(gradient is None for gradient in gradients[len(names) :])
        for name, gradient in zip(names, gradients[: len(names)], strict=True):
            assert (gradient is not None) == name.startswith("encoder.")
        apart_before = encoders_apart(state)
        with torch.no_grad():
            for parameter, gradient in zip(own.parameters(), gradients, strict=False):
                if gradient is not None:
                    parameter += 10.0 * gradient
        assert encoders_apart(state) < apart_before


def test_a_code_read_from_a_sample_teaches_the_generator_and_not_the_reader() -> None:
    state, batch = tiny_state("vae-gan", code_recovery=1.0), tiny_batch()
    values = []
    for _ in range(8):
        samples = ddm.draw(state, batch, ALL)
        found = ddm.adversarial_terms(state, batch, samples, torch.empty(0), torch.empty(0))
        assert found.keys() == {"code_recovery"}
        value = found["code_recovery"].mean()
        values.append(value.item())
        reader = list(state.proposal.parameters())
        readers = torch.autograd.grad(value, reader, retain_graph=True, allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in readers)
        assert all(parameter.requires_grad for parameter in reader)
        ascend(-value, list(state.generator.parameters()), 0.01)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def encoders_apart(state: TrainState) -> float:
    pairs = zip(
        state.generator.encoder.parameters(), state.discriminator.encoder.parameters(), strict=True
    )
    return sum((a - b).square().sum().item() for a, b in pairs)
