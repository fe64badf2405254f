"""The gradient of a squared gradient norm, by two methods that tests hold against each other.

For f(theta), the penalty ||g||^2 with g = grad f has the gradient 2 H g, a Hessian-vector
product. f is a mean over the *global* batch, so g is summed over workers before it is used;
what is returned is this worker's share of 2 H g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aalnet.batch import World

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class OutputFunction:
    """f(theta) = value(output(theta)): networks first, then a cheap function of their output.

    `output` is smooth in the parameters (SiLU networks). `value` gives this worker's share of
    f, a scalar; it may have corners (the clamp and the almost-absolute differences of the
    density), for only exact derivatives of it are taken.
    """

    output: Callable[[Parameters], Tensor]
    value: Callable[[Tensor], Tensor]


def squared_norm_gradient(
    objective: OutputFunction,
    parameters: Parameters,
    *,
    method: Literal["exact", "finite_difference"],
    step: float,
    world: World,
) -> tuple[Tensor, list[Tensor]]:
    """||g||^2 and this worker's share of its gradient 2 H g.

    `exact` differentiates twice. `finite_difference` moves the parameters to theta +- h g/||g||
    (h = `step`); the networks are never differentiated twice.
    """
    if method == "exact":
        return _exact(objective, parameters, world)
    return _finite_difference(objective, parameters, step, world)


def _exact(
    objective: OutputFunction, parameters: Parameters, world: World
) -> tuple[Tensor, list[Tensor]]:
    value = objective.value(objective.output(parameters))
    share = _gradient(value, parameters, create_graph=True)
    g = [part.detach().clone() for part in share]
    world.sum_(g)
    along = torch.stack([(a * b).sum() for a, b in zip(share, g, strict=True)]).sum()
    return _squared_norm(g), [2 * part for part in _gradient(along, parameters)]


def _finite_difference(
    objective: OutputFunction, parameters: Parameters, h: float, world: World
) -> tuple[Tensor, list[Tensor]]:
    """Central differences of the networks alone, exact derivatives of `value`.

    With o = output(theta), J its Jacobian, q = dvalue/do, v = g/||g|| and o+- at theta +- h v:

        H v  =  d(J^T q)/dtheta v  +  J^T (d^2 value/do^2) J v
             ~  (J+^T q - J-^T q) / 2h  +  (J+^T w + J-^T w) / 2,
        w    =  (d^2 value/do^2) (o+ - o-) / 2h

    which costs what differences of the whole gradient cost, but stays accurate where `value`
    has corners: those differences were wrong by a factor of 2 at every h.
    """
    output = objective.output(parameters)
    at = output.detach().requires_grad_()
    (q,) = torch.autograd.grad(objective.value(at), at, create_graph=True)
    g = _gradient(output, parameters, along=q.detach())
    world.sum_(g)
    squared = _squared_norm(g)
    norm = squared.sqrt()
    # Where f is flat (norm 0) the penalty and its gradient are 0: step by 0.
    stride = torch.where(norm > 0, h / norm, torch.zeros_like(norm))
    forward, backward = (_moved(parameters, g, sign * stride) for sign in (1, -1))
    ahead, behind = objective.output(forward), objective.output(backward)
    change = (ahead - behind).detach() / (2 * h)
    w = torch.zeros_like(change)
    if q.requires_grad:  # else `value` is linear
        (w,) = torch.autograd.grad((q * change).sum(), at, materialize_grads=True)
    slope = q.detach() / (2 * h)
    parts = zip(
        _gradient(ahead, forward, along=w / 2 + slope),
        _gradient(behind, backward, along=w / 2 - slope),
        strict=True,
    )
    return squared, [2 * norm * (a + b) for a, b in parts]


def _gradient(
    output: Tensor,
    parameters: Parameters,
    *,
    along: Tensor | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            output,
            list(parameters.values()),
            grad_outputs=along,
            create_graph=create_graph,
            materialize_grads=True,
        )
    )


def _moved(parameters: Parameters, direction: list[Tensor], stride: Tensor) -> Parameters:
    return {
        name: (value.detach() + stride * part).requires_grad_()
        for (name, value), part in zip(parameters.items(), direction, strict=True)
    }


def _squared_norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()
