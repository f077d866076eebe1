r"""Settings and temperatures by inner validation: quarters of the training rows, under five shares of hidden cells.

All bars and the tempered classifiers choose in this way and in no other, so that no test row has a say: settings by accuracy, temperatures by
the log score.
"""

import itertools
import math

from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["SHARES", "Chosen", "Inner", "Tempered", "inner_split", "inner_splits", "some_rows"]

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
MOST_SPLITS = 10


class Inner(NamedTuple):
    """An inner split.

    Attributes:
        train: Positions of the rows to fit.
        test: Positions of the rows to judge by, all of them under the first share, then all under the next.
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
    return next(inner_splits(labels, cells, seed=seed, most=most))


def inner_splits(labels: np.ndarray, cells: int, *, seed: int = 0, most: int | None = None) -> Iterator[Inner]:
    """Stratified quarters of the rows, one or as many (`MOST_SPLITS` at most) as `most` rows make: few rows judge badly.

    Raises:
        ValueError: A class has one row only.
    """
    require_rows(labels, 2, "an inner split wants")
    size = math.ceil(min(len(labels) / 4, most or len(labels)))
    times = min(MOST_SPLITS, max(1, (most or 0) // size))
    generator = Generator().manual_seed(seed)
    for train, test in StratifiedShuffleSplit(times, test_size=size, random_state=seed).split(labels, labels):
        seen = torch.cat([patterns.random(cells, share, len(test), generator=generator) for share in SHARES])
        yield Inner(train, np.tile(test, len(SHARES)), seen)


def some_rows(labels: np.ndarray, most: int | None, *, seed: int = 0) -> np.ndarray:
    """Positions of all rows, or of `most`, stratified, in their order."""
    if most is None or len(labels) <= most:
        return np.arange(len(labels))
    require_rows(labels, 2, "a stratified draw wants")
    kept = next(StratifiedShuffleSplit(1, train_size=most, random_state=seed).split(labels, labels))[0]
    return np.sort(kept)


class Chosen(PartlySeenClassifier):
    r"""A classifier whose settings are chosen inside its own training rows, by accuracy, for each of `SHARES` of hidden cells by itself.

    What is best where nothing is hidden may be poor where much is: cells that are filled want a stronger penalty. With one setting for all shares
    the classifier would be starved at one or the other. A row is answered by the settings of the share that is nearest to its own.

    Args:
        classifier: Not fitted; it stays as it is.
        settings: Their names, and the values to choose from. All combinations are tried; of equals at a share that which is best over all shares
            is taken, then the first.
        most: Rows at most that judge, over several inner splits where there are few.
        max_rows: Rows at most that are fitted, a stratified draw; None: all.
        seed: Of the draw and the inner split.

    Attributes:
        classifiers_: For each share a copy with its settings, fitted to all rows (or `max_rows` of them); equal settings share one.
        chosen_: For each setting the values, one per share.

    Raises:
        ValueError: Bad rows, or a class with one row only.
    """

    classifiers_: list[Any]
    chosen_: dict[str, list[Any]]

    def __init__(self, classifier: PartlySeenClassifier, settings: Mapping[str, Sequence[Any]], *, most: int | None = 1000,
                 max_rows: int | None = None, seed: int = 0) -> None:
        self.classifier = classifier
        self.settings = settings
        self.most = most
        self.max_rows = max_rows
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Choose the settings on inner splits, then fit to all rows."""
        x, seen, labels = self._read_training(X, y, visible)
        self.classes_ = np.unique(labels)
        kept = some_rows(labels, self.max_rows, seed=self.seed)
        shown = None if seen is None else seen.expand(x.shape).flatten(1)[kept]
        x, labels = x.flatten(1)[kept], labels[kept]
        trials = [dict(zip(self.settings, values, strict=True)) for values in itertools.product(*self.settings.values())]
        splits = list(inner_splits(labels, self.n_features_in_, seed=self.seed, most=self.most))
        right = np.array([sum(self._right(trial, inner, x, labels, shown) for inner in splits) for trial in trials])
        total = right.sum(1)
        best = [int(np.lexsort((np.arange(len(trials)), -total, -column))[0]) for column in right.T]
        self.chosen_ = {name: [trials[i][name] for i in best] for name in self.settings}
        fitted = {i: self._fitted(trials[i], x, labels, shown) for i in sorted(set(best))}
        self.classifiers_ = [fitted[i] for i in best]
        return self

    def _fitted(self, trial: Mapping[str, Any], x: Tensor, labels: np.ndarray, shown: Tensor | None) -> Any:
        return clone(self.classifier).set_params(**trial).fit(x, labels, *(() if shown is None else (shown,)))

    def _right(self, trial: Mapping[str, Any], inner: Inner, x: Tensor, labels: np.ndarray, shown: Tensor | None) -> np.ndarray:
        """How many of the inner test rows it gets right under each share."""
        fitted = self._fitted(trial, x[inner.train], labels[inner.train], None if shown is None else shown[inner.train])
        judged = inner.visible if shown is None else inner.visible & shown[inner.test]
        return (fitted.predict(x[inner.test], judged) == labels[inner.test]).reshape(len(SHARES), -1).sum(1)

    @property
    def num_parameters(self) -> int:
        """Those of all its classifiers; the settings are none."""
        return sum({id(one): int(one.num_parameters) for one in self.classifiers_}.values())

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return _by_share(self.classifiers_, x, visible)


