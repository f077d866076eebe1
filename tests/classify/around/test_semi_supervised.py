"""EM over unknown classes: a step by hand, no step down, and what unlabelled rows are worth."""

import math
import pickle

import numpy as np
import pytest
import torch

from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.semi_supervised import SelfTrainingClassifier

from pyro_ar.classify import (
    DiscriminantAnalysis,
    GenerativeClassifier,
    LogisticRegression,
    MixtureDiscriminantAnalysis,
    SemiSupervised,
)
from pyro_ar.elliptical import Gaussian
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import ChowLiuTree, FullTable, FullyIndependent, MarkovChain

BINARY = {"num_states": 2, "pseudocount": 0.5}


@pytest.fixture
def binary():
    """120 rows of 4 binary cells, of which 24 have labels."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 120)
    X = (random.random((120, 4)) < np.array([[0.2, 0.7, 0.3, 0.6], [0.8, 0.4, 0.7, 0.3]])[truth]).astype(float)
    return X, np.where(np.arange(120) % 5 == 0, truth, -1), truth


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, np.where(np.arange(150) % 10 < 2, y, -1), y


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_one_step_by_hand(weight, binary):
    X, y, _ = binary
    model = SemiSupervised(GenerativeClassifier(FullyIndependent, fit_options=BINARY), unlabelled_weight=weight, em_steps=1).fit(X, y)
    count, ones = np.zeros(2), np.zeros((2, 4))
    known = [(row, label) for row, label in zip(X, y, strict=True) if label >= 0]
    for row, label in known:
        count[label] += 1
        ones[label] += row
    prior, share = count / count.sum(), (ones + 0.5) / (count[:, None] + 1)
    for row, label in zip(X, y, strict=True):
        if label < 0:
            p = [prior[c] * math.prod(share[c, i] if row[i] else 1 - share[c, i] for i in range(4)) for c in range(2)]
            for c in range(2):
                count[c] += weight * p[c] / sum(p)
                ones[c] += weight * p[c] / sum(p) * row
    np.testing.assert_allclose(model.classifier_.log_prior_.exp(), count / count.sum())
    np.testing.assert_allclose(model.classifier_.likelihood_.logits.softmax(-1)[..., 1], (ones + 0.5) / (count[:, None] + 1))
    assert model.n_iter_ == 1


@pytest.mark.parametrize("joint", [FullyIndependent, MarkovChain, FullTable])
@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_no_step_lowers_the_objective(joint, weight, binary):
    X, y, _ = binary
    scores = []
    for steps in (0, 1, 2, 3, 5, 8):
        model = SemiSupervised(GenerativeClassifier(joint, fit_options=BINARY), unlabelled_weight=weight, em_steps=steps).fit(X, y)
        log_joint = model.log_joint(X)
        known = torch.tensor(y >= 0)
        told = log_joint[known].gather(-1, torch.tensor(y[y >= 0])[:, None]).sum()
        penalty = 0.5 * sum(t.sum() for t in model.classifier_.likelihood_._group_tables())
        scores.append(float(told + weight * log_joint[~known].logsumexp(-1).sum() + penalty))
    assert (np.diff(scores) >= -1e-9).all(), scores
    assert scores[-1] > scores[0] + 0.1


def test_a_gaussian_ends_where_its_gradient_is_zero(iris):
    """Without shrinkage EM ends in a maximum of the log-likelihood: its gradient by the means, by torch, has vanished."""
    X, y, _ = iris
    model = SemiSupervised(GenerativeClassifier(Gaussian), em_steps=500).fit(X, y)
    loc = model.classifier_.likelihood_.loc.clone().requires_grad_()
    rows, known = torch.tensor(X)[:, None], torch.tensor(y >= 0)
    scores = Gaussian(loc, model.classifier_.likelihood_.covariance_matrix).log_prob(rows) + model.classifier_.log_prior_
    total = scores[known].gather(-1, torch.tensor(y[y >= 0])[:, None]).sum() + scores[~known].logsumexp(-1).sum()
    total.backward()
    first = DiscriminantAnalysis(0.0).fit(X[y >= 0], y[y >= 0]).likelihood_.loc
    assert (loc - first).abs().max() > 0.05
    assert loc.grad.abs().max() < 0.3  # of the order of a hundred one mean's standard error away
    assert model.n_iter_ < 500


def test_a_shared_covariance_from_shares_of_rows(iris):
    X, y, _ = iris
    model = SemiSupervised(DiscriminantAnalysis(0.2, "shared"), em_steps=1).fit(X, y)
    first = DiscriminantAnalysis(0.2, "shared").fit(X[y >= 0], y[y >= 0])
    shares = np.where((y >= 0)[:, None], np.eye(3)[y], first.predict_proba(X))
    means = [np.average(X, axis=0, weights=s) for s in shares.T]
    S = sum(s * np.outer(row - m, row - m) for c, m in enumerate(means) for s, row in zip(shares[:, c], X, strict=True)) / 150
    square = np.ptp(X, axis=0)**2
    wanted = 0.8 * S + 0.2 * np.mean(np.diag(S) / square) * np.diag(square)
    np.testing.assert_allclose(model.classifier_.likelihood_.covariance_matrix[0], wanted, atol=1e-9)
    np.testing.assert_allclose(model.classifier_.likelihood_.loc, means)


def test_all_labels_known_is_the_classifier_itself(binary):
    X, _, truth = binary
    for classifier in (GenerativeClassifier(ChowLiuTree, fit_options=BINARY), DiscriminantAnalysis()):
        model = SemiSupervised(classifier).fit(X, truth)
        assert model.n_iter_ == 0
        np.testing.assert_array_equal(model.predict_proba(X), clone(classifier).fit(X, truth).predict_proba(X))


@pytest.mark.parametrize("classifier", [GenerativeClassifier(MarkovChain, fit_options=BINARY), GenerativeClassifier(ChowLiuTree, fit_options=BINARY),
                                        DiscriminantAnalysis(0.2, "shared", pattern=FullyIndependent)], ids=["chain", "tree", "shared"])
def test_hidden_cells_and_unknown_labels_together(classifier, binary):
    X, y, truth = binary
    visible = np.random.default_rng(1).random(X.shape) < 0.8
    torn = np.where(visible, X, np.nan)
    model = SemiSupervised(classifier, em_steps=3).fit(torn, y, visible)
    again = SemiSupervised(classifier, em_steps=3).fit(np.where(visible, X, 7), y, visible)
    np.testing.assert_array_equal(model.predict_proba(torn, visible), again.predict_proba(torn, visible))
    assert model.score(torn, truth, visible=visible) > 0.6
    if isinstance(classifier, DiscriminantAnalysis):
        return  # a cell that is never seen has no mean
    everything = SemiSupervised(classifier, em_steps=2).fit(X, y, np.array([True, True, False, True]))
    assert np.isfinite(everything.predict_log_proba(X, np.array([True, True, False, True]))).all()


def test_unlabelled_digits_are_worth_more_than_five_points():
    """Six labels per class, 1,200 rows without: three draws say ten points, with a standard error under one."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:1260], order[1260:]
    labels = np.full(1260, -1)
    for c in range(10):
        labels[np.flatnonzero(y[train] == c)[:6]] = c
    some = labels >= 0
    alone = DiscriminantAnalysis(0.3).fit(X[train][some], labels[some]).score(X[test], y[test])
    model = SemiSupervised(DiscriminantAnalysis(0.3), em_steps=10).fit(X[train], labels)
    assert model.score(X[test], y[test]) > alone + 0.05
    right = (model.transduction_ == y[train])
    assert right[some].all()
    assert right.mean() > alone


