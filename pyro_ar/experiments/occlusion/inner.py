r"""Settings and temperatures by inner validation: a quarter of the training rows, under five shares of hidden cells.

All bars and the tempered classifiers choose in this way and in no other, so that no test row has a say: settings by accuracy, temperatures by
the log score.
"""

import math

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Generator, Tensor

from pyro_ar import visible as patterns
from pyro_ar.classify import TemperatureScaled
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.rows_of_classes import require_rows

__all__ = ["SHARES", "Chosen", "Inner", "Tempered", "inner_split", "some_rows"]

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)


class Inner(NamedTuple):
    """An inner split.

    Attributes:
        train: Positions of the rows to fit.
        test: Positions of the rows to judge by: each one `len(SHARES)` times.
        visible: `(len(test), n)`, what is visible of them.
    """

    train: np.ndarray
    test: np.ndarray
    visible: Tensor


def inner_split(labels: np.ndarray, cells: int, *, seed: int = 0, most: int | None = None) -> Inner:
    """A stratified quarter of the rows, or `most` of them, under five shares of hidden cells.

    Raises:
        ValueError: A class has one row only.
    """
    require_rows(labels, 2, "an inner split wants")
    size = len(labels) / 4
    train, test = next(StratifiedShuffleSplit(1, test_size=math.ceil(min(size, most or size)), random_state=seed).split(labels, labels))
    generator = Generator().manual_seed(seed)
    seen = torch.cat([patterns.random(cells, share, len(test), generator=generator) for share in SHARES])
    return Inner(train, np.tile(test, len(SHARES)), seen)


def some_rows(labels: np.ndarray, most: int | None, *, seed: int = 0) -> np.ndarray:
    """Positions of all rows, or of `most`, stratified, in their order."""
    if most is None or len(labels) <= most:
        return np.arange(len(labels))
    require_rows(labels, 2, "a stratified draw wants")
    kept = next(StratifiedShuffleSplit(1, train_size=most, random_state=seed).split(labels, labels))[0]
    return np.sort(kept)


class Chosen(PartlySeenClassifier):
    r"""A classifier with one setting chosen inside its own training rows: by accuracy on an inner split, over `SHARES` of hidden cells.

    Args:
        classifier: Not fitted; it stays as it is.
        name: Of the setting.
        values: To choose from; the first of equals.
        most: Rows at most that judge.
        max_rows: Rows at most that are fitted, a stratified draw; None: all.
        seed: Of the draw and the inner split.

    Attributes:
        classifier_: A copy with the best setting, fitted to all rows (or `max_rows` of them).
        chosen_: The setting.

    Raises:
        ValueError: Bad rows, or a class with one row only.
    """

    classifier_: PartlySeenClassifier
    chosen_: dict[str, float]

    def __init__(self, classifier: PartlySeenClassifier, name: str, values: Sequence[float], *, most: int | None = 1000,
                 max_rows: int | None = None, seed: int = 0) -> None:
        self.classifier = classifier
        self.name = name
        self.values = values
        self.most = most
        self.max_rows = max_rows
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Choose the setting on an inner split, then fit to all rows."""
        x, seen, labels = self._read_training(X, y, visible)
        kept = some_rows(labels, self.max_rows, seed=self.seed)
        shown = None if seen is None else seen.expand(x.shape).flatten(1)[kept]
        x, labels = x.flatten(1)[kept], labels[kept]
        inner = inner_split(labels, self.n_features_in_, seed=self.seed, most=self.most)
        right = []
        for value in self.values:
            trial = self._copy(value).fit(x[inner.train], labels[inner.train], *(() if shown is None else (shown[inner.train],)))
            judged = inner.visible if shown is None else inner.visible & shown[inner.test]
            right.append(trial.score(x[inner.test], labels[inner.test], visible=judged))
        self.chosen_ = {self.name: self.values[int(np.argmax(right))]}
        self.classifier_ = self._copy(self.chosen_[self.name]).fit(x, labels, *(() if shown is None else (shown,)))
        self.classes_ = self.classifier_.classes_
        return self

    def _copy(self, value: float) -> Any:
        return clone(self.classifier).set_params(**{self.name: value})

    @property
    def num_parameters(self) -> int:
        """Those of the classifier; the setting is not one of them."""
        classifier: Any = self.classifier_
        return classifier.num_parameters

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.classifier_._log_posterior(x.flatten(1), None if visible is None else visible.flatten(1))


class Tempered(PartlySeenClassifier):
    r"""A classifier with one temperature, learnt inside its own training rows.

    A copy is fitted to three quarters of them and `TemperatureScaled` finds T on the last quarter, over `SHARES` of hidden cells;
    then another copy is fitted to all rows and answers at that T. As everything tempered, its posteriors are no longer those of a joint.

    Args:
        classifier: Not fitted; it stays as it is.
        most: Rows at most that T is learnt from.
        seed: Of the inner split.

    Attributes:
        scaled_: The fitted `TemperatureScaled`.
        chosen_: The temperature.

    Raises:
        ValueError: Bad rows, or a class with one row only.
    """

    scaled_: TemperatureScaled
    chosen_: dict[str, float]

    def __init__(self, classifier: PartlySeenClassifier, most: int | None = 1000, seed: int = 0) -> None:
        self.classifier = classifier
        self.most = most
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Learn the temperature on an inner split, then fit to all rows."""
        x, seen, labels = self._read_training(X, y, visible)
        x = x.flatten(1)
        seen = None if seen is None else seen.flatten(1).expand(x.shape)
        inner = inner_split(labels, self.n_features_in_, seed=self.seed, most=self.most)
        trial = clone(self.classifier).fit(x[inner.train], labels[inner.train], *(() if seen is None else (seen[inner.train],)))
        shown = inner.visible if seen is None else inner.visible & seen[inner.test]
        self.scaled_ = TemperatureScaled(trial).fit(x[inner.test], labels[inner.test], shown)
        self.scaled_.classifier = clone(self.classifier).fit(x, labels, *(() if seen is None else (seen,)))
        self.classes_ = self.scaled_.classes_
        self.chosen_ = dict(getattr(self.scaled_.classifier, "chosen_", {})) | {"temperature": self.scaled_.temperature_}
        return self

    @property
    def num_parameters(self) -> int:
        """Those of the classifier, and the temperature."""
        return self.scaled_.classifier.num_parameters + 1

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.scaled_._log_posterior(x.flatten(1), None if visible is None else visible.flatten(1))
