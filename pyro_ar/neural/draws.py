r"""Running a net with given weights: once, or once per draw of the weights."""

import copy

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from torch import Tensor, nn

__all__ = ["over_draws", "skeleton"]

Values = dict[str, Tensor]
Structure = TypeVar("Structure", bound=nn.Module)
Function = Callable[[nn.Module, Values], Tensor]


class _Runner(nn.Module):
    """A module whose forward is any function of a net, so that `functional_call` covers all of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, function: Function, values: Values) -> Tensor:
        return function(self.net, values)


def skeleton(net: Structure) -> Structure:
    """A copy of the structure and buffers of a net, without storage for its parameters."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, memo)


def over_draws(net: nn.Module, weights: Mapping[str, Tensor], ranks: Mapping[str, int], values: Values, function: Function,
               buffers: Mapping[str, Tensor], *, map_all: bool = False) -> Tensor:
    """`function(net with these weights, values)`, mapped over the extra left dimensions of the weights.

    Args:
        net: Only its structure and mode are used.
        weights: `(*D, *its shape)` for each parameter of the net.
        ranks: How many dimensions each parameter has in the net.
        values: Tensors `(*L, k)`; `L` and `D` broadcast. The function gets them without the drawn dimensions.
        function: Returns `(*L, k)` again.
        buffers: A tensor for each buffer of the net.
        map_all: Map all tensors, also those shared by the draws, so that a sampler may write in place.

    Returns:
        The answer, `(*broadcast of L and D, k)`.
    """
    dims: dict[Any, int] = {**ranks, **{("value", name): 1 for name in values}}
    tensors: dict[Any, Tensor] = {**weights, **{("value", name): t for name, t in values.items()}}
    depth = max(t.ndim - dims[name] for name, t in tensors.items())
    tensors = {name: t.reshape((1,) * (depth - t.ndim + dims[name]) + t.shape) for name, t in tensors.items()}
    drawn = {d: max(tensors[name].shape[d] for name in weights) for d in range(depth)}
    drawn = {d: size for d, size in drawn.items() if size > 1}
    device = next(iter(weights.values())).device
    held = {f"net.{name}": b.to(device) for name, b in buffers.items()}
    runner = _Runner(net)

    def run(tensors: dict) -> Tensor:
        # What is left of the weights' left dimensions has size 1.
        own = {f"net.{name}": tensors[name].reshape(tensors[name].shape[tensors[name].ndim - ranks[name]:])
               for name in weights}
        return torch.func.functional_call(runner, {**held, **own}, (function, {k: tensors["value", k] for k in values}))

    levels: list[dict] = [{} for _ in drawn]
    for name, t in tensors.items():
        t = t.movedim(list(drawn), list(range(len(drawn))))
        kept = 0
        for level, size in zip(levels, drawn.values(), strict=True):
            if map_all:
                t = t.expand(*t.shape[:kept], size, *t.shape[kept + 1:])
            level[name] = 0 if t.shape[kept] > 1 else None
            if t.shape[kept] > 1:
                kept += 1
            else:
                t = t.squeeze(kept)
        tensors[name] = t
    for level in reversed(levels):
        run = torch.vmap(run, in_dims=(level,), randomness="different")
    return run(tensors).movedim(list(range(len(drawn))), list(drawn))
