r"""What a net is: the contract between the chain rule and the modules that compute its conditionals.

`pyro_ar.testing.NET_CHECKS` checks all that is promised here, on nets of your own too.
"""

import math

from collections.abc import Sequence
from typing import Any

import torch

from torch import Size, Tensor, nn
from torch.utils._pytree import tree_map

from pyro_ar.checks import require
from pyro_ar.outputs import Output
from pyro_ar.recorded import Recorded
from pyro_ar.transforms import transforms_active

__all__ = ["AnyOrderNet", "Net", "as_event_shape", "as_hidden", "as_rows", "transforms_active"]


class Net(Recorded, nn.Module):
    r"""From the variables of a row to the raw parameters of all their conditionals, where each may depend on those before it only.

    A net knows nothing of batches, draws or Pyro. It says in which `layout` values reach it:

    * **'chain'** (the default): flat, in the order of the chain. `forward` takes the first m variables, `(rows, m)`, for any m from 1 to n,
      and gives their raw parameters, `(rows, m, raw)`. Whatever order a joint has, the net sees variable after variable.
    * **'event'**, for nets that need to know where variables lie, such as convolutions: `(rows, *event)` in, `(rows, *event, raw)` out. Such
      a net has an order of its own, `chain_order`, and takes no other. It is told after how many variables of that order it may `stop`:
      what it gives for later ones is not read.

    **Stepping** needs no pass of the whole net per variable. `start` makes a state in which nothing is known; `advance` takes the value of
    the last variable and gives the raw parameters of the next; `prefill` takes a run of known variables at once; `take` re-indexes the rows
    of a state. As written here they run the net again for each step; a net with a cache of its own overrides them, all four if its state holds
    anything but tensors whose first dimension is the rows.

    **What a net must keep to**, so that weights can be bound, drawn and stepped: in eval mode the same input gives the same answer; answers depend
    on parameters, buffers and mode only (no other tensors kept on the module, and none made while stepping, which runs in
    `torch.inference_mode`); `forward` and stepping run under `torch.vmap` over the weights, so tensors that are written to in place are made from
    a weight (`weight.new_zeros`), `nn.LSTM`, `nn.GRU` and their cells are not used (they have no batching rule), while products,
    convolutions and `scaled_dot_product_attention` are.

    Args:
        event_shape: An int or a tuple.
        output: What the net computes raw parameters for; entry i of a `PerVariable` answers for the i-th variable of the chain.
        context_dim: Width of the context, 0 for none.

    Raises:
        ValueError: No such output or sizes.

    Attributes:
        layout: 'chain' or 'event'.
        any_order: The net takes an order per row, see `AnyOrderNet`.
        broadcasts: `forward` takes values and context with any left dimensions that broadcast, and computes what depends on
            only one of them once.
        chain_order: Positions in the flattened event, first one first, of a net of layout 'event', a buffer; None for all others.
    """

    layout = "chain"
    any_order = False
    broadcasts = False
    chain_order: Tensor | None

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0) -> None:
        super().__init__()
        require(isinstance(output, Output), "output must be one of par.outputs, such as par.outputs.Bernoulli()", output)
        require(isinstance(context_dim, int) and context_dim >= 0, "context_dim must be 0 or more", context_dim)
        self.register_buffer("chain_order", None, persistent=False)
        self.event_shape = as_event_shape(event_shape)
        output.variables(self.num_variables)  # refuses another number of them
        self.output = output
        self.context_dim = context_dim

    @classmethod
    def order_of(cls, event_shape: Sequence[int]) -> Tensor | None:
        """The `chain_order` that such a net has."""
        return None

    @property
    def num_variables(self) -> int:
        return math.prod(self.event_shape)

    @property
    def num_parameters(self) -> int:
        """Free parameters: weights that are always zero, or never reach an answer, are not counted."""
        return sum(p.numel() for p in self.parameters())

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, **options: Any) -> int:
        """`num_parameters` of such a net, allocating nothing."""
        with torch.device("meta"):
            return cls(event_shape, output, context_dim, **options).num_parameters

    def encode_run(self, values: Tensor, first: int) -> Tensor:
        """Features of the values `(rows, m)` of the variables from `first` on, in chain order, `(rows, m, inputs)`."""
        here = torch.arange(first, first + values.shape[-1], device=values.device)
        return self.output.at(here).encode(values)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Raw parameters of all conditionals in one pass.

        Args:
            x: `(rows, m)` in chain order, or `(rows, *event)`; see `layout`.
            context: `(rows, context_dim)`.

        Returns:
            `(rows, m, raw)`, or `(rows, *event, raw)`. A net of layout 'event' takes a third argument `stop`, an int or None.
        """
        raise NotImplementedError

    def in_chain(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """Raw parameters `(rows, m, raw)` of the first m variables from their values `(rows, m)`, in chain order whatever the layout."""
        known = {name: t for name, t in (("context", context), ("order", order)) if t is not None}
        if self.layout == "chain":
            return self(x, **known)
        m, own = x.shape[-1], self.chain_order
        whole = torch.cat((x, x.new_zeros(len(x), self.num_variables - m)), -1)
        whole = whole if own is None else whole.index_select(-1, own.argsort())
        raw = self(whole.unflatten(-1, self.event_shape), **known, stop=m).flatten(1, -2)
        return raw[:, :m] if own is None else raw.index_select(1, own[:m])

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """What the net holds of whole rows `(rows, n)` in chain order, `(rows, features)`: a representation for other models to read.

        As written here the raw parameters of all conditionals; a net with hidden layers of its own says which.
        """
        return self.in_chain(x, context, order).flatten(1)

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        """The state in which nothing is known; `order` `(rows, n)` for any-order nets."""
        known = {name: t for name, t in (("context", context), ("order", order)) if t is not None}
        return {"x": next(self.parameters()).new_zeros(rows, self.num_variables), "i": 0, "known": known}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        """Take the value `(rows,)` of the last variable, None where there is none to take, and give the raw parameters of the next one, `(rows, raw)`.

        There is none to take at the start and after a `prefill`. The state may be changed in place.
        """
        if value is not None:
            self.prefill(state, value.unsqueeze(-1))
        end = state["i"] + 1
        known = {name: t[:, :end] if name == "order" else t for name, t in state["known"].items()}
        return self.in_chain(state["x"][:, :end], **known)[:, -1]

    def prefill(self, state: Any, values: Tensor) -> None:
        """Take the values `(rows, m)` of the next m variables at once."""
        first, last = state["i"], state["i"] + values.shape[-1]
        state["x"] = torch.cat((state["x"][:, :first], values.to(state["x"].dtype), state["x"][:, last:]), -1)
        state["i"] = last

    def take(self, state: Any, index: Tensor) -> Any:
        """A state of its own with the rows `index` `(new rows,)` of this one, as sequential Monte Carlo resamples them."""
        return tree_map(lambda t: t.index_select(0, index) if isinstance(t, Tensor) else t, state)


class AnyOrderNet(Net):
    r"""A net that answers in any order, told which variable stands at each place, a joint for each order.

    `forward(x, context, order)` gets `order` `(rows, m)` beside `x` `(rows, m)`, `start` gets the whole of it, `(rows, n)`. Where a row of it
    is not given, variables stand in their own order.
    """

    any_order = True

    def forward(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def given_known(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters of every variable given the known ones, `(rows, n, raw)`, in the variables' own order.

        The known ones are read in the variables' own order. What it gives for a known variable is not read.

        Args:
            x: `(rows, n)`, in the variables' own order; not read where not known.
            known: bool, `(rows, n)`.
            context: `(rows, context_dim)`.
        """
        # As written here one pass per variable, which in its turn stands right behind the known ones.
        answers, m = [], int(known.sum(-1).max()) + 1
        for i in range(self.num_variables):
            first = known | (torch.arange(self.num_variables, device=x.device) == i)
            order = (2 - first.long() - known.long()).argsort(dim=-1, stable=True)
            place = (order == i).long().argmax(-1).clamp(max=m - 1)
            raw = self(torch.where(known, x, 0).gather(1, order)[:, :m], context, order[:, :m])
            answers.append(raw.gather(1, place.reshape(-1, 1, 1).expand(-1, 1, raw.shape[-1])))
        return torch.cat(answers, 1)


def as_event_shape(event_shape: int | Sequence[int]) -> Size:
    """An event shape from a number of variables or a tuple of sizes."""
    shape = tuple(event_shape) if isinstance(event_shape, Sequence) else (event_shape,)
    require(len(shape) > 0 and all(isinstance(k, int) and k > 0 for k in shape),
            "event_shape must be a positive int or a tuple of them", event_shape)
    return Size(shape)


def as_hidden(hidden: Sequence[int] | int) -> tuple[int, ...]:
    """Sizes of hidden layers from one of them or a sequence."""
    hidden = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    require(len(hidden) > 0 and all(isinstance(k, int) and k > 0 for k in hidden),
            "hidden must be positive ints, one per layer", hidden)
    return hidden


def as_rows(context: Tensor | None, weight: Tensor | None, rows: int, bias: Tensor) -> Tensor:
    """`bias + context @ weight` for each row, a fresh tensor `(rows, *bias.shape)`.

    Fresh even for one row: a mere view of the bias would be spoilt by what is then added in place.
    """
    if context is None or weight is None:
        return bias.expand(rows, *bias.shape).clone(memory_format=torch.contiguous_format)
    return bias + (context @ weight).reshape(rows, *bias.shape)
