"""Generator, discriminator and proposal: shapes, what depends on what, how they start."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from aalnet.blocks import BLOCKS
from aalnet.networks import PRESETS, DataSpec, Discriminator, Generator, Proposal, architecture
from aalnet.settings import parse_settings
from tests.support.tiny_networks import SPEC, K, N, every_family, inputs, tiny


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("size_px", [32, 64, 128, 256])
@pytest.mark.parametrize("preset", sorted(PRESETS))
@every_family
def test_shapes_of_every_preset(family: str, preset: str, size_px: int) -> None:
    settings = parse_settings(
        {"data": {"size_px": size_px}, "network": {"preset": preset, "blocks": family}}
    )
    z = settings.network.noise_size
    with torch.device("meta"):
        condition, target = torch.empty(N, 1, size_px, size_px), torch.empty(N, 3, size_px, size_px)
        label, noise = torch.empty(N, dtype=torch.int64), torch.empty(N, K, z)
        samples = Generator(settings, SPEC)(condition, label, noise)
        assert samples.shape == (N, K, 3, size_px, size_px)
        discriminator = Discriminator(settings, SPEC)
        assert discriminator(condition, samples, label).shape == (N, K, 8 * 8)
        assert discriminator(condition, target, label).shape == (N, 8 * 8)
        q = Proposal(settings, SPEC)(condition, target, label)
        assert q.mean.shape == q.log_std.shape == (N, z)


@pytest.mark.parametrize("size_px", [32, 64])
@every_family
def test_numbers_of_a_tiny_one(family: str, size_px: int) -> None:
    condition, label, noise = inputs(size_px)
    settings = tiny(family, size_px)
    samples = Generator(settings, SPEC)(condition, label, noise)
    logits = Discriminator(settings, SPEC)(condition, samples, label)
    assert samples.shape == (N, K, 3, size_px, size_px)
    assert samples.isfinite().all()
    assert logits.shape == (N, K, (size_px // 2) ** 2)
    assert logits.isfinite().all()
    assert logits.flatten(0, 1).unique(dim=0).shape[0] == N * K


@pytest.mark.parametrize(
    ("size_px", "levels", "deepest_px"), [(32, 3, 8), (64, 4, 8), (128, 5, 8), (256, 6, 8)]
)
def test_a_preset_goes_down_to_eight_pixels(size_px: int, levels: int, deepest_px: int) -> None:
    widths = architecture(parse_settings({"data": {"size_px": size_px}})).widths
    assert len(widths) == levels
    assert size_px >> (levels - 1) == deepest_px


def test_a_given_size_replaces_that_of_the_preset_alone() -> None:
    given = {"preset": "base", "decoder_blocks": 3, "embedding_size": 7, "blocks": "densenet"}
    found = architecture(parse_settings({"network": given}))
    assert (found.decoder_blocks, found.embedding_size, found.blocks) == (3, 7, "densenet")
    assert (found.encoder_blocks, found.widths) == (2, (64, 128, 256))


def test_presets_grow() -> None:
    def size(preset: str) -> int:
        with torch.device("meta"):
            generator = Generator(parse_settings({"network": {"preset": preset}}), SPEC)
        return sum(p.numel() for p in generator.parameters())

    assert 5 * size("tiny") < size("base") < size("large") / 2


@pytest.mark.parametrize("k", [1, 5])
def test_the_encoder_runs_once_per_condition(k: int) -> None:
    generator, seen = Generator(tiny(), SPEC), []
    generator.encoder.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    condition, label, noise = inputs(k=k)
    generator(condition, label, noise)
    assert seen == [N]


@every_family
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_both_encoders_share_every_parameter_shape(family: str, preset: str) -> None:
    settings = parse_settings({"network": {"preset": preset, "blocks": family}})
    with torch.device("meta"):
        sides = Generator(settings, SPEC), Discriminator(settings, SPEC)
    first, second = (
        {name: p.shape for name, p in side.encoder.named_parameters()} for side in sides
    )
    assert first == second
    assert first


@every_family
def test_a_sample_is_a_function_of_its_own_noise(family: str) -> None:
    generator = Generator(tiny(family), SPEC)
    condition, label, noise = inputs(k=4)
    samples = generator(condition, label, noise)
    torch.testing.assert_close(generator(condition, label, noise[:, :2]), samples[:, :2])
    other = noise.clone()
    other[0, 3] += 1
    changed = (generator(condition, label, other) - samples).abs().amax(dim=(2, 3, 4))
    assert changed[0, 3] > 1e-3
    changed[0, 3] = 0
    assert changed.max() < 1e-6


@every_family
def test_a_sample_is_a_function_of_its_own_condition_and_label(family: str) -> None:
    generator = Generator(tiny(family), SPEC)
    condition, label, noise = inputs()
    samples = generator(condition, label, noise)
    torch.testing.assert_close(generator(condition[1:], label[1:], noise[1:]), samples[1:])
    relabelled = generator(condition, torch.tensor([1, 2]), noise)
    moved = (relabelled - samples).abs().amax(dim=(1, 2, 3, 4))
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6


@every_family
def test_the_judge_looks_at_condition_image_and_label(family: str) -> None:
    discriminator = Discriminator(tiny(family), SPEC)
    condition, label, _ = inputs()
    images = torch.rand(N, K, 3, 32, 32) * 2 - 1
    logits = discriminator(condition, images, label)
    for changed in (
        discriminator(-condition, images, label),
        discriminator(condition, -images, label),
        discriminator(condition, images, torch.tensor([1, 0])),
    ):
        assert (changed - logits).abs().amax(dim=2).min() > 1e-4


@every_family
def test_the_judge_takes_one_image_or_several(family: str) -> None:
    discriminator = Discriminator(tiny(family), SPEC)
    condition, label, _ = inputs()
    images = torch.rand(N, K, 3, 32, 32) * 2 - 1
    several = discriminator(condition, images, label)
    for j in range(K):
        torch.testing.assert_close(discriminator(condition, images[:, j], label), several[:, j])


@every_family
def test_a_logit_is_that_of_the_whole_image_and_that_of_its_patch(family: str) -> None:
    discriminator = Discriminator(tiny(family), SPEC)
    condition, label, _ = inputs()
    images = torch.rand(N, 1, 3, 32, 32) * 2 - 1
    touched = images.clone()
    touched[..., :4, :4] += 0.5

    def logits(of: Tensor) -> Tensor:
        maps: Tensor = discriminator(condition, of, label).view(N, 16, 16)
        return maps

    def change() -> Tensor:
        return (logits(touched) - logits(images)).abs()

    assert change()[:, -1, -1].min() > 1e-5, "by way of the whole image"
    nn.init.zeros_(discriminator.whole.weight)
    assert change()[:, 0, 0].min() > 1e-5
    assert change()[:, -1, -1].max() < 1e-7, "a patch sees no more than its surroundings"
    nn.init.zeros_(discriminator.patch.weight)
    assert not logits(images).any()


def test_the_proposal_looks_at_condition_target_and_label() -> None:
    proposal = Proposal(tiny(), SPEC)
    assert not proposal.moments.weight.chunk(2)[1].any()  # as wide as the prior at first
    nn.init.normal_(proposal.moments.weight)
    condition, label, _ = inputs()
    target = torch.rand(N, 3, 32, 32) * 2 - 1

    def moments(*given: Tensor) -> Tensor:
        q = proposal(*given)
        return torch.stack([q.mean, q.log_std])

    own = moments(condition, target, label)
    for changed in (
        moments(-condition, target, label),
        moments(condition, -target, label),
        moments(condition, target, torch.tensor([1, 0])),
    ):
        assert (changed - own).abs().amax(dim=2).min() > 1e-4


@every_family
def test_generation_starts_from_the_condition(family: str) -> None:
    spec = DataSpec(labels=("a", "b", "c"), condition_channels=3, target_channels=3)
    generator = Generator(tiny(family), spec)
    nn.init.zeros_(generator.output.weight)
    condition = torch.rand(N, 3, 32, 32) * 2 - 1
    samples = generator(condition, *inputs()[1:])
    grey = condition.mean(dim=1)[:, None, None].expand_as(samples)
    torch.testing.assert_close(samples, grey)
    assert generator.start is not None
    assert generator.start.weight.requires_grad


def test_the_start_from_the_condition_can_be_switched_off() -> None:
    generator = Generator(tiny(start_from_condition=False), SPEC)
    nn.init.zeros_(generator.output.weight)
    assert not any(name.startswith("start") for name in generator.state_dict())
    assert not generator(*inputs()).any()


@every_family
def test_the_output_layer_starts_small(family: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        settings = parse_settings({"network": {"blocks": family, "start_from_condition": False}})
        samples = Generator(settings, SPEC)(*inputs()[:2], torch.randn(N, K, 32))
        assert 0.01 < samples.std() < 0.35


@every_family
def test_blocks_change_the_width_and_keep_the_size(family: str) -> None:
    h = torch.randn(2, 4, 8, 8)
    for c_out in (1, 4, 6):
        block = BLOCKS[family](4, c_out)
        out = block(h)
        assert out.shape == (2, c_out, 8, 8)
    same = BLOCKS[family](4, 4)
    assert (same(h) - h).std() < 0.5 * h.std()  # near the identity at first


@every_family
def test_nothing_couples_the_images_of_a_batch(family: str) -> None:
    kinds = {type(m).__name__ for m in Generator(tiny(family), SPEC).modules()}
    assert not [name for name in kinds if "Norm" in name or "ReLU" in name or "Dropout" in name]
