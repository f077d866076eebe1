r"""`Autoregressive`: the chain rule, written once for every net, output and order.

This file alone does the shapes. Dimensions left of an event come from four places: samples, weight
draws, contexts and orders. Where weights were drawn, `vmap` runs over the draws; all the rest becomes the rows of a net.
"""

import contextlib
import copy
import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro.distributions import Categorical, constraints
from torch import Size, Tensor, nn

from pyro_ar.arrays import Array
from pyro_ar.checks import IntractableError, require, require_exact_states
from pyro_ar.joint import Joint, batch_of
from pyro_ar.nets.base import Net
from pyro_ar.nets.draws import over_draws
from pyro_ar.order import check_order, inverse, visible_first
from pyro_ar.outputs import Output
from pyro_ar.transforms import as_array, is_mapped, transforms_active

__all__ = ["MAX_STATES", "Autoregressive"]

MAX_STATES = 4096  # joint states of the hidden variables that `marginal` and `given` sum over
MAX_CELLS = 2**22  # values of one chunk of that sum


class Autoregressive(Joint):
    r"""The joint whose conditionals a net computes.

    .. math:: \log p(x) = \sum_i \log p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}})

    It holds the weights it was given, never the module they came from, so that draws of random
    weights are read once. Weights with extra left dimensions are draws, and those are batch dimensions.

    `marginal` is exact for a fixed order when the hidden variables that precede the last visible one have at most
    `MAX_STATES` joint states (hidden variables after it cost nothing), and always for an any-order net,
    which answers in the order that puts the visible variables first.

    Shapes:
        - each weight `(*D, *its shape in the net)`, `context` `(*C, context_dim)`, `order` `(n,)` or `(*O, n)`.
        - `batch_shape` is the broadcast of `D`, `C` and `O`; `event_shape` is the net's.

    Args:
        net: A `Net`, or a module that keeps its promises. Only its structure and buffers are used.
        weights: A tensor for every parameter of the net, by its name.
        output: The output that the net was made for.
        order: Positions in the flattened event, first one first; None means as they come (raster scan).
        context: What every conditional is also conditioned on.

    Raises:
        ValueError: A weight is missing, of the wrong shape or NaN; the context is missing or of the
            wrong width; the order is no permutation; left dimensions do not broadcast.

    Example:
        >>> from pyro_ar.nets.linear import LinearNet
        >>> from pyro_ar.outputs import Bernoulli
        >>> net = LinearNet(3, Bernoulli())
        >>> weights = {name: torch.zeros_like(w) for name, w in net.named_parameters()}
        >>> Autoregressive(net, weights, Bernoulli()).log_prob(torch.tensor([1, 0, 1]))  # 3 log(1/2)
        tensor(-2.0794)
    """

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor], output: Output, order: Tensor | None = None,
                 context: Tensor | None = None, *, validate_args: bool | None = None) -> None:
        self.net, self.output = net, output
        made_for = getattr(net, "output", output)
        require((made_for.raw, made_for.inputs) == (output.raw, output.inputs), f"output must read {made_for.raw} raw parameters "
                f"of the net and give it {made_for.inputs} features, as {made_for!r} for which it was made", output)
        event_shape = Size(net.event_shape)  # type: ignore[arg-type]
        n = math.prod(event_shape)
        self.coherent = not getattr(net, "any_order", False)
        thorough = validate_args is not False and not transforms_active()
        _check_weights(net, weights, thorough)
        _check_context(context, getattr(net, "context_dim", 0), thorough)
        device = next(iter(weights.values())).device
        # None is kept apart: values in raster order need no permuting.
        self._given_order = None if order is None else check_order(order, n).to(device)
        require(order is None or not self.coherent or getattr(net, "own_states", None) is None,
                "a net whose variables have their own numbers of states takes no order: permute the variables instead")
        tensors = dict(weights)
        require_exact_states(output.num_states, next(iter(weights.values())).dtype, type(self).__name__)
        if context is not None:
            tensors["context"] = context.to(next(iter(weights.values())).dtype)
        super().__init__(tensors, self._shape_of(tensors), event_shape, validate_args=validate_args)
        self._own_batch_shape = self.batch_shape  # before any expand

    @classmethod
    def infer_shapes(cls, *, net: Any = None, weights: Any = (), output: Any = None, order: Sequence[int] | None = None,  # type: ignore[override]
                     context: Sequence[int] | None = None) -> tuple[Size, Size]:
        if not (isinstance(net, nn.Module) and isinstance(weights, Mapping)):
            raise NotImplementedError("how many dimensions of a weight are draws is said by the net: give the net itself, and weights as a "
                                      "dictionary of shapes")
        dims = {name: p.ndim for name, p in net.named_parameters()}
        require(set(weights) == set(dims), f"weights must be named {sorted(dims)}", sorted(weights))
        more = {name: shape for name, shape in (("order", order), ("context", context)) if shape is not None}
        return batch_of(cls, {**weights, **more}, {**dims, **dict.fromkeys(more, 1)}), Size(net.event_shape)  # type: ignore[arg-type]

    def _shape_of(self, tensors: Mapping[str, Tensor]) -> Size:
        lefts = [tensors[name].shape[: tensors[name].ndim - p.ndim] for name, p in self.net.named_parameters()]
        if "context" in tensors:
            lefts.append(tensors["context"].shape[:-1])
        if self._given_order is not None:
            lefts.append(self._given_order.shape[:-1])
        try:
            return torch.broadcast_shapes(*lefts)
        except RuntimeError:
            raise ValueError("the left dimensions of weights, context and order must broadcast; got "
                             f"{sorted({tuple(s) for s in lefts})}") from None

    def _particulars(self) -> list[str]:
        return [type(self.net).__name__, repr(self.output), "" if self.coherent else "any order"]

    @property
    def num_parameters(self) -> int:
        count = getattr(self.net, "num_parameters", None)
        return sum(p.numel() for p in self.net.parameters()) if count is None else count

    @property
    def support(self) -> constraints.Constraint:
        own, each = getattr(self.net, "own_states", None), self.output.support
        if own is not None:
            most = torch.tensor(own, device=self.device).reshape(self.event_shape) - 1
            each = constraints.integer_interval(torch.zeros_like(most), most)
        return constraints.independent(each, len(self.event_shape))

    @property
    def num_states(self) -> tuple[int, ...] | None:
        own, k = getattr(self.net, "own_states", None), self.output.num_states
        if own is not None:  # the variables have their own (`OwnStates`)
            return tuple(own)
        return None if k is None else (k,) * math.prod(self.event_shape)

    @property
    def order(self) -> Tensor:
        """The order of the chain rule, `(n,)`, or `(*O, n)` where orders are batched."""
        if self._given_order is None:
            return torch.arange(math.prod(self.event_shape), device=self.device)
        return self._given_order

    @property
    def context(self) -> Tensor | None:
        """What every conditional is also conditioned on."""
        return self._tensors.get("context")

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Autoregressive":
        weights = {name: t for name, t in tensors.items() if name != "context"}
        return Autoregressive(self.net, weights, self.output, self._given_order, tensors.get("context"),
                              validate_args=self._validate_args)

    def _in_order(self, order: Tensor) -> "Autoregressive":
        """The joint of the same weights in another order, which is not checked."""
        new = copy.copy(self)
        new._given_order = order
        new._own_batch_shape = new._shape_of(self._tensors)
        new._batch_shape = torch.broadcast_shapes(new._own_batch_shape, self._batch_shape)
        return new

    # The chain: values in, conditionals out.

    def _in_chain(self, x: Tensor) -> Tensor:
        """From `(*L, *event)` to `(*L, n)` in chain order."""
        return _permute(x.flatten(x.ndim - len(self.event_shape)), self._given_order)

    def _from_chain(self, x: Tensor) -> Tensor:
        places = None if self._given_order is None else inverse(self._given_order)
        return _permute(x, places).unflatten(-1, self.event_shape)

    def _over_draws(self, function: Callable[[nn.Module, dict[str, Tensor]], Tensor], values: dict[str, Tensor | None],
                    *, map_all: bool = False) -> Tensor:
        weights = {name: t for name, t in self._tensors.items() if name != "context"}
        present = {name: t for name, t in values.items() if t is not None}
        return over_draws(self.net, weights, present, function, map_all=map_all)

    def _chain(self, x: Tensor) -> Tensor:
        """Log p(x_i | x_<i) for `x` `(*L, n)`, both in chain order; `L` may lack batch dimensions."""
        order = None if self.coherent else self.order
        return self._over_draws(self._score, {"x": x.to(self.dtype), "context": self.context, "order": order})

    def _score(self, net: nn.Module, values: dict[str, Tensor]) -> Tensor:
        x, event = values.pop("x"), self.event_shape
        if getattr(net, "broadcasts", False):
            raw = net(x.unflatten(-1, event), **values)
        else:
            left = torch.broadcast_shapes(x.shape[:-1], *(t.shape[:-1] for t in values.values()))
            raw = net(_rows(x, left).unflatten(-1, event), **{name: _rows(t, left) for name, t in values.items()})
            raw = raw.reshape(left + raw.shape[1:])
        return self.output.log_prob(raw.flatten(-1 - len(event), -2), x)

    def _walk(self, shape: Size, x: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Draw what is hidden variable by variable, `(*shape, *event)`; `x` and `visible` in chain order."""
        values = {"x": x, "visible": visible, "context": self.context, "order": None if self.coherent else self.order}
        # One value at least carries the whole shape.
        values["rows"] = torch.zeros((), device=self.device).expand((*shape, 1))
        values = {name: None if t is None else t.expand(shape + t.shape[-1:]) for name, t in values.items()}
        # Inference mode makes a step cheaper by a fifth; torch.func's transforms do not know it.
        with contextlib.nullcontext() if transforms_active() else torch.inference_mode():
            drawn = self._over_draws(self._step_through, values, map_all=True)
        return self._from_chain(drawn.clone())  # an ordinary tensor again

    def _step_through(self, net: nn.Module, values: dict[str, Tensor]) -> Tensor:
        left, n = values["rows"].shape[:-1], math.prod(self.event_shape)
        values = {name: _rows(t, left) for name, t in values.items()}
        x, visible = values.get("x"), values.get("visible")
        known = {name: values[name] for name in ("context", "order") if name in values}
        stepped = net if hasattr(net, "advance") else _Replayed(net)
        state = stepped.start(math.prod(left), **known)  # type: ignore[operator]
        drawn: list[Tensor] = []
        for i in range(n):
            value = self.output.sample(stepped.advance(state, drawn[-1] if drawn else None))  # type: ignore[operator]
            if x is not None and visible is not None:
                value = torch.where(visible[:, i], x[:, i].to(value.dtype), value)
            drawn.append(value)
        return torch.stack(drawn).mT.reshape((*left, n))  # twice as fast as along the last dimension

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._chain(self._in_chain(x)).sum(-1)

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self._check_value(x)
        answer = self._from_chain(self._chain(self._in_chain(x)))
        left = torch.broadcast_shapes(x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        return answer.expand(left + self.event_shape)

    def _sample(self, shape: Size) -> Tensor:
        return self._walk(shape)

    # Hidden cells.

    def _answering(self, visible: Tensor) -> "Autoregressive":
        if self.coherent:
            return self
        return self._in_order(visible_first(self.order, visible.flatten(visible.ndim - len(self.event_shape))))

    def _method(self, visible: Tensor) -> np.ndarray:
        if not self.coherent:
            return np.full(tuple(visible.shape[: visible.ndim - len(self.event_shape)]), "visible-first chain")
        if is_mapped(visible):
            raise IntractableError("a fixed-order chain answers each pattern in its own way, and vmap keeps the patterns back. What works: "
                                   "a pattern per row without vmap, or vmap over values, weights or contexts alone")
        before = _hidden_before(self._in_chain(visible)).sum(-1)
        most = int(before.max()) if before.numel() else 0
        k = self.output.num_states
        if most and (k is None or most > math.log(MAX_STATES + 0.5, k)):
            states = "infinitely many" if k is None else f"{k}^{most}"
            raise IntractableError(
                f"{most} hidden variables precede the last visible one in the order of the chain, with {states} joint "
                f"states, and at most {MAX_STATES} are summed over. What works: par.estimate_log_marginal, with its "
                "standard error; an any-order family such as par.OrderlessNADE; an order in which the visible "
                "variables come first")
        return np.where(as_array(before > 0), "enumeration", "prefix")

    def _log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        x, visible = self._in_chain(x), self._in_chain(visible)
        hidden = _hidden_before(visible)
        if not self.coherent or not bool(hidden.any()):
            return torch.where(visible, self._chain(x), 0).sum(-1)

        def answer(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
            return self._block(x, hidden, visible | hidden).logsumexp(0)

        return self._in_groups(answer, x, hidden, visible)

    def _complete(self, x: Tensor, visible: Tensor) -> Tensor:
        shape = x.shape[: x.ndim - len(self.event_shape)]
        x, visible = self._in_chain(x), self._in_chain(visible)
        hidden = _hidden_before(visible) if self.coherent else torch.zeros_like(visible)
        if bool(hidden.any()):
            def draw(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
                log_p = self._block(x, hidden, visible | hidden).movedim(0, -1)
                return self._fill(x, hidden, Categorical(logits=log_p, validate_args=False).sample())

            x, visible = self._in_groups(draw, x, hidden, visible), visible | hidden
        return self._walk(shape, x, visible)

    def _most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        if is_mapped(visible):
            raise IntractableError("how many cells are hidden cannot be asked under a vmap over patterns; map over values, weights or contexts alone")
        x, visible = self._in_chain(x), self._in_chain(visible)
        most = int((~visible).sum(-1).max()) if visible.numel() else 0
        k = self.output.num_states
        if most and (k is None or most > math.log(MAX_STATES + 0.5, k)):
            return super()._most_likely(x, visible)

        def best(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
            return self._fill(x, hidden, self._block(x, hidden, visible | hidden).argmax(0))

        return self._from_chain(self._in_groups(best, x, ~visible, visible) if most else x)

    def _in_groups(self, function: Callable[..., Tensor], x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
        """`function` of rows with equally many hidden variables, as many at once as memory allows."""
        own = self._own_batch_shape
        # Batch dimensions that a value lacks are written out, lest they be taken for rows.
        x, hidden, visible = (t[(None,) * max(len(own) + 1 - t.ndim, 0)] for t in (x, hidden, visible))
        lead = x.shape[: x.ndim - 1 - len(own)]  # dimensions that are samples, never the batch's
        flat = [t.reshape(math.prod(lead), *t.shape[len(lead):]) for t in (x, hidden, visible)]
        count = flat[1].sum(-1).reshape(len(flat[1]), -1).amax(1)
        each = x.shape[-1] * math.prod(torch.broadcast_shapes(flat[0].shape[1:-1], own))
        pieces = [
            piece
            for most in count.unique().tolist()
            for piece in (count == most).nonzero().squeeze(-1).split(
                max(1, MAX_CELLS // (each * (self.output.num_states or 1) ** most)))
        ]
        answer = torch.cat([function(*(t[piece] for t in flat)) for piece in pieces])
        answer = answer[torch.cat(pieces).argsort()]
        return answer.reshape(lead + answer.shape[1:])

    def _block(self, x: Tensor, hidden: Tensor, counted: Tensor) -> Tensor:
        """Log p of the counted variables for every joint state of the hidden ones, `(states, *L)`."""
        k, n = self.output.num_states or 1, hidden.sum(-1)
        states = torch.arange(k ** int(n.max()), device=x.device).reshape(-1, *[1] * n.ndim)
        parts = []
        for some in states.split(max(1, MAX_CELLS // max(x.numel() * math.prod(self._own_batch_shape), 1))):
            terms = torch.where(counted, self._chain(self._fill(x, hidden, some)), 0)
            # A row with fewer hidden variables than another meets each of its states once.
            parts.append(torch.where(some < k**n, terms.sum(-1), -math.inf))
        return torch.cat(parts)

    def _fill(self, x: Tensor, hidden: Tensor, state: Tensor) -> Tensor:
        """`x` with its hidden variables in joint state number `state`, the first one fastest."""
        k = self.output.num_states or 1
        place = (hidden.cumsum(-1) - 1).clamp(min=0)
        return torch.where(hidden, (state.unsqueeze(-1) // k**place % k).to(x.dtype), x)


class _Replayed:
    """Steps a module that has no `start` and `advance` of its own, by running it again for every variable."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def start(self, rows: int, **known: Tensor) -> dict:
        like = next(self._net.parameters())
        n = math.prod(self._net.event_shape)  # type: ignore[arg-type]
        return {"x": like.new_zeros(rows, n), "i": -1, "known": known}

    def advance(self, state: dict, value: Tensor | None) -> Tensor:
        return Net.advance(self._net, state, value)  # type: ignore[arg-type]


def _permute(x: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return x
    if order.ndim == 1:
        return x.index_select(-1, order)
    shape = torch.broadcast_shapes(x.shape, order.shape)
    return x.expand(shape).gather(-1, order.expand(shape))


def _rows(t: Tensor, left: Size) -> Tensor:
    return t.expand(left + t.shape[-1:]).reshape(-1, t.shape[-1])


def _hidden_before(visible: Tensor) -> Tensor:
    """The hidden variables that a visible one follows; `visible` in chain order."""
    return ~visible & (visible.flip(-1).cumsum(-1).flip(-1) > 0)


def _check_weights(net: nn.Module, weights: Mapping[str, Tensor], thorough: bool) -> None:
    parameters = dict(net.named_parameters())
    require(bool(parameters) and "context" not in parameters, "a net needs parameters, none of them named 'context'")
    require(set(weights) == set(parameters), f"weights must be named {sorted(parameters)}", sorted(weights))
    for name, p in parameters.items():
        t = weights[name]
        require(isinstance(t, Tensor) and t.shape[max(t.ndim - p.ndim, 0):] == p.shape,
                f"weight {name} must be a tensor that ends in {tuple(p.shape)}", t)
        require(t.numel() > 0 or p.numel() == 0, f"weight {name} must have one draw or more", t)
        require(not (thorough and not bool(t.isfinite().all())), f"weight {name} must not hold NaN or infinity", t)


def _check_context(context: Tensor | None, width: int, thorough: bool) -> None:
    if width == 0:
        require(context is None, "this net takes no context (context_dim is 0)", context)
        return
    require(isinstance(context, Tensor) and context.is_floating_point() and context.ndim >= 1
            and context.shape[-1] == width, f"context must be a floating tensor that ends in ({width},)", context)
    require(not (thorough and not bool(context.isfinite().all())), "context must not hold NaN or infinity", context)  # type: ignore[union-attr]
