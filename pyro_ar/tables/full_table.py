r"""The full table: no assumption at all, one probability per joint state."""

import math

from collections.abc import Sequence
from typing import Any, Self

import torch

from pyro.distributions import constraints
from torch import Size, Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.expandable import batch_of, draw_states
from pyro_ar.tables.base import TableJoint, pick
from pyro_ar.tables.counts import Block
from pyro_ar.tables.elimination import log_sum_exp

__all__ = ["FullTable"]


class FullTable(TableJoint):
    r"""One logit per joint state of :math:`n` variables.

    .. math:: p(x) = \mathrm{softmax}(\mathrm{logits})_{x_1, \dots, x_n}

    It restricts nothing, and has :math:`\prod_i K_i - 1` free parameters: :math:`2^n - 1` for
    binary variables.

    Shapes:
        - `logits` `(*B, K_1, ..., K_n)`.
        - `batch_shape` `B`, `event_shape` `(n,)`; values are states 0 to K_i - 1.

    Args:
        logits: Unnormalised log-probabilities; minus infinity forbids a state.
        num_states: `(K_1, ..., K_n)`, to tell batch from event dimensions; None: no batch.

    Raises:
        ValueError: `logits` does not end in `num_states`, or has NaN.

    Example:
        >>> joint = FullTable(torch.zeros(2, 2, 2))
        >>> joint.log_prob(torch.tensor([1, 0, 1]))  # one of eight equal states
        tensor(-2.0794)
        >>> joint.num_parameters, FullTable.count_parameters([256] * 3)
        (7, 16777215)
    """

    arg_constraints = {"logits": constraints.real}

    def __init__(self, logits: Tensor, num_states: Sequence[int] | None = None,
                 *, validate_args: bool | None = None) -> None:
        require(isinstance(logits, Tensor) and logits.is_floating_point(), "logits must be a floating tensor", logits)
        sizes = tuple(logits.shape) if num_states is None else tuple(num_states)
        require(len(sizes) > 0 and tuple(logits.shape[logits.ndim - len(sizes):]) == sizes,
                f"logits must end in the numbers of states {sizes}", logits)
        self.logits = logits
        super().__init__({"logits": logits}, logits.shape[: logits.ndim - len(sizes)], sizes, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *, logits: Sequence[int], num_states: Sequence[int] | None = None) -> tuple[Size, Size]:  # type: ignore[override]
        if num_states is not None and len(num_states) == 0:
            raise NotImplementedError("how many dimensions of logits are the event's is said by num_states: give its numbers")
        n = len(logits) if num_states is None else len(num_states)
        batch = batch_of(cls, {"logits": logits}, {"logits": n})
        require(num_states is None or tuple(logits[-n:]) == tuple(num_states), f"logits must end in the numbers of states {num_states}", logits)
        return batch, Size([n])

    def with_tensors(self, tensors: Any) -> "FullTable":
        return FullTable(tensors["logits"], self._num_states, validate_args=self._validate_args)

    @classmethod
    def _blocks(cls, num_states: Sequence[int], **structure: Any) -> list[Block]:
        return [Block((), tuple(range(len(num_states))))]

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], **structure: Any) -> Self:
        return cls(logits[0], num_states)

    @property
    def structure(self) -> dict[str, Any]:
        return {}

    @property
    def scopes(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(len(self._num_states))),)

    def _group_tables(self) -> list[Tensor]:
        return [self._flat()]

    def factors(self, *, logs: bool = True) -> list[Tensor]:
        flat = self._flat() if logs else self._flat().exp()
        return [flat.unflatten(-1, self._num_states)]

    def _flat(self) -> Tensor:
        """Normalised, `(*B, prod K)`."""
        return self.logits.flatten(-len(self._num_states)).log_softmax(-1)

    def _index(self, x: Tensor) -> Tensor:
        strides = [math.prod(self._num_states[i + 1:]) for i in range(len(self._num_states))]
        return (x.long() * torch.tensor(strides, device=x.device)).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        return pick(self._flat(), self._index(x))

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self.check_value(x)
        index, terms = self._index(x), []
        table, seen = self._flat(), pick(self._flat(), index)
        for k in reversed(self._num_states):
            table, index = log_sum_exp(table.unflatten(-1, (-1, k))), index // k
            shorter = pick(table, index)
            terms.append(seen - shorter.masked_fill(shorter == -math.inf, 0.0))
            seen = shorter
        return torch.stack(terms[::-1], -1).expand(torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape))

    def draw(self, shape: Size) -> Tensor:
        flat = draw_states(self._flat(), self.batch_shape, shape)
        return torch.stack(torch.unravel_index(flat, self._num_states), -1).to(self.dtype)
