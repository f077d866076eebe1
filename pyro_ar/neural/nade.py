r"""The NADE net: one hidden layer whose input grows by one variable per step, with a lean training step.

The plain form keeps rows x variables x hidden numbers for its backward pass. `_Chain` keeps one pre-activation per block
of steps and computes the rest again, which is leaner by two orders of magnitude, and faster.
"""

import itertools
import math

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net, as_event_shape, as_rows, transforms_active
from pyro_ar.outputs import Output

__all__ = ["NADE", "ACTIVATIONS", "NADENet", "OneLayerNet", "chain", "pieces", "plain_chain"]

ACTIVATIONS = {"sigmoid": torch.sigmoid, "relu": torch.relu}
BLOCK = 28  # steps between kept pre-activations: about the root of 784
ROWS = 256  # rows at once: what a step touches then stays in cache


class OneLayerNet(Net):
    """The weights of one hidden layer shared by all conditionals, named and started as NADE names them."""

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 100,
                 activation: str = "sigmoid") -> None:
        super().__init__(event_shape, output, context_dim)
        require(isinstance(hidden, int) and hidden > 0, "hidden must be a positive int", hidden)
        require(activation in ACTIVATIONS, f"activation must be one of {sorted(ACTIVATIONS)}", activation)
        n = self.num_variables
        self.hidden, self.activation = hidden, activation
        self.input_weight = nn.Parameter(torch.randn(n, output.inputs, hidden) / math.sqrt(n * output.inputs))
        self.output_weight = nn.Parameter(torch.randn(n, hidden, output.raw) * (0.5 / math.sqrt(hidden)))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output_bias = nn.Parameter(torch.zeros(n, output.raw))
        self.hidden_context = nn.Parameter(torch.randn(context_dim, hidden) * 0.1) if context_dim else None
        self.output_context = nn.Parameter(torch.zeros(context_dim, n * output.raw)) if context_dim else None


