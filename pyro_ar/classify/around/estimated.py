r"""Class posteriors of a chain under any pattern: estimated by particles, with the error that they leave."""

from typing import Any, NamedTuple, Self

import torch

from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.checks import IntractableError, require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.joint import Joint

__all__ = ["EstimatedClassifier", "PosteriorEstimate"]


class PosteriorEstimate(NamedTuple):
    """p(y | x_visible) with its error.

    Attributes:
        probs: `(N, C)`.
        standard_error: Of `probs`, `(N, C)`; zero where the answer is exact.
        log_probs: `(N, C)`, in nats.
        log_standard_error: Of `log_probs`, `(N, C)`, in nats.
        trusted: `(N,)`; False where log p(x_visible | y) of some class is not to be trusted (see `LogMarginal`) that has a thousandth of the posterior.
        method: How it was answered: the exact methods, or 'estimate (sequential Monte Carlo, ... particles)'.
    """

    probs: Tensor
    standard_error: Tensor
    log_probs: Tensor
    log_standard_error: Tensor
    trusted: Tensor
    method: str


class EstimatedClassifier(PartlySeenClassifier):
    r"""A `GenerativeClassifier` over a fixed-order family, under every pattern: exact where the family is, else **estimated**.

    Where a family has no exact p(x_v | y), `estimate_log_marginal` estimates it for each class, and the errors :math:`e_c` of these, which are
    independent, are carried through Bayes' rule by the delta method:

    .. math:: \mathrm{se}(p_c)^2 = p_c^2 \Big( (1 - p_c)^2 e_c^2 + \sum_{k \ne c} p_k^2 e_k^2 \Big)

    `predict`, `predict_proba` and `score` use the estimates; `estimate` gives them with their error. Two calls differ by their particles: fix the seed
    of torch.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: A `GenerativeClassifier` over a family in a fixed order. It is copied, never fitted itself.
        num_particles: As in `estimate_log_marginal`, for each class and row.
        num_islands: As there.
        look_ahead: As there: a joint that is exact for every pattern, fitted to the same data.

    Attributes:
        classifier_: The fitted classifier.
        log_prior_: log p(y), `(C,)`.
        last_: The `PosteriorEstimate` of the last rows that were answered; None before.

    Raises:
        ValueError: A classifier that is no chain, which answers exactly or not at all; bad data or numbers.

    Source:
        Doucet, Johansen (2009), *A tutorial on particle filtering and smoothing*; the delta method: Casella, Berger (2002), *Statistical inference*, 5.5.4.

    Example:
        >>> import numpy as np
        >>> from pyro_ar.neural import FVSBN
        >>> X, y = np.array([[0, 0, 1], [1, 1, 0]] * 4), np.array([0, 1] * 4)
        >>> inner = GenerativeClassifier(FVSBN(3, context_dim=2), fit_options={"epochs": 2, "progress": False})
        >>> found = EstimatedClassifier(inner, num_particles=64).fit(X, y).estimate(X[:1], np.array([False, True, True]))
        >>> found.probs.shape, found.method
        (torch.Size([1, 2]), 'enumeration')
    """

    classifier_: GenerativeClassifier
    log_prior_: Tensor
    last_: PosteriorEstimate | None

    def __init__(self, classifier: GenerativeClassifier, *, num_particles: int = 256, num_islands: int = 16, look_ahead: Joint | None = None) -> None:
        self.classifier = classifier
        self.num_particles = num_particles
        self.num_islands = num_islands
        self.look_ahead = look_ahead

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit a copy of the classifier."""
        from sklearn.base import clone

        from pyro_ar.neural.autoregressive import Autoregressive  # here, so that closed-form classifiers load no neural code

        require(isinstance(self.classifier, GenerativeClassifier), "classifier must be a GenerativeClassifier", self.classifier)
        x, seen, labels = self._read_training(X, y, visible)
        fitted = clone(self.classifier).fit(x, labels, *(() if seen is None else (seen,)))
        require(isinstance(fitted.joint_.joints, Autoregressive) and fitted.pattern_ is None,
                "estimates want a classifier over one family in a fixed order, without `pattern`; others answer exactly", fitted.joint_.joints)
        self.classifier_, self.classes_, self.log_prior_, self.last_ = fitted, fitted.classes_, fitted.log_prior_, None
        return self

    def estimate(self, X: Any, visible: Any = None) -> PosteriorEstimate:
        """p(y | x_visible) of each row, with its error.

        Raises:
            ValueError: Bad shapes or values, or a row that no class can have.
        """
        return self._estimated(*self.read_rows(X, visible))

    def _estimated(self, x: Tensor, visible: Tensor | None) -> PosteriorEstimate:
        mine = self.classifier_
        try:
            log_p = mine.log_posterior(x, visible)
            seen = torch.ones(1, *self.event_shape_, dtype=torch.bool) if visible is None else visible
            how = ", ".join(sorted(set(mine.method(seen).tolist())))
            exact = torch.zeros_like(log_p)
            return PosteriorEstimate(log_p.exp(), exact, log_p, exact, torch.ones(len(x), dtype=torch.bool), how)
        except IntractableError:
            log_marginal, error, trusted = self._log_marginals(x, visible if visible is not None else torch.ones(1, *self.event_shape_, dtype=torch.bool))
        scores = mine.log_prior_ + log_marginal
        require(bool((scores > -torch.inf).any(-1).all()), "every row must be possible under some class; the visible cells have probability zero under all")
        log_p = scores.log_softmax(-1)
        p = log_p.exp()
        spread = torch.where(p > 0, p * error, 0).square()  # what each class adds to the variance of the log of the sum
        squared = (spread.sum(-1, keepdim=True) - spread + ((1 - p) * torch.where(p > 0, error, 0)).square()).clamp(min=0)
        how = f"estimate (sequential Monte Carlo, {self.num_particles} particles)"
        return PosteriorEstimate(p, p * squared.sqrt(), log_p, squared.sqrt(), (trusted | (p < NEGLIGIBLE)).all(-1), how)

    def _log_marginals(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log p(x_visible | y), its error and whether it is to be trusted, each `(N, C)`."""
        from pyro_ar.inference.estimate import estimate_log_marginal

        chain: Any = self.classifier_.joint_.joints
        event = tuple(chain.event_shape)
        rows = x.to(chain.device, chain.dtype).reshape(len(x), 1, *event)
        seen = visible.to(chain.device).reshape(len(visible), 1, *event).expand(rows.shape)
        step = at_once(self.num_particles * self.n_features_in_ * len(self.classes_))
        parts = [estimate_log_marginal(chain, a, v, num_particles=self.num_particles, num_islands=self.num_islands, look_ahead=self.look_ahead)
                 for a, v in zip(rows.split(step), seen.split(step), strict=True)]
        return tuple(torch.cat([getattr(part, name) for part in parts]) for name in ("estimate", "standard_error", "trusted"))  # type: ignore[return-value]

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        self.last_ = self._estimated(x, visible)
        return self.last_.log_probs

    @property
    def num_parameters(self) -> int:
        """Those of the classifier."""
        check_is_fitted(self)
        return self.classifier_.num_parameters


NEGLIGIBLE = 1e-3  # share of a class whose own error does not matter
