"""An any-order family as a mixture of its joints in several orders."""

import math

from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.checks import counted, one_line, require
from pyro_ar.mixture import Averaged, Mixture
from pyro_ar.neural.family import Family
from pyro_ar.order import random_orders

__all__ = ["OverOrders"]


class OverOrders(nn.Module):
    r"""An any-order family as the equal mixture of its joints in several orders, again something to call for a joint.

    The average over orders is a better density than most single ones, and hidden cells are answered by the mixture
    of the visible-first chains of all the orders.

    Args:
        family: An any-order family; its weights are shared by all components.
        num_orders: How many, drawn uniformly.
        generator: For the orders.

    Raises:
        ValueError: The family has one fixed order, or `num_orders` is not positive.

    Source:
        Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML, section 3.2 (EoNADE).

    Example:
        >>> from pyro_ar.neural import OrderlessNADE
        >>> OverOrders(OrderlessNADE(event_shape=16, hidden=8), 4)().component_log_joint(torch.zeros(16)).shape
        torch.Size([4])
    """

    orders: Tensor

    def __init__(self, family: Family, num_orders: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        require(isinstance(family, Family) and family.any_order,
                "a mixture over orders wants an any-order family", type(family).__name__)
        require(isinstance(num_orders, int) and num_orders >= 1, "num_orders must be 1 or more", num_orders)
        self.family = family
        orders = random_orders(num_orders, math.prod(family.event_shape), generator=generator)
        self.register_buffer("orders", orders)

    def forward(self, context: Tensor | None = None) -> Mixture:
        """The mixture of the present weights, of the batch shape of the context."""
        joint = self.family(None if context is None else context.unsqueeze(-2), self.orders)
        return Averaged(torch.zeros(len(self.orders), dtype=joint.dtype, device=joint.device), joint)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        return {"family": self.family, "num_orders": len(self.orders)}

    def __repr__(self) -> str:
        return one_line(type(self).__name__, counted(len(self.orders), "order"), f"of {self.family!r}")

    def condition(self, context: Tensor) -> Mixture:
        """The same as calling it."""
        return self(context)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """That of the family: all its orders are trained."""
        return self.family.training_log_prob(x, context, visible)

    @property
    def event_shape(self) -> torch.Size:
        return self.family.event_shape

    @property
    def context_dim(self) -> int:
        return self.family.context_dim

    @property
    def num_parameters(self) -> int:
        """Those of the family: its orders share them."""
        return self.family.num_parameters
