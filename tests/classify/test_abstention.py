"""Risk-coverage curves against a slow loop over all orders of ties; decisions; what abstaining buys on digits."""

import itertools
import math

import numpy as np
import pytest
import torch

from sklearn.datasets import load_digits

import pyro_ar as par


def slow(confidence, right):
    """Risks averaged over every order of the rows that sorts them by confidence."""
    orders = [o for o in itertools.permutations(range(len(right))) if all(
        confidence[a] >= confidence[b] for a, b in itertools.pairwise(o))]
    risks = []
    for order in orders:
        wrong = [not right[i] for i in order]
        risks.append([sum(wrong[:k]) / k for k in range(1, len(right) + 1)])
    return np.mean(risks, 0)


@pytest.mark.parametrize("seed", range(6))
def test_curve_is_the_mean_over_all_orders_of_ties(seed):
    random = np.random.default_rng(seed)
    confidence, right = random.integers(0, 4, 7) / 3, random.random(7) < 0.6
    curve = par.risk_coverage(confidence, right)
    np.testing.assert_allclose(curve.risk, slow(confidence, right))
    np.testing.assert_allclose(curve.coverage, np.arange(1, 8) / 7)
    assert curve.area == pytest.approx(slow(confidence, right).mean())
    assert curve.risk[-1] == pytest.approx(1 - right.mean())


def test_order_of_rows_does_not_matter_and_nor_does_the_scale():
    random = np.random.default_rng(0)
    confidence, right = random.integers(0, 9, 60).astype(float), random.random(60) < 0.7
    shuffle = random.permutation(60)
    curve, other = par.risk_coverage(confidence, right), par.risk_coverage(torch.tensor(confidence[shuffle]).exp(), torch.tensor(right[shuffle]))
    np.testing.assert_allclose(curve.risk, other.risk)
    infinite = np.where(confidence == 8, np.inf, np.where(confidence == 0, -np.inf, confidence))
    np.testing.assert_allclose(par.risk_coverage(infinite, right).risk, curve.risk)


def test_at_risk_takes_ties_whole():
    curve = par.risk_coverage([0.9, 0.8, 0.8, 0.8, 0.3], [True, True, True, False, False])
    assert curve.at_risk(0.3) == (0.8, 0.8)  # 1 of 4 wrong
    assert curve.at_risk(0.2) == (0.2, 0.9)  # k = 2 and 3 split the ties
    assert curve.at_risk(1.0) == (1.0, 0.3)
    assert par.risk_coverage([np.inf, np.inf], [False, False]).at_risk(0.5) == (0.0, math.inf)
    assert par.risk_coverage([np.inf, np.inf], [True, True]).at_risk(0.0) == (1.0, math.inf)


@pytest.fixture(scope="module")
def fitted():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    classifier = par.DiscriminantAnalysis().fit(x[:900], y[:900])
    return classifier, par.Plausibility(classifier).fit(x[900:1200]), x[1200:], y[1200:]


def test_decisions(fitted):
    classifier, plausible, x, y = fitted
    visible = np.random.default_rng(1).random((len(x), 64)).argsort(1) >= 48
    visible = np.repeat(visible[:6], 100, axis=0)[:len(x)]
    plain = par.decide(classifier, x, visible)
    assert plain.answered.all()
    assert plain.p_value is None
    np.testing.assert_array_equal(plain.labels, classifier.predict(x, visible))
    decision = par.decide(classifier, x, visible, least_posterior=0.8, plausibility=plausible, least_p_value=0.05)
    np.testing.assert_array_equal(decision.posterior, classifier.predict_proba(x, visible).max(1))
    np.testing.assert_array_equal(decision.p_value, plausible.p_value(x, visible))
    np.testing.assert_array_equal(decision.answered, (decision.posterior >= 0.8) & (decision.p_value >= 0.05))
    right = decision.labels == y
    assert right[decision.answered].mean() > right.mean() + 0.05
    assert par.decide(par.LogisticRegression().fit(x, y), x[:3], least_posterior=0.5).labels.shape == (3,)


def test_bad_input(fitted):
    classifier, _, x, _ = fitted
    with pytest.raises(ValueError, match="least_posterior must be a probability"):
        par.decide(classifier, x, least_posterior=1.5)
    with pytest.raises(ValueError, match="needs a fitted Plausibility"):
        par.decide(classifier, x, least_p_value=0.1)
    for confidence, right in (([0.1], [1]), ([], []), ([0.1, 0.2], [True]), ([[0.1]], [[True]])):
        with pytest.raises(ValueError, match="must be"):
            par.risk_coverage(confidence, np.array(right, dtype=bool) if right == [] else right)
    with pytest.raises(ValueError, match="NaN"):
        par.risk_coverage([np.nan], [True])


def test_plausibility_buys_what_the_posterior_cannot(fitted):
    """A fifth of the rows is junk to which the posterior is sure of itself: with plausibility the curve is far lower.

    The junk's posterior is above 0.9 in 99 % of its rows, so the posterior alone answers it; the areas are 0.22 and 0.027.
    """
    classifier, plausible, x, y = fitted
    junk = np.random.default_rng(2).permuted(16 - x[:150], axis=1)
    rows, right = np.concatenate([x, junk]), np.append(classifier.predict(x) == y, np.zeros(150, dtype=bool))
    decision = par.decide(classifier, rows, plausibility=plausible)
    alone = par.risk_coverage(decision.posterior, right)
    both = par.risk_coverage(np.where(decision.p_value >= 0.05, decision.posterior, -1.0), right)
    assert both.area < alone.area / 2
    assert alone.at_risk(0.05)[0] < both.at_risk(0.05)[0]


@pytest.mark.parametrize("most", [-0.1, 1.1, math.nan])
def test_a_risk_is_a_share(most):
    with pytest.raises(ValueError, match="risk from 0 to 1"):
        par.risk_coverage(np.array([0.5, 0.9]), np.array([True, False])).at_risk(most)
