r"""Convolutions that see only what stands before in raster order: as a pass over an image, a row at a time, and pixel by pixel."""

import math

import torch
import torch.nn.functional as F

from torch import Tensor, nn

__all__ = ["MaskedConv"]

OWN_ROW = ("none", "A", "B", "all")


class MaskedConv(nn.Module):
    r"""A convolution over `above` rows above and part of the own row, zero outside of the image.

    What it sees of the own row, `own`, is 'none' of it, 'all' of it, or the pixels to the left and of the pixel itself the groups of
    channels before the output's own ('A'), or up to its own ('B').  Channels lie group after group; with one group type A
    leaves the pixel itself out.

    Shapes:
        - `weight` `(outputs, inputs, rows, columns)`, of which only what `mask` says is ever used; `bias` `(outputs,)`.

    Args:
        inputs: Channels in, a multiple of `groups`.
        outputs: Channels out, a multiple of `groups`.
        above: Rows above.
        side: Columns to the left, and to the right.
        own: 'none', 'A', 'B' or 'all'.
        groups: Groups of channels.
        gain: Of the initial weights, over the root of the number of weights of an output.

    Source:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), *Pixel recurrent neural networks*, ICML, section 3.4.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, above: int, side: int, own: str, groups: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.above, self.own, self.groups = above, own, groups
        # Without rows above nothing to the right is ever seen.
        self.left, self.right = side, side if above or own == "all" else 0
        shape = (outputs, inputs, above + (own != "none"), self.left + 1 + self.right)
        # On the CPU even where parameters are counted on the meta device.
        mask = torch.ones(shape, dtype=torch.bool, device="cpu")
        if own in ("A", "B"):
            group = [torch.arange(size, device="cpu") * groups // size for size in shape[:2]]
            into, out_of = group[0][:, None], group[1]
            mask[:, :, -1, self.left + 1:] = False
            mask[:, :, -1, self.left] = out_of < into if own == "A" else out_of <= into
        self.register_buffer("mask", mask, persistent=False)
        fan_in = max(int(mask.sum()) / outputs, 1)
        self.weight = nn.Parameter(torch.randn(shape) * (gain / math.sqrt(fan_in)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def idle(self) -> int:
        """Weights that are never used."""
        return self.mask.numel() - int(self.mask.sum())

    def masked(self) -> Tensor:
        """The weights, zero where nothing may be seen."""
        return self.weight * self.mask

    def forward(self, h: Tensor) -> Tensor:
        """From `(rows, inputs, height, width)` to `(rows, outputs, height, width)`."""
        if self.weight.shape[2:] != (1, 1):  # to pad by nothing copies
            h = F.pad(h, (self.left, self.right, self.above, -1 if self.own == "none" else 0))
        return F.conv2d(h, self.masked(), self.bias)

    def at_row(self, lines: Tensor) -> Tensor:
        """The answers for one row of an image, `(rows, outputs, 1, width)`, from all rows that they see, `(rows, inputs, seen, width)`."""
        return F.conv2d(F.pad(lines, (self.left, self.right)), self.masked(), self.bias)

    def from_above(self, lines: Tensor) -> Tensor:
        """What the rows above, `(rows, inputs, above, width)`, and the bias add to the answers for a row, `(rows, outputs, 1, width)`."""
        return F.conv2d(F.pad(lines, (self.left, self.right)), self.masked()[:, :, :self.above], self.bias)

    def matrices(self) -> list[Tensor]:
        """For each group of outputs the weights of the own row, `((left + 1) * inputs, outputs / groups)`: columns from the left, the pixel itself last."""
        own_row = self.masked()[:, :, -1, :self.left + 1]
        return list(own_row.permute(2, 1, 0).flatten(0, 1).chunk(self.groups, -1))
