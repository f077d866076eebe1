r"""The discriminative bar: networks that see random parts of the training images, and say the class at once."""

import itertools

from typing import Any, Self

import numpy as np
import torch

from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.rank_normal import RankNormal

__all__ = ["PatternNet"]

MOST_HIDDEN = 0.95  # shares of hidden cells in training are uniform from 0 to here


class PatternNet(PartlySeenClassifier):
    r"""An ensemble of networks for p(y | x_visible), trained under random patterns.

    The input of a network is the cells, zero where hidden, and one bit per cell that says whether it is visible; the cells are
    rank-normal, or standardised by their means and one common scale. In training each row gets a new pattern at every step: a share of hidden cells uniform from 0 to `MOST_HIDDEN`,
    each cell hidden with that probability. The answer is the mean of the networks' posteriors. It has no p(x).

    Args:
        hidden: Units of a hidden layer.
        layers: Hidden layers.
        members: Networks.
        steps: Of AdamW, each on `batch_size` rows.
        batch_size: Rows of a step.
        lr: Highest step size of the one-cycle schedule.
        dropout: Share of hidden units to drop.
        weight_decay: Decoupled.
        ranks: Rank-normal cells.
        seed: Of weights, rows and patterns.

    Attributes:
        nets_: The networks.

    Raises:
        ValueError: Bad rows, or all values equal.

    Source:
        Lakshminarayanan, Pritzel, Blundell (2017), *Simple and scalable predictive uncertainty estimation using deep ensembles*, NeurIPS 30.
    """

    nets_: list[nn.Module]

    def __init__(self, hidden: int = 256, layers: int = 2, members: int = 3, steps: int = 2500, batch_size: int = 256, lr: float = 3e-3,
                 dropout: float = 0.3, weight_decay: float = 0.01, ranks: bool = True, seed: int = 0) -> None:
        self.hidden = hidden
        self.layers = layers
        self.members = members
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.ranks = ranks
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Train the networks."""
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "PatternNet.fit wants complete training rows", seen)
        self.classes_, index = np.unique(labels, return_inverse=True)
        rows = x.flatten(1).float()
        self.mean_, self.scale_ = rows.mean(0), float(rows.std())
        require(self.scale_ > 0, "PatternNet wants values that differ")
        self.transform_ = RankNormal.from_data(rows) if self.ranks else None
        rows = self._standardised(rows)
        self.nets_ = [self._trained(rows, torch.from_numpy(index), 1000 * self.seed + k) for k in range(self.members)]
        return self

    def _standardised(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_) / self.scale_ if self.transform_ is None else self.transform_.inv(rows)

    def _net(self, cells: int) -> nn.Sequential:
        sizes = [2 * cells] + self.layers * [self.hidden]
        blocks = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(self.dropout)) for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(*itertools.chain(*blocks), nn.Linear(sizes[-1], len(self.classes_)))

    def _trained(self, rows: Tensor, index: Tensor, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # of weights and dropout
            torch.manual_seed(seed)
            draws = Generator().manual_seed(seed)
            net = self._net(rows.shape[1])
            optimiser = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=self.steps, pct_start=0.1)
            for _ in range(self.steps):
                some = torch.randint(len(rows), (self.batch_size,), generator=draws)
                share = MOST_HIDDEN * torch.rand(self.batch_size, 1, generator=draws)
                seen = torch.rand(self.batch_size, rows.shape[1], generator=draws) >= share
                loss = nn.functional.cross_entropy(net(_inputs(rows[some], seen)), index[some])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return net.eval().requires_grad_(False)

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        rows = self._standardised(x.flatten(1).float())
        seen = torch.ones_like(rows, dtype=torch.bool) if visible is None else visible.flatten(1).expand(rows.shape)
        inputs = _inputs(rows, seen)
        parts = torch.stack([net(inputs).log_softmax(-1) for net in self.nets_])
        return parts.logsumexp(0).log_softmax(-1)

    @property
    def num_parameters(self) -> int:
        """Weights of all networks."""
        return sum(weight.numel() for net in self.nets_ for weight in net.parameters())


def _inputs(rows: Tensor, visible: Tensor) -> Tensor:
    return torch.cat([torch.where(visible, rows, 0), visible.to(rows)], -1)
