r"""What all classifiers share: reading partly seen rows, and predicting from log p(y | x_visible)."""

import abc
import math

from typing import Any

import numpy as np
import torch

from pyro.distributions import Categorical
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags, assert_all_finite, check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Size, Tensor

from pyro_ar.arrays import as_array, as_tensor, is_missing
from pyro_ar.checks import require
from pyro_ar.classify.known_rows import digests
from pyro_ar.visible import check_visible, read_rows

__all__ = ["PartlySeenClassifier"]


class PartlySeenClassifier(ClassifierMixin, BaseEstimator, abc.ABC):
    r"""A scikit-learn classifier that answers rows of which only some cells are seen.

    A final class implements `fit` (with `_read_training`) and `log_posterior`.

    Shapes:
        - `X` is an array, a tensor or a data frame, `(N, n)` or `(N, *event)`; rows may also come flattened.
        - `visible` is bool, broadcastable to `X`; True = seen. What is stored under a hidden cell is never read.
        - Without `visible`, NaN in `X` (None, pd.NA in a data frame) is a hidden cell, in training and prediction, and all else is seen; so
          incomplete tables pass through pipelines, cross-validation and searches. With it, NaN in a visible cell is an error.

    Attributes:
        classes_: The labels, sorted, `(C,)`.
        event_shape_: Shape of one row in `fit`.
        n_features_in_: Cells of one row.
        training_rows_: A digest of each row of `fit`, `(N,)`, so that it is noticed where answers to them are taken for answers to new rows.
    """

    classes_: np.ndarray
    event_shape_: tuple[int, ...]
    n_features_in_: int
    training_rows_: np.ndarray

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    @abc.abstractmethod
    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Log p(y | x_visible), normalised, `(N, C)`, of checked rows."""

    def posterior(self, X: Any, visible: Any = None) -> Categorical:
        r"""p(y | x_visible) of each row, a `Categorical` of batch shape `(N,)` over positions in `classes_`.

        Raises:
            ValueError: Bad shapes or values, or a row whose visible cells no class can have.
            IntractableError: There is no exact answer for some pattern.
        """
        return Categorical(logits=self.log_posterior(*self.read_rows(X, visible)))

    def predict_log_proba(self, X: Any, visible: Any = None) -> np.ndarray:
        """Log p(y | x_visible), `(N, C)`, columns as in `classes_`."""
        with torch.no_grad():
            return self.log_posterior(*self.read_rows(X, visible)).cpu().numpy()

    def predict_proba(self, X: Any, visible: Any = None) -> np.ndarray:
        """p(y | x_visible), `(N, C)`, columns as in `classes_`."""
        return np.exp(self.predict_log_proba(X, visible))

    def predict(self, X: Any, visible: Any = None) -> np.ndarray:
        """The most probable label of each row, `(N,)`."""
        best = self.predict_log_proba(X, visible).argmax(-1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None, visible: Any = None) -> float:
        """Accuracy of `predict`."""
        return float(accuracy_score(_as_array(y), self.predict(X, visible), sample_weight=sample_weight))

    # Reading what comes in.

    def read_rows(self, X: Any, visible: Any) -> tuple[Tensor, Tensor | None]:
        check_is_fitted(self)
        x = self._read_rows(X, reset=False)
        return x, self._read_visible(x, visible)

    def read_if_given(self, x: Any, visible: Any) -> tuple[Tensor | None, Tensor | None]:
        """`read_rows`; without rows, the pattern of those to be drawn."""
        check_is_fitted(self)
        if x is not None:
            return self.read_rows(x, visible)
        return None, None if visible is None else self._check_pattern(visible)

    def read_complete_rows(self, X: Any) -> Tensor:
        """Rows that must hold all their cells."""
        x, seen = self.read_rows(X, None)
        require(seen is None, "complete rows are wanted here, without NaN", seen)
        return x

    def _read_training(self, X: Any, y: Any, visible: Any) -> tuple[Tensor, Tensor | None, np.ndarray]:
        """Checked rows, pattern and labels; sets `n_features_in_` and `event_shape_`."""
        require(y is not None, f"{type(self).__name__} requires y to be passed, but the target y is None")
        x = self._read_rows(X, reset=True)
        labels = column_or_1d(_as_array(y), warn=True)
        require(len(labels) == len(x), f"y must hold one label for each of the {len(x)} rows", len(labels))
        _check_labels(labels)
        seen = self._read_visible(x, visible)
        self.training_rows_ = digests(x, seen)
        return x, seen, labels

    def _read_weighted(self, X: Any, y: Any, visible: Any, sample_weight: Any) -> tuple[Tensor, Tensor | None, np.ndarray, Tensor]:
        """`_read_training` of the rows that count, and what each of them counts, `(N,)` float64; rows of weight zero are no rows."""
        x, seen, labels = self._read_training(X, y, visible)
        if sample_weight is None:
            return x, seen, labels, torch.ones(len(x), dtype=torch.float64, device=x.device)
        weights = as_tensor(sample_weight if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)).to(x.device, torch.float64)
        if weights.ndim == 0:
            weights = weights.expand(len(x))
        require(weights.shape == (len(x),), f"sample_weight must hold one number for each of the {len(x)} rows", weights)
        good = bool(weights.isfinite().all()) and bool((weights >= 0).all())
        require(good, "sample_weight must be 0 or more and finite", float(weights.min()), float(weights.max()))
        require(bool((weights > 0).any()), "sample_weight must hold a number above zero: there is no row left, all are zero")
        counts = weights > 0
        if seen is not None and len(seen) == len(x):
            seen = None if bool(seen[counts].all()) else seen[counts]
        x = x[counts]
        self.training_rows_ = digests(x, seen)
        return x, seen, labels[counts.cpu().numpy()], weights[counts]

    def _read_rows(self, X: Any, *, reset: bool) -> Tensor:
        """`(N, *event)`, floating: float32 and float64 stay, the rest becomes float64 as in scikit-learn."""
        if isinstance(X, Tensor):
            x = self._check_tensor(X, reset=reset)
        else:
            X, event = _flatten(X)
            if not reset and event != self.event_shape_ and len(event) > 1:
                require(False, f"X must have rows of shape {self.event_shape_}", (len(X), *event))
            rows = self._check_rows(X, reset=reset)
            x = torch.tensor(np.ascontiguousarray(rows))  # torch reads no flipped views
            if reset:
                self.event_shape_ = event or (rows.shape[1],)
        return x.reshape(len(x), *self.event_shape_)

    def _check_rows(self, X: Any, *, reset: bool) -> np.ndarray:
        """Flat rows by scikit-learn's checks, missing values as NaN; remembers the names of columns."""
        options: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_all_finite": False}
        if not hasattr(X, "columns"):
            return validate_data(self, _with_nan(X), reset=reset, **options)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return check_array(as_array(X), estimator=self, **options)

    def _check_tensor(self, X: Tensor, *, reset: bool) -> Tensor:
        name = type(self).__name__
        require(X.ndim >= 2 and X.numel() > 0 and not X.is_complex(),
                "X must be real rows of shape (N, *event) with N and the event 1 or more", X)
        cells = math.prod(X.shape[1:])
        if reset:
            self.event_shape_, self.n_features_in_ = tuple(X.shape[1:]), cells
        right = tuple(X.shape[1:]) in (self.event_shape_, (self.n_features_in_,))
        require(right, f"X has {cells} features, but {name} is expecting {self.n_features_in_} features as input, "
                f"in rows of shape {self.event_shape_}", X)
        return X if X.is_floating_point() else X.double()

    def _read_visible(self, x: Tensor, visible: Any) -> Tensor | None:
        """The pattern `(N or 1, *event)`, or None where nothing is hidden; checks that visible cells are finite."""
        seen = self._check_pattern(visible).to(x.device) if visible is not None else read_rows(x)[1]
        if seen is not None:
            require(seen.shape[0] in (1, len(x)), f"visible must have one pattern, or one for each of the {len(x)} rows", seen)
        bad = ~x.isfinite() if seen is None else ~x.isfinite() & seen
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0])
            require(False, "X must be finite where it is visible: no NaN, no infinity; say which cells are hidden, for example with visible=~isnan(X) "
                    "or by NaN alone, without visible", f"one in row {row}")
        return None if seen is None or bool(seen.all()) else seen

    def _check_pattern(self, visible: Any) -> Tensor:
        """The pattern `(rows or 1, *event)`."""
        check_is_fitted(self)
        seen = as_tensor(visible if isinstance(visible, Tensor) else np.asarray(visible))
        require(seen.dtype == torch.bool, "visible must be bool (True = seen)", seen)
        event = Size(self.event_shape_)
        if len(event) > 1 and seen.ndim <= 2 and seen.shape[-1:] == (self.n_features_in_,):  # flattened rows
            seen = seen.reshape(*seen.shape[:-1], *event)
        seen = check_visible(seen, event)
        require(seen.ndim <= len(event) + 1, f"visible must broadcast to rows of shape {self.event_shape_}", seen)
        return seen.reshape(-1, *event)


