r"""Is x itself plausible? Its log p(x_visible) ranked among those of reference rows with the same cells seen."""

from typing import Any, Self

import numpy as np
import torch

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.known_rows import require_new
from pyro_ar.elliptical.patterns import distinct

__all__ = ["Plausibility"]


class Plausibility(BaseEstimator):
    r"""Conformal p-values of rows under the joint of a fitted classifier, whatever cells are seen.

    .. math:: p(x_v) = \frac{1 + \#\{ j : \log p(x^{(j)}_v) \le \log p(x_v) \}}{n + 1}

    with the n reference rows seen through the pattern of x, because densities of different cells do not compare. If
    x is exchangeable with the reference rows, and the pattern does not depend on the cells, then P(p <= a) <= a for
    every a, **whether the joint is right or wrong**. So `p_value < 0.05` is an alarm that rings for at most 5 % of ordinary rows (on average
    over reference sets), and the joint decides only how often it rings for others. The smallest p-value is 1 / (n + 1).

    A large p-value does not say that x belongs: a joint may find other things more plausible still, above all simple ones (Nalisnick
    et al. 2019), such as a blank image; `two_sided` rings for these too. With few cells seen little is strange, and with none the p-value is 1.

    Each different pattern costs `score_samples` of all n reference rows; 100 rows with 100 patterns and n = 300 are 30,000 answers.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: A fitted `GenerativeClassifier`; it is used as it is, never fitted again.
        max_reference: At most so many reference rows are kept, the first ones.

    Attributes:
        reference_: The rows, `(n, *event)`.

    Source:
        Vovk, Gammerman, Shafer (2005), *Algorithmic learning in a random world*; Laxhammar, Falkman (2011), *Sequential conformal
        anomaly detection in trajectories*; Nalisnick et al. (2019), *Do deep generative models know what they don't know?*, ICLR.

    Example:
        >>> from pyro_ar.classify.discriminant import DiscriminantAnalysis
        >>> X, y = np.array([[0.0], [1.0], [0.4], [1.4]]), np.array([0, 0, 1, 1])
        >>> plausible = Plausibility(DiscriminantAnalysis().fit(X, y)).fit(np.linspace(-0.5, 2.0, 19)[:, None])
        >>> plausible.p_value(np.array([[0.6], [8.0]]))
        array([0.9 , 0.05])
    """

    reference_: Tensor

    def __init__(self, classifier: GenerativeClassifier, max_reference: int = 1000) -> None:
        self.classifier = classifier
        self.max_reference = max_reference

    def fit(self, X: Any, y: None = None) -> Self:
        """Keep reference rows.

        Args:
            X: Complete rows that the classifier was not fitted to. Its own training rows look more plausible to it than new ones, and the alarm
                would ring for most of these; they are recognised and refused.
            y: Ignored.

        Raises:
            ValueError: Bad rows, rows that the classifier was fitted to, or no generative classifier.
        """
        require(isinstance(self.classifier, GenerativeClassifier), "classifier must be a GenerativeClassifier (of a corrected one, its classifier_)",
                self.classifier)
        require(self.max_reference >= 1, "max_reference must be 1 or more", self.max_reference)
        x = self.classifier.read_complete_rows(X)
        require_new(self.classifier, x[:self.max_reference], None,
                    why="its own training rows look more plausible to it than new ones, and most of these would look strange")
        self.reference_ = x[:self.max_reference]
        return self

    def log_prob(self, X: Any, visible: Any = None) -> np.ndarray:
        """Log p(x_visible), `(N,)`: the `score_samples` of the classifier."""
        with torch.no_grad():
            return self.classifier.score_samples(X, visible).cpu().numpy()

    def p_value(self, X: Any, visible: Any = None, *, two_sided: bool = False) -> np.ndarray:
        """The share of reference rows, x itself among them, that are at most as plausible, `(N,)`.

        Args:
            X: As in `predict`.
            visible: As in `predict`.
            two_sided: Rows that are more plausible than the reference rows count as strange too: twice the smaller of this share and
                that of rows at least as plausible, at most 1. It is as valid, and rings less for rows of low probability.

        Raises:
            ValueError: Bad shapes or values.
            IntractableError: There is no exact answer for some pattern.
        """
        check_is_fitted(self)
        x, seen = self.classifier.read_rows(X, visible)
        n = len(self.reference_)
        everything = torch.ones(1, *x.shape[1:], dtype=torch.bool, device=x.device)
        patterns, which = distinct((everything if seen is None else seen).flatten(1))
        answer = np.ones(len(x))
        if len(which) == 1:
            which = which.expand(len(x))
        for u, pattern in enumerate(patterns):
            rows = which == u
            # Asked together, so that equal rows get equal scores.
            scores = self.log_prob(torch.cat([x[rows], self.reference_.to(x)]), pattern.reshape(1, *x.shape[1:]))
            own, others = scores[:-n], np.sort(scores[-n:])
            low = 1 + np.searchsorted(others, own + _rounding(own), side="right")
            high = 1 + n - np.searchsorted(others, own - _rounding(own), side="left")
            answer[rows.cpu().numpy()] = (np.minimum(2 * np.minimum(low, high), n + 1) if two_sided else low) / (n + 1)
        return answer


def _rounding(scores: np.ndarray) -> np.ndarray:
    """What two equal scores may differ by: ties count, and a p-value that is too large by rounding is still valid."""
    size = np.where(np.isfinite(scores), np.abs(scores), 0.0)
    return 100 * np.finfo(scores.dtype).eps * (1 + size)
