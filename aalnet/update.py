"""From weighted terms to a changed network: backward, sum over workers, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aalnet.batch import Batch, World
from aalnet.errors import NonFiniteError
from aalnet.settings import OptimizerSettings, RunSettings
from aalnet.state import TrainState
from aalnet.terms import Terms, weighted_sum


def learning_rate(optimizer: OptimizerSettings, run: RunSettings, images_seen: int) -> float:
    """Linear warm-up over `warmup_images`, then constant, then linear to 0 in `decay_share`."""
    warmup = min(1.0, (images_seen + 1) / max(1, optimizer.warmup_images))
    remaining = max(0.0, 1 - images_seen / run.images)
    decay = min(1.0, remaining / optimizer.decay_share) if optimizer.decay_share else 1.0
    return optimizer.lr * warmup * decay


def backward(terms: Terms, weights: Mapping[str, float], batch: Batch) -> None:
    """Accumulate the gradient of minus the weighted mean over the global batch (our share)."""
    loss = -weighted_sum(terms, weights) / batch.global_images
    loss.backward()  # type: ignore[no-untyped-call]


def apply(state: TrainState, side: str, terms: Terms, batch: Batch, world: World) -> Terms:
    """Sum gradients and terms over workers in one go, clip, step, clear the gradients.

    `side` names the optimizer. Returns the terms' means over the global batch and, as
    `<side>_norm`, the norm of the summed gradient before clipping.
    """
    settings, optimizer = state.settings, state.optimizers[side]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    sums = torch.stack([value.detach().sum() for value in terms.values()])
    world.sum_([*gradients, sums])
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    clip = torch.clamp(settings.optimizer.clip_norm / (norm + 1e-12), max=1.0)
    torch._foreach_mul_(gradients, clip)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings.optimizer, settings.run, state.images_seen)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = (sums / batch.global_images).unbind()
    return {**dict(zip(terms, means, strict=True)), f"{side}_norm": norm}


def require_finite(measured: Mapping[str, Tensor], images_seen: int) -> dict[str, float]:
    """The measured values as numbers; one transfer from the device.

    Raises:
        NonFiniteError: names the first value that is NaN or infinite, and the images seen.
    """
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"`{broken[0]}` is {values[broken[0]]} at {images_seen:,} images"
            f" (not finite: {', '.join(broken)}). Lower optimizer.lr, objective.gamma or"
            " objective.flatness and start it under another --run"
        )
    return values


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for a network's parameters inside: they pass through it only."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
