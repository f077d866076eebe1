"""`OpinionPool`: its formula by slow loops, its weights against a grid and `TemperatureScaled`, and that no classifier answers rows it was fitted to."""

import itertools
import math

import numpy as np
import pytest
import torch

from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB

import pyro_ar as par

from pyro_ar.classify import OpinionPool
from pyro_ar.classify.around.pool import _best_weights
from pyro_ar.classify.around.temperature import best_temperature


@pytest.fixture(scope="module")
def torn():
    X, y = load_wine(return_X_y=True)
    X, y = X[::2, :5], y[::2]
    return np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X), y


def answers(rows=60, members=2, classes=3, seed=0):
    """Noisy opinions, as evidence `(K, N, C)`, a prior and the truth."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (rows,), generator=generator)
    said = 3 * torch.randn(members, rows, classes, generator=generator, dtype=torch.float64)
    said[0] += torch.nn.functional.one_hot(true, classes)
    said[-1] += 2 * torch.nn.functional.one_hot(true, classes)
    return said, torch.tensor([0.5, 0.3, 0.2]).double().log(), true


def loss(a, said, log_prior, true):
    """In plain Python: minus the log score of the pool, and minus the log of Gamma(2, 1) of the sum of the weights."""
    total = 0.0
    for row, y in enumerate(true.tolist()):
        scores = [float(log_prior[c]) + sum(w * float(said[k, row, c]) for k, w in enumerate(a)) for c in range(said.shape[-1])]
        top = max(scores)
        total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[y]
    return total + sum(a) - math.log(sum(a))


def test_the_weights_are_the_best_of_a_grid():
    said, log_prior, true = answers()
    found = _best_weights(said, log_prior, true)
    best = loss(found.tolist(), said, log_prior, true)
    steps = [0.0, 0.01, -0.01]
    for da, db in itertools.product(steps, steps):
        if (da, db) != (0.0, 0.0):
            assert loss([float(found[0]) + da, float(found[1]) + db], said, log_prior, true) > best
    assert (found > 0.05).all()
    harmful = torch.stack([said[1], said[0] - 3 * torch.nn.functional.one_hot(true, 3)])
    assert _best_weights(harmful, log_prior, true)[1] < 1e-6  # no weight is below zero


def test_one_classifier_is_at_its_temperature():
    said, log_prior, true = answers(members=1)
    log_p = (said[0] + log_prior).log_softmax(-1)
    assert float(_best_weights(said, log_prior, true)) == pytest.approx(1 / best_temperature(log_p, log_prior, true), rel=1e-3)


def test_the_pool_is_the_product_of_powers(torn):
    """By loops from the members, those of other libraries with a vote of the frequencies."""
    X, y = torn
    pool = OpinionPool([par.DiscriminantAnalysis(), RandomForestClassifier(20, random_state=0)], folds=3).fit(X, y)
    joint, trees = pool.classifiers_
    frequencies = np.bincount(y) / len(y)
    got = pool.predict_log_proba(X[:20])
    a = pool.weights_.numpy()
    for row in range(20):
        p = joint.predict_proba(X[row:row + 1])[0]
        q = (len(y) * trees.predict_proba(X[row:row + 1])[0] + frequencies) / (len(y) + 1)
        wanted = frequencies * (p / frequencies)**a[0] * (q / frequencies)**a[1]
        np.testing.assert_allclose(np.exp(got[row]), wanted / wanted.sum(), rtol=1e-6)
        np.testing.assert_allclose(pool.predict_log_proba(X[row:row + 1])[0], got[row], rtol=1e-9)
    np.testing.assert_allclose(pool.predict_proba(np.full((1, 5), np.nan))[0], frequencies)
    seen = ~np.isnan(X[:20])
    np.testing.assert_array_equal(pool.predict_log_proba(np.where(seen, X[:20], 1e6), seen), got)
    assert pool.log_posterior(torch.tensor(X[:2]).float(), torch.tensor(seen[:2])).dtype == torch.float32


class Recording(ClassifierMixin, BaseEstimator):
    """Naive Bayes on means, which notes the rows it is fitted to and asked about."""

    log: list = []

    def fit(self, X, y):
        self.rows_ = {row.tobytes() for row in X}
        self.inner_ = GaussianNB().fit(np.nan_to_num(X), y)
        return self

    def predict_proba(self, X):
        Recording.log.append((self.rows_, [row.tobytes() for row in X]))
        return self.inner_.predict_proba(np.nan_to_num(X))


def test_weights_come_from_rows_that_were_held_out(torn):
    X, y = torn
    Recording.log = []
    OpinionPool([Recording()], folds=4).fit(X, y)
    assert len(Recording.log) == 4
    asked = [row for fitted, rows in Recording.log for row in rows if not fitted & set(rows)]
    assert sorted(asked) == sorted(row.tobytes() for row in X)
    assert all(len(fitted) + len(rows) == len(X) for fitted, rows in Recording.log)


def test_a_useless_classifier_gets_no_weight(torn):
    X, y = torn
    pool = OpinionPool([par.DiscriminantAnalysis(), par.GenerativeClassifier([par.Gaussian(torch.zeros(5).double(), torch.eye(5).double())] * 3)]).fit(X, y)
    assert float(pool.weights_[0]) > 0.3
    assert pool.score(X, y) > 0.7


def test_a_class_that_never_shows_a_cell_is_fitted(torn):
    X, y = torn
    X = X.copy()
    X[y == 1, 2] = np.nan
    with pytest.raises(ValueError, match="visible in at least one row"):
        par.DiscriminantAnalysis().fit(X, y)
    pool = OpinionPool([par.DiscriminantAnalysis()], folds=2).fit(X, y)
    first = pool.classifiers_[0].likelihood_.loc[1, 2]
    assert float(first) == pytest.approx(np.nanmean(X[:, 2]))
    assert np.isnan(X[y == 1, 2]).all()  # the rows that came stay as they are


def test_equal_data_give_equal_pools_and_defaults_read_holes(torn, monkeypatch):
    monkeypatch.setattr("pyro_ar.classify.around.pool.TREES", 5)
    X, y = torn
    rows = slice(None, None, 3)
    torch.manual_seed(1)
    one = OpinionPool(folds=2).fit(X[rows], y[rows])
    torch.manual_seed(2)
    again = OpinionPool(folds=2).fit(X[rows], y[rows])
    np.testing.assert_array_equal(one.predict_log_proba(X), again.predict_log_proba(X))
    assert [type(c).__name__ for c in one.classifiers_] == ["MixtureDiscriminantAnalysis", "LogisticRegression", "RandomForestClassifier"]
    assert one.num_parameters > one.classifiers_[0].num_parameters
    names = OpinionPool([par.DiscriminantAnalysis()]).fit(X, np.array(["a", "b", "c"])[y])
    assert names.predict(X[:1])[0] in "abc"


@pytest.mark.parametrize(("classifiers", "options", "labels", "message"), [
    ([], {}, None, "classifiers must be a list of one or more"),
    (par.DiscriminantAnalysis(), {}, None, "classifiers must be a list of one or more"),
    ([par.DiscriminantAnalysis(), "forest"], {}, None, "fit and predict_proba"),
    (None, {"folds": 1}, None, "folds must be a whole number, 2 or more"),
    (None, {}, [0] * 44 + [1], "held-out parts want 2 rows or more"),
    (None, {}, [1] * 45, "two classes or more"),
])
def test_bad_input_is_refused(torn, classifiers, options, labels, message):
    X, y = torn
    with pytest.raises(ValueError, match=message):
        OpinionPool(classifiers, **options).fit(X[:45], y[:45] if labels is None else np.array(labels))
