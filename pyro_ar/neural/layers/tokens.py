r"""Nets that read a chain as a sequence of tokens: what is known, token by token, and what is asked next."""

import math

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.net import Net
from pyro_ar.outputs import Output

__all__ = ["TokenNet"]


class TokenNet(Net):
    r"""Token i holds the value of variable i - 1 and the place of variable i, whose raw parameters are read from it.

    .. math:: t_i = x_{i-1} W + P_i + c\,C, \qquad raw_i = f(t_1, \dots, t_i)_i\, V + b_i

    A net of this kind says what f is: `memory` makes what f remembers of earlier tokens, tensors whose first dimension is the rows, and
    `through` takes a run of tokens, from the beginning or after those in a memory. Passing, stepping and prefilling follow; each computes
    a token once.

    Variables of one output share W and V, and differ by place; where outputs differ (`PerVariable`) each variable has its own.

    Shapes:
        - `value_weight` W `(inputs, width)` or `(n, inputs, width)`, `place` P `(n, width)`, `context_weight` C `(context_dim, width)`,
          `head_weight` V `(width, raw)` or `(n, width, raw)`, `head_bias` b `(n, raw)`.

    Args:
        event_shape: An int or a tuple.
        output: What the net computes raw parameters for.
        context_dim: Width of the context, 0 for none.
        width: Numbers per token.
        read: Numbers per token that f gives; None: as many.
        places: Whether a token holds the place of its variable. Without, P has one row, which the first token holds, b has one too,
            and nothing depends on the number of variables.
    """

    place: nn.Parameter

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, width: int, read: int | None = None,
                 places: bool = True) -> None:
        super().__init__(event_shape, output, context_dim)
        require(isinstance(width, int) and width > 0, "width must be a positive int", width)
        n, read = self.num_variables, width if read is None else read
        self.width, self.places = width, places
        each = () if len(set(output.variables(n))) == 1 else (n,)
        require(places or not each, "variables with outputs of their own need places", output)
        self.value_weight = nn.Parameter(torch.randn(*each, output.inputs, width) / math.sqrt(output.inputs))
        self.head_weight = nn.Parameter(torch.randn(*each, read, output.raw) * (0.5 / math.sqrt(read)))
        self.head_bias = nn.Parameter(torch.zeros(n if places else 1, output.raw))
        self.context_weight = nn.Parameter(torch.randn(context_dim, width) * 0.1) if context_dim else None
        self._make_places()

    def _make_places(self) -> None:
        self.place = nn.Parameter(0.3 * torch.randn(self.num_variables if self.places else 1, self.width))

    @property
    def num_parameters(self) -> int:
        return super().num_parameters - self._unread()

    def _unread(self) -> int:
        """Weights that reach no answer: nobody reads the last value, nor what pads the features and parameters of smaller outputs."""
        n, raw = self.num_variables, self.output.raw
        parameters, features, _ = self.output.totals(n)
        last = features - self.output.totals(n - 1)[1]
        unread = self.width * last if n == 1 else 0
        if self.value_weight.ndim == 3:
            padding = n * raw - parameters
            unread = self.width * (n * self.output.inputs - features + last) + padding * (self.head_weight.shape[-2] + 1)
        return unread

    # What a net of this kind says.

    def memory(self, rows: int) -> Any:
        """What `through` remembers of no tokens."""
        raise NotImplementedError

    def through(self, tokens: Tensor, memory: Any = None, done: int = 0) -> Tensor:
        """What f makes of tokens `(rows, m, width)`, `(rows, m, read)`; the memory, which holds `done` tokens before these, takes them in place."""
        raise NotImplementedError

    # What follows.

    def forward(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        return self._read_out(self.through(self._tokens(x, context, order)), self._places(0, x.shape[1], order))

    def _tokens(self, x: Tensor, context: Tensor | None, order: Tensor | None) -> Tensor:
        places = self._places(0, x.shape[1], order)
        return F.pad(self._told(x, places)[:, :-1], (0, 0, 1, 0)) + self._asked(places) + self._of_context(context)

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The mean over tokens of what `inside` makes of them."""
        return self.inside(self._tokens(x, context, order)).mean(1)

    def inside(self, tokens: Tensor) -> Tensor:
        """What represents a row, `(rows, m, numbers)`: what f gives, unless a net knows better."""
        return self.through(tokens)

    def _places(self, first: int, end: int, order: Tensor | None) -> Tensor:
        """Where variables stand, `(m,)` or `(rows, m)`."""
        return torch.arange(first, end, device=self.head_bias.device) if order is None else order[:, first:end]

    def _told(self, x: Tensor, places: Tensor) -> Tensor:
        """What a token tells of the variable before, `(rows, m, width)`."""
        features = self.output.at(places).encode(x)
        if self.value_weight.ndim == 2:
            return features @ self.value_weight
        return (features.unsqueeze(-2) @ self.value_weight[places]).squeeze(-2)

    def _asked(self, places: Tensor) -> Tensor:
        """What a token tells of the variable that is asked, `(m, width)` or `(rows, m, width)`."""
        if self.places:
            return self.place[places]
        return torch.where((places == 0).unsqueeze(-1), self.place, 0)

    def _of_context(self, context: Tensor | None) -> Tensor | float:
        if context is None or self.context_weight is None:
            return 0.0
        return (context @ self.context_weight).unsqueeze(1)

    def _read_out(self, h: Tensor, places: Tensor) -> Tensor:
        bias = self.head_bias[places] if self.places else self.head_bias
        if self.head_weight.ndim == 2:
            return h @ self.head_weight + bias
        return (h.unsqueeze(-2) @ self.head_weight[places]).squeeze(-2) + bias

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        """Known variables `i`, tokens computed `done`, and what the next token tells of the variable before, `told`."""
        return {"memory": self.memory(rows), "i": 0, "done": 0, "told": self.head_bias.new_zeros(rows, 1, self.width), "order": order,
                "context": self._of_context(context)}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            state["told"] = self._told(value.unsqueeze(-1), self._places(state["i"], state["i"] + 1, state["order"]))
            state["i"] += 1
        places = self._places(state["i"], state["i"] + 1, state["order"])
        token = state["told"] + self._asked(places) + state["context"]
        h = self.through(token, state["memory"], state["i"])
        state["done"] = state["i"] + 1
        return self._read_out(h, places).squeeze(1)

    def prefill(self, state: Any, values: Tensor) -> None:
        first, end, done = state["i"], state["i"] + values.shape[-1], state["done"]
        places = self._places(first, end, state["order"])
        told = self._told(values, places)
        if done < end:  # one pass; the token of the variable that comes after them waits until it is asked
            tokens = torch.cat((state["told"], told[:, :-1]), 1) + self._asked(places) + state["context"]
            self.through(tokens[:, done - first:], state["memory"], done)
        state.update(told=told[:, -1:], i=end, done=end)
