r"""`PixelCNN`: masked convolutions over an image, in residual blocks, or gated in two stacks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.masked_conv import MaskedConv
from pyro_ar.neural.layers.raster import Body, RasterNet, RasterState, keep, lower, plus
from pyro_ar.outputs import Output

__all__ = ["PixelCNN", "PixelCNNNet"]


class _Residual(Body):
    """Residual blocks of masked convolutions (van den Oord et al. 2016a, figure 5 and table 1)."""

    active = staticmethod(torch.relu)

    def __init__(self, inputs: int, hidden: int, blocks: int, kernel: int, block_kernel: int, groups: int) -> None:
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
        keep(h, kept)
        h = plus(plus(self.first(h), told[0]), places)
        for block, more in zip(self._blocks(), told[1:], strict=True):
            inner = block["down"](h.relu()).relu()
            keep(inner, kept)
            h = h + block["up"](plus(block["middle"](inner), more).relu())
        return h

    def open_row(self, state: RasterState) -> None:
        """What the rows above say of each pixel of a new row, for all layers at once."""
        state.base = [plus(conv.from_above(lines), told) for conv, lines, told in zip(self.tall, state.history, state.told, strict=True)]

    def close_row(self, state: RasterState) -> None:
        """Remember the row that has been stepped through."""
        state.history = [lower(lines, line) for lines, line in zip(state.history, state.line, strict=True)]

    def step(self, state: RasterState, pixel: int, c: int) -> Tensor:
        h = state.seen_by(0, pixel, c)
        for k in range(1, len(self.wide)):
            state.write(k, pixel, c, state.mixed(2 * k - 2, c, h.relu()).relu_())
            h = state.mixed(2 * k - 1, c, state.seen_by(k, pixel, c).relu_()).add_(h)
        return h


class _Gated(Body):
    """A vertical stack, which sees all rows above, and a horizontal one, which sees the row so far and the vertical stack (2016b, figure 2)."""

    # Without a kink, at which the rounding of shut and open gates would decide about gradients.
    active = staticmethod(F.elu)

    def __init__(self, inputs: int, hidden: int, blocks: int, kernel: int, block_kernel: int, groups: int) -> None:
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
            keep(above, kept)
            z = plus(layer["vertical"](above), told[2 * k])
            y = layer["out"](_gate(plus(plus(layer["horizontal"](h) + layer["link"](z), told[2 * k + 1]), None if k else places), self.groups))
            h, above = h + y if k else y, _gate(z)
        return h

    def open_row(self, state: RasterState) -> None:
        """The vertical stack of a new row, and what it says to the horizontal one."""
        above: Any = None
        state.base = []
        for k, layer in enumerate(self._layers()):
            lines = torch.cat((state.history[k], above), 2) if k else state.history[0]
            z = plus(layer["vertical"].at_row(lines), state.told[2 * k])
            bias = layer["horizontal"].bias.reshape(-1, 1, 1)
            state.base.append(plus(layer["link"](z) + bias, state.told[2 * k + 1]))
            state.history[k], above = lines[:, :, 1:] if k else lines, _gate(z)

    def close_row(self, state: RasterState) -> None:
        """Remember the row that has been stepped through; the deeper layers of the vertical stack know it already."""
        state.history[0] = lower(state.history[0], state.line[0])

    def step(self, state: RasterState, pixel: int, c: int) -> Tensor:
        h: Any = None
        for k in range(len(self.wide)):
            if k:
                state.write(k, pixel, c, h)
            a, b = state.seen_by(k, pixel, c).chunk(2, -1)
            y = state.mixed(k, c, a.tanh() * b.sigmoid())
            h = y.add_(h) if k else y
        return h


class PixelCNNNet(RasterNet):
    r"""Convolutions that see what stands before a pixel in raster scan, see `RasterNet`.

    Shapes:
        - `body.*.weight` `(out, in, rows, columns)` and `bias`, see `MaskedConv`.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, hidden: int = 32, blocks: int = 4,
                 kernel: int = 7, block_kernel: int = 3, gated: bool = False, places: bool = False, channels: str = "groups") -> None:
        require(isinstance(blocks, int) and blocks >= 0, "blocks must be 0 or more", blocks)
        stack = _Gated if gated else _Residual
        super().__init__(event_shape, output, context_dim, lambda inputs, groups: stack(inputs, hidden, blocks, kernel, block_kernel, groups),
                         hidden=hidden, kernels={"kernel": kernel, "block_kernel": block_kernel}, places=places, channels=channels)


def _gate(z: Tensor, groups: int = 1) -> Tensor:
    """The tanh of one half of the channels of each group, times the sigmoid of the other (2016b, eq. 2)."""
    a, b = z.unflatten(1, (groups, 2, -1)).unbind(2)
    return (a.tanh() * b.sigmoid()).flatten(1, 2)


class PixelCNN(Family):
    r"""Masked convolutions: each pixel given those above it and to its left, by the same weights everywhere in the image.

    The masked one (2016a) has a k x k convolution of type A, then residual blocks of type B. It has a blind spot: pixels above and to the right that
    no chain of its kernels reaches. The gated one (2016b) has none: a vertical stack sees all rows above, a horizontal one the row so far and the
    vertical one. Each of its layers, eq. 2 and 4, with the context h:

    .. math:: y = \tanh(W_f * x + V_f^\top h) \odot \sigma(W_g * x + V_g^\top h)

    The channels of a pixel follow one another: R, then G given R, then B given both. By `channels='groups'` hidden channels lie in as many groups, and a
    group sees those of its own pixel up to its own: any output does. By `channels='linear'` (Salimans et al. 2017) a pixel is a mixture whose locations of G
    are linear in R, and those of B in both, with slopes that the net gives, see `LinearChannels`: a pixel of a draw takes one step, not one for each channel.
    No other order is taken.

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
        channels: 'groups', or 'linear', for which the output must be a mixture of logistics or Normals.

    Raises:
        ValueError: No image, a kernel larger than the image, another order, hidden channels that are no multiple, an output that is no mixture where
            channels are 'linear'.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016a), *Pixel recurrent neural networks*, ICML, sections 3.4 and 3.5; van den Oord, Kalchbrenner,
        Vinyals, Espeholt, Graves, Kavukcuoglu (2016b), *Conditional image generation with PixelCNN decoders*, NIPS 29. Channels: Salimans, Karpathy, Chen,
        Kingma (2017), *PixelCNN++*, ICLR, section 2.2.

    Example:
        >>> PixelCNN((1, 8, 8), hidden=8, blocks=2)().event_shape
        torch.Size([1, 8, 8])
        >>> PixelCNN((3, 8, 8), hidden=12, gated=True, context_dim=10)(torch.eye(10)).sample().shape
        torch.Size([10, 3, 8, 8])
        >>> from pyro_ar.outputs import DiscretisedLogisticMixture
        >>> PixelCNN((3, 8, 8), hidden=12, gated=True, output=DiscretisedLogisticMixture(256, 5), channels="linear")().sample().shape
        torch.Size([3, 8, 8])
    """

    net_type = PixelCNNNet

    def __init__(self, event_shape: Sequence[int], hidden: int = 48, blocks: int = 4, output: Output | None = None, context_dim: int = 0,
                 order: Tensor | Sequence[int] | None = None, *, kernel: int = 7, block_kernel: int = 3, gated: bool = False,
                 places: bool = False, channels: str = "groups") -> None:
        self._make(event_shape, output, context_dim, order, None, hidden=hidden, blocks=blocks, kernel=kernel, block_kernel=block_kernel,
                   gated=gated, places=places, channels=channels)
