r"""Discriminative networks that see random parts of the training rows, and say the class at once."""

import itertools
import math

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from torch import Generator, Tensor, nn

from pyro_ar.changes.rank_normal import RankNormal
from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.images import image_shape_of, random_parts
from pyro_ar.inference.descent import descend
from pyro_ar.recorded import Recorded

__all__ = ["PatternNet"]

MOST_HIDDEN = 0.95  # without images: shares of hidden cells in training are uniform from 0 to here
ANSWERED = 512  # images at once
FARTHEST = 1e6  # standardised cells beyond it, which single precision might not hold, count as there


class PatternNet(PartlySeenClassifier):
    r"""An ensemble of networks for p(y | x_visible), trained under random patterns. It has no p(x).

    The input of a network is the cells, zero where hidden, and one bit per cell that says whether it is visible; the cells are
    rank-normal, or standardised by their means and standard deviations, one of each for all pixels of images, so that a colour is the same everywhere.
    In training each row gets a new pattern at every step. The answer is the mean of the networks' posteriors.

    Of rows that are no images each cell is hidden with a probability that is uniform from 0 to 0.95, one for each row, and the networks are dense.
    For images they are convolutional (four layers of 3x3, two of them of stride 2, then `hidden` units), and patterns come from `random_parts`.

    Args:
        hidden: Units of a hidden layer.
        layers: Hidden layers of dense networks.
        members: Networks.
        steps: Of AdamW, each on `batch_size` rows.
        batch_size: Rows of a step.
        lr: Highest step size of the one-cycle schedule.
        dropout: Share of hidden units to drop.
        weight_decay: Decoupled.
        ranks: Rank-normal cells.
        image_shape: `(height, width)` or with channels before: convolutional networks. None: the rows' own shape, where they are not flat.
            `()`: no images, dense networks.
        channels: Of the first convolution; the last has four times as many.
        bfloat16: Whether layers compute in bfloat16 during training (the weights stay in single precision): of convolutions a third faster where the
            processor knows that format, slower elsewhere. Answers are in single precision.
        seed: Of weights, rows and patterns.

    Attributes:
        nets_: The networks.

    Raises:
        ValueError: Bad rows or settings, all values equal, hidden training cells, or an image shape that does not fit.

    Source:
        Lakshminarayanan, Pritzel, Blundell (2017), *Simple and scalable predictive uncertainty estimation using deep ensembles*, NeurIPS 30.

    Example:
        >>> X, y = np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [5.0, 5.0]]), np.array([0, 0, 1, 1])
        >>> net = PatternNet(hidden=16, members=1, steps=200, batch_size=4, dropout=0.0).fit(X, y)
        >>> net.predict(np.array([[np.nan, 4.2]]), visible=np.array([False, True]))
        array([1])
    """

    nets_: list[nn.Module]

    def __init__(self, hidden: int = 256, layers: int = 2, members: int = 3, steps: int = 2500, batch_size: int = 256, lr: float = 3e-3,
                 dropout: float = 0.3, weight_decay: float = 0.01, ranks: bool = True, image_shape: Sequence[int] | None = None,
                 channels: int = 16, bfloat16: bool = False, seed: int = 0) -> None:
        self.hidden = hidden
        self.layers = layers
        self.members = members
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.ranks = ranks
        self.image_shape = image_shape
        self.channels = channels
        self.bfloat16 = bfloat16
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Train the networks."""
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "PatternNet.fit wants complete training rows", seen)
        self._check_settings()
        self.classes_, index = np.unique(labels, return_inverse=True)
        shape = image_shape_of(self.image_shape, self.event_shape_)
        self._images = (1, *shape) if len(shape) == 2 else shape  # with channels; of no images, nothing
        rows = x.flatten(1)
        self.mean_, whole = rows.mean() if self._images else rows.mean(0), rows.std(correction=0)
        require(0 < float(whole) < math.inf, "PatternNet wants values that differ, and whose variance can be computed", float(whole))
        each = rows.std(0, correction=0)
        self.scale_ = whole if self._images else torch.where((rows.amin(0) < rows.amax(0)) & (each > 0), each, 1)
        self.transform_ = RankNormal.from_data(rows) if self.ranks else None
        rows = self._standardised(rows)
        self.nets_ = [self._trained(rows, torch.from_numpy(index), 1000 * self.seed + k) for k in range(self.members)]
        return self

    def _check_settings(self) -> None:
        for name, least in (("hidden", 1), ("layers", 0), ("members", 1), ("steps", 1), ("batch_size", 2), ("channels", 1)):
            value = getattr(self, name)
            require(isinstance(value, int | np.integer) and bool(value >= least), f"{name} must be a whole number, {least} or more", value)
        require(0 <= self.dropout < 1, "dropout must be 0 or more and less than 1", self.dropout)
        require(self.lr > 0, "lr must be more than 0", self.lr)
        require(self.weight_decay >= 0, "weight_decay must be 0 or more", self.weight_decay)

    def _standardised(self, rows: Tensor) -> Tensor:
        """In the precision of the rows, then in single precision."""
        scores = (rows - self.mean_) / self.scale_ if self.transform_ is None else self.transform_.inv(rows)
        return scores.clamp(-FARTHEST, FARTHEST).float()

    def _net(self, cells: int) -> nn.Sequential:
        if self._images:
            return ConvolutionalLayers(self._images, self.channels, self.hidden, self.dropout, len(self.classes_))
        return DenseLayers(cells, self.layers, self.hidden, self.dropout, len(self.classes_))

    def _patterns(self, rows: int, cells: int, draws: Generator) -> Tensor:
        if self._images:
            return random_parts(self._images, rows, generator=draws).flatten(1)
        share = MOST_HIDDEN * torch.rand(rows, 1, generator=draws)
        return torch.rand(rows, cells, generator=draws) >= share

    def _trained(self, rows: Tensor, index: Tensor, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # of weights and dropout
            torch.manual_seed(seed)
            draws = Generator().manual_seed(seed)
            net = self._net(rows.shape[1])

            def loss(_: int) -> Tensor:
                some = torch.randint(len(rows), (self.batch_size,), generator=draws)
                seen = self._patterns(self.batch_size, rows.shape[1], draws)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                    scores = net(self._inputs(rows[some], seen))
                return nn.functional.cross_entropy(scores.float(), index[some])

            descend(net.parameters(), loss, self.steps, lr=self.lr, weight_decay=self.weight_decay, one_cycle=True)
        return net.eval().requires_grad_(False)

    def _inputs(self, rows: Tensor, visible: Tensor) -> Tensor:
        parts = torch.where(visible, rows, 0), visible.to(rows)
        if not self._images:
            return torch.cat(parts, -1)
        images = torch.cat([part.reshape(-1, *self._images) for part in parts], 1)
        return images.to(memory_format=torch.channels_last)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        rows = self._standardised(x.flatten(1).to(self.mean_))
        seen = torch.ones_like(rows, dtype=torch.bool) if visible is None else visible.flatten(1).expand(rows.shape)
        step = ANSWERED if self._images else len(rows)
        answers = []
        for part, pattern in zip(rows.split(step), seen.split(step), strict=True):
            inputs = self._inputs(part, pattern)
            answers.append(torch.stack([net(inputs).log_softmax(-1) for net in self.nets_]).logsumexp(0).log_softmax(-1))
        return torch.cat(answers)

    @property
    def num_parameters(self) -> int:
        """Weights of all networks."""
        return sum(weight.numel() for net in self.nets_ for weight in net.parameters())


class DenseLayers(Recorded, nn.Sequential):
    """A network of cells and their visibility."""

    def __init__(self, cells: int, layers: int, hidden: int, dropout: float, classes: int) -> None:
        sizes = [2 * cells] + layers * [hidden]
        blocks = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(sizes)]
        super().__init__(*itertools.chain(*blocks), nn.Linear(sizes[-1], classes))


class ConvolutionalLayers(Recorded, nn.Sequential):
    """A network of images `(channels, height, width)` and their visibility."""

    def __init__(self, shape: Sequence[int], channels: int, hidden: int, dropout: float, classes: int) -> None:
        depth, height, width = shape
        widths = (2 * depth, channels, 2 * channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for (a, b), stride in zip(itertools.pairwise(widths), (2, 1, 2, 1), strict=True):
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
        cells = math.prod(math.ceil(math.ceil(size / 2) / 2) for size in (height, width))
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * channels * cells, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)]
        super().__init__(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
