r"""The order-agnostic NADE net: one set of weights, an order per row, and inputs that say which variables are known.

What a known variable adds to the hidden layer depends on which variable it is and on its value. For discrete variables those
sums stand in one table, so that a step is one gather. As in `nade`, the lean form keeps one pre-activation per block of steps.
With several hidden layers each step is a pass of the layers behind the first one, as many steps at once as memory allows.
"""

import itertools
import math

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch import Generator, Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from pyro_ar.budget import at_once
from pyro_ar.neural.family import Family
from pyro_ar.neural.nade import ACTIVATIONS, BLOCK, MOVE, OneLayerNet, odds_hold, pieces, sigmoids_by_odds
from pyro_ar.neural.net import AnyOrderNet, as_event_shape, as_hidden, as_rows, transforms_active
from pyro_ar.outputs import Output

__all__ = ["OrderlessNADE", "OrderlessNADENet", "orderless_chain", "plain_orderless_chain"]


class OrderlessNADENet(OneLayerNet, AnyOrderNet):
    r"""a_1 = c, a_{i+1} = a_i + U_{o_i} + encode(x_{o_i}) W_{o_i}, raw_i = b_{o_i} + activation(a_i) V_{o_i}.

    Deeper layers h <- activation(h A_l + e_l) stand between activation(a_i) and V: a_i is summed step by step all the same, and the rest is a
    pass for each variable.

    Shapes:
        - `input_weight` W `(n, inputs, hidden)`, `known_weight` U `(n, hidden)`, `output_weight` V `(n, hidden, raw)`,
          `hidden_bias` c `(hidden,)`, `output_bias` b `(n, raw)`; with a context `hidden_context`
          `(context_dim, hidden)` is added to c and `output_context` `(context_dim, n * raw)` to b.
        - with several hidden layers W, U and c lead to the first of them and V comes from the last; between them
          `deep.l.weight` `(units, units below)` and `deep.l.bias` `(units,)`.

    Source:
        Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML; several layers: section 4.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = 100,
                 activation: str = "sigmoid") -> None:
        layers = as_hidden(hidden)
        super().__init__(event_shape, output, context_dim, hidden=layers[0], activation=activation)
        self.known_weight = nn.Parameter(torch.zeros(self.num_variables, layers[0]))
        self.layers = layers
        deep = [nn.Linear(below, above) for below, above in itertools.pairwise(layers)]
        for layer in deep:
            nn.init.normal_(layer.weight, std=math.sqrt((2 if activation == "relu" else 1) / layer.in_features))
            nn.init.zeros_(layer.bias)
        self.deep = nn.ModuleList(deep)
        if self.deep:
            self.output_weight = nn.Parameter(torch.randn(self.num_variables, layers[-1], output.raw) * (0.5 / math.sqrt(layers[-1])))

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: Sequence[int] | int = 100, **unused: Any) -> int:
        n, layers = math.prod(as_event_shape(event_shape)), as_hidden(hidden)
        raw, inputs, _ = output.totals(n)
        deep = sum((below + 1) * above for below, above in itertools.pairwise(layers))
        return layers[0] * (inputs + n) + deep + layers[-1] * raw + (1 + context_dim) * (layers[0] + raw)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim, hidden=self.layers)

    def forward(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        rows, m = x.shape
        order = torch.arange(m, device=x.device).expand(rows, m) if order is None else order
        a = as_rows(context, self.hidden_context, rows, self.hidden_bias)
        terms = self._terms(x, order)
        if self.deep:
            return self._passes(*terms, order, a) + self._bias(context, order)
        return orderless_chain(*terms, order, a, self.output_weight, self.activation) + self._bias(context, order)

    def _passes(self, table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, a: Tensor) -> Tensor:
        """What `orderless_chain` gives, with a pass of the deeper layers for each step; of their activations those of one chunk are held at once."""
        rows, n = order.shape
        numbers = index.shape[-1] * self.layers[0] + sum(self.layers) + self.layers[-1] * self.output.raw
        weights = [self.output_weight, *self._of_deep()]
        raw = []
        chunks = list(pieces(n, at_once(rows * numbers)))
        for chunk in chunks:
            of_chunk: Any = table, index[:, chunk], None if scale is None else scale[:, chunk], order[:, chunk], a, *weights
            if torch.is_grad_enabled() and len(chunks) > 1 and not transforms_active():
                found, a = checkpoint(self._chunk, *of_chunk, use_reentrant=False)
            else:
                found, a = self._chunk(*of_chunk)
            raw.append(found)
        return torch.cat(raw, 1)

    def _chunk(self, table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, a: Tensor, V: Tensor, *deep: Tensor) -> tuple[Tensor, Tensor]:
        """Raw parameters of some steps, which begin at pre-activations `a`, and those behind them."""
        terms = table[index]
        added = (terms if scale is None else terms * scale.unsqueeze(-1)).sum(2)
        a = a.unsqueeze(1) + torch.cat((torch.zeros_like(added[:, :1]), added.cumsum(1)), 1)
        h = self._through(a[:, :-1], *deep)
        return (h.unsqueeze(-2) @ V[order]).squeeze(-2), a[:, -1]

    def _of_deep(self) -> tuple[Tensor, ...]:
        """Weight and bias of each deeper layer in turn."""
        layers: Any = self.deep
        return tuple(p for layer in layers for p in (layer.weight, layer.bias))

    def _through(self, a: Tensor, *deep: Tensor) -> Tensor:
        """The last hidden layer from the pre-activations of the first; weights and biases of the deeper ones where they are not the net's."""
        act = ACTIVATIONS[self.activation]
        h, own = act(a), deep or self._of_deep()
        for weight, bias in zip(own[::2], own[1::2], strict=True):
            h = act(F.linear(h, weight, bias))
        return h

    def given_known(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        a = as_rows(context, self.hidden_context, len(x), self.hidden_bias) + self._of_known(x, known)
        n, _, raw = self.output_weight.shape
        out = self._through(a) @ self.output_weight.transpose(0, 1).flatten(1)
        return out.unflatten(-1, (n, raw)) + as_rows(context, self.output_context, len(x), self.output_bias)

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The last hidden layer when every variable is known, `(rows, last hidden)`: the same in every order."""
        x = x if order is None else x.gather(1, order.argsort(-1))
        a = as_rows(context, self.hidden_context, len(x), self.hidden_bias)
        return self._through(a + self._of_known(x, torch.ones_like(x, dtype=torch.bool)))

    def _of_known(self, x: Tensor, known: Tensor) -> Tensor:
        """What known variables add to the hidden layer, in one matrix product; both `(rows, n)`, in the variables' own order."""
        features = self.output.encode(torch.where(known, x, 0)) * known.unsqueeze(-1)
        return features.flatten(1) @ self.input_weight.flatten(0, 1) + known.to(features.dtype) @ self.known_weight

    def _bias(self, context: Tensor | None, order: Tensor) -> Tensor:
        if context is None:
            return self.output_bias[order]
        bias = as_rows(context, self.output_context, len(order), self.output_bias)
        return bias.gather(1, order.unsqueeze(-1).expand(*order.shape, bias.shape[-1]))

    def _table(self) -> Tensor | None:
        """What each state of each variable adds to the hidden layer, `(n, K, hidden)`; None where variables are real."""
        states = [o.num_states or 0 for o in self.output.variables(self.num_variables)]
        if 0 in states:
            return None
        # Of a variable with fewer states than another, the rows beyond are never read.
        each = torch.arange(max(states), device=self.input_weight.device, dtype=self.input_weight.dtype)
        features = self.output.encode(each.unsqueeze(-1).expand(-1, self.num_variables)).transpose(0, 1)
        return self.known_weight.unsqueeze(1) + features @ self.input_weight

    def _terms(self, x: Tensor, order: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What known variables add: rows of a table `(T, hidden)`, `index` and `scale` `(*order.shape, terms)`."""
        if not _may_be_differentiated(x):
            table = self._table() if table is None else table
            if table is not None:
                return table.flatten(0, 1), (order * table.shape[1] + x.long()).unsqueeze(-1), None
        table = torch.cat((self.known_weight.unsqueeze(1), self.input_weight), 1)
        features = self.output.at(order).encode(x)
        order = order.unsqueeze(-1)
        scale = torch.cat((torch.ones_like(features[..., :1]), features), -1)
        terms = torch.arange(table.shape[1], device=x.device)
        return table.flatten(0, 1), order * len(terms) + terms, scale

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        if order is None:
            order = torch.arange(self.num_variables, device=self.hidden_bias.device).expand(rows, -1)
        return {"a": as_rows(context, self.hidden_context, rows, self.hidden_bias), "order": order, "i": 0,
                "bias": self._bias(context, order).expand(rows, *self.output_bias.shape), "table": self._table()}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            state["a"].add_(_added(*self._terms(value, state["order"][:, state["i"]], state["table"])))
            state["i"] += 1
        here = state["order"][:, state["i"]]
        h = self._through(state["a"]).unsqueeze(-1)
        return state["bias"][:, state["i"]] + (h * self.output_weight.index_select(0, here)).sum(1)

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"] = state["i"], state["i"] + values.shape[-1]
        order = state["order"][:, first:state["i"]]
        nothing = state["a"].new_zeros(len(values), self.num_variables)
        known = nothing.scatter(1, order, torch.ones_like(values, dtype=nothing.dtype)) > 0
        state["a"] = state["a"] + self._of_known(nothing.scatter(1, order, values.to(nothing.dtype)), known)

    def take(self, state: Any, index: Tensor) -> Any:
        return {**super().take({**state, "table": None}, index), "table": state["table"]}


def _may_be_differentiated(x: Tensor) -> bool:
    """Whether a gradient with respect to x may be wanted: inside a transform, a tensor does not tell."""
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
    return x.requires_grad or transforms_active() or dual


def orderless_chain(table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, a: Tensor, V: Tensor,
                    activation: str) -> Tensor:
    r"""activation(a + sum_{j<i} of the terms of j) V_{o_i} for all i, `(rows, n, raw)`.

    Args:
        table: `(T, hidden)`.
        index: Rows of the table that the variables add, `(rows, n, terms)`.
        scale: Their factors, `(rows, n, terms)`, or None for ones.
        order: `(rows, n)`.
        a: Pre-activations before the first variable, `(rows, hidden)`.
        V: `(n, hidden, raw)`.
        activation: 'sigmoid' or 'relu'.
    """
    if transforms_active():
        return plain_orderless_chain(table, index, scale, order, a, V, activation)
    return _Chain.apply(table, index, scale, order, a, V, activation)


def plain_orderless_chain(table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, a: Tensor, V: Tensor,
                          activation: str) -> Tensor:
    """`orderless_chain` in plain operations: differentiable any number of times, and by `torch.func`."""
    raw = []
    for i in range(order.shape[-1]):
        raw.append((ACTIVATIONS[activation](a).unsqueeze(-1) * V.index_select(0, order[:, i])).sum(1))
        a = a + _added(table, index[:, i], None if scale is None else scale[:, i])
    return torch.stack(raw, 1)


def _added(table: Tensor, index: Tensor, scale: Tensor | None) -> Tensor:
    """What one variable adds in every row; `index` and `scale` `(rows, terms)`."""
    if scale is None:
        return table.index_select(0, index[:, 0])  # several times faster than table[index]
    return (table[index] * scale.unsqueeze(-1)).sum(1)


class _Chain(torch.autograd.Function):
    """`orderless_chain`, remembering one pre-activation per block of steps; see `nade._Chain`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, a: Tensor, V: Tensor,
                activation: str) -> Tensor:
        rows, n = order.shape
        steps = _Steps(table, index, scale, order, activation, len(a))
        kept = a.new_empty(-(-n // BLOCK), *a.shape) if any(ctx.needs_input_grad) else None
        raw = a.new_empty(n, rows, V.shape[-1])
        ctx.activation, ctx.scaled = activation, scale is not None
        now, scratch, v = a.clone(), [torch.empty_like(a)], V.new_empty(rows, *V.shape[1:])
        for b, block in enumerate(pieces(n, BLOCK)):
            if kept is not None:
                kept[b] = now
            hidden = steps.hidden(now, block, scratch)
            for h, here, out in zip(hidden, steps.order[block], raw[block].unbind(), strict=True):
                _read(h, torch.index_select(V, 0, here, out=v), out)
            now += steps.total(block)
        ctx.save_for_backward(table, index, order, a, V, *([] if scale is None else [scale]), *([] if kept is None else [kept]))
        return raw.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, index, order, a, V, *more = ctx.saved_tensors
        scale, kept = more[0] if ctx.scaled else None, more[-1]
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            given = (table, index, scale, order, a, V)
            inputs = [t for t, needed in zip(given, wanted, strict=False) if needed]
            raw = plain_orderless_chain(*given, ctx.activation)
            got = iter(torch.autograd.grad(raw, inputs, grad, create_graph=True, allow_unused=True))
            return *(next(got) if needed else None for needed in wanted[:6]), None
        n = order.shape[1]
        steps = _Steps(table, index, scale, order, ctx.activation, len(a))
        grads = grad.transpose(0, 1).contiguous().unbind()
        G, dtable, dV = torch.zeros_like(a), torch.zeros_like(table), torch.zeros_like(V)
        dscale = torch.zeros_like(steps.scale) if steps.scale is not None and wanted[2] else None
        scratch = [torch.empty_like(a) for _ in range(BLOCK)]
        v, outer = (V.new_empty(len(a), *V.shape[1:]) for _ in range(2))
        for b, block in reversed(list(enumerate(pieces(n, BLOCK)))):
            hidden = list(steps.hidden(kept[b], block, scratch))
            for i, h in zip(reversed(range(block.start, block.stop)), reversed(hidden), strict=True):
                steps.spread(i, G, dtable, None if dscale is None else dscale[i])
                here, g = steps.order[i], grads[i]
                dV.index_add_(0, here, torch.mul(h.unsqueeze(-1), g.unsqueeze(1), out=outer))
                back = _back(g, torch.index_select(V, 0, here, out=v))
                G += _derivative(back, h, ctx.activation)
        if n == 1:  # nothing reads the only variable: no gradient, as in the plain form
            return None, None, None, None, G, dV, None
        return dtable, None, None if dscale is None else dscale.transpose(0, 1), None, G, dV, None


class _Steps:
    """The steps of a chain, steps first: what each adds to the pre-activation, and the hidden layer before it."""

    def __init__(self, table: Tensor, index: Tensor, scale: Tensor | None, order: Tensor, activation: str,
                 rows: int) -> None:
        self.table, self.activation = table, activation
        # Views are made once and for all: slices cost as much as the small products.
        self.index = index.transpose(0, 1).contiguous()
        self.indices = [step.unbind(1) for step in self.index.unbind()]
        self.scale = None if scale is None else scale.transpose(0, 1).contiguous()
        self.order = order.transpose(0, 1).contiguous().unbind()
        self.factors = None
        if scale is None and activation == "sigmoid" and rows >= 16 and _moves_little(table):
            self.factors = table.neg().exp_()  # of the odds, as in `nade`

    def added(self, i: int) -> Tensor:
        return _added(self.table, self.index[i], None if self.scale is None else self.scale[i])

    def total(self, block: slice) -> Tensor:
        """What the steps of a block add together."""
        if self.scale is None:
            return F.embedding_bag(self.index[block, :, 0].mT, self.table, mode="sum")
        return torch.stack([self.added(i) for i in range(block.start, block.stop)]).sum(0)

    def hidden(self, a: Tensor, block: slice, out: list[Tensor]) -> Iterator[Tensor]:
        """The hidden layer of each step of a block that starts at `a`, written to `out` in turn."""
        steps = range(block.start, block.stop)
        if self.factors is not None and odds_hold(a):
            factors = self.factors
            yield from sigmoids_by_odds(a, ((factors, self.indices[i][0]) for i in steps), out)
            return
        a = a.clone()
        for h, i in zip(itertools.cycle(out), steps, strict=False):
            yield torch.sigmoid(a, out=h) if self.activation == "sigmoid" else torch.clamp_min(a, 0, out=h)
            a += self.added(i)

    def spread(self, i: int, G: Tensor, dtable: Tensor, dscale: Tensor | None) -> None:
        """The gradients of what one step added."""
        for t, index in enumerate(self.indices[i]):
            dtable.index_add_(0, index, G if self.scale is None else G * self.scale[i, :, t, None])
            if dscale is not None:
                dscale[:, t] = (G * self.table.index_select(0, index)).sum(-1)


def _moves_little(table: Tensor) -> bool:
    """Whether no unit's odds move too far within a block, whatever the order."""
    if table.dtype not in MOVE:
        return False
    size = table.abs()
    if BLOCK * float(size.max()) <= MOVE[table.dtype]:
        return True
    return float(size.topk(min(BLOCK, len(size)), 0).values.sum(0).max()) <= MOVE[table.dtype]


def _derivative(grad: Tensor, h: Tensor, activation: str) -> Tensor:
    """Gradient of the pre-activation from that of the activation `h`, in place."""
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward.grad_input(grad, h, grad_input=grad)
    return torch.ops.aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad)


def _read(h: Tensor, v: Tensor, out: Tensor) -> None:
    """`(rows, hidden)` by `(rows, hidden, raw)`."""
    if v.shape[-1] == 1:
        torch.sum(v.squeeze(-1).mul_(h), -1, keepdim=True, out=out)
    else:
        torch.matmul(h.unsqueeze(1), v, out=out.unsqueeze(1))


def _back(g: Tensor, v: Tensor) -> Tensor:
    """`(rows, raw)` by `(rows, hidden, raw)`; may change `v`."""
    return v.squeeze(-1).mul_(g) if v.shape[-1] == 1 else (v @ g.unsqueeze(-1)).squeeze(-1)


class OrderlessNADE(Family):
    r"""Order-agnostic NADE: one net that answers in any order, a joint for each order.

    Its joints are not `coherent`: `marginal` and `given` are exact for the chain that puts the visible variables
    first, row by row, in one pass. Train it on random orders: `family(context, order=par.order.random_orders(len(x), n))`.

    With several hidden layers `log_prob` and `marginal` cost a pass of the deeper layers per visible variable, which run in chunks that fit memory
    (gradients too: a chunk is computed again for them); training by `par.fit` costs one pass, as with one layer.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units, an int for one layer, or those of each.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: Order of `log_prob` where none is asked for: None (raster scan), a permutation, or 'random'.
        activation: 'sigmoid' or 'relu', which suits several layers.
        generator: For a random order.

    Source:
        Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML.

    Example:
        >>> joint = OrderlessNADE(event_shape=16, hidden=8)()
        >>> joint.marginal(torch.rand(5, 16) < 0.5).log_prob(torch.zeros(16)).shape
        torch.Size([5])
    """

    net_type = OrderlessNADENet

    def __init__(self, event_shape: int | Sequence[int], hidden: Sequence[int] | int = 100, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *,
                 activation: str = "sigmoid", generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        r"""In training an unbiased estimate of log p(x_visible | context) averaged over all orders, `(N,)`, in nats.

        Of the m visible variables of a row, d < m drawn ones are shown, and the others scored at once,
        times m / (m - d): one matrix product, where the chain takes n steps. In evaluation
        (`family.eval()`), the chain in an order drawn for each row.

        Source:
            Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML, eq. 11.
        """
        if not self.training:
            return super().training_log_prob(x, context, visible)
        joint = self(context)  # checks context and weights
        seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible
        x = joint.check_value(x, seen).to(joint.dtype)
        context = joint.context
        many = seen.flatten(1).sum(-1, keepdim=True)
        shown = (torch.rand(many.shape, device=x.device) * many).floor()
        places = torch.rand(len(x), x[0].numel(), device=x.device).masked_fill(~seen.flatten(1), 2.0).argsort(-1).argsort(-1)
        known, x = places < shown, x.flatten(1)
        net: Any = self.net
        log_p = self.output.log_prob(net.given_known(x, known, context), x)
        scale = (many / (many - shown).clamp(min=1)).squeeze(-1)
        return torch.where(seen.flatten(1) & ~known, log_p, 0.0).sum(-1) * scale
