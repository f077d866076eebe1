"""DiscriminantAnalysis against scipy's normal densities and scikit-learn's discriminants."""

import numpy as np
import pytest
import torch

from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold

from pyro_ar.classify import DiscriminantAnalysis


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    visible = np.random.default_rng(0).random(X.shape) < 0.5
    visible[3] = False
    return X, load_iris().target_names[y], visible


def shrunk(rows, a, X):
    """Towards the squared ranges of all rows X."""
    S, square = np.cov(rows.T, bias=True), np.ptp(X, axis=0)**2
    return (1 - a) * S + a * np.mean(np.diag(S) / square) * np.diag(square)


@pytest.mark.parametrize("prior", [None, "uniform", [0.2, 0.5, 0.3]])
@pytest.mark.parametrize("covariance", ["own", "shared"])
@pytest.mark.parametrize("a", [0.0, 0.1, 1.0])
def test_hidden_cells_against_scipy(covariance, a, prior, iris):
    X, y, visible = iris
    names = np.unique(y)
    means = {c: X[y == c].mean(0) for c in names}
    pooled = shrunk(np.concatenate([X[y == c] - means[c] for c in names]), a, X)
    weights = [(y == c).mean() for c in names] if prior is None else [1 / 3] * 3 if prior == "uniform" else prior
    scores = np.log(np.tile(weights, (len(X), 1)))
    for row, seen in enumerate(visible):
        for i, c in enumerate(names):
            S = shrunk(X[y == c], a, X) if covariance == "own" else pooled
            if seen.any():
                scores[row, i] += multivariate_normal(means[c][seen], S[np.ix_(seen, seen)]).logpdf(X[row, seen])
    classifier = DiscriminantAnalysis(a, covariance, prior=prior).fit(X, y)
    np.testing.assert_allclose(classifier.log_joint(np.where(visible, X, np.nan), visible), scores, atol=1e-9)
    wanted = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(classifier.predict_proba(X, visible), wanted / wanted.sum(1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize("a", [0.05, 0.1, 0.9])
def test_all_seen_is_scikit_learn(a, iris):
    X, y, _ = iris
    X, y = X[:140], y[:140]  # unequal classes
    Z = X / np.ptp(X, axis=0)
    quadratic = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=a).fit(Z, y)
    np.testing.assert_allclose(DiscriminantAnalysis(a).fit(X, y).predict_proba(X), quadratic.predict_proba(Z), atol=1e-9)
    linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=a).fit(Z, y)
    shared = DiscriminantAnalysis(a, "shared").fit(X, y)
    np.testing.assert_allclose(shared.predict_proba(X), linear.predict_proba(Z), atol=1e-9)
    assert shared.predict(X).tolist() == linear.predict(Z).tolist()


def test_digits_at_five_levels():
    """The known row, 99.0 / 98.3 / 95.8 / 83.5 / 49.5 %; within about three standard errors of 1797 rows."""
    X, y = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    right = np.zeros(5)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
        classifier = DiscriminantAnalysis(0.1).fit(X[train], y[train])
        for i, hidden in enumerate((0, 0.25, 0.5, 0.75, 0.9)):
            visible = random.random((len(test), 64)).argsort(1) >= round(64 * hidden)  # an exact share of each row
            right[i] += (classifier.predict(X[test], visible) == y[test]).sum()
    error = np.abs(right / len(X) - [0.990, 0.983, 0.958, 0.835, 0.495])
    assert (error < [0.007, 0.01, 0.015, 0.025, 0.035]).all(), right / len(X)


def test_constant_cells_and_singular_covariances(iris):
    X, y, visible = iris
    wide = np.concatenate([X, np.zeros((150, 1))], 1)
    classifier = DiscriminantAnalysis(0.1).fit(wide, y)
    assert classifier.score(wide, y) > 0.95
    for covariance in ("own", "shared"):
        with pytest.raises(ValueError, match=r"positive definite.*shrinkage"):
            DiscriminantAnalysis(0.0, covariance).fit(wide, y)
    seen = np.concatenate([visible, np.ones((150, 1), bool)], 1)
    assert np.isfinite(classifier.predict_log_proba(wide, seen)).all()


def test_parameters(iris):
    X, y, _ = iris
    assert DiscriminantAnalysis().fit(X, y).num_parameters == 2 + 3 * 4 + 3 * 10
    assert DiscriminantAnalysis(covariance="shared").fit(X, y).num_parameters == 2 + 3 * 4 + 10
    assert DiscriminantAnalysis(prior="uniform").fit(X, y).num_parameters == 3 * 4 + 3 * 10
    assert DiscriminantAnalysis.count_parameters(10, 64) == 9 + 640 + 10 * 64 * 65 // 2


def test_model_and_torch(iris):
    X, y, visible = iris
    classifier = clone(DiscriminantAnalysis(covariance="shared")).fit(torch.tensor(X), y)
    rows = classifier.model(visible=visible)
    assert rows.isnan().equal(torch.tensor(~visible))
    assert classifier.joint_.component_posterior(torch.tensor(X)).probs.argmax(-1).tolist() == \
        [list(np.unique(y)).index(c) for c in classifier.predict(X)]


@pytest.mark.parametrize(("options", "match"), [
    ({"shrinkage": 1.5}, "between 0 and 1"), ({"covariance": "tied"}, "'own' or 'shared'"), ({"num_classes": 4}, "4 different")])
def test_refusals(options, match, iris):
    with pytest.raises(ValueError, match=match):
        DiscriminantAnalysis(**options).fit(*iris[:2])
