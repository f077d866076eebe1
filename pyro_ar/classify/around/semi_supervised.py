r"""Learning from rows of which few have labels: EM over the unknown classes."""

from typing import Any, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn

from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.classify.per_class import sorted_classes
from pyro_ar.elliptical.dense import NotPositiveDefinite

__all__ = ["SemiSupervised"]

SETTLED = 1e-3  # change of any probability of a class, after which EM stops


class SemiSupervised(PartlySeenClassifier):
    r"""A generative classifier fitted to labelled and unlabelled rows together.

    .. math:: \sum_{labelled} \log p(y, x_v) + \lambda \sum_{unlabelled} \log p(x_v)

    EM: the classifier is fitted to the labelled rows; then in turn every unlabelled row gets its posterior, and the classifier is fitted to all
    rows, each in the classes by these shares. With `from_data` at the maximum of a penalised likelihood, no step lowers the
    sum above plus that penalty. Where labelled rows alone give no covariance (one row of a class), the unlabelled ones join the start, in every
    class alike and worth one row together.
    Unlabelled rows help as far as the joint is a fair picture of the classes; where it is not they can do harm, and more of them more so.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: A `GenerativeClassifier` over a class with `from_data`, or `DiscriminantAnalysis`; a clone of it is fitted.
        unlabelled_weight: :math:`\lambda`, what a row without label is worth, more than 0 up to 1.
        em_steps: Most steps of EM; fewer where no posterior moves by more than 0.001. 0: the labelled rows alone.

    Attributes:
        classifier_: The fitted classifier, with its `log_joint` and Pyro `model`.
        n_iter_: Steps taken.
        transduction_: The most probable label of each training row; the given one where there is one.

    Raises:
        ValueError: Bad data, no labels, or a classifier that is not fitted in closed form. `MixtureDiscriminantAnalysis` and families
            train with `sklearn.semi_supervised.SelfTrainingClassifier`.

    Source:
        Nigam, McCallum, Thrun, Mitchell (2000), *Text classification from labeled and unlabeled documents using EM*, Machine Learning 39.

    Example:
        >>> from pyro_ar.classify.discriminant import DiscriminantAnalysis
        >>> X = np.array([[0.0], [0.2], [-0.3], [0.4], [4.0], [4.1], [3.8], [4.5]])
        >>> y = np.array([0, -1, -1, -1, 1, -1, -1, -1])  # -1: unknown
        >>> SemiSupervised(DiscriminantAnalysis(shrinkage=0.1, covariance="shared")).fit(X, y).transduction_
        array([0, 0, 0, 0, 1, 1, 1, 1])
    """

    classifier_: GenerativeClassifier
    n_iter_: int
    transduction_: np.ndarray

    def __init__(self, classifier: GenerativeClassifier, *, unlabelled_weight: float = 1.0, em_steps: int = 50) -> None:
        self.classifier = classifier
        self.unlabelled_weight = unlabelled_weight
        self.em_steps = em_steps

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit to all rows.

        Args:
            X: Rows.
            y: Labels; -1 (or None, among names) where unknown.
            visible: Training patterns, as in the classifier's own `fit`.
        """
        self._check_settings()
        labels, known = _read_labels(y)
        x, seen, told = self._read_training(X, np.where(known, labels, labels[known][:1]), visible)
        model = clone(self.classifier)
        model.n_features_in_, model.event_shape_, model.training_rows_ = self.n_features_in_, self.event_shape_, self.training_rows_
        self.classes_ = model.classes_ = sorted_classes(told[known], model.wanted_classes())
        mine = torch.from_numpy(known).to(x.device)
        given = nn.functional.one_hot(torch.from_numpy(np.searchsorted(self.classes_, told)).to(x.device), len(self.classes_)).to(x.dtype)
        self._start(model, x, seen, given, mine)
        shares = self._posterior(model, x, seen, given, mine)
        weight = torch.where(mine, 1.0, self.unlabelled_weight).to(x)[:, None]
        steps, moved = 0, 0.0 if bool(mine.all()) else 1.0
        while moved > SETTLED and steps < self.em_steps:
            model.fit_shares(x, shares * weight, seen)
            before, shares = shares, self._posterior(model, x, seen, given, mine)
            steps, moved = steps + 1, float((shares - before).abs().max())
        self.classifier_, self.n_iter_ = model, steps
        self.transduction_ = self.classes_[shares.argmax(1).cpu().numpy()]
        return self

    def _check_settings(self) -> None:
        require(isinstance(self.classifier, GenerativeClassifier), "classifier must be a GenerativeClassifier", self.classifier)
        like, _ = self.classifier.class_conditional()
        closed = hasattr(like, "from_data") and not isinstance(self.classifier, MixtureDiscriminantAnalysis)
        require(closed and isinstance(like, type), "SemiSupervised wants a likelihood with from_data and weights; others train with "
                "sklearn.semi_supervised.SelfTrainingClassifier", type(self.classifier).__name__)
        require(0 < self.unlabelled_weight <= 1, "unlabelled_weight must be more than 0, up to 1", self.unlabelled_weight)
        require(self.em_steps >= 0, "em_steps must be 0 or more", self.em_steps)

    @staticmethod
    def _start(model: GenerativeClassifier, x: Tensor, seen: Tensor | None, given: Tensor, known: Tensor) -> None:
        try:
            model.fit_shares(x[known], given[known], seen if seen is None or len(seen) == 1 else seen[known])
        except NotPositiveDefinite:
            if bool(known.all()):
                raise
            model.fit_shares(x, torch.where(known[:, None], given, 1 / (~known).sum().to(x)), seen)

    @staticmethod
    def _posterior(model: GenerativeClassifier, x: Tensor, seen: Tensor | None, given: Tensor, known: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.where(known[:, None], given, model.log_posterior(x, seen).exp().to(given))

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.classifier_.log_posterior(x, visible)

    def log_joint(self, X: Any, visible: Any = None) -> Tensor:
        """As `GenerativeClassifier.log_joint`."""
        check_is_fitted(self)
        return self.classifier_.log_joint(X, visible)

    def model(self, x: Any = None, visible: Any = None, y: Any = None) -> Tensor:
        """As `GenerativeClassifier.model`."""
        check_is_fitted(self)
        return self.classifier_.model(x, visible, y)

    @property
    def num_parameters(self) -> int:
        """Free parameters of the classifier."""
        check_is_fitted(self)
        return self.classifier_.num_parameters


def _read_labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and where they are known."""
    require(y is not None, "SemiSupervised requires y to be passed, but the target y is None")
    labels = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y), warn=True)
    if labels.dtype.kind == "O":
        known = np.array([label is not None and not (isinstance(label, int) and label == -1) for label in labels])
        if known.any():
            labels = np.array([label if k else labels[known][0] for label, k in zip(labels, known, strict=True)])
    else:
        known = labels != -1 if labels.dtype.kind in "iuf" else np.ones(labels.shape, bool)
    require(bool(known.any()), "y must hold some labels; -1 (or None) says that one is not known")
    return labels, known