def _as_array(y: Any) -> np.ndarray:
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)


def _check_labels(labels: np.ndarray) -> None:
    assert_all_finite(labels, input_name="y")
    if labels.dtype.kind == "O":
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        require(len(kinds) == 1 and kinds != ["NoneType"], "labels in y must be of one type, none of them None", kinds)
    check_classification_targets(labels)


def _flatten(X: Any) -> tuple[Any, tuple[int, ...]]:
    """Rows of images as flat rows, and the event shape; anything else goes to scikit-learn's checks as it is."""
    X = X if hasattr(X, "shape") and hasattr(X, "ndim") else np.asarray(X)
    require(X.ndim >= 2, "Expected 2D array: X must be rows of shape (N, n). Reshape your data", X.shape)
    require(getattr(X, "dtype", None) is None or X.dtype.kind != "c", "Complex data not supported: X must be real")
    if X.ndim > 2 and math.prod(X.shape[1:]):
        return np.asarray(X).reshape(len(X), math.prod(X.shape[1:])), tuple(X.shape[1:])
    return X, tuple(X.shape[1:])


def _with_nan(X: Any) -> Any:
    """The same with NaN for the missing among objects; whatever else they are scikit-learn sees to."""
    if getattr(X, "dtype", None) != object:
        return X
    missing = np.frompyfunc(is_missing, 1, 1)(X).astype(bool)
    return np.where(missing, np.nan, X) if missing.any() else X
