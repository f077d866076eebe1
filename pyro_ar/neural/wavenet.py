r"""`WaveNet`: dilated causal convolutions along the chain."""

import math

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import Net
from pyro_ar.outputs import Output

__all__ = ["WaveNet", "WaveNetNet"]


class WaveNetNet(Net):
    r"""Layers of gated convolutions, each over the variable before and those at multiples of its dilation before that one.

    **Sampling** keeps for each layer a queue of its own last inputs, as many as its kernel spans, so that a variable costs one step of each layer
    (Le Paine et al. 2016).

    Shapes:
        - `enter` `(inputs, hidden)` and `places` `(n, hidden)`, or `(1, hidden)` without places: what the first layer is given.
        - `layers.l.weight` `(2 * hidden, hidden, kernel)`, the last tap on the present, and `layers.l.bias` `(2 * hidden,)`: a filter and its gate.
        - `layers.l.out` `(hidden, hidden + skip)`, or `(hidden, skip)` of the last: residual and skip.
        - `global_weight` `(width of the label, layers * 2 * hidden)`, `local_weight` `(local_dim, layers * 2 * hidden)`.
        - `skip_bias` `(skip,)`, `head.*`: the skips become raw parameters.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 32, skip: int = 64,
                 dilations: Sequence[int] | None = None, kernel: int = 2, local_dim: int = 0, places: bool = True) -> None:
        super().__init__(event_shape, output, context_dim)
        n = self.num_variables
        for name, size in (("hidden", hidden), ("skip", skip)):
            require(isinstance(size, int) and size > 0, f"{name} must be a positive int", size)
        require(isinstance(local_dim, int) and 0 <= local_dim * n <= context_dim,
                f"the context holds local_dim numbers for each of the {n} variables behind the label, so context_dim must be {n} * local_dim or more",
                local_dim, context_dim)
        self.dilations, self.kernel = _dilations(n, kernel, dilations)
        self.local_dim, self.hidden = local_dim, hidden
        self.enter = nn.Parameter(torch.randn(output.inputs, hidden) / math.sqrt(output.inputs))
        self.places = nn.Parameter(torch.randn(n if places else 1, hidden) * (0.1 if places else 0.0))
        depth = len(self.dilations)
        self.layers = nn.ModuleList(_Layer(hidden, skip, self.kernel, d, last=k == depth - 1) for k, d in enumerate(self.dilations))
        self.skip_bias = nn.Parameter(torch.zeros(skip))
        self.head = nn.ModuleList([nn.Linear(skip, skip), nn.Linear(skip, output.raw)])
        label, told = context_dim - local_dim * n, depth * 2 * hidden
        self.global_weight = nn.Parameter(torch.randn(label, told) * 0.1) if label else None
        self.local_weight = nn.Parameter(torch.randn(local_dim, told) * 0.1) if local_dim else None

    @property
    def num_parameters(self) -> int:
        # What only the last variable has is read by none.
        read = max((o.inputs for o in self.output.variables(self.num_variables)[:-1]), default=0)
        return super().num_parameters - (self.output.inputs - read) * self.hidden

    def _layers(self) -> list["_Layer"]:
        return list(self.layers)  # type: ignore[arg-type]

    def _label(self, context: Tensor | None) -> Tensor:
        """The bias of all layers, `(rows or 1, layers * 2 * hidden)`."""
        bias = torch.cat([layer.bias for layer in self._layers()]).unsqueeze(0)
        if context is None or self.global_weight is None:
            return bias
        return bias + context[:, :len(self.global_weight)] @ self.global_weight

    def _sequence(self, context: Tensor | None) -> Tensor | None:
        """What the sequence adds to all layers at each variable, `(rows, n, layers * 2 * hidden)`."""
        if context is None or self.local_weight is None:
            return None
        label = self.context_dim - self.local_dim * self.num_variables
        return context[:, label:].unflatten(-1, (self.num_variables, self.local_dim)) @ self.local_weight

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._head(self._pass(x, context))

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The mean over places of the skips, as the head reads them, `(rows, skip)`."""
        return F.elu(self._pass(x, context)).mean(1)

    def _pass(self, x: Tensor, context: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        """The skips `(rows, m, skip)`, and the inputs of each layer, `(rows, m, hidden)`, where they are to be kept."""
        m = x.shape[1]
        told, sequence = self._label(context).unsqueeze(1), self._sequence(context)
        if sequence is not None:
            told = told + sequence[:, :m]
        before = F.pad(self.output.encode(x)[:, :-1], (0, 0, 1, 0))
        h = before @ self.enter + self.places[:m]
        skips: Any = self.skip_bias
        for layer, more in zip(self._layers(), told.split(2 * self.hidden, -1), strict=True):
            if kept is not None:
                kept.append(h)
            out = _gate(layer(h) + more) @ layer.out
            skips = skips + out[..., -len(self.skip_bias):]
            if not layer.last:
                h = h + out[..., :self.hidden]
        return skips

    def _head(self, skips: Tensor) -> Tensor:
        # The paper's ReLU has a kink, at which the rounding of shut and open gates would decide about gradients.
        for linear in self.head:
            skips = linear(F.elu(skips))
        return skips

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        zeros = self.enter.new_zeros
        return _State(
            x=zeros(rows, self.num_variables), context=context, told=list(self._label(context).expand(rows, -1).split(2 * self.hidden, -1)),
            local=self._sequence(context), weights=[layer.taps() for layer in self._layers()],
            queues=[[zeros(rows, self.hidden)] * ((self.kernel - 1) * d + 1) for d in self.dilations])

    def advance(self, state: "_State", value: Tensor | None) -> Tensor:
        if value is not None:
            self._write(state, value)
        self._run(state)
        return self._head(state.skips)

    def _write(self, state: "_State", value: Tensor) -> None:
        state.x[:, state.i] = value
        state.i += 1

    def _run(self, state: "_State") -> None:
        """Step all layers to the next variable."""
        i, width = state.i, self.hidden
        h = self.places[i if len(self.places) > 1 else 0].expand(len(state.x), -1)
        if i:
            h = torch.addmm(h, self.output.at(i - 1).encode(state.x[:, i - 1]), self.enter)
        # Both streams side by side, so that one product adds to both.
        streams = torch.cat((h, self.skip_bias.expand(len(state.x), -1)), -1)
        told = state.told if state.local is None else [
            told + more for told, more in zip(state.told, state.local[:, i].split(2 * width, -1), strict=True)]
        for k, (layer, queue) in enumerate(zip(self._layers(), state.queues, strict=True)):
            queue[i % len(queue)] = h
            z, taps = told[k], state.weights[k]
            for back, tap in enumerate(taps):
                z = torch.addmm(z, queue[(i - back * layer.dilation) % len(queue)], tap)
            a, b = z.chunk(2, -1)
            y = a.tanh() * b.sigmoid()
            if layer.last:
                state.skips = torch.addmm(streams[:, width:], y, layer.out)
            else:
                streams = torch.addmm(streams, y, layer.out)
                h = streams[:, :width]

    def prefill(self, state: "_State", values: Tensor) -> None:
        first, end = state.i, state.i + values.shape[-1]
        if 2 * (end - first) <= end:  # a pass takes about as long as stepping through half of it
            for value in values.unbind(-1):
                self._run(state)
                self._write(state, value)
            return
        state.x[:, first:end] = values
        state.i = end
        kept: list[Tensor] = []
        self._pass(state.x[:, :end], state.context, kept)
        for h, queue in zip(kept, state.queues, strict=True):
            for i in range(max(0, end - len(queue)), end):
                queue[i % len(queue)] = h[:, i].clone()  # of its own, so that the pass is not held

    def take(self, state: "_State", index: Tensor) -> Any:
        return state.take(index)


@dataclass
class _State:
    """What stepping remembers. All tensors but `weights`, which are the net's, have the rows first.

    Attributes:
        told: What the label adds to each layer, with its bias; `local`: what the sequence adds to all layers at each variable.
        queues: Of each layer its last inputs; that of variable i lies at i modulo their number.
    """

    x: Tensor
    context: Tensor | None
    told: list[Tensor]
    local: Tensor | None
    weights: list[list[Tensor]]
    queues: list[list[Tensor]]
    skips: Any = None
    i: int = 0

    def take(self, index: Tensor) -> "_State":
        names = ("x", "context", "told", "local", "queues", "skips")
        rows = {name: tree_map(lambda t: t if t is None else t.index_select(0, index), getattr(self, name)) for name in names}
        return replace(self, **rows)


class _Layer(nn.Module):
    """A dilated causal convolution into a filter and its gate, and the weights of what it adds to the streams."""

    def __init__(self, hidden: int, skip: int, kernel: int, dilation: int, *, last: bool) -> None:
        super().__init__()
        self.dilation, self.last = dilation, last
        self.weight = nn.Parameter(torch.randn(2 * hidden, hidden, kernel) / math.sqrt(hidden * kernel))
        self.bias = nn.Parameter(torch.zeros(2 * hidden))
        self.out = nn.Parameter(torch.randn(hidden, skip if last else hidden + skip) / math.sqrt(hidden))

    def forward(self, h: Tensor) -> Tensor:
        """From `(rows, m, hidden)` to `(rows, m, 2 * hidden)`, without the bias."""
        span = (self.weight.shape[-1] - 1) * self.dilation
        return F.conv1d(F.pad(h, (0, 0, span, 0)).mT, self.weight, dilation=self.dilation).mT

    def taps(self) -> list[Tensor]:
        """The weights of the present, of one dilation before, of two, ...: `(hidden, 2 * hidden)` each."""
        return list(self.weight.permute(2, 1, 0).flip(0).contiguous().unbind(0))


def _gate(z: Tensor) -> Tensor:
    """The tanh of one half of the channels times the sigmoid of the other."""
    a, b = z.chunk(2, -1)
    return a.tanh() * b.sigmoid()


def _dilations(n: int, kernel: int, dilations: Sequence[int] | None) -> tuple[tuple[int, ...], int]:
    """As told, or doubled while they stay within the chain; and the kernel, of which a single variable leaves one tap."""
    require(isinstance(kernel, int) and kernel >= 2, "kernel must be 2 taps or more", kernel)
    if n == 1 and dilations is None:
        return (1,), 1
    if dilations is None:
        dilations = [2**k for k in range(n.bit_length()) if (kernel - 1) * 2**k < n]
    found = tuple(dilations) if isinstance(dilations, Sequence) else ()
    require(len(found) > 0 and all(isinstance(d, int) and d > 0 for d in found) and (kernel - 1) * max(found) < n,
            f"a kernel of {kernel} taps must fit into the {n} variables at every dilation, and dilations must be positive ints", dilations)
    return found, kernel


class WaveNet(Family):
    r"""Dilated causal convolutions: each variable given those before it in the chain, the receptive field doubling layer by layer.

    With the inputs x of a layer, a label h (global context) and a sequence y as long as the chain (local context), section 2.5:

    .. math:: z = \tanh(W_f * x + V_f^\top h + U_f * y) \odot \sigma(W_g * x + V_g^\top h + U_g * y)

    A product with z is added to the residual stream, another to the skips, which two layers of single variables turn into raw parameters.

    The context is one vector: the label, and behind it the sequence flattened, variable after variable of the chain,
    `torch.cat((label, sequence.flatten(-2)), -1)` for a `sequence` `(*C, n, local_dim)`.

    Args:
        event_shape: An int or a tuple.
        hidden: Channels of the residual stream.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, label and sequence together, 0 for none.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        skip: Channels of the skips.
        dilations: One for each layer; None: 1, 2, 4, ... as long as they stay within the chain.
        kernel: Taps of a convolution.
        local_dim: Width of the sequence at each variable; the last `n * local_dim` numbers of the context are the sequence.
        places: Give the first layer an embedding of the place of each variable. Sound has no use for one: with `places=False` the weights are the same
            everywhere along the chain.
        generator: For a random order.

    Raises:
        ValueError: A kernel longer than the chain at some dilation, or a context too narrow for its sequence.

    Source:
        van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior, Kavukcuoglu (2016), *WaveNet: a generative model for raw audio*,
        sections 2.1 to 2.5; queues: Le Paine et al. (2016), *Fast Wavenet generation algorithm*.

    Example:
        >>> wavenet = WaveNet(16, hidden=8, context_dim=3 + 16 * 2, local_dim=2)
        >>> label, sequence = torch.eye(3), torch.randn(3, 16, 2)
        >>> wavenet(torch.cat((label, sequence.flatten(-2)), -1)).sample().shape
        torch.Size([3, 16])
    """

    net_type = WaveNetNet

    def __init__(self, event_shape: int | Sequence[int], hidden: int = 32, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | str | None = None, *, skip: int = 64, dilations: Sequence[int] | None = None, kernel: int = 2,
                 local_dim: int = 0, places: bool = True, generator: torch.Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, hidden=hidden, skip=skip,
                   dilations=None if dilations is None else tuple(dilations), kernel=kernel, local_dim=local_dim, places=places)
