"""Noise, pixels and grids."""

import numpy as np
import pytest
import torch
from PIL import Image

from aalnet.networks import DataSpec, Generator
from aalnet.sampling import GAP_PX, HEAD_PX, draw, grid, noise_for, to_uint8
from aalnet.settings import parse_settings


def test_noise_is_a_function_of_seed_and_index_alone() -> None:
    whole = noise_for(3, 10, 6, 4, 5)
    assert whole.shape == (6, 4, 5)
    assert whole.dtype == torch.float32
    torch.manual_seed(1)
    np.random.default_rng(1)
    assert torch.equal(noise_for(3, 10, 6, 4, 5), whole)
    for first, count in ((10, 2), (12, 3), (15, 1)):
        part = whole[first - 10 : first - 10 + count]
        assert torch.equal(noise_for(3, first, count, 4, 5), part)


def test_fewer_samples_are_a_prefix() -> None:
    assert torch.equal(noise_for(0, 0, 3, 2, 5), noise_for(0, 0, 3, 7, 5)[:, :2])


def test_noise_differs_between_seeds_images_and_samples() -> None:
    noise = torch.cat([noise_for(0, 0, 4, 3, 8), noise_for(1, 0, 4, 3, 8)])
    assert noise.flatten(0, 1).unique(dim=0).shape[0] == 24


def test_noise_is_standard_normal() -> None:
    noise = noise_for(5, 0, 100, 4, 50)
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert noise.abs().max() < 6


def test_no_images_need_no_noise() -> None:
    assert noise_for(0, 0, 0, 4, 5).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1, 0), (1, 255), (0, 128), (-1.5, 0), (7.0, 255), (-0.9999, 0), (-0.99, 1), (0.99, 254)],
)
def test_pixels(value: float, pixel: int) -> None:
    found = to_uint8(torch.full((3, 2, 2), float(value)))
    assert found.dtype == np.uint8
    assert (found == pixel).all()


def test_every_pixel_value_survives() -> None:
    wanted = np.arange(256, dtype=np.uint8)
    image = torch.from_numpy(wanted).float().view(1, 16, 16) / 127.5 - 1
    assert np.array_equal(to_uint8(image)[..., 0].ravel(), wanted)


def test_pixels_come_channels_last_and_grey_becomes_three() -> None:
    image = torch.zeros(2, 3, 4, 5, requires_grad=True) + torch.tensor([-1.0, 0, 1])[:, None, None]
    found = to_uint8(image)
    assert found.shape == (2, 4, 5, 3)
    assert found[1, 3, 4].tolist() == [0, 128, 255]
    assert to_uint8(torch.ones(1, 4, 5)).shape == (4, 5, 3)


@pytest.mark.parametrize(("rows", "columns", "cell_px"), [(1, 1, 96), (3, 5, 96), (2, 4, 16)])
def test_grid_sizes(rows: int, columns: int, cell_px: int) -> None:
    images = [[torch.zeros(3, 32, 32)] * columns for _ in range(rows)]
    picture = grid(images, cell_px=cell_px)
    wanted = tuple(count * (cell_px + GAP_PX) + GAP_PX for count in (columns, rows))
    assert picture.size == wanted
    assert picture.mode == "RGB"


def test_grid_puts_each_image_in_its_place() -> None:
    shades = [[-1.0, -0.5], [0.5, 1.0]]
    picture = grid([[torch.full((1, 8, 8), s) for s in row] for row in shades], cell_px=16)
    for i, row in enumerate(shades):
        for j, shade in enumerate(row):
            corner = (GAP_PX + j * (16 + GAP_PX), GAP_PX + i * (16 + GAP_PX))
            wanted = int(to_uint8(torch.full((1, 1, 1), shade))[0, 0, 0])
            for at in (corner, (corner[0] + 15, corner[1] + 15)):
                assert picture.getpixel(at) == (wanted,) * 3
    assert picture.getpixel((0, 0)) == (128, 128, 128)
    assert isinstance(picture, Image.Image)


def test_heads_stand_above_their_columns_and_move_nothing_else() -> None:
    rows = [[torch.full((1, 8, 8), 1.0), torch.full((1, 8, 8), -1.0)]] * 2
    plain, headed = grid(rows, cell_px=40), grid(rows, ["", "sample"], cell_px=40)
    assert headed.size == (plain.width, plain.height + HEAD_PX)
    below = headed.crop((0, HEAD_PX, *headed.size))
    assert below.tobytes() == plain.tobytes()
    middle = GAP_PX + 40
    left, right = (
        headed.crop((start, 0, start + middle, HEAD_PX)).getcolors() for start in (0, middle)
    )
    assert len(left) == 1
    assert len(right) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draw_gives_float32_whatever_the_generator_is(dtype: torch.dtype) -> None:
    network = {"widths": [4, 8], "noise_size": 4, "embedding_size": 8}
    spec = DataSpec(labels=("a",), condition_channels=1, target_channels=1)
    generator = Generator(parse_settings({"network": network}), spec).to(dtype)
    inputs = torch.ones(1, 1, 32, 32), torch.tensor([0]), noise_for(0, 0, 1, 2, 4)
    assert draw(generator, *inputs).dtype == torch.float32


def test_draw_clamps_and_keeps_no_graph() -> None:
    network = {"widths": [4, 8], "noise_size": 4, "embedding_size": 8}
    spec = DataSpec(labels=("a",), condition_channels=1, target_channels=1)
    generator = Generator(parse_settings({"network": network}), spec)
    with torch.no_grad():
        generator.output.weight.mul_(100)
    inputs = torch.ones(2, 1, 32, 32), torch.tensor([0, 0]), noise_for(0, 0, 2, 3, 4)
    assert generator(*inputs).abs().max() > 1
    samples = draw(generator, *inputs)
    assert samples.shape == (2, 3, 1, 32, 32)
    assert samples.abs().max() == 1
    assert not samples.requires_grad
    torch.testing.assert_close(samples, generator(*inputs).detach().clamp(-1, 1))