def _by_share(classifiers: Sequence[Any], x: Tensor, visible: Tensor | None) -> Tensor:
    """The answer to each row of the classifier whose share of `SHARES` is nearest to the row's own of hidden cells, the smaller one of equals."""
    x = x.flatten(1)
    seen = torch.ones_like(x, dtype=torch.bool) if visible is None else visible.flatten(1).expand(x.shape)
    gaps = (1 - seen.double().mean(1, keepdim=True) - torch.tensor(SHARES, dtype=torch.float64)).abs()
    nearest = gaps.numpy().argmin(1)
    answers = x.new_empty(len(x), len(classifiers[0].classes_))
    for share in np.unique(nearest):
        rows = torch.from_numpy(nearest == share)
        answers[rows] = classifiers[share].log_posterior(x[rows], seen[rows]).to(answers)
    return answers


class Tempered(PartlySeenClassifier):
    r"""A classifier with one temperature, or one for each of `SHARES` of hidden cells, learnt inside its own training rows.

    A copy is fitted to three quarters of them and `TemperatureScaled` finds T on the last quarter, over `SHARES` of hidden cells;
    then another copy is fitted to all rows and answers at that T. As everything tempered, its posteriors are no longer those of a joint.

    Args:
        classifier: Not fitted; it stays as it is.
        most: Rows at most that T is learnt from.
        each_share: A temperature for each share by itself; a row is answered at that of the nearest.
        seed: Of the inner split.

    Attributes:
        scaled_: The fitted `TemperatureScaled`, one, or one for each share.
        chosen_: The temperatures, beside what the classifier has chosen.

    Raises:
        ValueError: Bad rows, or a class with one row only.
    """

    scaled_: list[TemperatureScaled]
    chosen_: dict[str, Any]

    def __init__(self, classifier: PartlySeenClassifier, most: int | None = 1000, each_share: bool = False, seed: int = 0) -> None:
        self.classifier = classifier
        self.most = most
        self.each_share = each_share
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Learn the temperatures on an inner split, then fit to all rows."""
        x, seen, labels = self._read_training(X, y, visible)
        x = x.flatten(1)
        seen = None if seen is None else seen.flatten(1).expand(x.shape)
        inner = inner_split(labels, self.n_features_in_, seed=self.seed, most=self.most)
        trial = clone(self.classifier).fit(x[inner.train], labels[inner.train], *(() if seen is None else (seen[inner.train],)))
        shown = inner.visible if seen is None else inner.visible & seen[inner.test]
        parts = np.arange(len(inner.test)).reshape(len(SHARES) if self.each_share else 1, -1)
        self.scaled_ = [TemperatureScaled(trial).fit(x[inner.test[part]], labels[inner.test[part]], shown[part]) for part in parts]
        fitted = clone(self.classifier).fit(x, labels, *(() if seen is None else (seen,)))
        for scaled in self.scaled_:
            scaled.classifier = fitted
        self.classes_ = self.scaled_[0].classes_
        temperatures = [scaled.temperature_ for scaled in self.scaled_]
        self.chosen_ = dict(getattr(fitted, "chosen_", {})) | {"temperature": temperatures if self.each_share else temperatures[0]}
        return self

    @property
    def num_parameters(self) -> int:
        """Those of the classifier, and the temperatures."""
        classifier: Any = self.scaled_[0].classifier
        return int(classifier.num_parameters) + len(self.scaled_)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        if self.each_share:
            return _by_share(self.scaled_, x, visible)
        return self.scaled_[0].log_posterior(x.flatten(1), None if visible is None else visible.flatten(1))
