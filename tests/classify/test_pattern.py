"""Patterns that depend on the class: the posterior by hand, what is lost by ignoring them, and Pyro's own answer."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro.infer import Predictive, TraceEnum_ELBO, config_enumerate
from scipy.stats import multivariate_normal
from sklearn.base import clone

from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, MixtureDiscriminantAnalysis
from pyro_ar.elliptical import Gaussian
from pyro_ar.tables import ChowLiuTree, FullyIndependent, MarkovChain

SHARES = np.array([[0.9, 0.9, 0.2, 0.5], [0.3, 0.9, 0.9, 0.5]])  # of visible cells, by class


def draw(rows, seed, apart):
    """Two classes of normal cells, their centres `apart` from each other, that hide different cells."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, rows)
    X, visible = random.normal(size=(rows, 4)) + apart * y[:, None], random.random((rows, 4)) < SHARES[y]
    return np.where(visible, X, np.nan), y, visible


def test_the_posterior_by_hand():
    X, y, visible = draw(300, 0, 0.7)
    options = {"fit_options": {"shrinkage": 0.1}, "pattern": FullyIndependent, "pattern_options": {"pseudocount": 0.5}}
    classifier = GenerativeClassifier(Gaussian, **options).fit(X, y, visible)
    fitted = classifier.joint_.joints
    scores = np.zeros((300, 2))
    for c in range(2):
        mine = y == c
        share = (visible[mine].sum(0) + 0.5) / (mine.sum() + 1)
        scores[:, c] = math.log(mine.mean()) + np.log(np.where(visible, share, 1 - share)).sum(1)
        loc, matrix = fitted.loc[c].numpy(), fitted.covariance_matrix[c].numpy()
        scores[:, c] += [multivariate_normal(loc[v], matrix[np.ix_(v, v)]).logpdf(x[v]) if v.any() else 0.0 for x, v in zip(X, visible, strict=True)]
    np.testing.assert_allclose(classifier.log_joint(X, visible), scores, atol=1e-9)
    ignoring = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}).fit(X, y, visible)
    gap = classifier.log_joint(X, visible) - ignoring.log_joint(X, visible)
    shares = np.stack([(visible[y == c].sum(0) + 0.5) / ((y == c).sum() + 1) for c in range(2)])
    wanted = np.log(np.where(visible[:, None], shares, 1 - shares)).sum(-1)
    np.testing.assert_allclose(gap, wanted, atol=1e-9)


def test_classes_that_differ_only_in_what_is_missing():
    """400 test rows: chance is 50 %, its standard error 2.5 points; the pattern alone allows 85 %."""
    X, y, visible = draw(1000, 1, 0.0)
    train, test = slice(600), slice(600, None)
    accuracy = {}
    for pattern in (None, FullyIndependent):
        classifier = DiscriminantAnalysis(pattern=pattern).fit(X[train], y[train], visible[train])
        accuracy[pattern] = classifier.score(X[test], y[test], visible=visible[test])
    assert accuracy[None] < 0.62
    assert accuracy[FullyIndependent] > 0.8


def test_nothing_visible_and_everything_visible_are_patterns_too():
    X, y, visible = draw(500, 2, 0.0)
    classifier = GenerativeClassifier(Gaussian, pattern=FullyIndependent, prior="uniform").fit(X, y, visible)
    for v in (np.zeros((1, 4), bool), np.ones((1, 4), bool)):
        share = np.stack([(visible[y == c].sum(0) + 1) / ((y == c).sum() + 2) for c in range(2)])
        odds = np.log(np.where(v, share, 1 - share)).sum(1)
        rows = np.where(v, 0.3, np.nan)
        cells = classifier.joint_.joints.marginal(torch.tensor(v[0])).log_prob(torch.tensor(rows).double()).numpy().reshape(2)
        wanted = np.exp(odds + cells - np.logaddexp.reduce(odds + cells))
        np.testing.assert_allclose(classifier.predict_proba(rows, v)[0], wanted, atol=1e-9)
        if v.all():
            np.testing.assert_allclose(classifier.predict_proba(rows)[0], wanted, atol=1e-9)


