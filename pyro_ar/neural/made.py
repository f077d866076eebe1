r"""The MADE net: a feed-forward net of any depth, wired so that output i sees variables before i only."""

import itertools
import math

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net, as_event_shape, transforms_active
from pyro_ar.neural.staircase import seen, staircase
from pyro_ar.outputs import Output

__all__ = ["MADE", "MADENet"]

BLOCK = 40  # variables whose units share one product when sampling
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class MADENet(Net):
    r"""Every hidden unit has a degree m and sees variables up to the m-th; output i sees units of degree below i.

    Degrees are spread evenly and sorted, so that a unit of a layer sees a prefix of the layer below. Sampling
    uses that: when variable i becomes known, only the units of degree i change, once and for all.

    Shapes:
        - `layers.l.weight` `(units, units below)`, `layers.l.bias` `(units,)`; the last layer is the output,
          `n * raw` units. With a context `hidden_context` `(context_dim, first hidden)` is added to the
          first layer and `output_context` `(context_dim, n * raw)` to the last.

    Source:
        Germain, Gregor, Murray, Larochelle (2015), *MADE: masked autoencoder for distribution estimation*, ICML.
    """

    broadcasts = True

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *,
                 hidden: Sequence[int] | int = (100,), activation: str = "relu") -> None:
        super().__init__(event_shape, output, context_dim)
        require(activation in ACTIVATIONS, f"activation must be one of {sorted(ACTIVATIONS)}", activation)
        self.hidden, self.activation = _as_hidden(hidden), activation
        n = self.num_variables
        degrees = _degrees([output.inputs] * n, [output.raw] * n, context_dim, self.hidden)
        self.layers = nn.ModuleList(
            _Wired(below, above, last=above is degrees[-1]) for below, above in itertools.pairwise(degrees))
        width = n * output.raw
        self.hidden_context = nn.Parameter(torch.randn(context_dim, self.hidden[0]) * 0.1) if context_dim else None
        self.output_context = nn.Parameter(torch.zeros(context_dim, width)) if context_dim else None

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *,
              hidden: Sequence[int] | int = (100,), **unused: Any) -> int:
        each, hidden = output.variables(math.prod(as_event_shape(event_shape))), _as_hidden(hidden)
        degrees = _degrees([o.inputs for o in each], [o.raw for o in each], context_dim, hidden)
        wires = sum(_count_wires(below, above, last=above is degrees[-1])
                    for below, above in itertools.pairwise(degrees))
        width = len(degrees[-1])
        return wires + sum(hidden) + width + context_dim * (hidden[0] + width)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim, hidden=self.hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        m = x.shape[-1]
        h = self.output.encode(x).flatten(-2)
        for i, (layer, bias) in enumerate(zip(self._wired(), self._biases(context), strict=True)):
            # Of the first m variables; what later ones need is left out.
            units = slice(None) if m == self.num_variables else slice(
                m * self.output.raw if i == len(self.hidden) else int((layer.degrees < m).sum()))
            inner = i < len(self.hidden)
            h = staircase(h, layer.weight[units, :h.shape[-1]], bias[..., units], layer.ends[units], units_first=inner)
            if inner:
                h = ACTIVATIONS[self.activation](h)
        return h.unflatten(-1, (m, self.output.raw))

    def _wired(self) -> list["_Wired"]:
        return list(self.layers)  # type: ignore[arg-type]

    def _biases(self, context: Tensor | None) -> list[Tensor]:
        """What is added to each layer; the context reaches the first and the last."""
        biases: list[Tensor] = [layer.bias for layer in self._wired()]
        if context is not None and self.hidden_context is not None and self.output_context is not None:
            biases[0] = biases[0] + context @ self.hidden_context
            biases[-1] = biases[-1] + context @ self.output_context
        return biases

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        layers, biases = self._wired(), self._biases(context)
        # ends[l][m]: how many units of layer l are known after m variables; those of the last layer are needed then
        places = torch.arange(self.num_variables)
        degrees = [places.repeat_interleave(self.output.inputs) + 1, *(layer.degrees.cpu() for layer in layers[:-1])]
        ends = [torch.searchsorted(d, places, right=True).tolist() for d in degrees]
        known = [layers[0].weight.new_zeros(rows, len(d)) for d in degrees]
        return {"known": known, "inputs": known[0].split(self.output.inputs, 1), "biases": biases, "i": 0, "done": -1, "block": None,
                "ends": [*ends, ((places + 1) * self.output.raw).tolist()], "open": [None] * len(biases),
                "weights": [layer.weight.mT for layer in layers], "store": self._store()}

    def _store(self) -> Callable[[Tensor, Tensor], Any]:
        """How activations are written where they belong; vmap has no rule for the faster way."""
        act: Any = ACTIVATIONS[self.activation]
        if transforms_active():
            return lambda h, out: out.copy_(act(h))
        if act is torch.relu:
            return lambda h, out: torch.clamp_min(h, 0, out=out)
        return lambda h, out: act(h, out=out)

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            state["inputs"][state["i"]].copy_(self.output.at(state["i"]).encode(value))
            state["i"] += 1
        i, store = state["i"], state["store"]
        if state["block"] is None or i == state["block"] + BLOCK:
            state["block"] = i
        j = i - state["block"]
        for layer in range(len(self.hidden)):
            if j == 0:
                state["open"][layer] = self._open_block(state, layer)
            before, below, weights, units = state["open"][layer]
            if units[j].shape[1]:
                store(torch.addmm(before[j], below, weights[j]), units[j])
        state["done"] = i
        if j == 0:
            state["open"][-1] = self._open_block(state, len(self.hidden))
        before, below, weights, _ = state["open"][-1]
        return torch.addmm(before[j], below, weights[j])

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"], state["block"] = state["i"], state["i"] + values.shape[-1], None
        width, ends, known = self.output.inputs, state["ends"], state["known"]
        known[0][:, first * width:state["i"] * width] = self.encode_run(values, first).flatten(1)
        # The units whose variables are all known by now; `advance` finds those that the next variable completes.
        for layer in range(len(self.hidden)):
            units = slice(ends[layer + 1][state["done"]] if state["done"] >= 0 else 0, ends[layer + 1][state["i"] - 1])
            inner = slice(ends[layer][state["i"] - 1])
            wired = self._wired()[layer]
            h = staircase(known[layer][:, inner], wired.weight[units, inner], state["biases"][layer][..., units], wired.ends[units])
            known[layer + 1][:, units] = ACTIVATIONS[self.activation](h)
        state["done"] = state["i"] - 1

    def take(self, state: Any, index: Tensor) -> Any:
        known = [t.index_select(0, index) for t in state["known"]]
        biases = [t.index_select(0, index) if t.ndim == 2 else t for t in state["biases"]]
        # The open block holds views of the old rows; the next step opens one of its own.
        return {**state, "known": known, "inputs": known[0].split(self.output.inputs, 1), "biases": biases, "block": None,
                "open": [None] * len(biases)}

    def _open_block(self, state: dict, layer: int) -> tuple:
        """Prepare the units of a layer that the next variables need.

        What they get from all that is known already is one product. What becomes known within the block is
        still zero, so that each step may read all of it; views are made here, as slicing costs more than sampling.
        """
        i, ends, inner = state["i"], state["ends"][layer + 1], state["ends"][layer]
        last = min(i + BLOCK, len(ends)) - 1
        first = ends[i - 1] if i else 0
        sizes = [ends[k] - (ends[k - 1] if k else 0) for k in range(i, last + 1)]
        units, inside = slice(first, ends[last]), slice(inner[i], inner[last])
        known, weight = state["known"], state["weights"][layer][:, units]
        before = torch.addmm(state["biases"][layer][..., units], known[layer][:, :inner[i]], weight[:inner[i]])
        # Autograd has no business here, and makes views dearer; vmap knows the dear ones only.
        split: Any = torch.split if transforms_active() else torch.unsafe_split_with_sizes
        own = split(known[layer + 1][:, units], sizes, 1) if layer < len(self.hidden) else ()
        return split(before, sizes, 1), known[layer][:, inside], split(weight[inside], sizes, 1), own


