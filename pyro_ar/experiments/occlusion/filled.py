r"""Training rows with hidden cells for classifiers that want complete ones: what their users do, means of the columns."""

from typing import Any, Self

import torch

from sklearn.base import clone
from torch import Tensor

from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.logistic import means_of

__all__ = ["MeanFilled"]


class MeanFilled(PartlySeenClassifier):
    """A classifier whose hidden training cells are filled with the mean of the rows that show the cell.

    Its answers are the classifier's own: what is hidden then goes to it as hidden.

    Args:
        classifier: Not fitted; it stays as it is.

    Attributes:
        classifier_: The fitted copy.

    Example:
        >>> import numpy as np
        >>> from pyro_ar.experiments.occlusion.bars import KernelDensity
        >>> X, y = np.array([[0.0], [1.0], [np.nan], [9.0]]), np.array([0, 0, 1, 1])
        >>> classifier = MeanFilled(KernelDensity(bandwidth=1.0)).fit(X, y, visible=~np.isnan(X))
        >>> (classifier.classifier_.rows_ * classifier.classifier_.range_ + classifier.classifier_.centre_).flatten()
        tensor([0.0000, 1.0000, 3.3333, 9.0000], dtype=torch.float64)
    """

    def __init__(self, classifier: PartlySeenClassifier) -> None:
        self.classifier = classifier

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fill, and fit a copy of the classifier."""
        x, seen, labels = self._read_training(X, y, visible)
        filled = x if seen is None else torch.where(seen, x, means_of(x, seen))
        self.classifier_: Any = clone(self.classifier).fit(filled, labels)
        self.classes_ = self.classifier_.classes_
        self.chosen_ = dict(getattr(self.classifier_, "chosen_", {}))
        return self

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.classifier_.log_posterior(x, visible)

    @property
    def num_parameters(self) -> int:
        """Those of the classifier; the means serve training alone."""
        return self.classifier_.num_parameters
