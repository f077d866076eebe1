r"""The classifier of a transformer that reads the class after every prefix of every order."""

import copy

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.per_class import sorted_classes
from pyro_ar.classify.visible_then_class import visible_then_class
from pyro_ar.neural.any_order_transformer import AnyOrderTransformer

__all__ = ["AnyOrderClassifier"]


class AnyOrderClassifier(PartlySeenClassifier):
    r"""A joint in the order *visible cells, class* for each pattern, both by one transformer: an `AnyOrderTransformer` with `num_classes`.

    .. math:: p(x_v)\; p(y \mid x_v)

    A posterior is one pass over the visible variables of a row, whatever the number of classes. As an any-order family it is **one joint for each
    pattern**: every answer is that of a joint, but answers for two patterns need not be marginals of the same one.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        family: An `AnyOrderTransformer` with `num_classes` and without context. `fit` trains a copy of it.
        class_weight: What the log-probability of the class counts beside that of the cells, see `AnyOrderTransformer.training_log_prob`: 1 is maximum
            likelihood of cells and class; more serves the class.
        fit_options: Keyword arguments of `par.fit`.

    Attributes:
        family_: The trained family.

    Raises:
        ValueError: Data, labels or arguments that do not fit; the message says what was wanted.

    Example:
        >>> X, y = np.array([[0, 0], [1, 1], [0, 0], [1, 1]]), np.array(["a", "b", "a", "b"])
        >>> family = AnyOrderTransformer(2, width=8, layers=1, heads=2, num_classes=2)
        >>> options = {"epochs": 2, "held_out": (X, np.eye(2)[[0, 1, 0, 1]]), "progress": False}
        >>> AnyOrderClassifier(family, fit_options=options).fit(X, y).predict_proba(np.array([[np.nan, 1]])).shape
        (1, 2)
    """

    family_: AnyOrderTransformer

    def __init__(self, family: AnyOrderTransformer, *, class_weight: float = 1.0, fit_options: Mapping[str, Any] | None = None) -> None:
        self.family = family
        self.class_weight = class_weight
        self.fit_options = fit_options

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Train a copy of the family on rows and labels.

        Args:
            X: Rows.
            y: One label per row.
            visible: Training patterns; what is hidden is never read. None: NaN hides a cell.
        """
        x, seen, labels = self._read_training(X, y, visible)
        family = self.family
        require(isinstance(family, AnyOrderTransformer) and family.num_classes > 0 and family.context_dim == 0,
                "family must be an AnyOrderTransformer with num_classes and without context", family)
        require(isinstance(self.class_weight, int | float) and 0 < self.class_weight < float("inf"), "class_weight must be a number above 0", self.class_weight)
        require(family.event_shape.numel() == self.n_features_in_, f"the family is over {tuple(family.event_shape)}; X must have as many cells",
                self.n_features_in_)
        self.classes_ = sorted_classes(labels, family.num_classes)
        self.family_ = copy.deepcopy(family)
        shares = torch.eye(len(self.classes_))[np.searchsorted(self.classes_, labels)]
        from pyro_ar.inference import training  # here, so that closed-form classifiers load no Lightning

        training.fit(_Labelled(self.family_, self.class_weight), self._rows(x), context=shares,
                     visible=None if seen is None else self._shaped(seen).expand(len(x), *family.event_shape), **(self.fit_options or {}))
        self.family_.eval().requires_grad_(False)
        return self

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *self.family.event_shape)

    def _rows(self, x: Tensor) -> Tensor:
        return self._shaped(x.to(next(self.family_.parameters())))

    def _in_turns(self, answer: Any, x: Tensor, visible: Tensor | None) -> Tensor:
        """`answer(rows, patterns)` of as many rows as memory allows at once."""
        rows, net = self._rows(x), self.family_.net
        seen = torch.ones_like(rows, dtype=torch.bool) if visible is None else self._shaped(visible).to(rows.device).expand(rows.shape)
        step = at_once(self.n_features_in_ * max(int(net.width), self.n_features_in_))  # type: ignore[arg-type]
        return torch.cat([answer(*part) for part in zip(rows.split(step), seen.split(step), strict=True)])

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self._in_turns(self.family_.log_posterior, x, visible)

    def _log_evidence(self, x: Tensor, visible: Tensor | None) -> Tensor:
        joint = self.family_()
        return self._in_turns(lambda rows, seen: joint.marginal(seen).log_prob(rows), x, visible)

    def score_samples(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible), `(N,)`, in nats, in the family's own order of the visible cells."""
        return self._log_evidence(*self.read_rows(X, visible))

    def log_joint(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible) + log p(y | x_visible), `(N, C)`, in nats."""
        x, seen = self.read_rows(X, visible)
        return self._log_evidence(x, seen).unsqueeze(-1) + self.log_posterior(x, seen)

    def model(self, x: Any = None, visible: Any = None) -> Tensor:
        r"""The joint of what is visible and the class as a Pyro model; without rows, one is drawn.

        A plate 'rows' (dimension -1) holds the sites 'x', observed through the marginal of the visible cells, then 'y', the position in
        `classes_`, which enumerates.

        Args:
            x: Rows as in `predict`.
            visible: As in `predict`.

        Returns:
            The positions of the classes, `(N,)`.
        """
        rows, seen = self.read_if_given(x, visible)
        return visible_then_class(self, self.family_(), rows, seen)

    @property
    def num_parameters(self) -> int:
        """Those of the family."""
        check_is_fitted(self)
        return self.family_.num_parameters


class _Labelled(nn.Module):
    """The family as `par.fit` trains it, its labels as one-hot context."""

    def __init__(self, family: AnyOrderTransformer, class_weight: float) -> None:
        super().__init__()
        self.family, self.class_weight = family, class_weight
        self.event_shape, self.context_dim = family.event_shape, family.num_classes

    def training_log_prob(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Tensor:
        return self.family.training_log_prob(x, None, visible, context.argmax(-1), class_weight=self.class_weight)
