r"""`Autoregressive`: the chain rule, written once for every net, output and order.

This file alone does the shapes. Dimensions left of an event come from four places: samples, weight
draws, contexts and orders. Where weights were drawn, `vmap` runs over the draws; all the rest becomes the rows of a net.
"""

import contextlib
import copy
import itertools
import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from pyro.distributions import Categorical, constraints
from torch import Size, Tensor, nn

from pyro_ar.arrays import Array
from pyro_ar.checks import IntractableError, broadcast, require, require_exact_states
from pyro_ar.enumeration import most_states
from pyro_ar.expandable import batch_of
from pyro_ar.joint import Joint
from pyro_ar.neural.draws import over_draws
from pyro_ar.neural.hidden import each_state, fill, hidden_before, in_groups, joint_states
from pyro_ar.neural.net import Net
from pyro_ar.order import check_order, inverse, visible_first
from pyro_ar.outputs import Output
from pyro_ar.outputs.per_variable import alike, support_of
from pyro_ar.transforms import as_array, is_mapped, transforms_active

__all__ = ["Autoregressive"]

MOST_PASSES = 2**24  # of a net for one row, that an error offers as a way


class Autoregressive(Joint):
    r"""The joint whose conditionals a net computes.

    .. math:: \log p(x) = \sum_i \log p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}})

    It holds the weights it was given, never the module they came from, so that draws of random
    weights are read once. Weights with extra left dimensions are draws, and those are batch dimensions.

    `marginal` is exact for a fixed order when the hidden variables that precede the last visible one have at most
    4096 joint states, or those of `enumeration.up_to` (hidden variables after it cost nothing), and always for an any-order net,
    which answers in the order that puts the visible variables first.

    Shapes:
        - each weight `(*D, *its shape in the net)`, `context` `(*C, context_dim)`, `order` `(n,)` or `(*O, n)`.
        - `batch_shape` is the broadcast of `D`, `C` and `O`; `event_shape` is the net's.

    Args:
        net: Only its structure and mode (training or eval) are used.
        weights: A tensor for every parameter of the net, by its name. NaN in them shows, and is refused, where it reaches an answer.
        output: The output that the net was made for; entry i of a `PerVariable` answers for position i of the flattened event.
        order: Positions in the flattened event, first one first; None means as they come (raster scan), or the net's own order.
        context: What every conditional is also conditioned on.
        buffers: A tensor for every buffer of the net; None means those that it holds.

    Raises:
        ValueError: A weight is missing or of the wrong shape; the context is missing or of the
            wrong width; the order is no permutation, or not one that the net takes; left dimensions do not broadcast.

    Example:
        >>> from pyro_ar.neural.fvsbn import LinearNet
        >>> from pyro_ar.outputs import Bernoulli
        >>> net = LinearNet(3, Bernoulli())
        >>> weights = {name: torch.zeros_like(w) for name, w in net.named_parameters()}
        >>> Autoregressive(net, weights, Bernoulli()).log_prob(torch.tensor([1, 0, 1]))  # 3 log(1/2)
        tensor(-2.0794)
    """

    def __init__(self, net: Net, weights: Mapping[str, Tensor], output: Output, order: Tensor | None = None,
                 context: Tensor | None = None, buffers: Mapping[str, Tensor] | None = None, *,
                 validate_args: bool | None = None) -> None:
        require(isinstance(net, Net), "Autoregressive wants a net that derives from par.Net", type(net).__name__)
        self.net, self.output = net, output
        self.coherent = not net.any_order
        self._ranks = _checked_ranks(net, weights)
        _check_context(context, net.context_dim, validate_args is not False and not transforms_active())
        device = next(iter(weights.values())).device
        # None is kept apart: values in raster order need no permuting.
        self._given_order = _own_order(net, order, device)
        self._chain_output = _output_in_chain(net, output, self._given_order)
        self._buffers = dict(net.named_buffers() if buffers is None else buffers)
        tensors = dict(weights)
        require_exact_states(output.num_states, next(iter(weights.values())).dtype, type(self).__name__)
        if context is not None:
            tensors["context"] = context.to(next(iter(weights.values())).dtype)
        super().__init__(tensors, self._shape_of(tensors), net.event_shape, validate_args=validate_args)
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
        lefts = [tensors[name].shape[: tensors[name].ndim - rank] for name, rank in self._ranks.items()]
        if "context" in tensors:
            lefts.append(tensors["context"].shape[:-1])
        if self._given_order is not None:
            lefts.append(self._given_order.shape[:-1])
        return broadcast("the left dimensions of weights, context and order must broadcast", *lefts, came=sorted({tuple(s) for s in lefts}))

    def _particulars(self) -> list[str]:
        return [type(self.net).__name__, repr(self.output), "" if self.coherent else "any order"]

    @property
    def num_parameters(self) -> int:
        return self.net.num_parameters

    @property
    def support(self) -> constraints.Constraint:
        return support_of(self.output.variables(self.net.num_variables), self.event_shape)

    @property
    def num_states(self) -> tuple[int, ...] | None:
        each = [o.num_states for o in self.output.variables(self.net.num_variables)]
        return None if None in each else tuple(each)  # type: ignore[arg-type]

    @property
    def order(self) -> Tensor:
        """The order of the chain rule, `(n,)`, or `(*O, n)` where orders are batched."""
        if self._given_order is None:
            return torch.arange(self.net.num_variables, device=self.device)
        return self._given_order

    @property
    def context(self) -> Tensor | None:
        """What every conditional is also conditioned on."""
        return self._tensors.get("context")

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Autoregressive":
        weights = {name: t for name, t in tensors.items() if name != "context"}
        return type(self)(self.net, weights, self.output, self._given_order, tensors.get("context"), self._buffers,
                          validate_args=self._validate_args)

    @property
    def arguments(self) -> dict[str, Any]:
        weights = {name: t for name, t in self._tensors.items() if name != "context"}
        return {"net": self.net, "weights": weights, "output": self.output, "order": self._given_order, "context": self.context,
                "buffers": dict(self._buffers)}

    def _in_order(self, order: Tensor) -> "Autoregressive":
        """The joint of the same weights in another order, which is not checked."""
        new = copy.copy(self)
        new._given_order = order
        new._own_batch_shape = new._shape_of(self._tensors)
        new._batch_shape = torch.broadcast_shapes(new._own_batch_shape, self._batch_shape)
        return new

    @property
    def has_draws(self) -> bool:
        """Whether weights have extra left dimensions."""
        return any(self._tensors[name].ndim > rank for name, rank in self._ranks.items())

    # The chain: values in, conditionals out.

    def to_chain(self, x: Tensor) -> Tensor:
        """From `(*L, *event)` to `(*L, n)` in chain order."""
        return _permute(x.flatten(x.ndim - len(self.event_shape)), self._given_order)

    def from_chain(self, x: Tensor) -> Tensor:
        places = None if self._given_order is None else inverse(self._given_order)
        return _permute(x, places).unflatten(-1, self.event_shape)

    def over_draws(self, function: Callable[[nn.Module, dict[str, Tensor]], Tensor], values: dict[str, Tensor | None],
                    *, map_all: bool = False) -> Tensor:
        weights = {name: t for name, t in self._tensors.items() if name != "context"}
        present = {name: t for name, t in values.items() if t is not None}
        return over_draws(self.net, weights, self._ranks, present, function, self._buffers, map_all=map_all)

    def conditionals_in_chain(self, x: Tensor) -> Tensor:
        """Log p(x_i | x_<i) for `x` `(*L, m)`, the first m variables, both in chain order; `L` may lack batch dimensions."""
        order = None if self.coherent else self.order[..., :x.shape[-1]]
        answer = self.over_draws(self._score, {"x": x.to(self.dtype), "context": self.context, "order": order})
        if self._validate_args and not transforms_active() and bool(answer.detach().sum().isnan()):
            self._refuse_nan(answer)
        return answer

    def _refuse_nan(self, answer: Tensor) -> None:
        """Weights are not searched for NaN when they are bound, which would cost more than it is worth: here it shows."""
        if bool(answer.isnan().any()):
            for name, t in self._tensors.items():
                require(bool(t.isfinite().all()), f"weight {name} must not hold NaN or infinity", t)
            require(False, f"the net ({type(self.net).__name__}) gave raw parameters that are NaN")

    def output_at(self, place: int, order: Tensor | None = None) -> Any:
        """The output of the variable at a place of the chain; of an any-order net, of the rows of `order` `(rows, n)`."""
        return self._chain_output.at(place) if self.coherent else self.output.at(cast(Tensor, order)[:, place])

    def _score(self, net: Any, values: dict[str, Tensor]) -> Tensor:
        output, raw = self._pass(net, values)
        return output.log_prob(raw, values["x"])

    def _move(self, net: Any, values: dict[str, Tensor]) -> Tensor:
        output, raw = self._pass(net, values)
        return output.reparameterised(raw, values["x"].expand(raw.shape[:-1]))

    def _pass(self, net: Any, values: dict[str, Tensor]) -> tuple[Output, Tensor]:
        """The output of the variables in chain order, and all their raw parameters."""
        known = {name: t for name, t in values.items() if name != "x"}
        x, output = values["x"], self._chain_output if self.coherent else self.output.at(values["order"])
        if self.net.broadcasts:
            return output, net(x, **known)
        left = torch.broadcast_shapes(x.shape[:-1], *(t.shape[:-1] for t in known.values()))
        raw = net.in_chain(_rows(x, left), **{name: _rows(t, left) for name, t in known.items()})
        return output, raw.reshape(left + raw.shape[1:])

    def _walk(self, shape: Size, x: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Draw what is hidden variable by variable, `(*shape, *event)`; `x` and `visible` in chain order."""
        values = {"x": None if x is None else x.to(self.dtype), "visible": visible, "context": self.context, "order": None if self.coherent else self.order}
        # One value at least carries the whole shape.
        values["rows"] = torch.zeros((), device=self.device).expand((*shape, 1))
        values = {name: None if t is None else t.expand(shape + t.shape[-1:]) for name, t in values.items()}
        runs = _runs(self.net.num_variables, visible)

        def step_through(net: Any, values: dict[str, Tensor]) -> Tensor:
            return self._step_through(net, values, runs)

        # Inference mode makes a step cheaper by a fifth; torch.func's transforms do not know it.
        with contextlib.nullcontext() if transforms_active() else torch.inference_mode():
            drawn = self.over_draws(step_through, values, map_all=True)
        return self.from_chain(drawn.clone())  # an ordinary tensor again

    def _step_through(self, net: Any, values: dict[str, Tensor], runs: list[tuple[int, int, bool]]) -> Tensor:
        left, n = values["rows"].shape[:-1], self.net.num_variables
        values = {name: _rows(t, left) for name, t in values.items()}
        x, visible = values.get("x"), values.get("visible")
        known = {name: values[name] for name in ("context", "order") if name in values}
        state = net.start(math.prod(left), **known) if runs else None
        blocks, last = [], None
        for first, end, all_known in runs:
            if all_known and x is not None:
                taken = x[:, first:end] if last is None else torch.cat((last.unsqueeze(-1), x[:, first:end]), -1)
                net.prefill(state, taken)
                blocks.append(x[:, first:end])
                last = None
                continue
            drawn: list[Tensor] = []
            for i in range(first, end):
                raw = net.advance(state, last)
                output = self.output_at(i, values.get("order"))
                last = output.sample(raw)
                if x is not None and visible is not None:
                    last = torch.where(visible[:, i], x[:, i], last)
                drawn.append(last)
            blocks.append(torch.stack(drawn).mT)  # twice as fast as along the last dimension
        end = runs[-1][1] if runs else 0
        if x is not None and end < n:
            blocks.append(x[:, end:])
        return torch.cat(blocks, -1).reshape((*left, n))

    def features(self, x: Array) -> Tensor:
        """What the net holds of complete values `(*L, *event)`, `(*L, features)` with `L` broadcast to the batch; see `Net.features`."""
        x = self.to_chain(self.check_value(x)).to(self.dtype)
        return self.over_draws(self._represent, {"x": x, "context": self.context, "order": None if self.coherent else self.order})

    def _represent(self, net: Any, values: dict[str, Tensor]) -> Tensor:
        left = torch.broadcast_shapes(*(t.shape[:-1] for t in values.values()))
        found = net.features(**{name: _rows(t, left) for name, t in values.items()})
        return found.reshape(*left, found.shape[-1])

    def log_density(self, x: Tensor) -> Tensor:
        return self.conditionals_in_chain(self.to_chain(x)).sum(-1)

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self.check_value(x)
        answer = self.from_chain(self.conditionals_in_chain(self.to_chain(x)))
        left = torch.broadcast_shapes(x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        return answer.expand(left + self.event_shape)

    def draw(self, shape: Size) -> Tensor:
        self._check_finite()
        return self._walk(shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry gradients: where every variable is real; not inside `torch.func`, which knows no gradient of a solution."""
        return self.output.has_rsample and not transforms_active()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        r"""Draws that carry gradients with respect to weights and context, where `has_rsample` says so.

        The noise behind each variable is held: of Normal and Logistic variables that of x = location + scale * noise, of mixtures the value of the
        distribution function, by implicit gradients. A draw costs what `sample` costs and two passes; its gradient a backward pass for each variable.

        Raises:
            NotImplementedError: Some variable is discrete, or a second derivative is asked for.

        Source:
            Figurnov, Mohamed, Mnih (2018), *Implicit reparameterization gradients*, NeurIPS.
        """
        if not self.has_rsample:
            raise NotImplementedError(f"draws by {self!r} carry no gradients (some variable is discrete, or torch.func is at work); sample them")
        drawn = self.draw(Size(sample_shape) + self.batch_shape)
        return self.from_chain(self._moving(self.to_chain(drawn), None, None))

    def _moving(self, drawn: Tensor, x: Tensor | None, visible: Tensor | None) -> Tensor:
        r"""Draws `(*L, n)` in chain order, that move with weights, context and the visible cells of `x`.

        With its noise held, a row is :math:`x = g(x, 	heta)`, where variable i of g reads those before it. So :math:`dx = (I - J)^{-1} dg`, J the Jacobian of
        g by x, whose n-th power is zero: the sum of its powers takes n - 1 backward passes.
        """
        if not (torch.is_grad_enabled() and self.output.has_rsample) or transforms_active():
            return drawn
        seen = torch.zeros_like(drawn, dtype=torch.bool) if visible is None or x is None else visible
        given = drawn if x is None else torch.where(seen, x, drawn)
        moving = torch.where(seen, given, self._reparameterised(given))
        if not moving.requires_grad:
            return drawn
        leaf = drawn.detach().requires_grad_()
        of_itself = torch.where(seen, 0, self._reparameterised(leaf))

        def solve(grad: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise NotImplementedError("draws of a chain carry first derivatives only")
            total = term = grad
            for _ in range(drawn.shape[-1] - 1):
                (term,) = torch.autograd.grad(of_itself, leaf, term, retain_graph=True)
                term = torch.where(seen, 0, term)  # by `given`, what is seen gets its own
                total = total + term
                if not bool((term != 0).any()):
                    break
            return total

        moving.register_hook(solve)
        return given.detach() + (moving - moving.detach())  # to the last digit what was drawn

    def _reparameterised(self, x: Tensor) -> Tensor:
        order = None if self.coherent else self.order
        return self.over_draws(self._move, {"x": x, "context": self.context, "order": order})

    def _check_finite(self) -> None:
        """Unlike `log_prob`, a draw would not show NaN; to search the weights is cheap beside it."""
        if self._validate_args and not transforms_active():
            for name, t in self._tensors.items():
                require(bool(t.isfinite().all()), f"weight {name} must not hold NaN or infinity", t)

    # Hidden cells.

    def answering(self, visible: Tensor) -> "Autoregressive":
        if self.coherent:
            return self
        return self._in_order(visible_first(self.order, visible.flatten(visible.ndim - len(self.event_shape))))

    def _states(self) -> tuple[Tensor, Tensor]:
        """How many states each variable has, and which ones are real-valued, `(*O, n)` in chain order."""
        each = self.output.variables(self.net.num_variables)
        states = torch.tensor([o.num_states or 0 for o in each], device=self.device)
        states = states if self._given_order is None else states[self._given_order]
        return states.clamp(min=1), states == 0

    def _too_many(self, hidden: Tensor) -> bool:
        """Whether hidden variables, in chain order, cannot be summed over."""
        states, real = self._states()
        return bool((hidden & real).any()) or bool((joint_states(hidden, states) > most_states()).any())

    def methods(self, visible: Tensor) -> np.ndarray:
        if not self.coherent:
            return np.full(tuple(visible.shape[: visible.ndim - len(self.event_shape)]), "visible-first chain")
        if is_mapped(visible):
            raise IntractableError("a fixed-order chain answers each pattern in its own way, and vmap keeps the patterns back. What works: "
                                   "a pattern per row without vmap, or vmap over values, weights or contexts alone")
        before = hidden_before(self.to_chain(visible))
        if self._too_many(before):
            states, real = self._states()
            most = int(before.sum(-1).max())
            endless = bool((before & real).any())
            kinds = set(states.flatten().tolist())
            count = "infinitely many" if endless else f"{kinds.pop()}^{most}" if len(kinds) == 1 else f"{float(joint_states(before, states).max()):.3g}"
            raise IntractableError(
                f"{most} hidden variables precede the last visible one in the order of the chain, with {count} joint "
                f"states, and at most {most_states()} are summed over. What works: par.estimate_log_marginal, with its "
                f"standard error; {_raising(joint_states(before, states), endless)}an any-order family such as par.OrderlessNADE; "
                "an order in which the visible variables come first")
        return np.where(as_array(before.any(-1)), "enumeration", "prefix")

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        x, visible = self.to_chain(x), self.to_chain(visible)
        hidden = hidden_before(visible)
        if not self.coherent or not bool(hidden.any()):
            # Variables after the last visible one integrate to one, and are not even computed.
            last = max(_last(visible), 1)  # one at least, so that what is all hidden has a gradient, of zero
            return torch.where(visible[..., :last], self.conditionals_in_chain(x[..., :last]), 0).sum(-1)

        def answer(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
            return self._each_state(x, hidden, visible | hidden).logsumexp(0)

        return in_groups(answer, x, hidden, visible, self._states()[0], self._own_batch_shape)

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        self._check_finite()
        shape = x.shape[: x.ndim - len(self.event_shape)]
        x, visible = self.to_chain(x), self.to_chain(visible)
        hidden = hidden_before(visible) if self.coherent else torch.zeros_like(visible)
        if bool(hidden.any()):
            states = self._states()[0]

            def draw(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
                log_p = self._each_state(x, hidden, visible | hidden).movedim(0, -1)
                return fill(x, hidden, Categorical(logits=log_p, validate_args=False).sample(), states)

            x, visible = in_groups(draw, x, hidden, visible, states, self._own_batch_shape), visible | hidden
        drawn = self._walk(shape, x, visible)
        return self.from_chain(self._moving(self.to_chain(drawn), x, visible)) if self.output.has_rsample else drawn

    def most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        if is_mapped(visible):
            raise IntractableError("how many cells are hidden cannot be asked under a vmap over patterns; map over values, weights or contexts alone")
        x, visible = self.to_chain(x), self.to_chain(visible)
        if not bool((~visible).any()):
            return self.from_chain(x)
        if self._too_many(~visible):
            return super().most_likely(x, visible)
        states = self._states()[0]

        def best(x: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
            return fill(x, hidden, self._each_state(x, hidden, visible | hidden).argmax(0), states)

        return self.from_chain(in_groups(best, x, ~visible, visible, states, self._own_batch_shape))

    def _each_state(self, x: Tensor, hidden: Tensor, counted: Tensor) -> Tensor:
        return each_state(self.conditionals_in_chain, x, hidden, counted, self._states()[0], math.prod(self._own_batch_shape))


def _raising(many: Tensor, endless: bool) -> str:
    """What raising the bound would cost, where it can be paid."""
    most = 0.0 if endless else float(many.max())
    return f"with pyro_ar.enumeration.up_to({most:.0f}), at the price of as many passes of the net for each row; " if 0 < most <= MOST_PASSES else ""


def _own_order(net: Net, order: Tensor | None, device: torch.device) -> Tensor | None:
    """The order of the chain: as given, or that of a net which takes no other."""
    if net.layout == "chain":
        return None if order is None else check_order(order, net.num_variables).to(device)
    own = net.chain_order
    raster = torch.arange(net.num_variables)
    same = order is None or torch.equal(check_order(order, net.num_variables).cpu(), raster if own is None else own.cpu())
    require(same, f"{type(net).__name__} knows where variables lie, and takes no order but its own", order)
    return None if own is None else own.to(device)


def _output_in_chain(net: Net, output: Output, order: Tensor | None) -> Output:
    """The output whose variables stand in the order of the chain, which must be what the net was made for."""
    n, made_for = net.num_variables, net.output
    if not alike(output.variables(n)) and order is not None and not net.any_order:
        require(order.ndim == 1, "variables with outputs of their own take one order, not a batch of them", order)
        output = output.in_order(order.tolist())
    same = made_for == output or [(o.raw, o.inputs) for o in made_for.variables(n)] == [(o.raw, o.inputs) for o in output.variables(n)]
    require(same,
            f"output must be as {made_for!r}, for which the net was made: {made_for.raw} raw parameters and {made_for.inputs} features, "
            "of each variable in the order of the chain", output)
    return output


def _runs(n: int, visible: Tensor | None) -> list[tuple[int, int, bool]]:
    """Runs `(first, end, known in all rows)` of variables in chain order, up to the last hidden one."""
    if visible is None:
        return [(0, n, False)]
    known = visible.reshape(-1, n).all(0).tolist()
    while known and known[-1]:
        known.pop()
    runs, first = [], 0
    for same, group in itertools.groupby(known):
        size = len(list(group))
        runs.append((first, first + size, same))
        first += size
    return runs


def _last(visible: Tensor) -> int:
    """How many variables there are up to the last visible one of any row."""
    if is_mapped(visible):
        return visible.shape[-1]
    places = visible.reshape(-1, visible.shape[-1]).any(0).nonzero()
    return int(places.max()) + 1 if len(places) else 0


def _permute(x: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return x
    if order.ndim == 1:
        return x.index_select(-1, order)
    shape = torch.broadcast_shapes(x.shape, order.shape)
    return x.expand(shape).gather(-1, order.expand(shape))


def _rows(t: Tensor, left: Size) -> Tensor:
    return t.expand(left + t.shape[-1:]).reshape(-1, t.shape[-1])


def _checked_ranks(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many dimensions each parameter of the net has; the weights fit, draws to their left."""
    parameters = dict(net.named_parameters())
    require(bool(parameters) and "context" not in parameters, "a net needs parameters, none of them named 'context'")
    require(set(weights) == set(parameters), f"weights must be named {sorted(parameters)}", sorted(weights))
    for name, p in parameters.items():
        t = weights[name]
        require(isinstance(t, Tensor) and t.shape[max(t.ndim - p.ndim, 0):] == p.shape,
                f"weight {name} must be a tensor that ends in {tuple(p.shape)}", t)
        require(t.numel() > 0 or p.numel() == 0, f"weight {name} must have one draw or more", t)
    return {name: p.ndim for name, p in parameters.items()}


def _check_context(context: Tensor | None, width: int, thorough: bool) -> None:
    if width == 0:
        require(context is None, "this net takes no context (context_dim is 0)", context)
        return
    require(isinstance(context, Tensor) and context.is_floating_point() and context.ndim >= 1
            and context.shape[-1] == width, f"context must be a floating tensor that ends in ({width},)", context)
    require(not (thorough and not bool(context.isfinite().all())), "context must not hold NaN or infinity", context)  # type: ignore[union-attr]
