"""The generator's learned prior and its stages, as callers with many samples at once use them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from aalnet.networks import Generator
from tests.support.tiny_networks import SPEC, N, Z, every_family, inputs, tiny


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_prior_is_standard_normal_at_first() -> None:
    generator = Generator(tiny(), SPEC)
    condition, label, noise = inputs()
    prior = generator.prior(generator.encode(condition)[1], generator.label(label))
    assert prior.mean.shape == prior.log_std.shape == (N, Z)
    assert not prior.mean.any()
    assert not prior.log_std.any()
    assert torch.equal(prior.codes(noise), noise)


def with_prior(family: str = "resnet") -> Generator:
    """A generator whose prior has learned something."""
    generator = Generator(tiny(family), SPEC)
    nn.init.normal_(generator.moments.weight, std=0.3)
    return generator


def test_the_prior_looks_at_condition_and_label() -> None:
    generator = with_prior()
    condition, label, _ = inputs()

    def moments(x: Tensor, c: Tensor) -> Tensor:
        prior = generator.prior(generator.encode(x)[1], generator.label(c))
        return torch.stack([prior.mean, prior.log_std])

    own = moments(condition, label)
    for changed in (moments(-condition, label), moments(condition, torch.tensor([1, 0]))):
        assert (changed - own).abs().amax(dim=2).min() > 1e-4


@pytest.mark.parametrize("start", [True, False])
@every_family
def test_the_stages_in_turn_are_the_generator(family: str, start: bool) -> None:
    """As the endpoint calls them: rows of several conditions, in any order."""
    generator = with_prior(family)
    generator.start = generator.start if start else None
    condition, label, noise = inputs()
    samples = generator(condition, label, noise)
    plain = samples - (generator.start(condition)[:, None] if generator.start else 0)
    owner, which = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([2, 0, 0, 1, 2])

    skips, summary = generator.encode(condition)
    embedding = generator.label(label)[owner]
    prior = generator.prior(summary[owner], embedding)
    codes = prior.codes(noise[owner, which][:, None])[:, 0]
    modulations = generator.modulate(codes, embedding)
    found = generator.decode([skip[owner] for skip in skips], modulations)
    torch.testing.assert_close(found, plain[owner, which])


def test_codes_of_another_distribution_are_rendered_as_they_are() -> None:
    generator = with_prior()
    condition, label, noise = inputs()
    skips, summary = generator.encode(condition)
    codes = generator.prior(summary, generator.label(label)).codes(noise)
    rendered = generator.render(condition, skips, label, codes)
    torch.testing.assert_close(rendered, generator(condition, label, noise))
    assert (generator.render(condition, skips, label, noise) - rendered).abs().max() > 1e-3
