r"""What a net is: a plain module on rows, and how it is stepped."""

import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Size, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.outputs import Output
from pyro_ar.transforms import transforms_active

__all__ = ["Net", "as_event_shape", "as_rows", "transforms_active"]


class Net(nn.Module):
    r"""From the variables in chain order to the raw parameters of all their conditionals.

    A net knows nothing of batches, draws or Pyro. Variable i of what it is given stands i-th in the chain
    (`Autoregressive` does the permuting), and row i of its answer may depend on the variables before i only.
    An any-order net is also told which variable stands at each place.

    A final class writes `forward`. It also writes `start` and `advance` when it can sample without
    running the whole net once per variable, as here. Sampling steps in `torch.inference_mode`, so that a net must not
    keep a tensor it made there for training.

    Shapes:
        - `forward(x, context=None)`: `(rows, *event)`, `(rows, context_dim)` -> `(rows, *event, raw)`;
          an any-order net gets `order`, `(rows, n)`, as third argument.

    Attributes:
        any_order: The net takes an order per row.
        broadcasts: `forward` takes `x` and `context` with any left dimensions that broadcast, and computes
            what depends on only one of them once.
    """

    any_order = False
    broadcasts = False

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0) -> None:
        super().__init__()
        require(isinstance(output, Output), "output must be one of par.outputs, such as par.outputs.Bernoulli()", output)
        require(isinstance(context_dim, int) and context_dim >= 0, "context_dim must be 0 or more", context_dim)
        self.event_shape = as_event_shape(event_shape)
        self.output = output
        self.context_dim = context_dim

    @property
    def num_variables(self) -> int:
        return math.prod(self.event_shape)

    @property
    def num_parameters(self) -> int:
        """Free parameters: weights that are always zero, or never reach an answer, are not counted."""
        return sum(p.numel() for p in self.parameters())

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        """The state before the first variable."""
        known = {name: t for name, t in (("context", context), ("order", order)) if t is not None}
        like = next(self.parameters())
        return {"x": like.new_zeros(rows, math.prod(self.event_shape)), "i": -1, "known": known}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        """Take the value `(rows,)` of the last variable (None at first) and give the next one's `(rows, raw)`.

        The state may be changed in place.
        """
        if value is not None:
            here = torch.arange(state["x"].shape[-1], device=value.device) == state["i"]
            state["x"] = torch.where(here, value.unsqueeze(-1), state["x"])
        state["i"] += 1
        raw = self(state["x"].unflatten(-1, self.event_shape), **state["known"])
        return raw.flatten(1, -2)[:, state["i"]]


def as_event_shape(event_shape: int | Sequence[int]) -> Size:
    """An event shape from a number of variables or a tuple of sizes."""
    shape = tuple(event_shape) if isinstance(event_shape, Sequence) else (event_shape,)
    require(len(shape) > 0 and all(isinstance(k, int) and k > 0 for k in shape),
            "event_shape must be a positive int or a tuple of them", event_shape)
    return Size(shape)


def as_rows(context: Tensor | None, weight: Tensor | None, rows: int, bias: Tensor) -> Tensor:
    """`bias + context @ weight` for each row, a fresh tensor `(rows, *bias.shape)`.

    Fresh even for one row: a mere view of the bias would be spoilt by what is then added in place.
    """
    if context is None or weight is None:
        return bias.expand(rows, *bias.shape).clone(memory_format=torch.contiguous_format)
    return bias + (context @ weight).reshape(rows, *bias.shape)
