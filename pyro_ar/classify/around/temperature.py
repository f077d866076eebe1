r"""One temperature for the posterior of a fitted classifier, learnt on rows it has not seen."""

import math

from typing import Any, Self

import numpy as np
import torch

from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.known_rows import require_new

__all__ = ["TemperatureScaled", "at_temperature", "best_temperature"]

COLDEST, HOTTEST = 0.02, 50.0


class TemperatureScaled(PartlySeenClassifier):
    r"""A fitted classifier whose evidence is weighed by 1/T.

    .. math:: p_T(y \mid x_v) \propto p(y) \left( \frac{p(y \mid x_v)}{p(y)} \right)^{1/T}

    T > 1 makes an overconfident classifier modest. The most probable class stays the same where the prior is uniform, and a row
    with nothing visible still gets the prior. For a classifier without `log_prior_` the prior is taken for uniform.

    T has a prior, Gamma(2, 1) on 1/T, which weighs no more than a row: rows that are all right, or few, then do not drive it to an end of its range.

    **The answer is no longer that of the joint**: for T other than 1 no p(x, y) has these posteriors for every pattern, so
    evidence of separate cells does not add up as it should. It is a correction of probabilities, to be asked for by name.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: Fitted; it is used as it is, never fitted again.

    Attributes:
        temperature_: T, between 0.02 and 50.

    Raises:
        ValueError: Labels that the classifier does not know, bad rows, or rows that the classifier was fitted to.

    Source:
        Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural networks*, ICML.

    Example:
        >>> from pyro_ar.classify.discriminant import DiscriminantAnalysis
        >>> X, y = np.array([[0.0], [1.0], [0.4], [1.4]]), np.array([0, 0, 1, 1])
        >>> scaled = TemperatureScaled(DiscriminantAnalysis().fit(X, y)).fit(np.array([[2.0], [-1.0]]), np.array([0, 1]))
        >>> scaled.temperature_ > 4
        True
    """

    temperature_: float

    def __init__(self, classifier: PartlySeenClassifier) -> None:
        self.classifier = classifier

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Find the T with the least -log p(y | x_visible) on held-out rows, less the log of its prior.

        Args:
            X: Rows that the classifier was not fitted to; those that it was fitted to are refused, as far as all of them is seen.
            y: One label per row.
            visible: Patterns such as those to come; None: all is seen.
        """
        require(isinstance(self.classifier, PartlySeenClassifier), "classifier must be one of this library", self.classifier)
        check_is_fitted(self.classifier)
        x, seen, labels = self._read_training(X, y, visible)
        known = np.isin(labels, self.classifier.classes_)
        require(bool(known.all()), f"y must hold labels out of {self.classifier.classes_.tolist()}", labels[~known][:8].tolist())
        require_new(self.classifier, x, seen, why="it is surer of its own training rows than of new ones, and T would be too cold")
        self.classes_ = self.classifier.classes_
        true = torch.from_numpy(np.searchsorted(self.classes_, labels)).to(x.device)
        with torch.no_grad():
            log_p = self.classifier.log_posterior(*self.classifier.read_rows(x, seen))

        self.temperature_ = best_temperature(log_p, self._log_prior(log_p), true)
        return self

    def _log_prior(self, log_p: Tensor) -> Tensor:
        prior = getattr(self.classifier, "log_prior_", None)
        return log_p.new_zeros(log_p.shape[-1]) if prior is None else prior.to(log_p)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        log_p = self.classifier.log_posterior(x, visible)
        return at_temperature(log_p, self._log_prior(log_p), self.temperature_)


def best_temperature(log_p: Tensor, log_prior: Tensor, true: Tensor) -> float:
    """T of these answers `(N, C)` to new rows of the classes `(N,)`, beside its prior."""

    def loss(log_coldness: float) -> float:
        scaled = _scaled(log_p, log_prior, math.exp(log_coldness))
        prior = log_coldness - math.exp(log_coldness)
        return float(-scaled.gather(-1, true[:, None]).sum()) - prior

    return math.exp(-_lowest(loss, -math.log(HOTTEST), -math.log(COLDEST)))


def at_temperature(log_p: Tensor, log_prior: Tensor, temperature: float) -> Tensor:
    """The answers `(N, C)`, their evidence weighed by 1/T."""
    return _scaled(log_p, log_prior, 1 / temperature)


def _scaled(log_p: Tensor, log_prior: Tensor, coldness: float) -> Tensor:
    impossible = log_p == -math.inf
    evidence = (log_p - log_prior).masked_fill(impossible, 0)
    return (log_prior + coldness * evidence).masked_fill(impossible, -math.inf).log_softmax(-1)


def _lowest(loss: Any, low: float, high: float) -> float:
    """Golden-section search: the loss is convex in 1/T, the prior's part too, so it has one valley."""
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = loss(a), loss(b)
    while high - low > 1e-6:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = loss(b)
    return (low + high) / 2
