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
from pyro_ar.elliptical.units import column_units
from pyro_ar.experiments.occlusion.inner import inner_split, some_rows

__all__ = ["Binarised", "KernelDensity", "SupportVectors"]

BANDWIDTHS = (1 / 16, 1.5 / 16, 2 / 16, 2.5 / 16, 3 / 16, 4 / 16, 6 / 16)  # of the range of each cell


class KernelDensity(PartlySeenClassifier):
    r"""Class-conditional kernel density with a Gaussian product kernel: exact for every pattern.

    .. math:: p(x_v \mid y) = \frac{1}{N_y} \sum_{i : y_i = y} \prod_{d \in v} \mathrm{Normal}(x_d \mid x_{id}, h\, r_d)

    r is the range of each cell over the rows that are kept, 2 where it is constant.

    Args:
        bandwidth: h; None: out of `BANDWIDTHS`, by accuracy on an inner split, over five shares of hidden cells; the narrower one of equals.
        max_rows: Training rows to keep, a stratified draw; None: all.
        seed: Of the draw and the inner split.

    Attributes:
        chosen_: The bandwidth.
        rows_: The rows that are kept, `(M, n)`, divided by the ranges.
        range_: r, `(n,)`.

    Raises:
        ValueError: Bad rows, or all cells constant.

    Source:
        Parzen (1962), *On estimation of a probability density function and mode*.
    """

    chosen_: dict[str, float]

    def __init__(self, bandwidth: float | None = None, max_rows: int | None = None, seed: int = 0) -> None:
        self.bandwidth = bandwidth
        self.max_rows = max_rows
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Keep the rows, and choose the bandwidth."""
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "KernelDensity.fit wants complete training rows", seen)
        self.classes_, index = np.unique(labels, return_inverse=True)
        self.log_prior_ = torch.from_numpy(np.bincount(index) / len(index)).to(x).log()
        kept = some_rows(labels, self.max_rows, seed=self.seed)
        x, label = x.flatten(1)[kept], torch.from_numpy(index)[kept]
        require(bool((x != x[0]).any()), "a kernel density can be had only where the values differ")
        self.range_ = 2 * column_units(x)
        self.centre_ = x.mean(0)  # differences of squares lose fewer digits around it
        self.rows_, self.label_ = self._scaled(x), label
        h = self._chosen(self.rows_, label) if self.bandwidth is None else self.bandwidth
        require(h > 0, "the bandwidth must be more than 0", h)
        self.chosen_ = {"bandwidth": h}
        return self

    def _scaled(self, x: Tensor) -> Tensor:
        return (x.to(self.centre_) - self.centre_) / self.range_

    def _chosen(self, x: Tensor, label: Tensor) -> float:
        inner = inner_split(self.classes_[label.numpy()], x.shape[1], seed=self.seed, most=1000)
        true, right = label[inner.test], torch.zeros(len(BANDWIDTHS))
        for part in torch.arange(len(true)).split(self._step(len(inner.train))):
            rows, seen = x[inner.test][part], inner.visible[part]
            square = _squares(rows, seen, x[inner.train])
            for i, h in enumerate(BANDWIDTHS):
                log_p = self._posterior(square, label[inner.train], h)
                right[i] += (log_p.argmax(-1) == true[part]).sum()
        return BANDWIDTHS[int(right.argmax())]

    def _step(self, rows: int) -> int:
        return at_once(rows)

    def _posterior(self, square: Tensor, label: Tensor, h: float) -> Tensor:
        """Log p(y | x_v) from squared distances `(R, M)`; the common factor of all kernels of a row drops out."""
        kernel = square / (-2 * h * h)
        parts = [kernel[:, label == c] for c in range(len(self.classes_))]
        scores = torch.stack([part.logsumexp(-1) - math.log(part.shape[1]) for part in parts], -1)
        return (scores + self.log_prior_).log_softmax(-1)

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = self._scaled(x.flatten(1))
        seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible.flatten(1).expand(x.shape)
        turns = zip(x.split(self._step(len(self.rows_))), seen.split(self._step(len(self.rows_))), strict=True)
        return torch.cat([self._posterior(_squares(rows, v, self.rows_), self.label_, self.chosen_["bandwidth"]) for rows, v in turns])

    @property
    def num_parameters(self) -> int:
        """Numbers that it stores: the rows, the ranges, the prior and the bandwidth."""
        return self.rows_.numel() + len(self.range_) + len(self.classes_) - 1 + 1


def _squares(x: Tensor, visible: Tensor, rows: Tensor) -> Tensor:
    """Squared distances over the visible cells, `(R, M)`."""
    x, v = torch.where(visible, x, 0), visible.to(rows)
    return (x.square().sum(-1, keepdim=True) - 2 * x @ rows.T + v @ rows.square().T).clamp(min=0)


class SupportVectors(PartlySeenClassifier):
    r"""scikit-learn's SVM with a radial kernel, on cells that are scaled to equal ranges; hidden cells are filled with their training mean.

    An SVM has no posterior of its own. Here it is the softmax of the votes of its pairs of classes, which wants a temperature (`Tempered`) and
    stays crude: nearly all rows have one winner by one vote. (Sums of margins in place of votes lose up to 28 points of accuracy.)

    Args:
        C: Penalty.

    Attributes:
        machine_: The fitted `SVC`.

    Source:
        Hsu, Chang, Lin (2003), *A practical guide to support vector classification*: equal ranges, and C by validation (`Chosen`).
    """

    machine_: SVC

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit the machine."""
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "SupportVectors.fit wants complete training rows", seen)
        self.classes_ = np.unique(labels)
        x = x.flatten(1)
        self.fill_, self.unit_ = x.mean(0), column_units(x)
        self.machine_ = SVC(C=self.C).fit(self._scaled(x), labels)
        return self

    def _scaled(self, x: Tensor) -> np.ndarray:
        return ((x.to(self.fill_) - self.fill_) / self.unit_).numpy()

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
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

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.classifier_._log_posterior(self._bits(x), None if visible is None else visible.flatten(1))

    @property
    def num_parameters(self) -> int:
        """Those of the classifier."""
        return self.classifier_.num_parameters
