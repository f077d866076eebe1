r"""What all classifiers share: reading partly seen rows, and predicting from log p(y | x_visible)."""

import abc
import math

from typing import Any

import numpy as np
import torch

from pyro.distributions import Categorical
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.classify.known_rows import digests
from pyro_ar.visible import check_visible

__all__ = ["PartlySeenClassifier"]


class PartlySeenClassifier(ClassifierMixin, BaseEstimator, abc.ABC):
    r"""A scikit-learn classifier that answers rows of which only some cells are seen.

    A final class implements `fit` (with `_read_training`) and `_log_posterior`.

    Shapes:
        - `X` is numpy or torch, `(N, n)` or `(N, *event)`; rows may also come flattened.
        - `visible` is bool, broadcastable to `X`; True = seen, None: all is seen. What is stored
          under a hidden cell is never read. NaN in `X` is *not* taken for hidden: say `visible=~isnan(X)`.

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

    @abc.abstractmethod
    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Log p(y | x_visible), normalised, `(N, C)`, of checked rows."""

    def posterior(self, X: Any, visible: Any = None) -> Categorical:
        r"""p(y | x_visible) of each row, a `Categorical` of batch shape `(N,)` over positions in `classes_`.

        Raises:
            ValueError: Bad shapes or values, or a row whose visible cells no class can have.
            IntractableError: There is no exact answer for some pattern.
        """
        return Categorical(logits=self._log_posterior(*self._read(X, visible)))

    def predict_log_proba(self, X: Any, visible: Any = None) -> np.ndarray:
        """Log p(y | x_visible), `(N, C)`, columns as in `classes_`."""
        with torch.no_grad():
            return self._log_posterior(*self._read(X, visible)).cpu().numpy()

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

    def _read(self, X: Any, visible: Any) -> tuple[Tensor, Tensor | None]:
        check_is_fitted(self)
        x = self._read_rows(X, reset=False)
        return x, self._read_visible(x, visible)

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

    def _read_rows(self, X: Any, *, reset: bool) -> Tensor:
        """`(N, *event)`, floating: float32 and float64 stay, the rest becomes float64 as in scikit-learn."""
        if isinstance(X, Tensor):
            x = self._check_tensor(X, reset=reset)
        else:
            X, event = _flatten(X)
            if not reset and event != self.event_shape_ and len(event) > 1:
                require(False, f"X must have rows of shape {self.event_shape_}", (len(X), *event))
            rows = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False)
            x = torch.tensor(np.ascontiguousarray(rows))  # torch reads no flipped views
            if reset:
                self.event_shape_ = event or (rows.shape[1],)
        return x.reshape(len(x), *self.event_shape_)

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
        seen = None
        if visible is not None:
            seen = self._check_pattern(visible).to(x.device)
            require(seen.shape[0] in (1, len(x)), f"visible must have one pattern, or one for each of the {len(x)} rows", seen)
        bad = ~x.isfinite() if seen is None else ~x.isfinite() & seen
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0])
            require(False, "X must be finite where it is visible: no NaN, no infinity; say which cells are hidden, "
                    "for example with visible=~isnan(X)", f"one in row {row}")
        return None if seen is None or bool(seen.all()) else seen

    def _check_pattern(self, visible: Any) -> Tensor:
        """The pattern `(rows or 1, *event)`."""
        check_is_fitted(self)
        if not isinstance(visible, Tensor):
            visible = np.asarray(visible)
            require(visible.dtype == bool, "visible must be bool (True = seen)", str(visible.dtype), visible.shape)
        seen = visible if isinstance(visible, Tensor) else torch.from_numpy(visible.copy())
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