class _Wired(nn.Module):
    """A linear layer in which a unit sees units of its own degree or below (the last layer: of lower degree only)."""

    degrees: Tensor
    ends: Tensor  # how many units of the layer below each unit sees

    def __init__(self, below: Tensor, above: Tensor, *, last: bool) -> None:
        super().__init__()
        ends = torch.searchsorted(below, above, right=not last)
        self.register_buffer("degrees", above, persistent=False)
        self.register_buffer("ends", ends, persistent=False)
        gain = 0.5 if last else math.sqrt(2)
        wired = torch.randn(len(above), len(below)) * seen(ends, len(below))
        self.weight = nn.Parameter(wired * gain / ends[:, None].clamp(min=1).sqrt())
        self.bias = nn.Parameter(torch.zeros(len(above)))


def _as_hidden(hidden: Sequence[int] | int) -> tuple[int, ...]:
    hidden = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    require(len(hidden) > 0 and all(isinstance(k, int) and k > 0 for k in hidden),
            "hidden must be positive ints, one per layer", hidden)
    return hidden


def _degrees(inputs: Sequence[int], raw: Sequence[int], context_dim: int, hidden: tuple[int, ...]) -> list[Tensor]:
    """Degrees of the features, of each hidden layer, and of the outputs, for variables of so many features and raw parameters."""
    n = len(raw)
    low = 0 if context_dim else 1  # units of degree 0 see the context alone
    variables = torch.arange(1, n + 1)
    between = [low + torch.arange(k) * max(n - low, 1) // k for k in hidden]
    return [variables.repeat_interleave(torch.tensor(inputs)), *between, variables.repeat_interleave(torch.tensor(raw))]


def _count_wires(below: Tensor, above: Tensor, *, last: bool) -> int:
    """How many pairs are wired, without a table of them; both are sorted."""
    return int(torch.searchsorted(below, above, right=not last).sum())


class MADE(Family):
    r"""Masked autoencoder for distribution estimation: a feed-forward net of any depth, one pass for all conditionals.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units of each layer.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'relu', 'sigmoid' or 'tanh'.
        generator: For a random order.

    Source:
        Germain, Gregor, Murray, Larochelle (2015), *MADE: masked autoencoder for distribution estimation*, ICML.

    Example:
        >>> MADE(event_shape=(1, 4, 4), hidden=(32, 32))().event_shape
        torch.Size([1, 4, 4])
    """

    net_type = MADENet

    def __init__(self, event_shape: int | Sequence[int], hidden: Sequence[int] | int = (100,),
                 output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, activation: str = "relu",
                 generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)
