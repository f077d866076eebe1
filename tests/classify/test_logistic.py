"""LogisticRegression: scikit-learn's numbers, and what fills hidden cells."""

import numpy as np
import pytest
import torch

from sklearn import linear_model
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, LogisticRegression
from pyro_ar.elliptical import Gaussian
from pyro_ar.tables import ChowLiuTree, FullyIndependent


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    visible = np.random.default_rng(0).random(X.shape) < 0.6
    visible[3] = False
    return X, load_iris().target_names[y], visible


@pytest.mark.parametrize("rows", [slice(None), slice(100)])  # three classes, two classes
def test_all_seen_is_scikit_learn(rows, iris):
    X, y = iris[0][rows], iris[1][rows]
    classifier = LogisticRegression(C=2.0).fit(X, y)
    Z = (X - X.mean(0)) / (np.ptp(X, axis=0) / 2)
    oracle = linear_model.LogisticRegression(C=2.0, max_iter=1000).fit(Z, y)
    np.testing.assert_allclose(classifier.predict_proba(X), oracle.predict_proba(Z), atol=1e-9)
    assert classifier.num_parameters == len(np.unique(y)) * 5
    assert classifier.method(np.ones(4, bool)).tolist() == ["all seen"]


def test_a_common_unit_is_scikit_learn_on_rows_divided_by_one_number(iris):
    X, y, _ = iris
    X = X * [1.0, 1.0, 0.1, 1.0]
    classifier = LogisticRegression(C=2.0, scale="common").fit(X, y)
    oracle = linear_model.LogisticRegression(C=2.0, max_iter=1000).fit((X - X.mean(0)) / (np.ptp(X, axis=0).max() / 2), y)
    np.testing.assert_allclose(classifier.predict_proba(X), oracle.predict_proba((X - X.mean(0)) / (np.ptp(X, axis=0).max() / 2)), atol=1e-9)
    assert np.abs(classifier.predict_proba(X) - LogisticRegression(C=2.0).fit(X, y).predict_proba(X)).max() > 0.01
    with pytest.raises(ValueError, match="scale must be one of 'columns', 'common'; got None"):
        LogisticRegression(scale=None).fit(X, y)


def test_units_do_not_matter(iris):
    X, y, _ = iris
    wanted = LogisticRegression().fit(X, y).predict_proba(X)
    torn = X * [1e3, 1e-3, 1.0, 7.0] + [0.0, 5.0, -1e3, 1.0]
    np.testing.assert_allclose(LogisticRegression().fit(torn, y).predict_proba(torn), wanted, atol=1e-6)


def test_wine_is_as_in_a_pipeline_of_scikit_learn():
    """One number for all columns had .67; without scaling scikit-learn has .95."""
    X, y = load_wine(return_X_y=True)
    scaled = make_pipeline(StandardScaler(), linear_model.LogisticRegression())
    assert cross_val_score(LogisticRegression(), X, y).mean() >= cross_val_score(scaled, X, y).mean() - 0.012  # two of 178 rows


def test_hidden_cells_need_fill(iris):
    X, y, visible = iris
    classifier = LogisticRegression().fit(X, y)
    assert classifier.predict(X, np.ones_like(visible)).shape == (150,)
    for call in (lambda: classifier.predict(X, visible), lambda: classifier.method(visible),
                 lambda: LogisticRegression().fit(X, y, visible=visible)):
        with pytest.raises(ValueError, match="fill='mean', fill='zero', a joint, or a GenerativeClassifier"):
            call()


def gaussian_of(X):
    return Gaussian.from_data(torch.tensor(X), shrinkage=0.1)


def completion(name, X, y, visible):
    """What each fill should make of the hidden cells, by plain numpy."""
    if name in ("mean", "zero"):
        return np.where(visible, X, X.mean(0) if name == "mean" else 0)
    groups = [X] if name == "joint" else [X[y == c] for c in np.unique(y)]
    filled = np.where(visible, X, 0)
    weights = DiscriminantAnalysis(0.1).fit(X, y).predict_proba(X, visible) if name == "classes" else np.ones((len(X), 1))
    for i, rows in enumerate(groups):
        mean, S = rows.mean(0), np.cov(rows.T, bias=True)
        square = np.ptp(X, axis=0)**2
        S = 0.9 * S + 0.1 * np.mean(np.diag(S) / square) * np.diag(square)
        for n, v in enumerate(visible):
            shift = S[np.ix_(~v, v)] @ np.linalg.solve(S[np.ix_(v, v)], (X[n] - mean)[v]) if v.any() else 0
            filled[n, ~v] += weights[n, i] * (mean[~v] + shift)
    return filled


