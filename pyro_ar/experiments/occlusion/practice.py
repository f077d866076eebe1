r"""What practitioners do with tables with holes: boosted trees that read them, forests and logistic regression on cells that an imputer filled.

Each is tuned by the log score on inner folds of its own training rows, holes as they are, and gets a temperature from the same folds, as the other rivals do.
"""

import warnings

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pyro_ar.classify.around.pool import smoothed, with_nan
from pyro_ar.classify.around.temperature import at_temperature, best_temperature
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.rows_of_classes import require_rows

__all__ = ["ReadsHoles", "boosting", "forest", "iterative_logistic"]

FOLDS = 3
TREES = 200


class ReadsHoles(PartlySeenClassifier):
    r"""A classifier of scikit-learn's that reads NaN, with settings and a temperature from inner folds of its training rows.

    Its probabilities are mixed with one vote of the class frequencies among N, :math:`(N p + f) / (N + 1)`, before the temperature, since trees say zero.

    Args:
        classifier: Not fitted; a pipeline, what fills first and the classifier last, or a classifier that reads NaN itself. It stays as it is.
        settings: Of the last step, their names and the values to choose from, by log score over the inner folds; all combinations are tried.
        folds: Inner folds, fewer where a class has fewer rows.
        seed: Of the folds.

    Attributes:
        classifier_: Fitted to all rows with the settings chosen.
        chosen_: They, and the temperature.

    Raises:
        ValueError: Bad rows, or a class with one row only.
    """

    def __init__(self, classifier: Any, settings: Mapping[str, Sequence[Any]], folds: int = FOLDS, seed: int = 0) -> None:
        self.classifier = classifier
        self.settings = settings
        self.folds = folds
        self.seed = seed

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Choose the settings and the temperature, then fit to all rows."""
        x, seen, labels = self._read_training(X, y, visible)
        rows = with_nan(x, seen)
        self.classes_, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        require_rows(labels, 2, "inner folds want")
        self.frequencies_ = counts / counts.sum()
        folds = StratifiedKFold(int(min(self.folds, counts.min())), shuffle=True, random_state=self.seed)
        trials = list(ParameterGrid(dict(self.settings)))
        said = np.empty((len(trials), len(rows), len(counts)))
        with warnings.catch_warnings():  # ten rounds of chained regressions are what their users run, converged or not
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._fit(rows, index, folds, trials, said)
        return self

    def _fit(self, rows: np.ndarray, index: np.ndarray, folds: StratifiedKFold, trials: list[dict[str, Any]], said: np.ndarray) -> None:
        for train, test in folds.split(rows, index):
            filler, last = self._apart()
            fitting, asked = (rows[train], rows[test]) if filler is None else (filler.fit_transform(rows[train]), filler.transform(rows[test]))
            for i, trial in enumerate(trials):
                said[i, test] = smoothed(clone(last).set_params(**trial).fit(fitting, index[train]).predict_proba(asked), self.frequencies_, len(train))
        loss = -np.log(said[:, np.arange(len(rows)), index]).mean(1)
        best = int(loss.argmin())
        filler, last = self._apart()
        self.filler_, self.training_size_ = filler, len(rows)
        self.classifier_ = last.set_params(**trials[best]).fit(rows if filler is None else filler.fit_transform(rows), index)
        self.temperature_ = best_temperature(torch.from_numpy(np.log(said[best])), self._log_prior(), torch.from_numpy(index))
        self.chosen_ = {**trials[best], "temperature": self.temperature_}

    def _apart(self) -> tuple[Any, Any]:
        """Copies of what fills (or None) and of the classifier: one filling serves all settings."""
        made = clone(self.classifier)
        return (made[:-1], made[-1]) if isinstance(made, Pipeline) else (None, made)

    def _log_prior(self) -> Tensor:
        return torch.zeros(len(self.classes_), dtype=torch.float64)  # as for the other rivals: T of the plain softmax

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        rows = with_nan(x, visible)
        p = self.classifier_.predict_proba(rows if self.filler_ is None else self.filler_.transform(rows))
        log_p = torch.from_numpy(np.log(smoothed(p, self.frequencies_, self.training_size_)))
        return at_temperature(log_p, self._log_prior(), self.temperature_).to(x)

    @property
    def num_parameters(self) -> int:
        """Numbers that it stores: thresholds and leaves of trees, or weights; of what fills a row of weights per column."""
        last = self.classifier_
        if isinstance(last, RandomForestClassifier):
            return sum(tree.tree_.node_count * (2 + len(self.classes_)) for tree in last.estimators_)
        if isinstance(last, HistGradientBoostingClassifier):
            return sum(3 * len(tree.nodes) for trees in last._predictors for tree in trees)
        filled = self.n_features_in_**2 if any(isinstance(step, IterativeImputer) for step in self.filler_ or ()) else self.n_features_in_
        return int(last.coef_.size + last.intercept_.size + filled)


def _with_nan(x: Tensor, visible: Tensor | None) -> np.ndarray:
    x = x.flatten(1)
    return (x if visible is None else torch.where(visible.flatten(1).expand(x.shape), x, torch.nan)).double().numpy()


def boosting() -> ReadsHoles:
    """Histogram gradient boosting, which sends hidden cells to the better side of each split."""
    trees = HistGradientBoostingClassifier(max_iter=100, min_samples_leaf=10, early_stopping=False, random_state=0)
    return ReadsHoles(trees, {"learning_rate": (0.03, 0.1), "max_leaf_nodes": (4, 16)})


def forest() -> ReadsHoles:
    """A random forest on cells filled with medians, beside columns that say where."""
    trees = make_pipeline(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), RandomForestClassifier(TREES, random_state=0))
    return ReadsHoles(trees, {"min_samples_leaf": (1, 3, 10)})


def iterative_logistic() -> ReadsHoles:
    """Logistic regression on standardised cells that chained ridge regressions filled."""
    filled = IterativeImputer(max_iter=10, random_state=0, keep_empty_features=True)
    regression = make_pipeline(StandardScaler(), filled, LogisticRegression(max_iter=1000))
    return ReadsHoles(regression, {"C": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)})
