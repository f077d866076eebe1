r"""Discriminant analysis: the generative classifier over Gaussians, quadratic or linear."""

from collections.abc import Mapping
from typing import Any

import torch

from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.elliptical import Gaussian
from pyro_ar.elliptical.dense import covariance_from
from pyro_ar.elliptical.em import fit_incomplete
from pyro_ar.elliptical.units import column_units, in_values

__all__ = ["DiscriminantAnalysis"]


class DiscriminantAnalysis(GenerativeClassifier):
    r"""`GenerativeClassifier` over `Gaussian`: exact for every pattern of visible cells.

    The covariance is the maximum likelihood one, S (divided by the number of rows, not one less), shrunk:

    .. math:: \Sigma = (1 - a)\, S + a\, \tau\, \mathrm{diag}(u^2), \quad \tau = \frac1D \sum_d S_{dd} / u_d^2

    u is half the range of each cell over all training rows (1 where it is constant): the units of the cells do not matter.
    With nothing hidden, a learnt prior and a > 0 it is scikit-learn's `QuadraticDiscriminantAnalysis(solver='eigen',
    shrinkage=a)` on X / u, and `LinearDiscriminantAnalysis(solver='lsqr', shrinkage=a)` where the covariance is shared.
    Parameters: :math:`(C-1) + C D + C D (D+1)/2`, with a shared covariance :math:`(C-1) + C D + D (D+1)/2`;
    C - 1 less where the prior is given.

    Training rows may have hidden cells: EM, as in `Gaussian.from_data`.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        shrinkage: a, from 0 to 1. More than 0 is needed with constant cells, or a class of fewer rows than cells.
        covariance: 'own', each class has its own, or 'shared', one around the class means.
        prior: As in `GenerativeClassifier`.
        num_classes: As in `GenerativeClassifier`.
        pattern: As in `GenerativeClassifier`.
        pattern_options: As in `GenerativeClassifier`.

    Raises:
        ValueError: Bad data or arguments; a singular covariance, which more shrinkage mends.

    Source:
        Friedman (1989), *Regularized discriminant analysis*, JASA 84. Why ranges, on seven tables: `benchmarks/shrinkage.py`.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [5.0, 5.0]]), np.array([0, 0, 1, 1])
        >>> classifier = DiscriminantAnalysis(shrinkage=0.5).fit(X, y)
        >>> classifier.predict(np.array([[np.nan, 4.2]]), visible=np.array([False, True]))
        array([1])
    """

    def __init__(self, shrinkage: float = 0.1, covariance: str = "own", prior: Any = None,
                 num_classes: int | None = None, *, pattern: Any = None, pattern_options: Mapping[str, Any] | None = None) -> None:
        self.shrinkage = shrinkage
        self.covariance = covariance
        self.prior = prior
        self.num_classes = num_classes
        self.pattern = pattern
        self.pattern_options = pattern_options

    @classmethod
    def count_parameters(cls, num_classes: int, num_features: int, covariance: str = "own") -> int:
        """Free parameters with a learnt prior; allocates nothing."""
        _check_covariance(covariance)
        matrix = num_features * (num_features + 1) // 2
        return num_classes - 1 + num_classes * num_features + (num_classes if covariance == "own" else 1) * matrix

    @property
    def num_parameters(self) -> int:
        """Free parameters, as in the class's own formula."""
        check_is_fitted(self)
        total = self.count_parameters(len(self.classes_), self.n_features_in_, self.covariance) + self._pattern_parameters()
        return total if self.prior is None else total - (len(self.classes_) - 1)

    def class_conditional(self) -> tuple[Any, Mapping[str, Any]]:
        _check_covariance(self.covariance)
        require(isinstance(self.shrinkage, int | float), "shrinkage must lie between 0 and 1", self.shrinkage)
        return Gaussian, {"shrinkage": self.shrinkage}

    def _fit_closed_form(self, like: Any, x: Tensor, weights: Tensor, visible: Tensor | None, options: dict[str, Any]) -> Gaussian:
        if self.covariance == "own":
            return Gaussian.from_data(x, weights=weights, visible=visible, **options)
        x, visible = (x, None) if visible is None else _partly_seen(x, visible)
        unit = column_units(x, visible, weights)
        x = x / unit
        if visible is not None:
            loc, matrix = fit_incomplete(x, visible, weights, pooling=1.0, em_steps=100, **options)
            return Gaussian(*in_values(unit, loc, matrix[0]))
        means = weights @ x / weights.sum(-1, keepdim=True)
        if bool(((weights == 0) | (weights == 1)).all()):
            errors, shares = x - weights.T @ means, weights.new_ones(len(x))
        else:  # shares of the rows
            errors, shares = (x - means[:, None]).flatten(0, 1), weights.flatten()
        _, within = covariance_from(errors, shares / shares.sum(), **options)
        return Gaussian(*in_values(unit, means, within))


def _partly_seen(x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    visible = visible.expand(x.shape)
    return torch.where(visible, x, 0), visible


def _check_covariance(covariance: str) -> None:
    require(covariance in ("own", "shared"), "covariance must be 'own' or 'shared'", covariance)
