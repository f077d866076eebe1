r"""`RecurrentAR`: a recurrent net reads the variables one after the other, and what it remembers predicts the next; also a model of text."""

import math

from collections.abc import Sequence
from typing import Any, Self

import torch

from torch import Generator, Tensor, nn
from torch.autograd import forward_ad

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.tokens import TokenNet
from pyro_ar.outputs import Output
from pyro_ar.transforms import transforms_active

__all__ = ["RecurrentAR", "RecurrentARNet", "fused_pass", "plain_pass"]

GATES = {"gru": 3, "lstm": 4}
Weights = list[tuple[Tensor, Tensor, Tensor, Tensor]]


class RecurrentARNet(TokenNet):
    r"""Layers of recurrent cells over tokens, see `TokenNet` for what a token holds.

    Shapes:
        - of each layer `input_weight.l` `(gates * hidden, below)`, `hidden_weight.l` `(gates * hidden, hidden)`, `input_bias.l` and `hidden_bias.l`
          `(gates * hidden,)`, as `torch.nn.GRU` (r, z, n) and `torch.nn.LSTM` (i, f, g, o) lay them out.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 128, cell: str = "gru",
                 layers: int = 1, width: int | None = None, places: bool = True) -> None:
        require(isinstance(hidden, int) and hidden > 0, "hidden must be a positive int", hidden)
        require(cell in GATES, f"cell must be one of {sorted(GATES)}", cell)
        require(isinstance(layers, int) and layers > 0, "layers must be a positive int", layers)
        width = hidden if width is None else width
        super().__init__(event_shape, output, context_dim, width=width, read=hidden, places=places)
        self.hidden, self.cell, self.layers = hidden, cell, layers
        gates, below = GATES[cell] * hidden, [width] + [hidden] * (layers - 1)
        self.input_weight = nn.ParameterList(torch.randn(gates, k) / math.sqrt(k) for k in below)
        self.hidden_weight = nn.ParameterList(torch.randn(gates, hidden) / math.sqrt(hidden) for _ in below)
        self.input_bias = nn.ParameterList(torch.zeros(gates) for _ in below)
        self.hidden_bias = nn.ParameterList(torch.zeros(gates) for _ in below)

    def _unread(self) -> int:
        unread = super()._unread()
        if self.num_variables == 1:  # nothing is remembered: neither read, nor, by an LSTM, forgotten
            unread += sum(w.numel() for w in self.hidden_weight)
            if self.cell == "lstm":
                unread += sum(self.hidden * (w.shape[1] + 2) for w in self.input_weight)
        return unread

    def _weights(self) -> Weights:
        return list(zip(self.input_weight, self.hidden_weight, self.input_bias, self.hidden_bias, strict=True))

    def memory(self, rows: int) -> Any:
        """For each of h and, of an LSTM, c: `(rows, layers, hidden)`."""
        kinds = 2 if self.cell == "lstm" else 1
        return [self.head_bias.new_zeros(rows, self.layers, self.hidden) for _ in range(kinds)]

    def through(self, tokens: Tensor, memory: Any = None, done: int = 0) -> Tensor:
        before = self.memory(len(tokens)) if memory is None else memory
        # torch's kernels know neither vmap nor forward derivatives.
        plain = transforms_active() or forward_ad._current_level >= 0
        h, after = (plain_pass if plain else fused_pass)(tokens, before, self._weights())
        if memory is not None:
            memory[:] = after
        return h


def fused_pass(tokens: Tensor, before: list[Tensor], weights: Weights) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of the last layer and what is remembered behind the last token, by torch's kernels; arguments as in `plain_pass`."""
    flat, layers = [w for layer in weights for w in layer], len(weights)
    at = [t.transpose(0, 1).contiguous() for t in before]
    if len(at) == 1:
        out, *after = torch.gru(tokens, at[0], flat, True, layers, 0.0, False, False, True)
    else:
        out, *after = torch.lstm(tokens, at, flat, True, layers, 0.0, False, False, True)
    return out, [t.transpose(0, 1) for t in after]


