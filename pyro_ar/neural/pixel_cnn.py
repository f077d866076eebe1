r"""`PixelCNN`: masked convolutions over an image, in residual blocks, or gated in two stacks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.masked_conv import MaskedConv
from pyro_ar.neural.net import Net, as_event_shape
from pyro_ar.order import channels_within_pixels
from pyro_ar.outputs import Output, PerVariable

__all__ = ["PixelCNN", "PixelCNNNet"]


class _Residual(nn.Module):
    """Residual blocks of masked convolutions (van den Oord et al. 2016a, figure 5 and table 1)."""

    active = staticmethod(torch.relu)

    def __init__(self, inputs: int, hidden: int, blocks: int, kernel: int, block_kernel: int, groups: int, context_dim: int) -> None:
        super().__init__()
        self.groups, self.width = groups, 2 * hidden
        self.first = MaskedConv(inputs, 2 * hidden, kernel // 2, kernel // 2, "A", groups)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "down": MaskedConv(2 * hidden, hidden, 0, 0, "B", groups),
            "middle": MaskedConv(hidden, hidden, block_kernel // 2, block_kernel // 2, "B", groups),
            "up": MaskedConv(hidden, 2 * hidden, 0, 0, "B", groups, gain=0.5)}) for _ in range(blocks))
        # Which convolutions see rows above, the pixels to the left, one pixel; the first of each reads features of the image.
        self.tall = self.wide = [self.first, *(block["middle"] for block in self._blocks())]
        self.points = [conv for block in self._blocks() for conv in (block["down"], block["up"])]
        self.told = [2 * hidden] + [hidden] * blocks

    def _blocks(self) -> list[Any]:
        return list(self.blocks)

    def forward(self, h: Tensor, told: list, places: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        _keep(h, kept)
        h = _plus(_plus(self.first(h), told[0]), places)
        for block, more in zip(self._blocks(), told[1:], strict=True):
            inner = block["down"](h.relu()).relu()
            _keep(inner, kept)
            h = h + block["up"](_plus(block["middle"](inner), more).relu())
        return h

    def open_row(self, state: "_State") -> None:
        """What the rows above say of each pixel of a new row, for all layers at once."""
        state.base = [_plus(conv.from_above(lines), told) for conv, lines, told in zip(self.tall, state.history, state.told, strict=True)]

    def close_row(self, state: "_State") -> None:
        """Remember the row that has been stepped through."""
        state.history = [_lower(lines, line) for lines, line in zip(state.history, state.line, strict=True)]

    def step(self, state: "_State", pixel: int, c: int) -> Tensor:
        h = state.seen_by(0, pixel, c)
        for k in range(1, len(self.wide)):
            state.write(k, pixel, c, state.mixed(2 * k - 2, c, h.relu()).relu_())
            h = state.mixed(2 * k - 1, c, state.seen_by(k, pixel, c).relu_()).add_(h)
        return h


class _Gated(nn.Module):
    """A vertical stack, which sees all rows above, and a horizontal one, which sees the row so far and the vertical stack (2016b, figure 2)."""

    # Without a kink, at which the rounding of shut and open gates would decide about gradients.
    active = staticmethod(F.elu)

    def __init__(self, inputs: int, hidden: int, blocks: int, kernel: int, block_kernel: int, groups: int, context_dim: int) -> None:
        super().__init__()
        self.groups, self.width = groups, hidden
        layers = []
        for k in range(blocks + 1):
            into, side = (hidden, block_kernel // 2) if k else (inputs, kernel // 2)
            layers.append(nn.ModuleDict({
                "vertical": MaskedConv(into, 2 * hidden, side, side, "all" if k else "none"),
                "link": MaskedConv(2 * hidden, 2 * hidden, 0, 0, "all"),
                "horizontal": MaskedConv(into, 2 * hidden, 0, side, "B" if k else "A", groups),
                "out": MaskedConv(hidden, hidden, 0, 0, "B", groups)}))
        self.layers = nn.ModuleList(layers)
        self.tall, self.wide, self.points = ([layer[name] for layer in self._layers()] for name in ("vertical", "horizontal", "out"))
        self.told = [2 * hidden] * (2 * blocks + 2)

    def _layers(self) -> list[Any]:
        return list(self.layers)

    def forward(self, h: Tensor, told: list, places: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        above = h
        for k, layer in enumerate(self._layers()):
            _keep(above, kept)
            z = _plus(layer["vertical"](above), told[2 * k])
            y = layer["out"](_gate(_plus(_plus(layer["horizontal"](h) + layer["link"](z), told[2 * k + 1]), None if k else places), self.groups))
            h, above = h + y if k else y, _gate(z)
        return h

    def open_row(self, state: "_State") -> None:
        """The vertical stack of a new row, and what it says to the horizontal one."""
        above: Any = None
        state.base = []
        for k, layer in enumerate(self._layers()):
            lines = torch.cat((state.history[k], above), 2) if k else state.history[0]
            z = _plus(layer["vertical"].at_row(lines), state.told[2 * k])
            bias = layer["horizontal"].bias.reshape(-1, 1, 1)
            state.base.append(_plus(layer["link"](z) + bias, state.told[2 * k + 1]))
            state.history[k], above = lines[:, :, 1:] if k else lines, _gate(z)

    def close_row(self, state: "_State") -> None:
        """Remember the row that has been stepped through; the deeper layers of the vertical stack know it already."""
        state.history[0] = _lower(state.history[0], state.line[0])

    def step(self, state: "_State", pixel: int, c: int) -> Tensor:
        h: Any = None
        for k in range(len(self.wide)):
            if k:
                state.write(k, pixel, c, h)
            a, b = state.seen_by(k, pixel, c).chunk(2, -1)
            y = state.mixed(k, c, a.tanh() * b.sigmoid())
            h = y.add_(h) if k else y
        return h


class PixelCNNNet(Net):
    r"""Convolutions that see what stands before a pixel in raster scan: R of a pixel, then G, then B, where there are channels.

    **Sampling** computes only what is new. The rows above enter a whole row at a time, all layers together, when a row begins; then each pixel
    costs a product per layer with the few cells to its left, of which each layer keeps its own. `stop` leaves out the rows below.

    Shapes:
        - `body.*.weight` `(out, in, rows, columns)` and `bias`, see `MaskedConv`; `head.0`, `head.1` over single pixels.
        - `places` `(2 * hidden, height, width)`: added to the first layer (of the horizontal stack).
        - `context_weight` `(context_dim, all that is told)`: added to each convolution (of both stacks), the same for all pixels.
    """

    layout = "event"

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 32, blocks: int = 4,
                 kernel: int = 7, block_kernel: int = 3, gated: bool = False, places: bool = False) -> None:
        super().__init__(event_shape, output, context_dim)
        self.channels, self.height, self.width = _as_image(self.event_shape)
        require(isinstance(hidden, int) and hidden > 0 and hidden % self.channels == 0,
                f"hidden must be a positive multiple of the channels of the image, {self.channels}", hidden)
        require(isinstance(blocks, int) and blocks >= 0, "blocks must be 0 or more", blocks)
        for name, size in (("kernel", kernel), ("block_kernel", block_kernel)):
            require(isinstance(size, int) and size % 2 == 1 and size >= 3, f"{name} must be an odd number, 3 or more", size)
            require(size <= self.width and size // 2 < self.height,
                    f"a {name} of {size} sees {size // 2 + 1} rows and {size} columns, so the image must be as large", self.event_shape)
        self.chain_order = self.order_of(self.event_shape)
        stack = _Gated if gated else _Residual
        self.body: Any = stack(self.channels * output.inputs, hidden, blocks, kernel, block_kernel, self.channels, context_dim)
        wide = self.body.width
        self.head = nn.ModuleList([MaskedConv(wide, wide, 0, 0, "B", self.channels),
                                   MaskedConv(wide, self.channels * output.raw, 0, 0, "B", self.channels, gain=0.5)])
        told = sum(self.body.told)
        self.context_weight = nn.Parameter(torch.randn(context_dim, told) * 0.1) if context_dim else None
        self.places = nn.Parameter(torch.randn(2 * hidden, self.height, self.width) * 0.1) if places else None
        self._leave_out_unused()

    @classmethod
    def order_of(cls, event_shape: Sequence[int]) -> Tensor | None:
        return channels_within_pixels(event_shape) if _as_image(event_shape)[0] > 1 else None

    def _leave_out_unused(self) -> None:
        """Of variables with outputs of their own: features that none before the last has, raw parameters that none has."""
        self._unread_biases = 0
        if not isinstance(self.output, PerVariable):
            return
        each, C = self.output.variables(self.num_variables), self.channels
        read = [max(o.inputs for o in each[c:-1:C]) for c in range(C)]
        used = [max(o.raw for o in each[c::C]) for c in range(C)]
        features = torch.tensor([k < most for most in read for k in range(self.output.inputs)], device="cpu")
        answers = torch.tensor([k < most for most in used for k in range(self.output.raw)], device="cpu")
        for conv in (self.body.tall[0], self.body.wide[0]):
            conv.mask &= features[:, None, None]
        self._head()[1].mask &= answers[:, None, None, None]
        self._unread_biases = int((~answers).sum())

    def _head(self) -> list[MaskedConv]:
        return list(self.head)  # type: ignore[arg-type]

    @property
    def num_parameters(self) -> int:
        idle = sum(module.idle for module in self.modules() if isinstance(module, MaskedConv))
        return super().num_parameters - idle - self._unread_biases

    def _features(self, x: Tensor) -> Tensor:
        """Of whole rows of pixels in chain order, `(rows, channels * inputs, image rows, width)`."""
        lines, inputs = x.shape[1] // (self.width * self.channels), self.channels * self.output.inputs
        return self.output.encode(x).reshape(len(x), lines, self.width, inputs).permute(0, 3, 1, 2)

    def _places(self, lines: slice) -> Tensor | None:
        """What the place of each pixel of some rows adds to the first layer, `(outputs, rows, width)`."""
        return None if self.places is None else self.places[:, lines]

    def _told(self, context: Tensor | None) -> list:
        """What the context adds to each convolution, `(rows, outputs, 1, 1)`."""
        if context is None or self.context_weight is None:
            return [None] * len(self.body.told)
        return list((context @ self.context_weight)[..., None, None].split(self.body.told, 1))

    def forward(self, x: Tensor, context: Tensor | None = None, stop: int | None = None) -> Tensor:
        C, W, n = self.channels, self.width, self.num_variables
        lines = -(-(n if stop is None else stop) // (C * W))
        chain = x.reshape(len(x), C, self.height, W)[:, :, :lines].permute(0, 2, 3, 1).flatten(1)
        h = self.body(self._features(chain), self._told(context), self._places(slice(lines)))
        for conv in self._head():
            h = conv(self.body.active(h))
        raw = F.pad(h.unflatten(1, (C, self.output.raw)), (0, 0, 0, self.height - lines))
        return raw.movedim(2, -1).reshape(len(x), *self.event_shape, self.output.raw)

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        body, zeros = self.body, next(self.parameters()).new_zeros
        points = [*body.points, *self._head()]
        return _State(
            channels=self.channels, windows=[conv.matrices() for conv in body.wide], told=self._told(context),
            pointwise=[list(zip(conv.bias.chunk(self.channels), conv.matrices(), strict=True)) for conv in points],
            x=zeros(rows, self.num_variables), seen=[[None] * self.channels for _ in points],
            history=[zeros(rows, conv.weight.shape[1], conv.above, self.width) for conv in body.tall],
            line=[zeros(rows, conv.left + self.width, conv.weight.shape[1]) for conv in body.wide])

    def advance(self, state: "_State", value: Tensor | None) -> Tensor:
        if value is not None:
            self._write(state, value)
        self._run(state)
        return state.answer

    def _run(self, state: "_State") -> None:
        """Step to the next variable, unless the state stands there."""
        if state.ran == state.i:
            return
        pixel, c = divmod(state.i, self.channels)
        if pixel % self.width == 0 and c == 0:
            self.body.open_row(state)
            row = pixel // self.width
            state.base[0] = _plus(state.base[0], self._places(slice(row, row + 1)))
            state.views = None
        h, points = self.body.step(state, pixel % self.width, c), len(state.pointwise)
        for k in (points - 2, points - 1):
            h = state.mixed(k, c, self.body.active(h))
        state.answer, state.ran = h, state.i

    def _write(self, state: "_State", value: Tensor) -> None:
        """Take the value of the variable that the state stands at."""
        i = state.i
        state.x[:, i] = value
        pixel, c = divmod(i, self.channels)
        state.write(0, pixel % self.width, c, self.output.at(i).encode(state.x[:, i]))
        state.i = i + 1
        if state.i % (self.width * self.channels) == 0 and state.i < self.num_variables:
            self.body.close_row(state)

    def prefill(self, state: "_State", values: Tensor) -> None:
        end, line = state.i + values.shape[-1], self.width * self.channels
        done = end // line * line
        if 2 * (done - state.i) > done:  # a pass takes about as long as stepping through half of it, on a large image
            state.x[:, state.i:done] = values[:, :done - state.i]
            values = values[:, done - state.i:]
            self._restore(state, done)
        for value in values.unbind(-1):
            self._run(state)
            self._write(state, value)

    def _restore(self, state: "_State", done: int) -> None:
        """Stand at the beginning of a row: what all layers remember of the rows above, by one pass."""
        kept: list[Tensor] = []
        if done < self.num_variables:
            self.body(self._features(state.x[:, :done]), state.told, self._places(slice(done // (self.width * self.channels))), kept)
            state.history = [F.pad(h, (0, 0, conv.above, 0))[:, :, -conv.above:] for h, conv in zip(kept, self.body.tall, strict=True)]
        state.i, state.ran = done, -1

    def take(self, state: "_State", index: Tensor) -> Any:
        return state.take(index)


@dataclass
class _State:
    """What stepping remembers. All tensors but `windows` and `pointwise`, which are the net's weights, have the rows first.

    Attributes:
        history: For each convolution over rows above, what it sees of them.
        line: For each convolution to the left, its inputs in the row so far, `(rows, left + width, inputs)`; further right, where weights are zero or nothing
            is read, those of the row above.
        base: What is known of a row when it begins, for each of these.
        seen: For each convolution of single pixels, its inputs in this pixel, group by group.
    """

    channels: int
    windows: list[list[Tensor]]
    pointwise: list[list[tuple[Tensor, Tensor]]]
    told: list
    x: Tensor
    seen: list[list[Any]]
    history: list[Tensor]
    line: list[Tensor]
    base: list[Tensor] = field(default_factory=list)
    answer: Any = None
    i: int = 0
    ran: int = -1
    views: Any = None

    def take(self, index: Tensor) -> "_State":
        names = ("told", "x", "seen", "history", "line", "base", "answer")
        rows = {name: tree_map(lambda t: t if t is None else t.index_select(0, index), getattr(self, name)) for name in names}
        return replace(self, **rows, views=None)

    def seen_by(self, k: int, pixel: int, c: int) -> Tensor:
        """The answer of group c of convolution k of a row, from what lies to the left and the rows above."""
        if self.views is None:
            self._view()
        bases, cells, _ = self.views[k]
        return torch.addmm(bases[pixel * self.channels + c], cells[pixel], self.windows[k][c])

    def write(self, k: int, pixel: int, c: int, value: Tensor) -> None:
        """What convolution k of a row reads of group c of a pixel."""
        if self.views is None:
            self._view()
        self.views[k][2][pixel * self.channels + c].copy_(value)

    def mixed(self, k: int, c: int, h: Tensor) -> Tensor:
        """The answer of group c of convolution k of single pixels, whose input of that group is `h`."""
        if self.channels > 1:
            self.seen[k][c] = h
            h = torch.cat(self.seen[k][:c + 1], -1)
        bias, matrix = self.pointwise[k][c]
        return torch.addmm(bias, h, matrix[:h.shape[-1]])

    def _view(self) -> None:
        """Views of what each step reads and writes: to make one costs as much as a small product."""
        self.views = []
        for k, line in enumerate(self.line):
            rows, long, inputs = line.shape
            outputs, width = self.base[k].shape[1], self.base[k].shape[3]
            bases = self.base[k].squeeze(2).mT.reshape(rows, width * self.channels, outputs // self.channels).unbind(1)
            left = long - width
            cells = [line[:, j:j + left + 1].view(rows, (left + 1) * inputs) for j in range(width)]
            group = inputs // self.channels
            slots = [line[:, left + j, c * group:(c + 1) * group] for j in range(width) for c in range(self.channels)]
            self.views.append((bases, cells, slots))


def _keep(h: Tensor, kept: list[Tensor] | None) -> None:
    """Remember what a layer reads, where asked."""
    if kept is not None:
        kept.append(h)


def _plus(h: Tensor, more: Tensor | None) -> Tensor:
    return h if more is None else h + more


def _gate(z: Tensor, groups: int = 1) -> Tensor:
    """The tanh of one half of the channels of each group, times the sigmoid of the other (2016b, eq. 2)."""
    a, b = z.unflatten(1, (groups, 2, -1)).unbind(2)
    return (a.tanh() * b.sigmoid()).flatten(1, 2)


def _lower(lines: Tensor, line: Tensor) -> Tensor:
    """Rows `(rows, inputs, above, width)` without the uppermost, and a new one, `(rows, left + width, inputs)`, below them."""
    new = line[:, line.shape[1] - lines.shape[-1]:].mT.unsqueeze(2)
    return torch.cat((lines[:, :, 1:], new), 2)


def _as_image(event_shape: int | Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width."""
    shape = as_event_shape(event_shape)
    require(len(shape) in (2, 3), "event_shape must be an image: (height, width) or (channels, height, width)", tuple(shape))
    return (1, *shape) if len(shape) == 2 else tuple(shape)  # type: ignore[return-value]


