r"""Orders of the chain rule: permutations of the positions of a flattened event, first one first."""

import math

from collections.abc import Sequence

import torch

from torch import Generator, Size, Tensor

from pyro_ar.checks import require

__all__ = ["channels_within_pixels", "check_order", "inverse", "make_order", "random_orders", "visible_first"]


def check_order(order: Tensor | Sequence[int], num_variables: int) -> Tensor:
    """The order as a long tensor `(*B, n)`.

    Raises:
        ValueError: Some row of it is no permutation of 0 to n - 1.
    """
    wanted = f"order must hold permutations of 0 to {num_variables - 1}"
    try:
        order = torch.as_tensor(order)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wanted}; got {order!r}") from None
    whole = not order.is_floating_point() and not order.is_complex() and order.dtype != torch.bool
    require(whole and order.ndim >= 1 and order.shape[-1] == num_variables, wanted, order)
    straight = torch.arange(num_variables, device=order.device)
    wrong = (order.sort(-1).values != straight).flatten(0, -2).any(-1) if order.ndim > 1 else (
        order.sort().values != straight).any().reshape(1)
    if bool(wrong.any()):
        first = order.reshape(-1, num_variables)[int(wrong.nonzero()[0])]
        require(False, wanted, first.tolist())
    return order.long()


def make_order(order: Tensor | Sequence[int] | str | None, num_variables: int,
               generator: Generator | None = None) -> Tensor:
    """What a user may say about the order, as a tensor `(n,)`: None (raster), a permutation, or 'random'."""
    if order is None:
        return torch.arange(num_variables)
    if isinstance(order, str):
        require(order == "random", "order must be None, a permutation or 'random'", order)
        return torch.randperm(num_variables, generator=generator)
    return check_order(order, num_variables)


def random_orders(shape: Sequence[int] | int, num_variables: int, *, generator: Generator | None = None) -> Tensor:
    """Independent uniform permutations, `(*shape, n)`, drawn on the device of the generator.

    Example:
        >>> random_orders(3, 5).shape
        torch.Size([3, 5])
    """
    shape = Size([shape]) if isinstance(shape, int) else Size(shape)
    device = None if generator is None else generator.device
    return torch.rand(*shape, num_variables, generator=generator, device=device).argsort(-1)


def inverse(order: Tensor) -> Tensor:
    """The place of each variable in the order."""
    return order.argsort(-1)


def visible_first(order: Tensor, visible: Tensor) -> Tensor:
    """The order with the visible variables moved to the front, both parts otherwise as they were.

    Args:
        order: `(*B, n)`.
        visible: bool `(*L, n)` over the flattened event.
    """
    left = torch.broadcast_shapes(order.shape, visible.shape)
    order = order.to(visible.device).expand(left)
    hidden = ~visible.expand(left).gather(-1, order)
    return order.gather(-1, hidden.long().argsort(dim=-1, stable=True))


def channels_within_pixels(event_shape: Sequence[int]) -> Tensor:
    """The raster order of a `(channels, height, width)` image in which a pixel's channels follow one another.

    Example:
        >>> channels_within_pixels((3, 1, 2)).tolist()
        [0, 2, 4, 1, 3, 5]
    """
    require(len(event_shape) == 3, "an image has (channels, height, width)", tuple(event_shape))
    return torch.arange(math.prod(event_shape)).reshape(*event_shape).permute(1, 2, 0).flatten()
