r"""Answering only when sure: decisions with a reject option, and what it buys, as a risk-coverage curve."""

import math

from typing import Any, NamedTuple

import numpy as np

from scipy.stats import binom
from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.classify.around.plausibility import Plausibility
from pyro_ar.classify.base import PartlySeenClassifier

__all__ = ["Decision", "RiskCoverage", "decide", "risk_coverage"]


class Decision(NamedTuple):
    """Answers, and which of them to give.

    Attributes:
        labels: The most probable label of each row, `(N,)`, given or not.
        answered: False where the classifier abstains, `(N,)`.
        posterior: Probability of that label, `(N,)`.
        p_value: Plausibility of the row, `(N,)`; None where it was not asked.
    """

    labels: np.ndarray
    answered: np.ndarray
    posterior: np.ndarray
    p_value: np.ndarray | None


class RiskCoverage(NamedTuple):
    """Share of rows answered, and of the answers the share that is wrong, when the k most confident rows are answered, k = 1 to N.

    Attributes:
        coverage: k / N, `(N,)`.
        risk: Expected wrong answers among k, over k; equally confident rows come in random order, `(N,)`.
        confidence: Of the k-th row, `(N,)`.
        area: Mean of `risk` over k (AURC): the expected risk at a random coverage.
    """

    coverage: np.ndarray
    risk: np.ndarray
    confidence: np.ndarray
    area: float

    def at_risk(self, most: float, failure: float = 0.1) -> tuple[float, float]:
        r"""Coverage of these rows, and the confidence from which on to answer, so that of **new** answers a share of at most `most` is wrong.

        A threshold that is simply the best one for the rows that it is scored on promises nothing: half of such thresholds, or more, give a larger
        risk on new rows. Here the promise holds with a probability of at least `1 - failure` over rows such as these, if surer answers are no more
        often wrong: a threshold is taken only if the errors above it would be too few, were its risk larger (a binomial test).
        Several are tried, from all rows, a quarter of them, a sixteenth, ... on upwards until one test fails, and each of these starts gets an equal part
        of `failure`.

        The price is rows: with no error at all 1 % can be promised from 230 answers on (`failure` .1, one start). The promise is about the
        classifier that gave these confidences, so the rows must be new to it, and the new rows such as these.

        Args:
            most: Risk of the answers, 0 to 1; 0 cannot be promised by any number of rows.
            failure: Probability that the promise does not hold, over 0 and less than 1.

        Returns:
            Share of these rows that are answered, and the threshold, for `decide` too; equally confident rows are answered together, or not at
            all. 0 and infinity where nothing can be promised.

        Raises:
            ValueError: `most` is not from 0 to 1, or `failure` not between 0 and 1.

        Source:
            Geifman, El-Yaniv (2017), *Selective classification for deep neural networks*, NeurIPS 30 (selection with guaranteed risk); the starts are
            those of Angelopoulos, Bates, Candes, Jordan, Lei (2021), *Learn then test: calibrating predictive algorithms to achieve risk control*.

        Example:
            >>> curve = risk_coverage(np.linspace(1, 0, 1000), np.arange(1000) < 700)  # the 300 least confident rows are wrong
            >>> coverage, confidence = curve.at_risk(0.05)
            >>> round(coverage, 2), round(confidence, 2)  # 4 % wrong: with 5 % the promise would fail half of the time
            (0.73, 0.27)
        """
        require(0 <= most <= 1, "most must be a risk from 0 to 1", most)
        require(0 < failure < 1, "failure must be a probability between 0 and 1", failure)
        rows = len(self.coverage)
        starts = _starts(rows, most, failure)
        ends = np.flatnonzero(np.append(self.confidence[1:] != self.confidence[:-1], True)) + 1  # of groups of equally confident rows
        tail = binom.cdf(np.rint(self.risk[ends - 1] * ends), ends, most) if most < 1 else np.zeros(len(ends))
        safe = np.append(tail <= failure / len(starts), False)
        firsts = [int(np.searchsorted(ends, start)) for start in starts]
        reached = max(first + int(safe[first:].argmin()) for first in firsts if safe[first]) if safe[firsts].any() else 0
        return (0.0, math.inf) if reached == 0 else (float(ends[reached - 1] / rows), float(self.confidence[ends[reached - 1] - 1]))