class PixelCNN(Family):
    r"""Masked convolutions: each pixel given those above it and to its left, by the same weights everywhere in the image.

    The masked one (2016a) has a k x k convolution of type A, then residual blocks of type B. It has a blind spot: pixels above and to the right that
    no chain of its kernels reaches. The gated one (2016b) has none: a vertical stack sees all rows above, a horizontal one the row so far and the
    vertical one. Each of its layers, eq. 2 and 4, with the context h:

    .. math:: y = \tanh(W_f * x + V_f^\top h) \odot \sigma(W_g * x + V_g^\top h)

    The channels of a pixel follow one another: R, then G given R, then B given both. Hidden channels lie in as many groups, and a group sees those of
    its own pixel up to its own. No other order is taken.

    Args:
        event_shape: (height, width) or (channels, height, width).
        hidden: Hidden channels, a multiple of the channels of the image; the masked one has twice as many between its blocks.
        blocks: Residual blocks, or gated layers after the first one.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None, or the net's own: raster scan, and channels within pixels.
        kernel: Columns of the first kernel, an odd number; it sees `kernel // 2` rows above.
        block_kernel: Columns of the kernels after it.
        gated: The gated one.
        places: Give the first layer an embedding of the place of each pixel, which the papers do without: small pictures that are all centred alike are
            learnt with fewer layers. The weights are otherwise the same everywhere in the image.

    Raises:
        ValueError: No image, a kernel larger than the image, another order, hidden channels that are no multiple.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016a), *Pixel recurrent neural networks*, ICML, sections 3.4 and 3.5; van den Oord, Kalchbrenner,
        Vinyals, Espeholt, Graves, Kavukcuoglu (2016b), *Conditional image generation with PixelCNN decoders*, NIPS 29.

    Example:
        >>> PixelCNN((1, 8, 8), hidden=8, blocks=2)().event_shape
        torch.Size([1, 8, 8])
        >>> PixelCNN((3, 8, 8), hidden=12, gated=True, context_dim=10)(torch.eye(10)).sample().shape
        torch.Size([10, 3, 8, 8])
    """

    net_type = PixelCNNNet

    def __init__(self, event_shape: Sequence[int], hidden: int = 48, blocks: int = 4, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | None = None, *, kernel: int = 7, block_kernel: int = 3, gated: bool = False,
                 places: bool = False) -> None:
        self._make(event_shape, output, context_dim, order, None, hidden=hidden, blocks=blocks, kernel=kernel, block_kernel=block_kernel,
                   gated=gated, places=places)