def plain_pass(tokens: Tensor, before: list[Tensor], weights: Weights) -> tuple[Tensor, list[Tensor]]:
    r"""The same in plain operations, layer by layer and token by token.

    .. math:: \text{GRU:}\quad & h' = (1 - z)\, n + z\, h, \quad n = \tanh(a_n + r\, b_n), \quad r, z = \sigma(a + b) \\
              \text{LSTM:}\quad & c' = f\, c + i \tanh(g), \quad h' = o \tanh(c'), \quad i, f, o = \sigma(a + b)

    with a from the layer below and b from the h before, each with its bias.

    Args:
        tokens: `(rows, m, width)`.
        before: What is remembered before them: h, and c of an LSTM, each `(rows, layers, hidden)`.
        weights: Of each layer, in torch's order.
    """
    after: list[list[Tensor]] = [[] for _ in before]
    for k, (input_weight, hidden_weight, input_bias, hidden_bias) in enumerate(weights):
        memory, out = [t[:, k] for t in before], []
        for a in (tokens @ input_weight.mT + input_bias).unbind(1):
            b = memory[0] @ hidden_weight.mT + hidden_bias
            memory = _gru(a, b, *memory) if len(memory) == 1 else _lstm(a, b, *memory)
            out.append(memory[0])
        tokens = torch.stack(out, 1)
        for kept, new in zip(after, memory, strict=True):
            kept.append(new)
    return tokens, [torch.stack(kept, 1) for kept in after]


def _gru(a: Tensor, b: Tensor, h: Tensor) -> list[Tensor]:
    (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
    z = torch.sigmoid(az + bz)
    return [(1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h]


def _lstm(a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    i, f, g, o = (a + b).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


class RecurrentAR(Family):
    r"""A recurrent net over the variables: what its cells remember of those before predicts the next. Trained by teacher forcing.

    .. math:: t_i = x_{i-1} W + P_i, \qquad h_i = \mathrm{cell}(t_i, h_{i-1}), \qquad raw_i = h_i V + b_i

    One pass runs torch's fused kernels; where draws of weights are mapped over, or forward derivatives taken, the same in plain operations.

    Without `places` all conditionals share all weights, and the model takes any length (`of_length`): a model of text, with `par.data.Alphabet`.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units of each layer.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none; every token holds it.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        cell: 'gru' or 'lstm'.
        layers: Layers of cells.
        width: Numbers per token; None: `hidden`.
        places: Whether a token holds the place of its variable, and each variable has biases of its own.
        generator: For a random order.

    Raises:
        ValueError: No such cell or sizes; variables with outputs of their own without `places`.

    Source:
        Hochreiter, Schmidhuber (1997), *Long short-term memory*, Neural Computation 9; Cho et al. (2014), *Learning phrase representations
        using RNN encoder-decoder*, EMNLP; as a model of text Graves (2013), *Generating sequences with recurrent neural networks*.

    Example:
        >>> RecurrentAR(event_shape=(1, 4, 4), hidden=8, cell="lstm")().event_shape
        torch.Size([1, 4, 4])
    """

    net_type = RecurrentARNet

    def __init__(self, event_shape: int | Sequence[int], hidden: int = 128, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, cell: str = "gru", layers: int = 1, width: int | None = None,
                 places: bool = True, generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, cell=cell, layers=layers, width=width, places=places)

    def of_length(self, n: int) -> Self:
        """The same model of n variables, with weights of its own that start as these.

        Raises:
            ValueError: Weights that depend on places, or an order.

        Example:
            >>> RecurrentAR(8, hidden=4, places=False).of_length(100)().event_shape
            torch.Size([100])
        """
        require(not self.arguments["places"] and self.order is None, "of_length wants a model made with places=False and in no order of its own",
                self)
        other = type(self)(**{**self.arguments, "event_shape": n}).to(next(self.parameters()))
        other.load_state_dict(self.state_dict())
        return other.train(self.training)
