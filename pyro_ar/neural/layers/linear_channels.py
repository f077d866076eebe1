r"""Channels of a pixel that follow one another by mixtures whose locations are linear in the channels before."""

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.outputs import Output
from pyro_ar.outputs.base import OfComponents

__all__ = ["LinearChannels", "Pixel"]


class LinearChannels:
    r"""From numbers that a net gives for a pixel, and the pixel's own values, to the raw parameters of its channels.

    All channels of a pixel share one component; in component m the location of a channel is linear in the values of the channels before it, such as G in R,
    and B in both (eq. 3; `f` are the features of values that the output encodes, for levels their places from -1 to 1):

    .. math:: \mu_{m, c} = a_{m, c} + \sum_{k < c} \alpha_{m, c, k}\, f(x_k)

    Which component it is, is told by the channels before it, so that each conditional is a mixture again, and their product the mixture of whole pixels:

    .. math:: w_{m, c} \propto w_m \prod_{k < c} p_m(x_k \mid x_{<k})

    The numbers of a pixel are M - 1 logits (against component 0), the locations of all components, channel by channel, the scales before softplus likewise,
    and the slopes :math:`\alpha` of all components, for (G, R), (B, R), (B, G), and so on. Slopes are not squashed.

    Args:
        output: What the raw parameters of a channel are for: a mixture.
        channels: Of the image.

    Raises:
        ValueError: Another output.

    Source:
        Salimans, Karpathy, Chen, Kingma (2017), *PixelCNN++*, ICLR, section 2.2, eq. 3.

    Example:
        >>> from pyro_ar.outputs import DiscretisedLogisticMixture
        >>> linear = LinearChannels(DiscretisedLogisticMixture(256, 10), 3)
        >>> linear.raw  # as in the paper, less the logit of component 0
        99
        >>> linear(torch.zeros(99), torch.tensor([17.0, 4.0])).shape  # R, G given R, B given both
        torch.Size([3, 29])
    """

    def __init__(self, output: Output, channels: int) -> None:
        require(isinstance(output, OfComponents),
                "channels='linear' wants a mixture for all variables, such as par.outputs.DiscretisedLogisticMixture(256, 10)", output)
        self.output: OfComponents = output  # type: ignore[assignment]
        self.channels = channels

    @property
    def sizes(self) -> list[int]:
        """How many logits, locations, scales and slopes there are."""
        M, C = self.output.components, self.channels
        return [M - 1, C * M, C * M, C * (C - 1) // 2 * M]

    @property
    def raw(self) -> int:
        """Numbers per pixel."""
        return sum(self.sizes)

    def __call__(self, numbers: Tensor, before: Tensor) -> Tensor:
        """Raw parameters of the first k + 1 channels, `(*L, k + 1, output.raw)`, from the numbers `(*L, raw)` and the values of the first k, `(*L, k)`."""
        pixel = self.pixel(numbers)
        found = [pixel.of_channel(0)]
        for c, x in enumerate(before.unbind(-1)):
            pixel = self.given(pixel, c, x)
            found.append(pixel.of_channel(c + 1))
        return torch.stack(found, -2)

    def pixel(self, numbers: Tensor) -> "Pixel":
        """What is known of a pixel before its first channel."""
        logits, *rest = numbers.split(self.sizes, -1)
        return Pixel(logits, *(t.split(self.output.components, -1) if t.shape[-1] else () for t in rest))

    def given(self, pixel: "Pixel", c: int, x: Tensor) -> "Pixel":
        """What is known once channel c has the value x `(*L)`, and those before it are given."""
        each, place, locs = self.output.of_components(pixel.of_channel(c), x), self.output.encode(x), list(pixel.locs)
        for k in range(c + 1, self.channels):
            locs[k] = torch.addcmul(locs[k], pixel.slopes[k * (k - 1) // 2 + c], place)
        return pixel._replace(logits=each[..., 1:] - each[..., :1], locs=tuple(locs))


class Pixel(NamedTuple):
    """A mixture of the channels of a pixel: M - 1 logits, the location and scale of each channel, `(*L, M)` each, and the slopes."""

    logits: Tensor
    locs: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def of_channel(self, c: int) -> Tensor:
        """Raw parameters of channel c, `(*L, output.raw)`, where those before it are given."""
        return torch.cat((self.logits, self.locs[c], self.scales[c]), -1)
