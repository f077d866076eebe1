r"""`PerDimensionMLP`: a small network of its own for each conditional."""

import itertools
import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net, as_event_shape, as_hidden
from pyro_ar.outputs import Output, PerVariable

__all__ = ["PerDimensionMLP", "PerDimensionMLPNet"]

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class PerDimensionMLPNet(Net):
    r"""h_i = act(b_i + sum_{j<i} encode(x_j) W_{ji} + c C_i), raw_i = d_i + h_i V_i; deeper layers h_i <- act(h_i U_i + e_i) between.

    All networks pass at once: the first layers as one product, whose weights from j >= i never enter, the others as a batched product.

    Shapes:
        - `input_weight` W `(n, inputs, n, hidden)`, `hidden_bias` b `(n, hidden)`, `context_weight` C `(context_dim, n * hidden)`, `output_weight` V
          `(n, last hidden, raw)`, `output_bias` d `(n, raw)`; `deep.l.weight` U `(n, below, above)`, `deep.l.bias` e `(n, above)`.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = 16,
                 activation: str = "tanh") -> None:
        super().__init__(event_shape, output, context_dim)
        require(activation in ACTIVATIONS, f"activation must be one of {sorted(ACTIVATIONS)}", activation)
        self.hidden, self.activation = as_hidden(hidden), activation
        n, inputs, first, last = self.num_variables, output.inputs, self.hidden[0], self.hidden[-1]
        before = torch.arange(n).clamp(min=1).mul(inputs).sqrt().unsqueeze(-1)  # what a unit sums over
        self.input_weight = nn.Parameter(torch.randn(n, inputs, n, first) / before)
        self.hidden_bias = nn.Parameter(torch.zeros(n, first))
        self.context_weight = nn.Parameter(torch.randn(context_dim, n * first) * 0.1) if context_dim else None
        self.deep = nn.ModuleList(_Deep(n, *sizes) for sizes in itertools.pairwise(self.hidden))
        self.output_weight = nn.Parameter(torch.randn(n, last, output.raw) * (0.5 / math.sqrt(last)))
        self.output_bias = nn.Parameter(torch.zeros(n, output.raw))

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = 16,
              **unused: Any) -> int:
        n, hidden = math.prod(as_event_shape(event_shape)), as_hidden(hidden)
        asked, read = n, output.inputs * n * (n - 1) // 2  # networks, and the features that they read
        if isinstance(output, PerVariable):  # a certain variable asks nothing of its network
            each = output.variables(n)
            before = itertools.accumulate((o.inputs for o in each), initial=0)
            reads = [inputs for o, inputs in zip(each, before, strict=False) if o.raw]
            asked, read = len(reads), sum(reads)
        deep = sum((below + 1) * above for below, above in itertools.pairwise(hidden))
        return (read + asked * (1 + context_dim)) * hidden[0] + asked * deep + output.totals(n)[0] * (hidden[-1] + 1)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim, hidden=self.hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        m, place = x.shape[-1], torch.arange(x.shape[-1], device=x.device)
        earlier = (place[:, None] < place).reshape(m, 1, m, 1)
        weight = (self.input_weight[:m, :, :m] * earlier).flatten(2).flatten(0, 1)
        h = (self.output.encode(x).flatten(1) @ weight).unflatten(-1, (m, -1)) + self._bias(context)[..., :m, :]
        return self._from_first(h.transpose(0, 1), slice(m)).transpose(0, 1)

    def _bias(self, context: Tensor | None) -> Tensor:
        """Of the first layers, `(n, hidden)` or `(rows, n, hidden)`."""
        if context is None or self.context_weight is None:
            return self.hidden_bias
        return self.hidden_bias + (context @ self.context_weight).unflatten(-1, self.hidden_bias.shape)

    def _from_first(self, h: Tensor, which: slice) -> Tensor:
        """From pre-activations of the first layers of some networks, `(networks, rows, hidden)`, to `(networks, rows, raw)`."""
        act = ACTIVATIONS[self.activation]
        for layer in self.deep:
            h = act(h) @ layer.weight[which] + layer.bias[which].unsqueeze(1)  # type: ignore[index]
        return act(h) @ self.output_weight[which] + self.output_bias[which].unsqueeze(1)

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        # What is known so far; zeros of the weights' kind, so that it may be written to under vmap.
        seen = self.input_weight.new_zeros(rows, self.num_variables, self.output.inputs)
        return {"seen": seen, "i": 0, "bias": self._bias(context).expand(rows, -1, -1)}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            state["seen"][:, state["i"]] = self.output.at(state["i"]).encode(value)
            state["i"] += 1
        i = state["i"]
        # Network i alone.
        h = state["seen"][:, :i].flatten(1) @ self.input_weight[:i, :, i].flatten(0, 1) + state["bias"][:, i]
        return self._from_first(h.unsqueeze(0), slice(i, i + 1)).squeeze(0)

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"] = state["i"], state["i"] + values.shape[-1]
        state["seen"][:, first:state["i"]] = self.encode_run(values, first)


class _Deep(nn.Module):
    """A layer of each network."""

    def __init__(self, n: int, below: int, above: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, below, above) / math.sqrt(below))
        self.bias = nn.Parameter(torch.zeros(n, above))


class PerDimensionMLP(Family):
    r"""A small network of its own for each variable given those before it: O(n^2 h) parameters, nothing shared.

    .. math:: raw_i = d_i + \tanh\Big(b_i + \sum_{j<i} x_j W_{ji}\Big) V_i

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units of each network, of each of its layers.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none; every first layer reads it.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'tanh', 'relu' or 'sigmoid'.
        generator: For a random order.

    Source:
        Bengio, Bengio (2000), *Modeling high-dimensional discrete data with multi-layer neural networks*, NeurIPS 12, whose
        networks share their first layer; here each has its own.

    Example:
        >>> PerDimensionMLP(784, hidden=1).num_parameters  # 784 * 783 / 2 wires, and 3 per variable
        309288
    """

    net_type = PerDimensionMLPNet

    def __init__(self, event_shape: int | Sequence[int], hidden: Sequence[int] | int = 16, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, activation: str = "tanh", generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)
