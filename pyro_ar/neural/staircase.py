r"""`staircase`: the product of rows with a weight in which each unit sees no fewer features than the unit before it.

That is what a net with sorted units multiplies by. Dense, half of the work is done on zeros; in blocks of units, each over the features that
its last unit sees, most of that half is saved.
"""

import functools

from typing import Any

import torch

from torch import Tensor
from torch.autograd import forward_ad

from pyro_ar.transforms import transforms_active

__all__ = ["seen", "staircase"]

BLOCKS = 7  # more would save little, and make the products too narrow to be fast
LEAST_WORK = 2_000_000  # multiplications of the dense product below which blocks do not pay


def seen(ends: Tensor, features: int) -> Tensor:
    """Which of the features each unit sees, the first `ends` of them, bool `(units, features)`."""
    return torch.arange(features, device=ends.device) < ends[:, None]


def staircase(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, *, units_first: bool = False) -> Tensor:
    r"""`x @ (weight * seen(ends, features)).mT + bias`, differentiable any number of times and by `torch.func`.

    Args:
        x: Features `(*L, features)`.
        weight: `(units, features)`; what a unit does not see never enters.
        bias: `(*M, units)`; `L` and `M` broadcast.
        ends: How many features each unit sees, `(units,)`, none fewer than the unit before.
        units_first: Where the answer is large, unit after unit in memory, which suits a next product.

    Returns:
        `(*broadcast of L and M, units)`.

    Example:
        >>> staircase(torch.ones(1, 3), torch.ones(4, 3), torch.zeros(4), torch.tensor([0, 1, 1, 3]))
        tensor([[0., 1., 1., 3.]])
    """
    if x.shape.numel() * len(weight) < LEAST_WORK or _needs_plain_operations(x, weight, bias):
        return x @ (weight * seen(ends, weight.shape[1])).mT + bias
    own = bias if bias.ndim == 1 else bias.new_zeros(len(weight))
    answer = _Staircase.apply(x.reshape(-1, x.shape[-1]), weight, own, ends, units_first).reshape(*x.shape[:-1], len(weight))
    return answer if own is bias else answer + bias


def _needs_plain_operations(*tensors: Tensor) -> bool:
    """Whether something runs that `_Staircase` has no rule for, or on a device where one large product is faster."""
    cpu = all(t.device.type == "cpu" and t.dtype == tensors[0].dtype for t in tensors)
    dual = any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    return not cpu or dual or transforms_active() or torch.is_autocast_enabled("cpu")


class _Staircase(torch.autograd.Function):
    """The products of `staircase` and of its gradient in blocks; a gradient that is to be differentiated itself is dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, units_first: bool) -> Tensor:
        blocks, masked = _blocks(ends, weight.dtype), weight.clone()
        out = bias.new_empty((len(weight), len(x))).mT if units_first else bias.new_empty((len(x), len(weight)))
        out.copy_(bias)
        for units, inner, edge, mask in blocks:
            masked[units, edge].mul_(mask)
            out[:, units].addmm_(x[:, inner], masked[units, inner].mT)
        ctx.save_for_backward(x, weight, ends, masked)
        ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends, masked = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        dbias = grad.sum(0) if of_bias else None
        if torch.is_grad_enabled():  # create_graph
            mask = seen(ends, weight.shape[1])
            return grad @ (weight * mask) if of_x else None, (grad.mT @ x) * mask if of_weight else None, dbias, None, None
        dx, dweight = torch.zeros_like(x) if of_x else None, torch.zeros_like(weight) if of_weight else None
        for units, inner, edge, mask in ctx.blocks:
            if dx is not None:
                dx[:, inner].addmm_(grad[:, units], masked[units, inner])
            if dweight is not None:
                torch.mm(grad[:, units].mT, x[:, inner], out=dweight[units, inner])
                dweight[units, edge].mul_(mask)
        return dx, dweight, dbias, None, None


def _blocks(ends: Tensor, dtype: torch.dtype) -> list[tuple[slice, slice, slice, Tensor]]:
    return _found_blocks(tuple(ends.tolist()), dtype)


@functools.lru_cache(maxsize=8)
def _found_blocks(ends: tuple[int, ...], dtype: torch.dtype) -> list[tuple[slice, slice, slice, Tensor]]:
    """Of each block its units, the features that its last unit sees, those of them that its first unit does not see, and which of these each unit sees."""
    size = 16 * -(-len(ends) // (16 * BLOCKS))
    found = []
    with torch.inference_mode(False):  # they outlive it
        for first in range(0, len(ends), size):
            own = ends[first:first + size]
            mask = (torch.arange(own[0], own[-1]) < torch.tensor(own)[:, None]).to(dtype)
            found.append((slice(first, first + len(own)), slice(own[-1]), slice(own[0], own[-1]), mask))
    return found
