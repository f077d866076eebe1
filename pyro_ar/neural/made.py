r"""The MADE net: a feed-forward net of any depth, wired so that output i sees variables before i only."""

import itertools
import math

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torch import Generator, Tensor, nn

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.joint import Joint
from pyro_ar.mixture import Averaged
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net, as_event_shape, as_hidden, transforms_active
from pyro_ar.neural.staircase import seen, staircase
from pyro_ar.order import make_order, random_orders
from pyro_ar.outputs import Output

__all__ = ["MADE", "MADENet"]

BLOCK = 40  # variables whose units share one product when sampling
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class MADENet(Net):
    r"""Every hidden unit has a degree m and sees variables up to the m-th; output i sees units of degree below i.

    Degrees are spread evenly and sorted, so that a unit of a layer sees a prefix of the layer below. Sampling
    uses that: when variable i becomes known, only the units of degree i change, once and for all.

    Of several masks each deals the same degrees to the units anew, and where `orders` is True it has an order of its own. One set of weights
    serves them all: its units are sorted by degree, and its variables put in the order of the mask, as it is read.

    Shapes:
        - `layers.l.weight` `(units, units below)`, `layers.l.bias` `(units,)`; the last layer is the output,
          `n * raw` units. With a context `hidden_context` `(context_dim, first hidden)` is added to the
          first layer and `output_context` `(context_dim, n * raw)` to the last. With `direct`, `direct_weight` `(n * raw, n * inputs)`.
        - of several masks the buffers `units_l` `(masks, hidden units of layer l)`, the units by degree; `orders` `(masks, n)`, what stands at each
          place of the chain; and `mask` `()`, which one it is.

    Source:
        Germain, Gregor, Murray, Larochelle (2015), *MADE: masked autoencoder for distribution estimation*, ICML; direct connections: section 4.1,
        eq. 11; masks and orders: sections 4.2 and 4.3.
    """

    broadcasts = True
    orders: Tensor | None
    mask: Tensor

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = (100,),
                 activation: str = "relu", direct: bool = False, masks: int = 1, orders: bool = False, mask_seed: int = 0) -> None:
        super().__init__(event_shape, output, context_dim)
        require(activation in ACTIVATIONS, f"activation must be one of {sorted(ACTIVATIONS)}", activation)
        require(isinstance(masks, int) and masks >= 1, "masks must be 1 or more", masks)
        self.hidden, self.activation, self.masks, self.mask_seed = as_hidden(hidden), activation, masks, mask_seed
        n = self.num_variables
        one = not (masks > 1 and orders) or len(set(output.variables(n))) == 1
        require(one, "variables with outputs of their own take one order, not one for each mask", output)
        degrees = _degrees([output.inputs] * n, [output.raw] * n, context_dim, self.hidden)
        self.layers = nn.ModuleList(
            _Wired(below, above, last=above is degrees[-1]) for below, above in itertools.pairwise(degrees))
        width = n * output.raw
        self.hidden_context = nn.Parameter(torch.randn(context_dim, self.hidden[0]) * 0.1) if context_dim else None
        self.output_context = nn.Parameter(torch.zeros(context_dim, width)) if context_dim else None
        self.direct_weight = nn.Parameter(torch.zeros(width, n * output.inputs)) if direct else None
        drawn = _draw_masks(n, self.hidden, masks, orders, mask_seed)
        self.register_buffer("orders", drawn[0] if masks > 1 and orders else None, persistent=False)
        if masks > 1:
            for layer, units in enumerate(drawn[1:]):
                self.register_buffer(f"units_{layer}", units, persistent=False)
            self.register_buffer("mask", torch.zeros((), dtype=torch.long), persistent=False)

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = (100,),
              direct: bool = False, masks: int = 1, orders: bool = False, mask_seed: int = 0, **unused: Any) -> int:
        """`num_parameters` of such a net; of several masks, the weights that one of them reads at least, in a table of bits for each layer."""
        n = math.prod(as_event_shape(event_shape))
        each, hidden = output.variables(n), as_hidden(hidden)
        inputs, raw = [o.inputs for o in each], [o.raw for o in each]
        degrees = _degrees(inputs, raw, context_dim, hidden)
        wires = [_count_wires(below, above, last=above is degrees[-1]) for below, above in itertools.pairwise(degrees)]
        between = output.totals(n)[2]
        if masks > 1:
            drawn = _draw_masks(n, hidden, masks, orders, mask_seed)
            places = [_of_variables(drawn[0], inputs[0]) if orders else None, *drawn[1:], _of_variables(drawn[0], raw[0]) if orders else None]
            wires = [_count_read(below, above, *at, last=above is degrees[-1])
                     for (below, above), at in zip(itertools.pairwise(degrees), itertools.pairwise(places), strict=True)]
            between = _count_read(degrees[0], degrees[-1], places[0], places[-1], last=True)
        width = len(degrees[-1])
        return sum(wires) + sum(hidden) + width + context_dim * (hidden[0] + width) + (between if direct else 0)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim, hidden=self.hidden, direct=self.direct_weight is not None, masks=self.masks,
                          orders=self.orders is not None, mask_seed=self.mask_seed)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        m = x.shape[-1]
        features, seen_now = self.output.encode(x).flatten(-2), self._seen_now(context)
        h, last = self._hidden_layers(features, seen_now, m), seen_now.layers[-1]
        units = slice(None) if m == self.num_variables else slice(m * self.output.raw)
        h = staircase(h, last.weight[units, :h.shape[-1]], last.bias[..., units], last.ends[units])
        if seen_now.direct is not None:
            ends = self._before()[:m * self.output.raw]
            h = h + staircase(features, seen_now.direct[:len(ends), :features.shape[-1]], h.new_zeros(len(ends)), ends)
        return h.unflatten(-1, (m, self.output.raw))

    def _hidden_layers(self, h: Tensor, seen_now: "_Seen", m: int) -> Tensor:
        """The last hidden layer from the features of the first m variables; units that only later variables need are left out."""
        for layer in seen_now.layers[:-1]:
            units = slice(None) if m == self.num_variables else slice(int((layer.degrees < m).sum()))
            h = staircase(h, layer.weight[units, :h.shape[-1]], layer.bias[..., units], layer.ends[units], units_first=True)
            h = ACTIVATIONS[self.activation](h)
        return h

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The last hidden layer, its units by degree, `(rows, last hidden)`."""
        return self._hidden_layers(self.output.encode(x).flatten(-2), self._seen_now(context), self.num_variables)

    def _wired(self) -> list["_Wired"]:
        return list(self.layers)  # type: ignore[arg-type]

    def _before(self) -> Tensor:
        """How many features of earlier variables there are for each raw parameter."""
        places = torch.arange(self.num_variables, device=self._wired()[0].bias.device)
        return (places * self.output.inputs).repeat_interleave(self.output.raw)

    def _places(self) -> list[Tensor | None]:
        """Where the features, the units of each layer and the raw parameters lie that the mask puts first, second and so on; None: where they are."""
        order = None if self.orders is None else self.orders[self.mask]
        of_variables = [None if order is None else _of_variables(order, each) for each in (self.output.inputs, self.output.raw)]
        return [of_variables[0], *(getattr(self, f"units_{layer}")[self.mask] for layer in range(len(self.hidden))), of_variables[1]]

    def _seen_now(self, context: Tensor | None) -> "_Seen":
        """The weights as the present mask sees them, its units sorted by degree and its variables in the order of the chain."""
        layers, biases = self._wired(), self._biases(context)
        direct: Tensor | None = self.direct_weight
        weights: list[Tensor] = [layer.weight for layer in layers]
        if self.masks > 1:
            places = self._places()
            weights = [_taken(_taken(w, 0, above), 1, below) for w, (below, above) in zip(weights, itertools.pairwise(places), strict=True)]
            biases = [_taken(b, -1, here) for b, here in zip(biases, places[1:], strict=True)]
            direct = None if direct is None else _taken(_taken(direct, 0, places[-1]), 1, places[0])
        return _Seen([_Layer(w, b, layer.ends, layer.degrees) for w, b, layer in zip(weights, biases, layers, strict=True)], direct)

    def _biases(self, context: Tensor | None) -> list[Tensor]:
        """What is added to each layer; the context reaches the first and the last."""
        biases: list[Tensor] = [layer.bias for layer in self._wired()]
        if context is not None and self.hidden_context is not None and self.output_context is not None:
            biases[0] = biases[0] + context @ self.hidden_context
            biases[-1] = biases[-1] + context @ self.output_context
        return biases

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        layers, direct = self._seen_now(context)
        # ends[l][m]: how many units of layer l are known after m variables; those of the last layer are needed then
        places = torch.arange(self.num_variables)
        degrees = [places.repeat_interleave(self.output.inputs) + 1, *(layer.degrees.cpu() for layer in layers[:-1])]
        ends = [torch.searchsorted(d, places, right=True).tolist() for d in degrees]
        known = [layers[0].weight.new_zeros(rows, len(d)) for d in degrees]
        return {"known": known, "inputs": known[0].split(self.output.inputs, 1), "biases": [layer.bias for layer in layers], "i": 0, "done": -1,
                "block": None, "ends": [*ends, ((places + 1) * self.output.raw).tolist()], "open": [None] * len(layers), "layers": layers,
                "weights": [layer.weight.mT for layer in layers], "store": self._store(),
                "direct": None if direct is None else direct.mT.split(self.output.raw, 1)}

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
        raw = torch.addmm(before[j], below, weights[j])
        if state["direct"] is None:
            return raw
        read = i * self.output.inputs
        return torch.addmm(raw, state["known"][0][:, :read], state["direct"][i][:read])

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"], state["block"] = state["i"], state["i"] + values.shape[-1], None
        width, ends, known = self.output.inputs, state["ends"], state["known"]
        known[0][:, first * width:state["i"] * width] = self.encode_run(values, first).flatten(1)
        # The units whose variables are all known by now; `advance` finds those that the next variable completes.
        for layer in range(len(self.hidden)):
            units = slice(ends[layer + 1][state["done"]] if state["done"] >= 0 else 0, ends[layer + 1][state["i"] - 1])
            inner = slice(ends[layer][state["i"] - 1])
            wired = state["layers"][layer]
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


class _Layer(NamedTuple):
    """A layer as a mask sees it, its units sorted."""

    weight: Tensor
    bias: Tensor
    ends: Tensor
    degrees: Tensor


class _Seen(NamedTuple):
    layers: list[_Layer]
    direct: Tensor | None


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


def _count_read(below: Tensor, above: Tensor, columns: Tensor | None, rows: Tensor | None, *, last: bool) -> int:
    """How many pairs one of the masks wires at least, whose units lie at `columns` and `rows` `(masks, units)`; None: where they are."""
    wired = seen(torch.searchsorted(below, above, right=not last), len(below))
    masks = [t for t in (rows, columns) if t is not None]
    read = torch.zeros_like(wired) if masks else wired
    for mask in range(len(masks[0]) if masks else 0):
        of_rows, of_columns = (None if t is None else t[mask].argsort() for t in (rows, columns))
        read |= _taken(_taken(wired, 0, of_rows), 1, of_columns)
    return int(read.sum())


def _draw_masks(n: int, hidden: Sequence[int], masks: int, orders: bool, seed: int) -> list[Tensor]:
    """Of each mask an order of the variables, as they come unless `orders`, and of the units of each layer, by degree; `(masks, size)` each."""
    generator = torch.Generator("cpu").manual_seed(seed)
    of_variables = random_orders(masks, n, generator=generator)
    return [of_variables if orders else torch.arange(n, device="cpu").expand(masks, n), *(random_orders(masks, size, generator=generator) for size in hidden)]


def _of_variables(order: Tensor, each: int) -> Tensor:
    """Where the `each` numbers of every variable lie, in the order of these `(*L, n)`."""
    return (order.unsqueeze(-1) * each + torch.arange(each, device=order.device)).flatten(-2)


def _taken(t: Tensor, dim: int, places: Tensor | None) -> Tensor:
    return t if places is None else t.index_select(dim, places)


class MADE(Family):
    r"""Masked autoencoder for distribution estimation: a feed-forward net of any depth, one pass for all conditionals.

    With several `masks` one set of weights is trained under all of them, each step under one that is drawn, and a call gives the mixture of their
    joints: probabilities are averaged, never logits. With `order='random'` each mask has an order of its own too. The mixture is one joint: what
    is hidden is answered exactly where every order can, and where the orders differ it has no conditionals of its own.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units of each layer.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'relu', 'sigmoid' or 'tanh'.
        direct: Connect the variables with the raw parameters of later ones directly too: what `FVSBN` is, beside the hidden layers. They start at zero.
        masks: How many, drawn once and for all. Those of the paper draw the degree of each unit by itself; these deal evenly spread ones.
        mask_seed: Of the masks, and of their orders.
        generator: For the random order of one mask.

    Raises:
        ValueError: Sizes that do not fit, or several orders of variables with outputs of their own.

    Source:
        Germain, Gregor, Murray, Larochelle (2015), *MADE: masked autoencoder for distribution estimation*, ICML; `direct`: eq. 11; `order` and
        `masks`: sections 4.2 (order-agnostic training) and 4.3 (connectivity-agnostic training).

    Example:
        >>> MADE(event_shape=(1, 4, 4), hidden=(32, 32))().event_shape
        torch.Size([1, 4, 4])
        >>> MADE(event_shape=(1, 4, 4), order="random", masks=8)().component_log_joint(torch.zeros(1, 4, 4)).shape
        torch.Size([8])
    """

    net_type = MADENet

    def __init__(self, event_shape: int | Sequence[int], hidden: Sequence[int] | int = (100,),
                 output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, activation: str = "relu", direct: bool = False, masks: int = 1,
                 mask_seed: int = 0, generator: Generator | None = None) -> None:
        several = isinstance(masks, int) and masks > 1 and isinstance(order, str)
        if several:
            make_order(order, 1)  # refuses other words
        self._make(event_shape, output, context_dim, None if several else order, generator, hidden=hidden, activation=activation, direct=direct,
                   masks=masks, orders=several, mask_seed=mask_seed)

    @classmethod
    def options_of_net(cls, asked: dict[str, Any]) -> dict[str, Any]:
        return {**super().options_of_net(asked), "orders": asked["masks"] > 1 and isinstance(asked["order"], str)}

    def forward(self, context: Tensor | None = None, order: Tensor | None = None) -> Joint:
        """The joint of the present weights, buffers and mode; of several masks the mixture of their joints.

        Args:
            context: `(*B, context_dim)`.
            order: Instead of the family's own, where there is one mask.
        """
        joint = super().forward(context, order)
        if self.masks == 1:
            return joint
        require(order is None, "a MADE of several masks takes no order but theirs", order)
        return Averaged(torch.zeros(self.masks, dtype=joint.dtype, device=joint.device), [self._under(mask, joint) for mask in range(self.masks)])

    def features(self, x: Array, context: Tensor | None = None) -> Tensor:
        """The last hidden layer under each mask, `(*L, masks * last hidden)`; as of any family."""
        if self.masks == 1:
            return super().features(x, context)
        return torch.cat([self.of_mask(mask, context).features(x) for mask in range(self.masks)], -1)

    def of_mask(self, mask: int, context: Tensor | None = None) -> Autoregressive:
        """The joint under one of several masks, a component of the mixture that a call gives."""
        require(isinstance(mask, int) and 0 <= mask < self.masks > 1, f"mask must be one of several, 0 to {self.masks - 1}", mask)
        return self._under(mask, super().forward(context))

    def _under(self, mask: int, joint: Autoregressive) -> Autoregressive:
        asked = joint.arguments
        orders = asked["buffers"].get("orders")
        asked["buffers"]["mask"] = torch.full_like(asked["buffers"]["mask"], mask)
        return Autoregressive(**{**asked, "order": joint.arguments["order"] if orders is None else orders[mask]})

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        r"""In training log p(x | context), or log p(x_visible | context), under a mask drawn for the step, `(N,)`, in nats; else that of the mixture.

        Source:
            Germain, Gregor, Murray, Larochelle (2015), *MADE*, ICML, sections 4.2 and 4.3.
        """
        if self.masks == 1 or not self.training:
            return super().training_log_prob(x, context, visible)
        joint = self.of_mask(int(torch.randint(self.masks, ())), context)
        return joint.log_prob(x) if visible is None else joint.marginal(visible).log_prob(x)

    @property
    def masks(self) -> int:
        """How many masks there are."""
        return self.arguments["masks"]