@pytest.mark.parametrize("name", ["mean", "zero", "joint", "classes"])
def test_fills(name, iris):
    X, y, visible = iris
    fill = {"joint": gaussian_of(X), "classes": DiscriminantAnalysis(0.1)}.get(name, name)
    classifier = LogisticRegression(fill=fill).fit(X, y)
    torn = np.where(visible, X, np.nan)
    wanted = LogisticRegression().fit(X, y).predict_proba(completion(name, X, y, visible))
    np.testing.assert_allclose(classifier.predict_proba(torn, visible), wanted, atol=1e-8)
    assert classifier.method(visible[:1])[0].startswith("filled: ")


def test_most_likely_completion_by_trees(iris):
    X, y, visible = iris
    X = (X > X.mean(0)).astype(float)
    for joint in (ChowLiuTree, FullyIndependent):
        filler = GenerativeClassifier(joint, fit_options={"num_states": 2})
        classifier = LogisticRegression(fill=filler).fit(X, y)
        assert not hasattr(filler, "classes_")  # a copy was fitted
        assert classifier.score(X, y, visible=visible) > 0.6
    tree = ChowLiuTree.from_data(torch.tensor(X))
    filled = tree.given(torch.tensor(X), torch.tensor(visible)).mode.numpy()
    by_tree = LogisticRegression(fill=tree).fit(X, y)
    np.testing.assert_allclose(by_tree.predict_proba(X, visible), by_tree.predict_proba(filled), atol=1e-12)


def test_training_on_incomplete_rows(iris):
    X, y, visible = iris
    torn = np.where(visible, X, np.nan)
    means = np.nanmean(torn, 0)
    classifier = LogisticRegression(fill="mean").fit(torn, y, visible=visible)
    np.testing.assert_allclose(classifier.fill_, means)
    complete = LogisticRegression().fit(np.where(visible, X, means), y)
    np.testing.assert_allclose(classifier.predict_proba(X), complete.predict_proba(X), atol=1e-9)


def test_digits_images_and_cross_validation():
    X, y = load_digits(return_X_y=True)
    X, y = X.reshape(-1, 8, 8)[:600], y[:600]
    assert cross_val_score(LogisticRegression(fill="zero"), X, y, cv=3).min() > 0.75
    classifier = LogisticRegression(fill=DiscriminantAnalysis(0.1)).fit(X[:400], y[:400])
    assert classifier.num_parameters == 650
    top = np.zeros((8, 8), bool)
    top[:5] = True
    zero = LogisticRegression(fill="zero").fit(X[:400], y[:400])
    assert classifier.score(X[400:], y[400:], visible=top) > zero.score(X[400:], y[400:], visible=top)


def test_one_class_and_zeros(iris):
    X, y, visible = iris
    classifier = LogisticRegression(fill="mean").fit(X, ["only"] * 150)
    assert (classifier.predict_proba(X, visible) == 1).all()
    flat = LogisticRegression().fit(X * 0, y)
    np.testing.assert_allclose(flat.predict_proba(X * 0), 1 / 3, atol=1e-4)
    assert clone(flat).fit(X, y).score(X, y) > 0.85


@pytest.mark.parametrize(("options", "match"), [
    ({"fill": "median"}, "'mean', 'zero'"), ({"fill": 0.0}, "'mean', 'zero'"), ({"C": 0}, "C must"),
    ({"fill": Gaussian(torch.zeros(3), torch.eye(3))}, "joint over 4 cells"),
    ({"fill": Gaussian(torch.zeros(2, 4), torch.eye(4))}, "without batch dimensions")])
def test_refusals(options, match, iris):
    with pytest.raises(ValueError, match=match):
        LogisticRegression(**options).fit(*iris[:2])
