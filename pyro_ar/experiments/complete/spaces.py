r"""The variables that the completion tasks are about: pixels, blocks of pixels, and colours, each an invertible change of whole numbers.

=========  ===================================================================================================================================
space      variables of an image
=========  ===================================================================================================================================
pixels     its pixels
blocks     of each block of 2x2 pixels the mean, rounded down by at most one level, and three differences: what super-resolution sees is the mean
colours    of each pixel the grey level and two differences of colours: what colourisation sees is the grey level
=========  ===================================================================================================================================

Since whole numbers correspond one to one, log p(differences | means) of a joint over the new variables *is* log p(image | its means), and
log p(differences | greys) is log p(RGB | grey). Some differences lead out of the levels that there are; a joint that gives these some probability wastes
it, and its log p is less than that of the same joint restricted to images.
"""

from dataclasses import dataclass

import numpy as np
import torch

from torch import Generator, Tensor

from pyro_ar.checks import require
from pyro_ar.data import Dataset

__all__ = ["Space", "blocks", "colours", "from_blocks", "from_greys", "of_blocks", "of_greys", "pixels"]

COLOUR_LEVELS = 16
TILE, PATCH, STRIDE = 16, 8, 4  # of the photographs at half their size: tiles go to training or test as a whole
TEST_TILES = 4  # every so many is a test tile


@dataclass(frozen=True)
class Space:
    """Training and test rows of one kind of variables.

    Attributes:
        name: 'pixels', 'blocks' or 'colours'.
        train: `(N, n)` states.
        test: `(M, n)`.
        num_states: Of each variable, at most.
        event_shape: `(channels, height, width)` of a row.
        levels: Of a pixel of the image.
        together: Training rows that share pixels follow one another in groups of so many.
    """

    name: str
    train: Tensor
    test: Tensor
    num_states: int
    event_shape: tuple[int, int, int]
    levels: int
    together: int = 1

    def images(self, x: Tensor) -> Tensor:
        """The images of rows `(*L, n)`: `(*L, height, width)`, or `(*L, height, width, 3)` of colours."""
        planes = x.reshape(*x.shape[:-1], *self.event_shape)
        if self.name == "pixels":
            return planes.squeeze(-3)
        planes = torch.cat((planes[..., :1, :, :], planes[..., 1:, :, :] - (self.levels - 1)), -3)
        return from_blocks(planes) if self.name == "blocks" else from_greys(planes).movedim(-3, -1)


def of_blocks(x: Tensor) -> Tensor:
    r"""Means and differences of blocks of 2x2 pixels, `(*L, H, W)` to `(*L, 4, H/2, W/2)`, whole numbers.

    Of a pair, :math:`s = \lfloor (a + b) / 2 \rfloor` and :math:`d = a - b`: first of the upper and the lower pair of a block, then of their two
    s. The planes are the last s, its d, and the d of the upper and of the lower pair.

    Raises:
        ValueError: An odd height or width.

    Source:
        Calderbank, Daubechies, Sweldens, Yeo (1998), *Wavelet transforms that map integers to integers*, section 3 (the S transform).

    Example:
        >>> x = torch.tensor([[4, 7], [0, 3]])
        >>> of_blocks(x).flatten().tolist()
        [3, 4, -3, -3]
        >>> from_blocks(of_blocks(x)).tolist()
        [[4, 7], [0, 3]]
    """
    require(x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0, "blocks of 2x2 pixels want an even height and width", x)
    pairs, across = _pair(x[..., ::2], x[..., 1::2])
    mean, down = _pair(pairs[..., ::2, :], pairs[..., 1::2, :])
    return torch.stack((mean, down, across[..., ::2, :], across[..., 1::2, :]), -3)


def from_blocks(planes: Tensor) -> Tensor:
    """The pixels again, `(*L, 4, h, w)` to `(*L, 2h, 2w)`."""
    mean, down, upper, lower = planes.unbind(-3)
    rows = [torch.stack(_unpair(pair, across), -1).flatten(-2) for pair, across in zip(_unpair(mean, down), (upper, lower), strict=True)]
    return torch.stack(rows, -2).flatten(-3, -2)


