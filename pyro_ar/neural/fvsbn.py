r"""`FVSBN`: each raw parameter is a linear function of the variables before it."""

import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net, as_event_shape, as_rows
from pyro_ar.neural.staircase import staircase
from pyro_ar.outputs import Output

__all__ = ["FVSBN", "LinearNet"]


class LinearNet(Net):
    r"""raw_i = bias_i + sum_{j<i} weight_ij encode(x_j), one masked product.

    Only the part of `weight` below the diagonal enters; a dense parameter may be trained directly.

    Shapes:
        - `weight` `(n, raw, n, inputs)`, `bias` `(n, raw)`, `context_weight` `(context_dim, n * raw)`.
    """

    broadcasts = True

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0) -> None:
        super().__init__(event_shape, output, context_dim)
        n, raw, inputs = self.num_variables, output.raw, output.inputs
        self.weight = nn.Parameter(torch.randn(n, raw, n, inputs) * (0.1 / math.sqrt(n * inputs)))
        self.bias = nn.Parameter(torch.zeros(n, raw))
        self.context_weight = nn.Parameter(torch.zeros(context_dim, n * raw)) if context_dim else None

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, **unused: Any) -> int:
        raw, _, pairs = output.totals(math.prod(as_event_shape(event_shape)))
        return pairs + raw * (1 + context_dim)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        m, raw = x.shape[-1], self.output.raw
        place = torch.arange(m, device=x.device)
        weight = self.weight[:m, :, :m].flatten(2).flatten(0, 1)
        ends = (place * self.output.inputs).repeat_interleave(raw)
        answer = staircase(self.output.encode(x).flatten(-2), weight, self.bias[:m].flatten(), ends)
        if context is not None and self.context_weight is not None:
            answer = answer + context @ self.context_weight[:, :m * raw]
        return answer.unflatten(-1, (m, raw))

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        bias = as_rows(context, self.context_weight, rows, self.bias)
        # What is known so far; zeros of the weights' kind, so that it may be written to under vmap.
        seen = self.weight.new_zeros(rows, self.num_variables, self.output.inputs)
        return {"bias": bias, "seen": seen, "i": 0}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            state["seen"][:, state["i"]] = self.output.at(state["i"]).encode(value)
            state["i"] += 1
        i = state["i"]
        # Row i alone: all rows each time would cost n times as much.
        return state["bias"][:, i] + state["seen"][:, :i].flatten(1) @ self.weight[i, :, :i].flatten(1).mT

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"] = state["i"], state["i"] + values.shape[-1]
        state["seen"][:, first:state["i"]] = self.encode_run(values, first)


class FVSBN(Family):
    r"""Fully visible sigmoid belief network: each variable is a (multinomial) logistic regression on those before it.

    Binary variables: n(n+1)/2 parameters and `log_prob` in one masked product.

    Source:
        Frey, Hinton, Dayan (1996), *Does the wake-sleep algorithm produce good density estimators?*, NIPS 8.

    Example:
        >>> FVSBN(784).num_parameters
        307720
    """

    net_type = LinearNet

    def __init__(self, event_shape: int | Sequence[int], output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator)
