"""The gradient of a squared gradient norm, by two methods that tests hold against each other.

For f(theta), the penalty w * ||g||^2 with g = grad f has the gradient 2 w H g, a
Hessian-vector product. f is a mean over the *global* batch, so g is summed over workers
before it is used; what is returned is this worker's share of 2 w H g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from aalnet.batch import World

Parameters = dict[str, Tensor]
Objective = Callable[[Parameters], Tensor]  # parameters -> this worker's share of f, a scalar


def squared_norm_gradient(
    objective: Objective,
    parameters: Parameters,
    *,
    method: Literal["exact", "finite_difference"],
    step: float,
    world: World,
) -> tuple[Tensor, list[Tensor]]:
    """||g||^2 and this worker's share of its gradient 2 H g.

    `exact` differentiates twice. `finite_difference` takes gradients at theta +- h g/||g||
    (h = `step`): central, so the error is of order h^2, with the memory of an ordinary step.
    """
    if method == "exact":
        return _exact(objective, parameters, world)
    return _finite_difference(objective, parameters, step, world)


def _exact(
    objective: Objective, parameters: Parameters, world: World
) -> tuple[Tensor, list[Tensor]]:
    share = _gradient(objective, parameters, create_graph=True)
    g = [part.detach().clone() for part in share]
    world.sum_(g)
    along = torch.stack([(a * b).sum() for a, b in zip(share, g, strict=True)]).sum()
    curvature = torch.autograd.grad(along, list(parameters.values()), materialize_grads=True)
    return _squared_norm(g), [2 * part for part in curvature]


def _finite_difference(
    objective: Objective, parameters: Parameters, step: float, world: World
) -> tuple[Tensor, list[Tensor]]:
    g = _gradient(objective, parameters)
    world.sum_(g)
    squared = _squared_norm(g)
    norm = squared.sqrt()
    # Where f is flat (norm 0) the penalty and its gradient are 0: step by 0, scale by 0.
    stride = torch.where(norm > 0, step / norm, torch.zeros_like(norm))
    ahead = _gradient(objective, _moved(parameters, g, stride))
    behind = _gradient(objective, _moved(parameters, g, -stride))
    return squared, [(a - b) * (norm / step) for a, b in zip(ahead, behind, strict=True)]


def _gradient(
    objective: Objective, parameters: Parameters, *, create_graph: bool = False
) -> list[Tensor]:
    value = objective(parameters)
    return list(
        torch.autograd.grad(
            value, list(parameters.values()), create_graph=create_graph, materialize_grads=True
        )
    )


def _moved(parameters: Parameters, direction: list[Tensor], stride: Tensor) -> Parameters:
    return {
        name: (value.detach() + stride * part).requires_grad_()
        for (name, value), part in zip(parameters.items(), direction, strict=True)
    }


def _squared_norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()
