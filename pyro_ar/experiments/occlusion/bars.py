r"""The bars of the occlusion table that are not joints of this library: kernel density, support vectors, and a threshold before others.

A class-conditional kernel density is a generative classifier like the others: a mixture with one narrow Gaussian per training row, whose
marginals are exact. The support vector machine must have its hidden cells filled in. The discriminative network is `PatternNet`.
"""

import math

from typing import Any, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.svm import SVC
from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.elliptical.units import units_by

__all__ = ["Binarised", "KernelDensity", "SupportVectors"]



class KernelDensity(PartlySeenClassifier):
    r"""Class-conditional kernel density with a Gaussian product kernel: exact for every pattern.

    .. math:: p(x_v \mid y) = \frac{1}{N_y} \sum_{i : y_i = y} \prod_{d \in v} \mathrm{Normal}(x_d \mid x_{id}, h\, r_d)

    r is the range of each cell, 2 where it is constant; with `scale="common"` the widest of them, for all cells.

    Args:
        bandwidth: h.
        scale: 'columns' or 'common'.

    Attributes:
        rows_: The training rows, `(N, n)`, divided by the ranges.
        range_: r, `(n,)`.

    Raises:
        ValueError: Bad rows, or all cells constant.

    Source:
        Parzen (1962), *On estimation of a probability density function and mode*.
    """

    def __init__(self, bandwidth: float = 0.15, scale: str = "columns") -> None:
        self.bandwidth = bandwidth
        self.scale = scale

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Keep the rows."""
        require(self.bandwidth > 0, "the bandwidth must be more than 0", self.bandwidth)
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "KernelDensity.fit wants complete training rows", seen)
        self.classes_, index = np.unique(labels, return_inverse=True)
        self.log_prior_ = torch.from_numpy(np.bincount(index) / len(index)).to(x).log()
        x = x.flatten(1)
        require(bool((x != x[0]).any()), "a kernel density can be had only where the values differ")
        self.range_ = 2 * units_by(self.scale, x)
        self.centre_ = x.mean(0)  # differences of squares lose fewer digits around it
        self.rows_, self.label_ = self._scaled(x), torch.from_numpy(index)
        return self

    def _scaled(self, x: Tensor) -> Tensor:
        return (x.to(self.centre_) - self.centre_) / self.range_

    def _posterior(self, square: Tensor) -> Tensor:
        """Log p(y | x_v) from squared distances `(R, N)`; the common factor of all kernels of a row drops out."""
        kernel = square / (-2 * self.bandwidth**2)
        parts = [kernel[:, self.label_ == c] for c in range(len(self.classes_))]
        scores = torch.stack([part.logsumexp(-1) - math.log(part.shape[1]) for part in parts], -1)
        return (scores + self.log_prior_).log_softmax(-1)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = self._scaled(x.flatten(1))
        seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible.flatten(1).expand(x.shape)
        step = at_once(len(self.rows_))
        return torch.cat([self._posterior(_squares(rows, v, self.rows_)) for rows, v in zip(x.split(step), seen.split(step), strict=True)])

    @property
    def num_parameters(self) -> int:
        """Numbers that it stores: the rows, the ranges, the prior and the bandwidth."""
        return self.rows_.numel() + len(self.range_) + len(self.classes_) - 1 + 1


def _squares(x: Tensor, visible: Tensor, rows: Tensor) -> Tensor:
    """Squared distances over the visible cells, `(R, M)`."""
    x, v = torch.where(visible, x, 0), visible.to(rows)
    return (x.square().sum(-1, keepdim=True) - 2 * x @ rows.T + v @ rows.square().T).clamp(min=0)


class SupportVectors(PartlySeenClassifier):
    r"""scikit-learn's SVM with a radial kernel, on scaled cells; hidden cells are filled with their training mean.

    An SVM has no posterior of its own. Here it is the softmax of the votes of its pairs of classes, which wants a temperature (`Tempered`) and
    stays crude: nearly all rows have one winner by one vote. (Sums of margins in place of votes lose up to 28 points of accuracy.)

    Args:
        C: Penalty.
        gamma: Of the kernel :math:`\exp(-\gamma\,|x - x'|^2 / (n v))`, v the variance of all scaled values: 1 is scikit-learn's default.
        scale: 'columns': by the range of each cell; 'common': by the widest of them.

    Attributes:
        machine_: The fitted `SVC`.

    Source:
        Hsu, Chang, Lin (2003), *A practical guide to support vector classification*: equal ranges, and C and gamma by validation (`Chosen`).
    """

    machine_: SVC

    def __init__(self, C: float = 1.0, gamma: float = 1.0, scale: str = "columns") -> None:
        self.C = C
        self.gamma = gamma
        self.scale = scale

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit the machine."""
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "SupportVectors.fit wants complete training rows", seen)
        self.classes_ = np.unique(labels)
        x = x.flatten(1)
        self.fill_, self.unit_ = x.mean(0), units_by(self.scale, x)
        rows = self._scaled(x)
        self.machine_ = SVC(C=self.C, gamma=self.gamma / (rows.shape[1] * (rows.var() or 1.0))).fit(rows, labels)
        return self

    def _scaled(self, x: Tensor) -> np.ndarray:
        return ((x.to(self.fill_) - self.fill_) / self.unit_).numpy()

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = x.flatten(1)
        filled = x if visible is None else torch.where(visible.flatten(1), x, self.fill_.to(x))
        scores = torch.from_numpy(self.machine_.decision_function(self._scaled(filled))).to(x)
        if scores.ndim == 1:
            scores = torch.stack([-scores, scores], -1) / 2
        return scores.log_softmax(-1)

    @property
    def num_parameters(self) -> int:
        """Numbers that it stores: support vectors, their weights and the thresholds, means and units."""
        machine = self.machine_
        return int(machine.support_vectors_.size + machine.dual_coef_.size + machine.intercept_.size + 2 * len(self.fill_))


class Binarised(PartlySeenClassifier):
    """A classifier of black and white: 1 where a cell reaches the threshold.

    Args:
        classifier: Not fitted; it stays as it is.
        threshold: What a cell must reach to be 1.
    """

    def __init__(self, classifier: PartlySeenClassifier, threshold: float) -> None:
        self.classifier = classifier
        self.threshold = threshold

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit a copy of the classifier to the bits."""
        x, seen, labels = self._read_training(X, y, visible)
        self.classifier_: Any = clone(self.classifier).fit(self._bits(x), labels, None if seen is None else seen.flatten(1))
        self.classes_ = self.classifier_.classes_
        return self

    def _bits(self, x: Tensor) -> Tensor:
        return (x.flatten(1) >= self.threshold).to(x)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.classifier_.log_posterior(self._bits(x), None if visible is None else visible.flatten(1))

    @property
    def num_parameters(self) -> int:
        """Those of the classifier."""
        return self.classifier_.num_parameters
