r"""Nets that read an image in raster order: what the rows above say enters a row at a time, what lies to the left pixel by pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_ar.checks import require
from pyro_ar.neural.layers.linear_channels import LinearChannels
from pyro_ar.neural.layers.masked_conv import MaskedConv
from pyro_ar.neural.net import Net, as_event_shape
from pyro_ar.order import channels_within_pixels
from pyro_ar.outputs import Output, PerVariable

__all__ = ["Body", "RasterNet", "RasterState", "keep", "last_rows", "lower", "plus"]


class Body(nn.Module):
    r"""Layers over an image, from features of its pixels to what a `RasterNet` reads raw parameters from: as a pass, and stepping.

    Attributes:
        active: What the head applies before each of its convolutions.
        width: Channels that it gives.
        tall: Convolutions that see rows above, which stepping remembers as `history`. The first one reads features of the image.
        wide: Convolutions that see pixels of the own row, for which stepping keeps a `line` and a `base` each. The first one reads features of the image.
        points: Convolutions of single pixels.
        told: To how many channels the context adds in each place of which there is a `told`.
        beyond: Columns beyond the right edge of the image that it works on too, and drops in the end.
    """

    active: Callable[[Tensor], Tensor]
    width: int
    tall: list[MaskedConv]
    wide: list[MaskedConv]
    points: list[MaskedConv]
    told: list[int]
    beyond = 0

    def forward(self, h: Tensor, told: list, places: Tensor | None, kept: list[Any] | None = None) -> Tensor:
        """From features `(rows, inputs, height, width)` to `(rows, self.width, height, width)`.

        Args:
            h: Features.
            told: What the context adds in each place, `(rows, outputs, 1, 1)`, or None.
            places: What the place of a pixel adds to the first layer, `(outputs, height, width + beyond)`, or None.
            kept: Takes what `recall` asks for, if a list.
        """
        raise NotImplementedError

    def memory(self, rows: int, width: int) -> Any:
        """What stepping remembers besides what convolutions read, before the first row of an image of as many columns; tensors have the rows first."""
        return None

    def recall(self, state: "RasterState", kept: list[Any]) -> None:
        """Stand at the beginning of the row below a pass that filled `kept`: here with what each of `tall` read."""
        state.history = [last_rows(h, conv.above) for h, conv in zip(kept, self.tall, strict=True)]

    def open_row(self, state: "RasterState") -> None:
        """Write in `state.base` what is known of each pixel of a new row, `(rows, outputs, 1, width + beyond)` for each of `wide`."""
        raise NotImplementedError

    def close_row(self, state: "RasterState") -> None:
        """Remember the row that has been stepped through."""
        raise NotImplementedError

    def step(self, state: "RasterState", pixel: int, c: int) -> Tensor:
        """What group c of channels gives in a pixel of the row, `(rows, self.width / groups)`."""
        raise NotImplementedError


class RasterNet(Net):
    r"""A body of layers that see what stands before a pixel in raster scan (R of a pixel, then G, then B, where there are channels), and a head.

    The channels of a pixel follow one another by masks between groups of hidden channels, or by `LinearChannels`: then all that the net gives for a pixel is of
    the pixels before, and its own values enter the last step alone.

    **Sampling** computes only what is new. The rows above enter a whole row at a time, all layers together, when a row begins; then each pixel
    costs a product per layer with the few cells to its left, of which each layer keeps its own. `stop` leaves out the rows below.

    Shapes:
        - `body.*`: what the kind of net says; `head.0`, `head.1` over single pixels.
        - `places` `(2 * hidden, height, width)`: added to the first layer.
        - `context_weight` `(context_dim, all that is told)`: added to each convolution that sees other pixels, the same for all pixels.

    Args:
        event_shape: (height, width) or (channels, height, width).
        output: What the net computes raw parameters for.
        context_dim: Width of the context, 0 for none.
        body: From the number of features of a pixel and that of groups of channels to the layers.
        hidden: Hidden channels, a multiple of the channels of the image.
        kernels: The sizes of its square kernels, by the name of the argument that says them.
        places: Whether the first layer is told the place of each pixel.
        channels: 'groups', or 'linear', for which the output must be a mixture.
    """

    layout = "event"

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int, body: Callable[[int, int], Body], *, hidden: int,
                 kernels: Mapping[str, int], places: bool, channels: str) -> None:
        super().__init__(event_shape, output, context_dim)
        self.channels, self.height, self.width = _as_image(self.event_shape)
        require(channels in ("groups", "linear"), "channels must be 'groups' or 'linear'", channels)
        self.linear = LinearChannels(output, self.channels) if channels == "linear" else None
        self.groups = self.channels if self.linear is None else 1
        require(isinstance(hidden, int) and hidden > 0 and hidden % self.groups == 0,
                f"hidden must be a positive multiple of the channels of the image, {self.groups}", hidden)
        for name, size in kernels.items():
            require(isinstance(size, int) and size % 2 == 1 and size >= 3, f"{name} must be an odd number, 3 or more", size)
            require(size <= self.width and size // 2 < self.height,
                    f"a {name} of {size} sees {size // 2 + 1} rows and {size} columns, so the image must be as large", self.event_shape)
        self.chain_order = self.order_of(self.event_shape)
        self.body: Any = body(self.channels * output.inputs, self.groups)
        wide, numbers = self.body.width, self.channels * output.raw if self.linear is None else self.linear.raw
        self.head = nn.ModuleList([MaskedConv(wide, wide, 0, 0, "B", self.groups), MaskedConv(wide, numbers, 0, 0, "B", self.groups, gain=0.5)])
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
        """What the place of each pixel of some rows adds to the first layer, `(outputs, rows, width)`, and none beyond the edge."""
        return None if self.places is None else F.pad(self.places[:, lines], (0, self.body.beyond))

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
        if self.linear is None:
            raw = h.unflatten(1, (C, self.output.raw)).movedim(2, -1)
        else:
            raw = self.linear(h.movedim(1, -1), chain.reshape(len(x), lines, W, C)[..., :-1]).movedim(3, 1)
        return F.pad(raw, (0, 0, 0, 0, 0, self.height - lines)).reshape(len(x), *self.event_shape, self.output.raw)

    def features(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """What the head reads, averaged within the fields of a 4 x 4 grid (of fewer where the image is smaller), `(rows, channels * fields)`."""
        h = self.body.active(self.body(self._features(x), self._told(context), self._places(slice(self.height))))
        return F.adaptive_avg_pool2d(h, (min(self.height, 4), min(self.width, 4))).flatten(1)

    def start(self, rows: int, context: Tensor | None = None, order: Tensor | None = None) -> Any:
        body, zeros, width = self.body, next(self.parameters()).new_zeros, self.width + self.body.beyond
        points = [*body.points, *self._head()]
        return RasterState(
            groups=self.groups, windows=[conv.matrices() for conv in body.wide], told=self._told(context),
            pointwise=[list(zip(conv.bias.chunk(self.groups), conv.matrices(), strict=True)) for conv in points],
            x=zeros(rows, self.num_variables), seen=[[None] * self.groups for _ in points],
            history=[zeros(rows, conv.weight.shape[1], conv.above, width) for conv in body.tall],
            line=[zeros(rows, conv.left + width, conv.weight.shape[1]) for conv in body.wide],
            memory=body.memory(rows, width))

    def advance(self, state: "RasterState", value: Tensor | None) -> Tensor:
        if value is not None:
            self._write(state, value)
        self._run(state)
        return state.answer if self.linear is None else state.answer.of_channel(state.i % self.channels)

    def _run(self, state: "RasterState") -> None:
        """Step to the next variable, or to its pixel where the net tells channels apart in the last step alone, unless the state stands there."""
        pixel, c = divmod(state.i, self.channels)
        c = 0 if self.linear is not None else c
        at = pixel * self.channels + c
        if state.ran == at:
            return
        if pixel % self.width == 0 and c == 0:
            self.body.open_row(state)
            row = pixel // self.width
            state.base[0] = plus(state.base[0], self._places(slice(row, row + 1)))
            state.views = None
        h, points = self.body.step(state, pixel % self.width, c), len(state.pointwise)
        for k in (points - 2, points - 1):
            h = state.mixed(k, c, self.body.active(h))
        state.answer, state.ran = h if self.linear is None else self.linear.pixel(h), at

    def _write(self, state: "RasterState", value: Tensor) -> None:
        """Take the value of the variable that the state stands at."""
        i = state.i
        state.x[:, i] = value
        pixel, c = divmod(i, self.channels)
        if self.linear is None:
            state.write(0, pixel % self.width, c, self.output.at(i).encode(state.x[:, i]))
        elif c < self.channels - 1:
            state.answer = self.linear.given(state.answer, c, state.x[:, i])
        else:
            state.write(0, pixel % self.width, 0, self.output.encode(state.x[:, i - c:i + 1]).flatten(1))
        state.i = i + 1
        if state.i % (self.width * self.channels) == 0 and state.i < self.num_variables:
            self.body.close_row(state)

    def prefill(self, state: "RasterState", values: Tensor) -> None:
        end, line = state.i + values.shape[-1], self.width * self.channels
        done = end // line * line
        if 2 * (done - state.i) > done:  # a pass takes about as long as stepping through half of it, on a large image
            state.x[:, state.i:done] = values[:, :done - state.i]
            values = values[:, done - state.i:]
            self._restore(state, done)
        for value in values.unbind(-1):
            self._run(state)
            self._write(state, value)

    def _restore(self, state: "RasterState", done: int) -> None:
        """Stand at the beginning of a row: what all layers remember of the rows above, by one pass."""
        kept: list[Any] = []
        if done < self.num_variables:
            self.body(self._features(state.x[:, :done]), state.told, self._places(slice(done // (self.width * self.channels))), kept)
            self.body.recall(state, kept)
        state.i, state.ran = done, -1

    def take(self, state: "RasterState", index: Tensor) -> Any:
        return state.take(index)


@dataclass
class RasterState:
    """What stepping remembers. All tensors but `windows` and `pointwise`, which are the net's weights, have the rows first.

    Attributes:
        history: For each convolution over rows above, what it sees of them.
        line: For each convolution to the left, its inputs in the row so far, `(rows, left + width, inputs)`; further right, where weights are zero or nothing
            is read, those of the row above.
        base: What is known of a row when it begins, for each of these.
        seen: For each convolution of single pixels, its inputs in this pixel, group by group.
        memory: What the body remembers besides.
    """

    groups: int
    windows: list[list[Tensor]]
    pointwise: list[list[tuple[Tensor, Tensor]]]
    told: list
    x: Tensor
    seen: list[list[Any]]
    history: list[Tensor]
    line: list[Tensor]
    memory: Any
    base: list[Tensor] = field(default_factory=list)
    answer: Any = None
    i: int = 0
    ran: int = -1
    views: Any = None

    def take(self, index: Tensor) -> "RasterState":
        names = ("told", "x", "seen", "history", "line", "memory", "base", "answer")
        rows = {name: tree_map(lambda t: t if t is None else t.index_select(0, index), getattr(self, name)) for name in names}
        return replace(self, **rows, views=None)

    def seen_by(self, k: int, pixel: int, c: int) -> Tensor:
        """The answer of group c of convolution k of a row, from what lies to the left and the rows above."""
        if self.views is None:
            self._view()
        bases, cells, _ = self.views[k]
        return torch.addmm(bases[pixel * self.groups + c], cells[pixel], self.windows[k][c])

    def write(self, k: int, pixel: int, c: int, value: Tensor) -> None:
        """What convolution k of a row reads of group c of a pixel."""
        if self.views is None:
            self._view()
        self.views[k][2][pixel * self.groups + c].copy_(value)

    def mixed(self, k: int, c: int, h: Tensor) -> Tensor:
        """The answer of group c of convolution k of single pixels, whose input of that group is `h`."""
        if self.groups > 1:
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
            bases = self.base[k].squeeze(2).mT.reshape(rows, width * self.groups, outputs // self.groups).unbind(1)
            left = long - width
            cells = [line[:, j:j + left + 1].view(rows, (left + 1) * inputs) for j in range(width)]
            group = inputs // self.groups
            slots = [line[:, left + j, c * group:(c + 1) * group] for j in range(width) for c in range(self.groups)]
            self.views.append((bases, cells, slots))


def keep(h: Any, kept: list[Any] | None) -> None:
    """Remember what a layer reads, where asked."""
    if kept is not None:
        kept.append(h)


def plus(h: Tensor, more: Tensor | None) -> Tensor:
    """`h + more`, where there is more."""
    return h if more is None else h + more


def last_rows(h: Tensor, above: int) -> Tensor:
    """The last rows of `(rows, inputs, height, width)`, with zeros where there are not as many."""
    return F.pad(h, (0, 0, above, 0))[:, :, -above:]


def lower(lines: Tensor, line: Tensor) -> Tensor:
    """Rows `(rows, inputs, above, width)` without the uppermost, and a new one, `(rows, left + width, inputs)`, below them."""
    new = line[:, line.shape[1] - lines.shape[-1]:].mT.unsqueeze(2)
    return torch.cat((lines[:, :, 1:], new), 2)


def _as_image(event_shape: int | Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width."""
    shape = as_event_shape(event_shape)
    require(len(shape) in (2, 3), "event_shape must be an image: (height, width) or (channels, height, width)", tuple(shape))
    return (1, *shape) if len(shape) == 2 else tuple(shape)  # type: ignore[return-value]
