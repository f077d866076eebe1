"""`EstimatedClassifier`: against the sum over all states, its error by coverage and by a slow delta method, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import pyro_ar as par

from pyro_ar.classify import EstimatedClassifier
from pyro_ar.enumeration import up_to

SEEN = torch.tensor([False, True, False, True, False, True])


@pytest.fixture(scope="module")
def made():
    """A NADE of random weights over 6 cells and 3 classes: fitting for no epoch leaves them."""
    torch.manual_seed(1)
    family = par.NADE(6, 4, context_dim=3)
    for p in family.parameters():
        torch.nn.init.normal_(p, std=1.5)
    X = torch.randint(0, 2, (60, 6)).double()
    y = np.arange(60) % 3
    inner = par.GenerativeClassifier(family, train=lambda module, x, **options: None)
    return EstimatedClassifier(inner, num_particles=64, num_islands=16).fit(X, y), X


def test_exact_patterns_stay_exact(made):
    classifier, X = made
    for seen in (SEEN, torch.ones(6, dtype=torch.bool)):
        found = classifier.estimate(X, seen)
        assert torch.equal(found.log_probs, classifier.classifier_.log_posterior(X, seen.expand(60, 6)))
        assert not found.standard_error.any()
        assert not found.log_standard_error.any()
        assert found.trusted.all()
        assert "estimate" not in found.method


def test_estimates_cover_the_exact_posterior_as_often_as_they_say(made):
    """120 rows: 1.96 standard errors hold the truth (the sum over all states) in 95 %, less what 16 islands know of their own spread: between 0.85 and 1
    (binomial false alarm at 0.93 below 1e-3).
    """
    classifier, X = made
    exact = classifier.estimate(X, SEEN).probs
    torch.manual_seed(0)
    with up_to(1):
        runs = [classifier.estimate(X, SEEN) for _ in range(2)]
    assert all(run.method == "estimate (sequential Monte Carlo, 64 particles)" for run in runs)
    true = torch.arange(60) % 3
    inside = torch.cat([((run.probs - exact).abs() <= 1.96 * run.standard_error)[torch.arange(60), true] for run in runs])
    assert 0.85 < inside.double().mean() <= 1
    logs = torch.cat([((run.log_probs - exact.log()).abs() <= 1.96 * run.log_standard_error)[torch.arange(60), true] for run in runs])
    assert 0.85 < logs.double().mean() <= 1
    for run in runs:
        torch.testing.assert_close(run.probs.sum(-1), torch.ones(60, dtype=run.probs.dtype))
        assert 0.3 < ((run.probs - exact).square().mean().sqrt() / run.standard_error.square().mean().sqrt()) < 3


def test_the_error_is_that_of_a_slow_delta_method(made, monkeypatch):
    """Derivatives of the softmax, one by one."""
    classifier, X = made
    marginals, errors = torch.tensor([[-1.0, -1.5, -4.0]]).double(), torch.tensor([[0.1, 0.3, 0.05]]).double()
    monkeypatch.setattr(classifier, "_log_marginals", lambda x, v: (marginals, errors, torch.tensor([[True, False, True]])), raising=False)
    with up_to(1):
        found = classifier.estimate(X[:1], SEEN)
    scores = (classifier.log_prior_.double() + marginals[0]).tolist()

    def posterior(s):
        total = sum(map(math.exp, s))
        return [math.exp(v) / total for v in s]

    base, step = posterior(scores), 1e-6
    for c in range(3):
        square = 0.0
        for k in range(3):
            moved = posterior([s + step * (j == k) for j, s in enumerate(scores)])[c]
            square += ((moved - base[c]) / step * float(errors[0, k])) ** 2
        assert float(found.probs[0, c]) == pytest.approx(base[c])
        assert float(found.standard_error[0, c]) == pytest.approx(math.sqrt(square), rel=1e-4)
        assert float(found.log_standard_error[0, c]) == pytest.approx(math.sqrt(square) / base[c], rel=1e-4)
    assert not found.trusted[0]  # the second class has a share of the posterior, and its own estimate is not to be trusted
    monkeypatch.setattr(classifier, "_log_marginals", lambda x, v: (marginals - torch.tensor([0.0, 20.0, 0.0]), errors, torch.tensor([[True, False, True]])))
    with up_to(1):
        assert classifier.estimate(X[:1], SEEN).trusted[0]  # without a share it does not matter


def test_predictions_are_the_estimates(made):
    classifier, X = made
    with up_to(1):
        torch.manual_seed(3)
        found = classifier.estimate(X[:5], SEEN)
        torch.manual_seed(3)
        np.testing.assert_array_equal(classifier.predict_log_proba(X[:5], SEEN), found.log_probs.numpy())
        assert torch.equal(classifier.last_.probs, found.probs)
        torch.manual_seed(3)
        junk = torch.where(SEEN, X[:5], 0.5)
        assert torch.equal(classifier.estimate(junk, SEEN).log_probs, found.log_probs)  # what is hidden is not read
    assert classifier.num_parameters == classifier.classifier_.num_parameters


def test_a_pattern_for_each_row(made):
    classifier, X = made
    patterns = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    exact = classifier.estimate(X[:8], patterns).probs
    with up_to(1):
        found = classifier.estimate(X[:8], patterns)
    assert ((found.probs - exact).abs() < 6 * found.standard_error + 1e-6).all()


@pytest.mark.parametrize(("inner", "message"), [
    (par.DiscriminantAnalysis(), "a family in a fixed order|one family in a fixed order"),
    ("NADE", "classifier must be a GenerativeClassifier"),
])
def test_others_are_refused(inner, message):
    X, y = np.random.default_rng(0).random((12, 3)), np.arange(12) % 2
    with pytest.raises(ValueError, match=message):
        EstimatedClassifier(inner).fit(X, y)


def test_too_few_particles_are_refused(made):
    classifier, X = made
    few = EstimatedClassifier(classifier.classifier, num_particles=1).fit(X, np.arange(60) % 3)
    with up_to(1), pytest.raises(ValueError, match="num_particles must be 2 or more"):
        few.estimate(X, SEEN)