@pytest.mark.parametrize("pattern", [FullyIndependent, ChowLiuTree], ids=["independent", "tree"])
def test_the_pyro_model_has_the_same_posterior(pattern):
    X, y, visible = draw(120, 3, 0.5)
    classifier = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}, pattern=pattern).fit(X, y, visible)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    marginals = elbo.compute_marginals(config_enumerate(classifier.model), lambda *_: None, X, visible)
    np.testing.assert_allclose(marginals["y"].probs, classifier.predict_proba(X, visible), atol=1e-9)
    evidence = -elbo.loss(classifier.model, lambda *_: None, X, visible)
    assert evidence == pytest.approx(float(classifier.log_joint(X, visible).logsumexp(-1).sum()))
    known = pyro.poutine.trace(classifier.model).get_trace(X, visible, y)
    torch.testing.assert_close(known.log_prob_sum(), classifier.log_joint(X, visible).gather(-1, torch.tensor(y)[:, None]).sum())
    full = pyro.poutine.trace(classifier.model).get_trace(np.zeros((2, 4)), None, [0, 1])
    assert (full.nodes["visible"]["value"] == 1).all()
    seen = pyro.poutine.trace(classifier.model).get_trace(visible=visible[:5]).nodes["x"]["value"].isnan()
    assert seen.equal(torch.tensor(~visible[:5]))


def test_the_pyro_model_draws_patterns_of_the_class():
    """Shares of 4000 draws against those of the fitted pattern: five standard errors, false alarms under 1e-5."""
    X, y, visible = draw(300, 4, 0.5)
    classifier = DiscriminantAnalysis(pattern=FullyIndependent).fit(X, y, visible)
    pyro.set_rng_seed(0)
    draws = Predictive(classifier.model, num_samples=4000, parallel=True)()
    label, seen = draws["y"].flatten(), draws["visible"].reshape(4000, 4)
    assert draws["x"].reshape(4000, 4).isnan().equal(seen == 0)
    for c in range(2):
        share = classifier.pattern_.logits.softmax(-1)[c, :, 1]
        mine = seen[label == c]
        error = (share * (1 - share) / len(mine)).sqrt()
        assert ((mine.mean(0) - share).abs() < 5 * error).all()


def test_images_mixtures_and_parameters():
    X, y, visible = draw(200, 5, 1.0)
    classifier = MixtureDiscriminantAnalysis(1, pattern=FullyIndependent, image_shape=()).fit(
        X.reshape(-1, 2, 2), y, visible.reshape(-1, 2, 2))
    ignoring = MixtureDiscriminantAnalysis(1, image_shape=()).fit(X.reshape(-1, 2, 2), y, visible.reshape(-1, 2, 2))
    assert classifier.num_parameters == ignoring.num_parameters + 2 * 4
    assert classifier.score(X, y, visible=visible) > ignoring.score(X, y, visible=visible)
    assert classifier.model(visible=visible[:3]).shape == (3, 4)
    chain = GenerativeClassifier(Gaussian, pattern=MarkovChain).fit(X, y, visible)
    assert chain.num_parameters == 1 + 2 * (4 + 10) + 2 * 7
    assert DiscriminantAnalysis(pattern=ChowLiuTree).fit(X, y, visible).num_parameters == 1 + 2 * 14 + 2 * 7


def test_fitted_patterns_are_kept_and_clones_are_safe():
    X, y, visible = draw(200, 6, 0.5)
    fitted = GenerativeClassifier(Gaussian, pattern=FullyIndependent).fit(X, y, visible)
    again = GenerativeClassifier(Gaussian, pattern=fitted.pattern_).fit(X, y, visible)
    np.testing.assert_array_equal(again.predict_proba(X, visible), fitted.predict_proba(X, visible))
    assert clone(fitted).pattern is FullyIndependent
    trees = GenerativeClassifier(Gaussian, pattern=ChowLiuTree).fit(X, y, visible).pattern_
    assert GenerativeClassifier(Gaussian, pattern=trees).fit(X, y, visible).pattern_ == trees


def test_complete_training_rows_make_a_pattern_of_all_seen():
    X, y, _ = draw(100, 7, 1.0)
    X = np.nan_to_num(X)
    classifier = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}, pattern=FullyIndependent).fit(X, y)
    plain = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}).fit(X, y)
    share = np.array([(np.sum(y == c) + 1) / (np.sum(y == c) + 2) for c in range(2)])
    np.testing.assert_allclose(classifier.log_joint(X) - plain.log_joint(X), np.tile(4 * np.log(share), (100, 1)), atol=1e-12)


@pytest.mark.parametrize(("pattern", "match"), [
    (3, "table class"), (Gaussian, "table class"), ("FullyIndependent", "one joint"), (FullyIndependent(torch.zeros(2, 5, 2)), "4 binary cells"),
    (FullyIndependent(torch.zeros(3, 4, 2)), "each of the 2 classes"), ([FullyIndependent(torch.zeros(4, 2))], "each of the 2"),
    (FullyIndependent(torch.zeros(2, 4, 3)), "binary")])
def test_refusals(pattern, match):
    X, y, visible = draw(50, 8, 1.0)
    with pytest.raises(ValueError, match=match):
        GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}, pattern=pattern).fit(X, y, visible)
