r"""`RowLSTM` and `DiagonalBiLSTM`: recurrent nets over an image, row by row, or diagonal by diagonal from both sides."""

import math

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.masked_conv import MaskedConv
from pyro_ar.neural.layers.raster import Body, RasterNet, RasterState, keep, last_rows, lower, plus
from pyro_ar.outputs import Output

__all__ = ["DiagonalBiLSTM", "DiagonalBiLSTMNet", "RowLSTM", "RowLSTMNet", "lstm", "sweep"]


class _Layer(nn.Module):
    r"""An LSTM over an image: from the stream to its gates, from its states to its gates, and back to the stream.

    The gates o, f, i, g follow one another within each group of channels.

    Shapes:
        - `into.d.weight` `(4 * hidden, 2 * hidden, 1, left + 1)` of each direction d, of type B.
        - `state_weight` `(directions, states * hidden, 4 * hidden)`: states are those of the neighbours that a pixel sees.
        - `up.weight` `(2 * hidden, hidden, 1, 1)`, of type B.
    """

    def __init__(self, hidden: int, side: int, directions: int, states: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.into = nn.ModuleList(MaskedConv(2 * hidden, 4 * hidden, 0, side, "B", groups) for _ in range(directions))
        self.state_weight = nn.Parameter(torch.randn(directions, states * hidden, 4 * hidden) / math.sqrt(states * hidden))
        self.up = MaskedConv(hidden, 2 * hidden, 0, 0, "B", groups, gain=0.5)
        with torch.no_grad():
            for conv in self._into():
                conv.bias.view(groups, 4, -1)[:, 1] = 1.0  # remembers, to begin with

    def _into(self) -> list[Any]:
        return list(self.into)

    def gates(self, h: Tensor, told: Tensor | None) -> Tensor:
        """What the stream `(rows, 2 * hidden, height, width)` says to the gates of all pixels, `(height * width, rows, 4 * hidden)`, gate by gate."""
        return self.by_gate(plus(self._into()[0](h), told).flatten(2).permute(2, 0, 1))

    def gates_of_pixels(self, h: Tensor, direction: int, told: Tensor | None) -> Tensor:
        """The same where each pixel is read by itself: from `(pixels, rows, 2 * hidden)` to `(pixels, rows, 4 * hidden)`."""
        conv = self._into()[direction]
        gates = F.linear(h, self.by_gate(conv.masked()[:, :, 0, 0].mT).mT, self.by_gate(conv.bias))
        return plus(gates, None if told is None else self.by_gate(told.flatten(1)))

    def by_gate(self, z: Tensor) -> Tensor:
        """All of o, then all of f, i and g, from the order of channels, in the last dimension."""
        return z if self.groups == 1 else z.unflatten(-1, (self.groups, 4, -1)).transpose(-3, -2).flatten(-3)

    def base(self, seen: Tensor, weight: Tensor, told: Tensor | None) -> Tensor:
        """What the states above, `(rows, width, inputs)`, and the context say to the gates of a row, `(rows, 4 * hidden, 1, width)`."""
        return plus((seen @ weight + self._into()[0].bias).mT.unsqueeze(2), told)


class _RowLSTM(Body):
    """Rows from the top to the bottom: the gates of a pixel see the states of those above it (section 3.1)."""

    # Without a kink, at which the rounding of shut and open gates would decide about gradients.
    active = staticmethod(F.elu)

    def __init__(self, inputs: int, hidden: int, layers: int, kernel: int, row_kernel: int, groups: int) -> None:
        super().__init__()
        self.groups, self.hidden, self.width, self.side = groups, hidden, 2 * hidden, row_kernel // 2
        self.first = MaskedConv(inputs, 2 * hidden, kernel // 2, kernel // 2, "A", groups)
        self.layers = nn.ModuleList(_Layer(hidden, self.side, 1, row_kernel, groups) for _ in range(layers))
        self.tall, self.wide = [self.first], [self.first, *(layer.into[0] for layer in self._layers())]
        self.points = [layer.up for layer in self._layers()]
        self.told = [2 * hidden] + [4 * hidden] * layers

    def _layers(self) -> list[Any]:
        return list(self.layers)

    def _above(self, states: Tensor) -> Tensor:
        """The states above each pixel, from the left to the right, `(rows, width, row_kernel * hidden)`, of a row `(rows, width, hidden)`."""
        padded = F.pad(states, (0, 0, self.side, self.side))
        return torch.cat([padded[:, k:k + states.shape[1]] for k in range(2 * self.side + 1)], -1)

    def forward(self, h: Tensor, told: list, places: Tensor | None, kept: list[Any] | None = None) -> Tensor:
        keep(h, kept)
        height, width = h.shape[2:]
        h = plus(plus(self.first(h), told[0]), places)
        for layer, more in zip(self._layers(), told[1:], strict=True):
            gates, weight = layer.gates(h, more), layer.by_gate(layer.state_weight[0])
            states = cells = h.new_zeros(len(h), width, self.hidden)
            found = []
            for row in gates.unflatten(0, (height, width)).transpose(1, 2).unbind(0):
                states, cells = lstm(row + self._above(states) @ weight, cells)
                found.append(states)
            keep((states.clone(), cells.clone()), kept)
            h = h + layer.up(torch.stack(found, 1).permute(0, 3, 1, 2))
        return h

    def memory(self, rows: int, width: int) -> Any:
        """For each layer states and cells, `(rows, width, hidden)`, of the row so far; further right those of the row above."""
        zeros = self.first.weight.new_zeros
        return [tuple(zeros(rows, width, self.hidden) for _ in range(2)) for _ in self.layers]

    def recall(self, state: RasterState, kept: list[Any]) -> None:
        state.history = [last_rows(kept[0], self.first.above)]
        state.memory = kept[1:]

    def open_row(self, state: RasterState) -> None:
        above, *told = state.told
        state.base = [plus(self.first.from_above(state.history[0]), above)]
        for layer, (states, _), more in zip(self._layers(), state.memory, told, strict=True):
            state.base.append(layer.base(self._above(states), layer.state_weight[0], more))

    def close_row(self, state: RasterState) -> None:
        """States and cells lie where the row below finds them."""
        state.history[0] = lower(state.history[0], state.line[0])

    def step(self, state: RasterState, pixel: int, c: int) -> Tensor:
        h, own = state.seen_by(0, pixel, c), _group(c, self.groups, self.hidden)
        for k, (states, cells) in enumerate(state.memory):
            state.write(k + 1, pixel, c, h)
            new, cell = lstm(state.seen_by(k + 1, pixel, c), cells[:, pixel, own])
            states[:, pixel, own], cells[:, pixel, own] = new, cell
            h = state.mixed(k, c, new).add_(h)
        return h


class _DiagonalBiLSTM(Body):
    r"""Diagonals from the upper left to the lower right, and from the upper right to the lower left (section 3.2).

    The gates of a pixel see the states beside it and above it, in its direction. The states from the right are given to the pixel below, as those of its
    own row would tell what comes after it. The stream of a pixel does not hold its own value: a column beyond the edge reads the last pixel of each row, so
    that it is told to the left as all others are.
    """

    active = staticmethod(F.elu)  # as above
    beyond = 1

    def __init__(self, inputs: int, hidden: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups, self.hidden, self.width = groups, hidden, 2 * hidden
        self.first = MaskedConv(inputs, 2 * hidden, kernel // 2, kernel // 2, "A", groups)
        self.layers = nn.ModuleList(_Layer(hidden, 0, 2, 2, groups) for _ in range(layers))
        self.tall, self.wide = [self.first], [self.first, *(layer.into[0] for layer in self._layers())]
        self.points = [layer.up for layer in self._layers()]
        self.told = [2 * hidden] + [4 * hidden, 4 * hidden] * layers

    def _layers(self) -> list[Any]:
        return list(self.layers)

    def forward(self, h: Tensor, told: list, places: Tensor | None, kept: list[Any] | None = None) -> Tensor:
        h = F.pad(h, (0, self.beyond))
        keep(h, kept)
        height, width = h.shape[2:]
        h = plus(plus(self.first(h), told[0]), places).flatten(2).permute(2, 0, 1).contiguous()
        for layer, *more in zip(self._layers(), told[1::2], told[2::2], strict=True):
            gates = [layer.gates_of_pixels(h, d, more[d]) for d in (0, 1)]
            left, right = sweep(gates[0], gates[1], layer.by_gate(layer.state_weight), height, width)
            keep([t[-width:].transpose(0, 1).clone() for t in (left, right)], kept)
            h = h + F.linear(left + F.pad(right[:-width], (0, 0, 0, 0, width, 0)), layer.up.masked()[:, :, 0, 0], layer.up.bias)
        h = h.permute(1, 2, 0).unflatten(-1, (height, width))
        return h[..., :-self.beyond]

    def memory(self, rows: int, width: int) -> Any:
        """For each layer the states from the left of the row so far, `(rows, width, hidden)`, further right those of the row above; those from the right of
        the row above, of the same shape; and the state and cell to the left, `(rows, hidden)`.
        """
        zeros = self.first.weight.new_zeros
        return [[zeros(rows, width, self.hidden), zeros(rows, width, self.hidden), *self._beside(rows)] for _ in self.layers]

    def _beside(self, rows: int) -> list[Tensor]:
        """State and cell to the left of a row."""
        return [self.first.weight.new_zeros(rows, self.hidden) for _ in range(2)]

    def recall(self, state: RasterState, kept: list[Any]) -> None:
        state.history = [last_rows(kept[0], self.first.above)]
        state.memory = [[*both, *self._beside(len(kept[0]))] for both in kept[1:]]

    def open_row(self, state: RasterState) -> None:
        state.base = [plus(self.first.from_above(state.history[0]), state.told[0])]
        for k, (layer, told) in enumerate(zip(self._layers(), state.told[1::2], strict=True)):
            left, right, *_ = state.memory[k]
            state.base.append(layer.base(left, layer.state_weight[0, self.hidden:], told))
            state.memory[k] = [left, right, *self._beside(len(left))]

    def close_row(self, state: RasterState) -> None:
        """The column beyond the edge of the row that has been stepped through; then the states from the right, all layers at once."""
        for c in range(self.groups):
            self.step(state, state.line[0].shape[1] - self.first.left - self.beyond, c)
        state.history[0] = lower(state.history[0], state.line[0])
        gates = []
        for layer, told, line, (_, right, *_) in zip(self._layers(), state.told[2::2], state.line[1:], state.memory, strict=True):
            above = layer.by_gate(right @ layer.state_weight[1, self.hidden:]).transpose(0, 1)
            gates.append(layer.gates_of_pixels(line.transpose(0, 1), 1, told) + above)
        columns = torch.stack(gates, 1)
        beside, found = torch.stack([layer.by_gate(layer.state_weight[1, :self.hidden]) for layer in self._layers()]), []
        states = cells = columns.new_zeros(*columns.shape[1:3], self.hidden)
        for z in reversed(columns.unbind(0)):
            states, cells = lstm(torch.baddbmm(z, states, beside), cells)
            found.append(states)
        for k, right in enumerate(torch.stack(found[::-1], 2)):
            state.memory[k][1] = right

    def step(self, state: RasterState, pixel: int, c: int) -> Tensor:
        h, own, gates = state.seen_by(0, pixel, c), _group(c, self.groups, self.hidden), _group(c, self.groups, 4 * self.hidden)
        for k, layer in enumerate(self._layers()):
            left, right, beside, cells = state.memory[k]
            state.write(k + 1, pixel, c, h)
            z = torch.addmm(state.seen_by(k + 1, pixel, c), beside, layer.state_weight[0, :self.hidden, gates])
            left[:, pixel, own], cells[:, own] = lstm(z, cells[:, own])
            h = state.mixed(k, c, left[:, pixel, own] + right[:, pixel, own]).add_(h)
            if c == self.groups - 1:
                state.memory[k][2] = left[:, pixel]
        return h


def lstm(z: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """New states and cells from the gates o, f, i, g and the cells before (eq. 3)."""
    out, keeps, takes = z[..., :3 * cells.shape[-1]].sigmoid().chunk(3, -1)
    cells = keeps * cells + takes * z[..., 3 * cells.shape[-1]:].tanh()
    return out * cells.tanh(), cells


def _group(c: int, groups: int, channels: int) -> slice:
    return slice(c * channels // groups, (c + 1) * channels // groups)


def _diagonals(height: int, width: int, device: torch.device) -> Tensor:
    """The skewed image: its cells in raster order, diagonal after diagonal, from the left and from the right, `(2, height * width)`."""
    cells = torch.arange(height * width, device=device)
    y, x = cells // width, cells % width
    order = (y + x).argsort(stable=True)
    return torch.stack((order, (y * width + width - 1 - x)[order]))


def sweep(left: Tensor, right: Tensor, weight: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The states of all pixels, from the left and from the right, `(height * width, rows, hidden)`; zero outside of the image.

    Args:
        left: What the stream says to the gates, gate by gate, `(height * width, rows, 4 * hidden)`.
        right: The same from the right.
        weight: From the states beside and above to the gates, `(2, 2 * hidden, 4 * hidden)`.
        height: Of the image.
        width: Of the image.
    """
    order = _diagonals(height, width, left.device)
    sizes = [min(d + 1, height, width, height + width - 1 - d) for d in range(height + width - 1)]
    gates = torch.stack([t.index_select(0, cells) for t, cells in zip((left, right), order, strict=True)])
    states = cells = gates.new_zeros(2, 0, gates.shape[2], gates.shape[3] // 4)
    found = []
    for d, z in enumerate(gates.split(sizes, 1)):
        # The diagonal before begins in the row above, except where there is none, and ends in the same row, except where that one begins here.
        top, bottom = int(d < width), int(d < height)
        near = F.pad(states, (0, 0, 0, 0, top, bottom))
        near = torch.cat((near[:, 1:], near[:, :-1]), -1).flatten(1, 2)
        cells = F.pad(cells, (0, 0, 0, 0, top - 1, bottom))
        states, cells = lstm(torch.baddbmm(z.flatten(1, 2), near, weight).view_as(z), cells)
        found.append(states)
    back = order.argsort(-1)
    from_left, from_right = torch.cat(found, 1).unbind(0)
    return from_left.index_select(0, back[0]), from_right.index_select(0, back[1])


class RowLSTMNet(RasterNet):
    r"""A masked convolution, layers of `RowLSTM` with residual connections, and a head, see `RasterNet`.

    Shapes:
        - `body.first.*`; `body.layers.l.into.0.*` `(4 * hidden, 2 * hidden, 1, row_kernel // 2 + 1)`, `body.layers.l.state_weight`
          `(1, row_kernel * hidden, 4 * hidden)` on the states above from the left to the right, `body.layers.l.up.*`. The gates are o, f, i, g (of each
          group of channels).
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 48, layers: int = 3, kernel: int = 7,
                 row_kernel: int = 3, places: bool = False, channels: str = "groups") -> None:
        _check_layers(layers)
        require(isinstance(row_kernel, int) and row_kernel % 2 == 1 and row_kernel >= 1, "row_kernel must be an odd number", row_kernel)
        super().__init__(event_shape, output, context_dim, lambda inputs, groups: _RowLSTM(inputs, hidden, layers, kernel, row_kernel, groups),
                         hidden=hidden, kernels={"kernel": kernel}, places=places, channels=channels)
        require(row_kernel <= self.width, f"a row_kernel of {row_kernel} sees {row_kernel} columns, so the image must be as wide", self.event_shape)


class DiagonalBiLSTMNet(RasterNet):
    r"""A masked convolution, layers of `DiagonalBiLSTM` with residual connections, and a head, see `RasterNet`.

    Shapes:
        - `body.first.*`; of each layer and direction `body.layers.l.into.d.*` `(4 * hidden, 2 * hidden, 1, 1)`, `body.layers.l.state_weight`
          `(2, 2 * hidden, 4 * hidden)` on the states beside and above, `body.layers.l.up.*`. The gates are o, f, i, g (of each group of channels).
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 48, layers: int = 3, kernel: int = 7,
                 places: bool = False, channels: str = "groups") -> None:
        _check_layers(layers)
        super().__init__(event_shape, output, context_dim, lambda inputs, groups: _DiagonalBiLSTM(inputs, hidden, layers, kernel, groups),
                         hidden=hidden, kernels={"kernel": kernel}, places=places, channels=channels)

    @property
    def num_parameters(self) -> int:
        # Of two rows the first has none above it, and what the second says from the right is read by none.
        unread = sum(layer.state_weight[1].numel() // 2 for layer in self.body.layers) if self.height == 2 else 0
        return super().num_parameters - unread


def _check_layers(layers: int) -> None:
    require(isinstance(layers, int) and layers > 0, "layers must be a positive int", layers)


class RowLSTM(Family):
    r"""A recurrent net over the rows of an image: a layer goes down row by row, each pixel with the states of the three pixels above it.

    Layers of an LSTM, eq. 3, in which the input x is a masked convolution of the row over the layer's own input, and the states come from the row above
    by a convolution of `row_kernel` columns:

    .. math:: o, f, i, g = \sigma(K^{ss} * h_{r-1} + K^{is} * x_r), \qquad c_r = f \odot c_{r-1} + i \odot g, \qquad h_r = o \odot 	anh(c_r)

    with a tanh for g. Each is added to a stream that is twice as wide. What a pixel sees of the rows above is a triangle: beside it some pixels are never
    seen, unlike in `DiagonalBiLSTM`. Channels are taken as in `PixelCNN`, and no order but its own.

    Args:
        event_shape: (height, width) or (channels, height, width).
        hidden: Units of each layer, a multiple of the channels of the image.
        layers: Recurrent layers.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None, or the net's own: raster scan, and channels within pixels.
        kernel: Columns of the first kernel, an odd number; it sees `kernel // 2` rows above.
        row_kernel: Columns of the kernels along the rows, an odd number.
        places: Give the first layer an embedding of the place of each pixel, which the paper does without.
        channels: 'groups', or 'linear', for which the output must be a mixture; see `PixelCNN`.

    Raises:
        ValueError: No image, a kernel larger than the image, another order, hidden units that are no multiple, an output that is no mixture where channels
            are 'linear'.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), *Pixel recurrent neural networks*, ICML, sections 3.1, 3.3 and 3.4.

    Example:
        >>> RowLSTM((1, 8, 8), hidden=8, layers=2)().event_shape
        torch.Size([1, 8, 8])
        >>> RowLSTM((3, 8, 8), hidden=12, layers=1, context_dim=10)(torch.eye(10)).sample().shape
        torch.Size([10, 3, 8, 8])
    """

    net_type = RowLSTMNet

    def __init__(self, event_shape: Sequence[int], hidden: int = 48, layers: int = 3, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | None = None, *, kernel: int = 7, row_kernel: int = 3, places: bool = False,
                 channels: str = "groups") -> None:
        self._make(event_shape, output, context_dim, order, None, hidden=hidden, layers=layers, kernel=kernel, row_kernel=row_kernel, places=places,
                   channels=channels)


class DiagonalBiLSTM(Family):
    r"""A recurrent net along the diagonals of an image, from both sides: each pixel sees all that stands before it.

    From the left, the LSTM of a pixel (eq. 3, see `RowLSTM`) has the states of the pixel to its left and of the one above; the cell is that of the pixel to
    its left. From the right it is the mirror image. The states from the right are shifted down by a row and added to those from the left, so that none comes
    from a pixel that stands after. A column beyond the right edge is added, without which the last pixel of a row would not be seen by most of the row below
    (the first convolution hides each pixel from its own place). As the pixels of a diagonal do not see each other, a layer takes height + width steps, and not
    height times width.

    Layers are added to a stream that is twice as wide. Channels are taken as in `PixelCNN`, and no order but its own.

    **Sampling** steps all layers from the left pixel by pixel; when a row is done, they go over it from the right, all layers together.

    Args:
        event_shape: (height, width) or (channels, height, width).
        hidden: Units of each layer and direction, a multiple of the channels of the image.
        layers: Recurrent layers.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none.
        order: None, or the net's own: raster scan, and channels within pixels.
        kernel: Columns of the first kernel, an odd number; it sees `kernel // 2` rows above.
        places: Give the first layer an embedding of the place of each pixel, which the paper does without.
        channels: 'groups', or 'linear', for which the output must be a mixture; see `PixelCNN`.

    Raises:
        ValueError: No image, a kernel larger than the image, another order, hidden units that are no multiple, an output that is no mixture where channels
            are 'linear'.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), *Pixel recurrent neural networks*, ICML, sections 3.2 to 3.4.

    Example:
        >>> DiagonalBiLSTM((1, 8, 8), hidden=8, layers=2)().event_shape
        torch.Size([1, 8, 8])
        >>> DiagonalBiLSTM((3, 8, 8), hidden=12, layers=1, context_dim=10)(torch.eye(10)).sample().shape
        torch.Size([10, 3, 8, 8])
    """

    net_type = DiagonalBiLSTMNet

    def __init__(self, event_shape: Sequence[int], hidden: int = 48, layers: int = 3, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | None = None, *, kernel: int = 7, places: bool = False, channels: str = "groups") -> None:
        self._make(event_shape, output, context_dim, order, None, hidden=hidden, layers=layers, kernel=kernel, places=places, channels=channels)