def _starts(rows: int, most: float, failure: float) -> list[int]:
    """All rows, a quarter, a sixteenth, ... as far as answers without an error would pass; they depend on no answer."""
    starts = [rows]
    while (part := starts[-1] // 4) > 0 and (1 - most) ** part <= failure / (len(starts) + 1):
        starts.append(part)
    return starts


def decide(classifier: PartlySeenClassifier, X: Any, visible: Any = None, *, least_posterior: float = 0.0,
           plausibility: Plausibility | None = None, least_p_value: float = 0.0) -> Decision:
    r"""Answer the rows whose most probable label is probable enough, and which are plausible enough.

    The two are different doubts: a posterior near 1/C says that x lies between classes, a small p-value
    that x is like none of them, where the posterior means nothing and is often near 1.

    Args:
        classifier: Fitted; of any kind.
        X: As in `predict`.
        visible: As in `predict`.
        least_posterior: Answer from this probability on; `RiskCoverage.at_risk` gives one that keeps a promise on new rows.
        plausibility: Fitted; needed for `least_p_value`.
        least_p_value: Answer from this p-value on: a refuses at most about a share a of ordinary rows.

    Raises:
        ValueError: Bad rows, thresholds that are no probabilities, or `least_p_value` without `plausibility`.

    Source:
        Chow (1970), *On optimum recognition error and reject tradeoff*, IEEE Transactions on Information Theory 16.

    Example:
        >>> from pyro_ar.classify.discriminant import DiscriminantAnalysis
        >>> X, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array(["a", "a", "b", "b"])
        >>> decision = decide(DiscriminantAnalysis().fit(X, y), np.array([[0.6], [2.5]]), least_posterior=0.9)
        >>> decision.labels[decision.answered], decision.answered
        (array(['a'], dtype='<U1'), array([ True, False]))
    """
    require(0 <= least_posterior <= 1 or least_posterior == math.inf, "least_posterior must be a probability, or infinity to refuse all rows", least_posterior)
    require(0 <= least_p_value <= 1, "least_p_value must be a probability", least_p_value)
    require(plausibility is not None or least_p_value == 0, "least_p_value needs a fitted Plausibility")
    p = classifier.predict_proba(X, visible)
    answered = p.max(1) >= least_posterior
    p_value = None if plausibility is None else plausibility.p_value(X, visible)
    if p_value is not None:
        answered &= p_value >= least_p_value
    return Decision(classifier.classes_[p.argmax(1)], answered, p.max(1), p_value)


def risk_coverage(confidence: Any, right: Any) -> RiskCoverage:
    r"""What abstaining buys: the risk of the answers that are left as less confident rows are refused.

    Args:
        confidence: Of each row, the larger the surer, `(N,)`; only its order counts. Infinities are fine.
        right: Whether the answer would be right, bool `(N,)`. A row that should be refused, whatever the answer, counts as wrong.

    Raises:
        ValueError: Shapes that differ, no rows, NaN.

    Source:
        El-Yaniv, Wiener (2010), *On the foundations of noise-free selective classification*, JMLR 11; for the area, Geifman,
        El-Yaniv (2017), *Selective classification for deep neural networks*, NeurIPS 30, and Geifman, Uziel, El-Yaniv (2019), ICLR.

    Example:
        >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.3], [True, True, False, False])
        >>> curve.risk  # at k = 2 one of two equally confident rows, one of which is wrong
        array([0.        , 0.25      , 0.33333333, 0.5       ])
    """
    confidence, right = (t.detach().cpu().numpy() if isinstance(t, Tensor) else np.asarray(t) for t in (confidence, right))
    fits = confidence.ndim == 1 and confidence.shape == right.shape and len(right) > 0 and right.dtype == bool
    require(fits, "confidence and right must be (N,) with N at least 1, right of bool", confidence.shape, right.shape, str(right.dtype))
    require(not bool(np.isnan(confidence.astype(float)).any()), "confidence must not hold NaN")
    order = np.argsort(-confidence.astype(float), kind="stable")
    sure, wrong = confidence[order], ~right[order]
    first = np.append(True, sure[1:] != sure[:-1])
    group = first.cumsum() - 1
    size, errors = np.bincount(group), np.bincount(group, wrong)
    before, errors_before = size.cumsum() - size, errors.cumsum() - errors
    k = np.arange(1, len(right) + 1)
    expected = errors_before[group] + (k - before[group]) * (errors / size)[group]
    risk = expected / k
    return RiskCoverage(k / len(right), risk, sure, float(risk.mean()))