class NADENet(OneLayerNet):
    r"""a_1 = c, a_{i+1} = a_i + encode(x_i) W_i, raw_i = b_i + activation(a_i) V_i.

    Shapes:
        - `input_weight` W `(n, inputs, hidden)`, `output_weight` V `(n, hidden, raw)`, `hidden_bias` c `(hidden,)`,
          `output_bias` b `(n, raw)`; with a context `hidden_context` `(context_dim, hidden)` is added to c and
          `output_context` `(context_dim, n * raw)` to b.

    Source:
        Larochelle, Murray (2011), *The neural autoregressive distribution estimator*, AISTATS.
    """

    @classmethod
    def count(cls, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 100, **unused: Any) -> int:
        n = math.prod(as_event_shape(event_shape))
        raw = output.totals(n)[0]
        # The last variable has no successor that reads it.
        return output.totals(n - 1)[1] * hidden + hidden * raw + (1 + context_dim) * (hidden + raw)

    @property
    def num_parameters(self) -> int:
        return self.count(self.event_shape, self.output, self.context_dim, hidden=self.hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        m = x.shape[-1]
        a = as_rows(context, self.hidden_context, len(x), self.hidden_bias)
        raw = chain(self.output.encode(x), a, self.input_weight[:m], self.output_weight[:m], self.activation)
        return raw + self._bias(context, len(x))[..., :m, :]

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The hidden layer when every variable has been read, `(rows, hidden)`."""
        a = as_rows(context, self.hidden_context, len(x), self.hidden_bias)
        return ACTIVATIONS[self.activation](a + self.output.encode(x).flatten(1) @ self.input_weight.flatten(0, 1))

    def _bias(self, context: Tensor | None, rows: int) -> Tensor:
        if context is None or self.output_context is None:
            return self.output_bias
        return as_rows(context, self.output_context, rows, self.output_bias)

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        a = as_rows(context, self.hidden_context, rows, self.hidden_bias)
        bias = as_rows(context, self.output_context, rows, self.output_bias)
        # Views are made here, as slicing would cost a good part of a step.
        return {"a": a, "h": torch.empty_like(a), "i": 0, "bias": bias, "biases": bias.unbind(1),
                "W": self.input_weight.unbind(), "V": self.output_weight.unbind()}

    def advance(self, state: Any, value: Tensor | None) -> Tensor:
        if value is not None:
            _add_step(state, self.output.at(state["i"]).encode(value), state["W"][state["i"]])
            state["i"] += 1
        return torch.addmm(state["biases"][state["i"]], self._hidden(state), state["V"][state["i"]])

    def _hidden(self, state: Any) -> Tensor:
        if _no_writing():
            return ACTIVATIONS[self.activation](state["a"])
        return torch.sigmoid(state["a"], out=state["h"]) if self.activation == "sigmoid" else torch.clamp_min(state["a"], 0, out=state["h"])

    def take(self, state: Any, index: Tensor) -> Any:
        a, bias = state["a"].index_select(0, index), state["bias"].index_select(0, index)
        return {**state, "a": a, "h": torch.empty_like(a), "bias": bias, "biases": bias.unbind(1)}

    def prefill(self, state: Any, values: Tensor) -> None:
        first, state["i"] = state["i"], state["i"] + values.shape[-1]
        features, weight = self.encode_run(values, first), self.input_weight[first:state["i"]]
        state["a"] = torch.addmm(state["a"], features.flatten(1), weight.flatten(0, 1))


def _no_writing() -> bool:
    """Whether autograd or vmap, which has no rule for it, keeps a step from writing where its state lies."""
    return transforms_active() or torch.is_grad_enabled()


def _add_step(state: Any, features: Tensor, weight: Tensor) -> None:
    if _no_writing():
        state["a"] = torch.addmm(state["a"], features, weight)
    else:
        state["a"].addmm_(features, weight)


def chain(x: Tensor, a: Tensor, W: Tensor, V: Tensor, activation: str) -> Tensor:
    r"""activation(a + sum_{j<i} x_j W_j) V_i for all i, `(rows, n, raw)`.

    Args:
        x: Features `(rows, n, inputs)`.
        a: Pre-activations before the first variable, `(rows, hidden)`.
        W: `(n, inputs, hidden)`.
        V: `(n, hidden, raw)`.
        activation: 'sigmoid' or 'relu'.
    """
    if transforms_active():  # no rules for them in `_Chain`
        return plain_chain(x, a, W, V, activation)
    return _Chain.apply(x, a, W, V, activation)


def plain_chain(x: Tensor, a: Tensor, W: Tensor, V: Tensor, activation: str) -> Tensor:
    """`chain` in plain operations: differentiable any number of times, and by `torch.func`."""
    raw = []
    for i in range(x.shape[-2]):
        raw.append(ACTIVATIONS[activation](a) @ V[i])
        a = a + x[:, i] @ W[i]
    return torch.stack(raw, -2)


class _Chain(torch.autograd.Function):
    """`chain`, remembering one pre-activation per block of steps.

    Its lean backward pass is first-order only; when a graph of the gradient is wanted, the plain form gives it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, W: Tensor, V: Tensor, activation: str) -> Tensor:
        n = x.shape[1]
        steps = x.transpose(0, 1).contiguous()
        raw = x.new_empty(n, len(x), V.shape[-1])
        ctx.activation, ctx.states = activation, _states_for_odds(x, W) if activation == "sigmoid" else None
        kept = a.new_empty(-(-n // BLOCK), *a.shape) if any(ctx.needs_input_grad) else None
        for rows in pieces(len(x), ROWS):
            now = a[rows].clone()
            scratch = [torch.empty_like(now)]
            outputs = list(zip(V.unbind(), raw[:, rows].unbind(), strict=True))
            for b, block in enumerate(pieces(n, BLOCK)):
                if kept is not None:
                    kept[b, rows] = now
                states = None if ctx.states is None else ctx.states[block, rows]
                hidden = _activations(now, steps[block, rows], W[block], activation, scratch, states)
                for h, (v, out) in zip(hidden, outputs[block], strict=True):
                    torch.mm(h, v, out=out)
                now.addmm_(x[rows, block].flatten(1), W[block].flatten(0, 1))
        ctx.save_for_backward(x, a, W, V, *([] if kept is None else [kept]))
        return raw.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, W, V, kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            inputs = [t for t, needed in zip((x, a, W, V), wanted, strict=True) if needed]
            raw = plain_chain(x, a, W, V, ctx.activation)
            got = iter(torch.autograd.grad(raw, inputs, grad, create_graph=True, allow_unused=True))
            return *(next(got) if needed else None for needed in wanted), None
        steps, grad = x.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous()
        dx, da, dW, dV = torch.zeros_like(steps), torch.empty_like(a), torch.zeros_like(W), torch.zeros_like(V)
        for rows in pieces(len(x), ROWS):
            da[rows] = _backward(steps[:, rows], kept[:, rows], W, V, grad[:, rows], ctx.activation,
                                 None if ctx.states is None else ctx.states[:, rows],
                                 dx[:, rows] if wanted[0] else None, dW, dV)
        if len(steps) == 1:  # nothing reads the only variable: no gradient, as in the plain form
            return None, da, None, dV, None
        return dx.transpose(0, 1) if wanted[0] else None, da, dW, dV, None


def _backward(x: Tensor, kept: Tensor, W: Tensor, V: Tensor, grad: Tensor, activation: str, states: Tensor | None,
              dx: Tensor | None, dW: Tensor, dV: Tensor) -> Tensor:
    """Add to `dW` and `dV`, fill `dx`, return the gradient of `a`; steps come first in all tensors."""
    G = torch.zeros_like(kept[0])  # gradient of the pre-activation after the present step
    t = torch.empty_like(G)
    scratch = [torch.empty_like(G) for _ in range(BLOCK)]
    blocks = list(pieces(len(x), BLOCK))
    for b in reversed(range(len(blocks))):
        block = blocks[b]
        here = None if states is None else states[block]
        hidden = list(_activations(kept[b], x[block], W[block], activation, scratch, here))
        views = zip(hidden, *(s[block].unbind() for s in (x.mT, V.mT, grad, dW, dV)), strict=True)
        for i, (h, xi, v, g, dw, dv) in zip(reversed(range(block.start, block.stop)), reversed(list(views)), strict=True):
            dw.addmm_(xi, G)
            if dx is not None:
                torch.mm(G, W[i].mT, out=dx[i])
            dv.addmm_(h.mT, g)
            torch.mm(g, v, out=t)
            if activation == "sigmoid":
                torch.ops.aten.sigmoid_backward.grad_input(t, h, grad_input=t)
            else:
                torch.ops.aten.threshold_backward.grad_input(t, h, 0, grad_input=t)
            G.add_(t)
    return G


def _activations(a: Tensor, x: Tensor, W: Tensor, activation: str, out: list[Tensor],
                 states: Tensor | None) -> Iterator[Tensor]:
    """activation(a + sum_{k<j} x_k W_k) for the steps of one block, written to `out` in turn."""
    if states is not None and odds_hold(a):
        factors = torch.cat((torch.zeros_like(W), W), 1).neg_().exp_()
        yield from sigmoids_by_odds(a, zip(factors, states, strict=True), out)
        return
    a = a.clone()
    for h, xj, w in zip(itertools.cycle(out), x, W, strict=False):
        yield torch.sigmoid(a, out=h) if activation == "sigmoid" else torch.clamp_min(a, 0, out=h)
        a.addmm_(xj, w)


def sigmoids_by_odds(a: Tensor, steps: Iterable[tuple[Tensor, Tensor]], out: list[Tensor]) -> Iterator[Tensor]:
    """sigmoid(a), and again after each step but the last, from the odds e = exp(-a): a step multiplies them by rows of its table.

    An exponential per block, and a product and a reciprocal per step, take less time than a sigmoid per step. Odds are only ever
    multiplied: to write the factor of a binary x as 1 + x (exp(-W) - 1) would cancel all digits of e where W is large.

    Args:
        a: `(rows, hidden)`.
        steps: For each step a table of factors `(T, hidden)` and which of them each row takes, `(rows,)`.
        out: Where the answers are written in turn.
    """
    e = a.neg().exp_()
    t, one = torch.empty_like(a), torch.ones_like(a[0])
    for h, (factors, index) in zip(itertools.cycle(out), steps, strict=False):
        torch.add(e, one, out=h)
        yield h.reciprocal_()
        e.mul_(torch.index_select(factors, 0, index, out=t))


# By how much a pre-activation may move within a block, and where it may start: together they stay within the range of the
# dtype, so that every digit of the odds counts.
MOVE = {torch.float32: 33.0, torch.float64: 330.0}
START = {torch.float32: 53.0, torch.float64: 370.0}


def odds_hold(a: Tensor) -> bool:
    """Whether the odds of a block that starts at `a`, and moves by `MOVE` at most, stay within the range of the dtype."""
    return bool(a.abs().amax() <= START[a.dtype])


def _states_for_odds(x: Tensor, W: Tensor) -> Tensor | None:
    """The states `(n, rows)` of binary variables, if odds pay and no unit moves too far within a block."""
    if x.shape[-1] != 1 or len(x) < 16 or x.dtype not in MOVE or not bool(((x == 0) | (x == 1)).all()):
        return None
    if max(float(W[block].abs().sum(0).max()) for block in pieces(len(W), BLOCK)) > MOVE[x.dtype]:
        return None
    return x.squeeze(-1).T.contiguous().int()


def pieces(size: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step`."""
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


class NADE(Family):
    r"""Neural autoregressive density estimator: one hidden layer, shared by all conditionals.

    Args:
        event_shape: An int or a tuple.
        hidden: Hidden units.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        activation: 'sigmoid' or 'relu'.
        generator: For a random order.

    Source:
        Larochelle, Murray (2011), *The neural autoregressive distribution estimator*, AISTATS.

    Example:
        >>> nade = NADE(event_shape=784, hidden=500)
        >>> nade.num_parameters
        784784
    """

    net_type = NADENet

    def __init__(self, event_shape: int | Sequence[int], hidden: int = 100, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *,
                 activation: str = "sigmoid", generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, activation=activation)
