r"""Multinomial logistic regression: the discriminative baseline, which must be told how to fill hidden cells."""

from typing import Any, Self

import numpy as np
import torch

from sklearn import linear_model
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.elliptical.units import units_by
from pyro_ar.joint import Joint

__all__ = ["LogisticRegression"]



class LogisticRegression(PartlySeenClassifier):
    r"""Multinomial logistic regression.

    .. math:: p(y \mid x) = \mathrm{softmax}\left(W \frac{x - m}{s} + b\right)_y

    It has no p(x), so it can answer a partly seen row only after something has filled its hidden
    cells. `fill` says what; there is no default that guesses. m is the mean of each cell in training and s half its range
    (1 where it is constant), so that the penalty does not depend on the units of the cells, and
    a nearly constant cell is not blown up; with `scale="common"` s is half the widest range, for all cells. :math:`C D + C` parameters (softmax leaves
    :math:`D + 1` of
    them without effect on p(y | x); they are counted, as usual).

    The weights are scikit-learn's (`linear_model.LogisticRegression` on (x - m) / s, penalty
    :math:`\lVert W \rVert^2 / (2 C)`).

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        fill: For hidden cells, in training and prediction:

            - None: rows with hidden cells are refused;
            - 'mean': the mean of the cell where it was seen in training; 'zero';
            - a `Joint` without batch dimensions: its most likely completion, `given(x, visible).mode`;
            - a `GenerativeClassifier`, fitted afresh to the same training rows: the most likely completion under
              each class, averaged with p(y | x_visible). Over Gaussians that is E[x | x_visible].
        C: Inverse strength of the penalty.
        scale: 'columns': each cell has a unit of its own; 'common': all share one, as pixels do.
        max_iter: Most iterations of the optimiser; where they do not suffice scikit-learn warns.

    Attributes:
        fill_: What fills: the fitted classifier, the joint, or the means or zeros `(*event)`.
        mean_: m, `(n,)`.
        scale_: s, `(n,)`.
        regression_: The fitted scikit-learn estimator; None where there is one class only.
        n_iter_: Iterations that it took.

    Raises:
        ValueError: Hidden cells without `fill`; bad data, labels or arguments.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [5.0, 5.0]]), np.array([0, 0, 1, 1])
        >>> classifier = LogisticRegression(fill="mean", C=100.0).fit(X, y)
        >>> classifier.predict(np.array([[np.nan, 5.0]]), visible=np.array([False, True]))
        array([1])
    """

    fill_: Any
    mean_: Tensor
    scale_: Tensor
    regression_: linear_model.LogisticRegression | None

    def __init__(self, fill: Any = None, *, C: float = 1.0, scale: str = "columns", max_iter: int = 1000) -> None:
        self.fill = fill
        self.C = C
        self.scale = scale
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, visible: Any = None, sample_weight: Any = None) -> Self:
        """Fit the weights, and what fills hidden cells.

        Args:
            X: Rows.
            y: One label per row.
            visible: Training patterns; hidden cells are filled. None: NaN hides a cell.
            sample_weight: `(N,)`, 0 or more: a row of weight 2 is two equal rows, beside a penalty that stays as it is; one of weight 0 is no row.

        Raises:
            ValueError: Bad rows, labels or arguments.
        """
        require(isinstance(self.C, int | float) and self.C > 0, "C must be more than 0", self.C)
        x, seen, labels, weights = self._read_weighted(X, y, visible, sample_weight)
        self.classes_ = np.unique(labels)
        self.fill_ = self._fit_fill(x, labels, seen, weights)
        rows = self._filled(x, seen).flatten(1).detach()
        self.mean_, self.scale_ = means_of(rows, None, weights), units_by(self.scale, rows)
        self.regression_, self.n_iter_ = None, np.zeros(1, dtype=int)
        if len(self.classes_) > 1:
            regression = linear_model.LogisticRegression(C=self.C, max_iter=self.max_iter)
            self.regression_ = regression.fit(self._scaled(rows).cpu().numpy(), labels, sample_weight=weights.cpu().numpy())
            self.n_iter_ = regression.n_iter_
        return self

    @property
    def num_parameters(self) -> int:
        """C D + C."""
        check_is_fitted(self)
        return self.count_parameters(len(self.classes_), self.n_features_in_)

    @classmethod
    def count_parameters(cls, num_classes: int, num_features: int) -> int:
        """C D + C; allocates nothing."""
        return num_classes * num_features + num_classes

    def method(self, visible: Any) -> np.ndarray:
        """How rows with these patterns are answered, one name per pattern: 'all seen', or what fills.

        Raises:
            ValueError: A pattern hides cells and `fill` is None.
        """
        seen = self._check_pattern(visible)
        whole = seen.flatten(1).all(1).numpy()
        if not whole.all():
            self._refuse_unless_told()
        name = self.fill if isinstance(self.fill, str) else type(self.fill).__name__
        return np.where(whole, "all seen", f"filled: {name}")

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        if self.regression_ is None:
            return x.new_zeros(len(x), 1)
        rows = self._scaled(self._filled(x, visible).flatten(1))
        weight, bias = (torch.from_numpy(v).to(rows) for v in (self.regression_.coef_, self.regression_.intercept_))
        logits = rows @ weight.T + bias
        if len(self.classes_) == 2:  # scikit-learn keeps the one row that matters
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        return logits.log_softmax(-1)

    def _scaled(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_.to(rows)) / self.scale_.to(rows)

    def _refuse_unless_told(self) -> None:
        require(self.fill is not None, "LogisticRegression must be told how to fill hidden cells: fill='mean', fill='zero', "
                "a joint, or a GenerativeClassifier")

    def _fit_fill(self, x: Tensor, labels: np.ndarray, seen: Tensor | None, weights: Tensor) -> Any:
        fill = self.fill
        if fill is None:
            return None
        if isinstance(fill, str):
            require(fill in ("mean", "zero"), "fill must be 'mean', 'zero', a joint, a GenerativeClassifier, or None", fill)
            return means_of(x, seen, weights) if fill == "mean" else torch.zeros_like(x[0])
        if isinstance(fill, GenerativeClassifier):
            return clone(fill).fit(x, labels, seen, weights if bool((weights != 1).any()) else None)
        require(isinstance(fill, Joint) and not fill.batch_shape and fill.event_shape.numel() == self.n_features_in_,
                f"fill must be 'mean', 'zero', a GenerativeClassifier, or a joint over {self.n_features_in_} cells without "
                "batch dimensions", fill)
        return fill

    def _filled(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """The rows with their hidden cells filled."""
        if visible is None:
            return x
        self._refuse_unless_told()
        visible = visible.expand(x.shape)
        if isinstance(self.fill_, Tensor):
            return torch.where(visible, x, self.fill_.to(x))
        classes = len(self.classes_) if isinstance(self.fill_, GenerativeClassifier) else 1
        step = at_once(classes * self.n_features_in_, CACHE)
        complete = _complete_by_joint if isinstance(self.fill_, Joint) else _complete_by_classes
        return torch.cat([complete(self.fill_, x[i:i + step], visible[i:i + step]) for i in range(0, len(x), step)])


def _complete_by_joint(joint: Joint, x: Tensor, visible: Tensor) -> Tensor:
    shape = (len(x), *joint.event_shape)
    return joint.given(x.reshape(shape).to(joint.dtype), visible.reshape(shape)).mode.reshape(x.shape).to(x)


def _complete_by_classes(classifier: GenerativeClassifier, x: Tensor, visible: Tensor) -> Tensor:
    """The completion of each class, averaged with the class posterior."""
    weights = classifier.posterior(x, visible).probs
    joints = classifier.joint_.joints
    if isinstance(joints, Joint):
        shape = (len(x), 1, *joints.event_shape)
        each = joints.given(x.reshape(shape).to(joints.dtype), visible.reshape(shape)).mode.reshape(len(x), -1, *x.shape[1:])
    else:
        each = torch.stack([_complete_by_joint(joint, x, visible) for joint in joints], 1)
    return torch.where(visible, x, torch.einsum("nc,nc...->n...", weights, each).to(x))


def means_of(x: Tensor, seen: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """The weighted mean of each cell over the rows that show it, 0 where none does."""
    if weights is None:
        weights = x.new_ones(len(x))
    each = weights.to(x).reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)
    if seen is not None:
        x, each = torch.where(seen, x, 0), each * seen
    mass = each.sum(0)
    return (each * x).sum(0) / torch.where(mass > 0, mass, 1)