def test_labels_of_all_kinds(iris):
    X, y, _ = iris
    wanted = SemiSupervised(DiscriminantAnalysis()).fit(X, y)
    names = np.array(["setosa", "versicolor", "virginica"])
    for labels in (torch.tensor(y), y.astype(float), [int(v) for v in y], y[:, None][:, 0]):
        np.testing.assert_array_equal(SemiSupervised(DiscriminantAnalysis()).fit(X, labels).predict_proba(X), wanted.predict_proba(X))
    for unknown in (None, -1):
        labels = np.array([unknown if v < 0 else names[v] for v in y], dtype=object)
        model = SemiSupervised(DiscriminantAnalysis()).fit(X, labels)
        assert model.classes_.tolist() == names.tolist()
        np.testing.assert_array_equal(model.predict_proba(X), wanted.predict_proba(X))


def test_conventions_and_pyro(iris):
    X, y, _ = iris
    model = SemiSupervised(DiscriminantAnalysis(0.2), em_steps=3).fit(X, y)
    assert clone(model).get_params()["classifier__shrinkage"] == 0.2
    assert not hasattr(model.classifier, "classes_")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    assert model.model(X[:4]).shape == (4, 4)
    assert model.num_parameters == 2 + 3 * (4 + 10)
    np.testing.assert_allclose(model.log_joint(X).softmax(-1), model.predict_proba(X))
    assert SemiSupervised(DiscriminantAnalysis()).fit(X.reshape(-1, 2, 2), y).predict(X[:2].reshape(-1, 2, 2)).shape == (2,)


def test_the_way_out_for_others_works(iris):
    X, y, truth = iris
    trained = SelfTrainingClassifier(MixtureDiscriminantAnalysis(1)).fit(X, y)
    assert trained.score(X, truth) > 0.9


@pytest.mark.parametrize(("make", "labels", "match"), [
    (lambda: SemiSupervised(MixtureDiscriminantAnalysis(1)), None, "SelfTrainingClassifier"),
    (lambda: SemiSupervised(GenerativeClassifier(FVSBN(event_shape=4, context_dim=3))), None, "SelfTrainingClassifier"),
    (lambda: SemiSupervised(LogisticRegression()), None, "must be a GenerativeClassifier"),
    (lambda: SemiSupervised(DiscriminantAnalysis(), unlabelled_weight=0), None, "unlabelled_weight"),
    (lambda: SemiSupervised(DiscriminantAnalysis(), em_steps=-1), None, "em_steps"),
    (lambda: SemiSupervised(DiscriminantAnalysis()), np.full(150, -1), "some labels"),
    (lambda: SemiSupervised(DiscriminantAnalysis()), np.array([None] * 150), "some labels"),
    (lambda: SemiSupervised(DiscriminantAnalysis()), np.zeros(7), "each of the 150 rows")])
def test_refusals(make, labels, match, iris):
    X, y, _ = iris
    with pytest.raises(ValueError, match=match):
        make().fit(X, y if labels is None else labels)


def test_one_label_per_class(iris):
    """No class has a covariance of its own at the start; the unlabelled rows give one."""
    X, _, truth = iris
    y = np.full(150, -1)
    y[[0, 60, 120]] = [0, 1, 2]
    model = SemiSupervised(DiscriminantAnalysis(0.2)).fit(X, y)
    assert model.score(X, truth) > 0.85
    with pytest.raises(ValueError, match="shrinkage"):
        SemiSupervised(DiscriminantAnalysis(0.2)).fit(X[[0, 60, 120]], [0, 1, 2])