def of_greys(rgb: Tensor) -> Tensor:
    r"""Grey levels and differences, `(*L, 3, H, W)` to the same shape: :math:`\lfloor (R + 2 G + B) / 4 \rfloor`, B - G, R - G.

    Source:
        JPEG 2000 (ISO/IEC 15444-1), annex G.2, the reversible component transformation.

    Example:
        >>> rgb = torch.tensor([9, 3, 0]).reshape(3, 1, 1)
        >>> of_greys(rgb).flatten().tolist(), from_greys(of_greys(rgb)).flatten().tolist()
        ([3, -3, 6], [9, 3, 0])
    """
    red, green, blue = rgb.unbind(-3)
    return torch.stack((((red + 2 * green + blue) / 4).floor().to(rgb.dtype), blue - green, red - green), -3)


def from_greys(planes: Tensor) -> Tensor:
    """The colours again."""
    grey, blues, reds = planes.unbind(-3)
    green = grey - ((blues + reds) / 4).floor().to(planes.dtype)
    return torch.stack((reds + green, green, blues + green), -3)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return ((a + b) / 2).floor().to(a.dtype), a - b


def _unpair(s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    a = s + ((d + 1) / 2).floor().to(s.dtype)
    return a, a - d


def pixels(data: Dataset, test_share: float, seed: int) -> Space:
    """The images of a data set as they are, a random share of them for test.

    Raises:
        ValueError: Rows that are no complete images of levels, or too few of them.
    """
    wanted = "completions want complete images of levels, of 2x2 pixels or more"
    require(data.image_shape is not None and data.num_states is not None and data.visible is None and min(data.image_shape) >= 2, wanted, str(data))
    require(0 < test_share < 1 and len(data.x) >= 20, "completions want 20 rows or more, and a test_share between 0 and 1", len(data.x), test_share)
    order = torch.randperm(len(data.x), generator=Generator().manual_seed(seed))
    x, test = data.x[order].float(), max(1, round(test_share * len(data.x)))
    return Space("pixels", x[test:], x[:test], data.num_states or 2, (1, *(data.image_shape or (1, 1))), data.num_states or 2)


def blocks(space: Space) -> Space:
    """The same images in blocks of 2x2 pixels."""
    height, width = space.event_shape[1:]
    train, test = (_shifted(of_blocks(x.reshape(-1, height, width)), space.levels).flatten(1) for x in (space.train, space.test))
    return Space("blocks", train, test, 2 * space.levels - 1, (4, height // 2, width // 2), space.levels)


def colours() -> Space:
    """Patches of 8x8 pixels of the two colour photographs that scikit-learn ships, at half their size and with 16 levels of each colour.

    The photographs are cut into tiles of 16x16 pixels; every fourth one, along diagonals, is for test. Training patches overlap within their tile,
    whose patches follow one another; test patches do not overlap.
    """
    from sklearn.datasets import load_sample_images  # slow to import

    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for photograph in load_sample_images().images:
        rgb = torch.as_tensor(np.array(photograph)).movedim(-1, 0).double()
        small = torch.nn.functional.avg_pool2d(rgb, 2)
        levels = (small * COLOUR_LEVELS / 256).floor()
        tiles = levels.unfold(1, TILE, TILE).unfold(2, TILE, TILE)  # (3, rows, columns, tile, tile)
        index = torch.arange(tiles.shape[1])[:, None] + 2 * torch.arange(tiles.shape[2])
        for_test = index % TEST_TILES == 0
        for part, chosen, stride in zip(parts, (~for_test, for_test), (STRIDE, PATCH), strict=True):
            part.append(tiles[:, chosen].unfold(2, PATCH, stride).unfold(3, PATCH, stride).movedim(0, 3).flatten(1, 2))
    whole, apart = _mixed(torch.cat(parts[0])).flatten(0, 1), _mixed(torch.cat(parts[1]).flatten(0, 1))
    train, test = (_shifted(of_greys(x), COLOUR_LEVELS).flatten(1).float() for x in (whole, apart))
    return Space("colours", train, test, 2 * COLOUR_LEVELS - 1, (3, PATCH, PATCH), COLOUR_LEVELS, len(whole) // sum(map(len, parts[0])))


def _mixed(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=Generator().manual_seed(0))]


def _shifted(planes: Tensor, levels: int) -> Tensor:
    """Differences from 0 on, behind the plane that is visible."""
    return torch.cat((planes[:, :1], planes[:, 1:] + levels - 1), 1)
