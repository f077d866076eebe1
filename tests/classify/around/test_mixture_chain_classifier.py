"""The classifier over corrected mixtures: what it does with levels, folds and hidden cells."""

import numpy as np
import pytest
import torch

from sklearn.base import clone
from sklearn.datasets import load_digits

from pyro_ar.classify.around.mixture_chain import MixtureChainClassifier
from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis

SMALL = {"mixture": MixtureDiscriminantAnalysis(2), "steps": 40, "hidden": 6}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    keep = y < 3
    cells = [c for c in range(64) if c // 8 in (2, 4, 5) and 1 <= c % 8 <= 6]
    return X[keep][:, cells], y[keep]


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    return MixtureChainClassifier(**SMALL).fit(X[:300], y[:300])


def test_the_posterior_is_bayes_rule_over_the_mean_of_the_orders(fitted, digits):
    X, _ = digits
    visible = np.random.default_rng(0).random((8, X.shape[1])) < 0.5
    chains = fitted.likelihood_
    x, seen = torch.tensor(X[300:308]).float(), torch.tensor(visible)
    log_joint = np.zeros((8, 3))
    for c in range(3):
        context = torch.eye(3)[c]
        each = [chains.family(context, order).marginal(seen).log_prob(x) for order in chains.orders]
        log_joint[:, c] = torch.stack(each).logsumexp(0).numpy() - np.log(len(each)) + fitted.log_prior_[c].item()
    wanted = log_joint - np.logaddexp.reduce(log_joint, 1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_log_proba(X[300:308], visible), wanted, atol=1e-4)


def test_training_lowers_the_nats_of_rows_it_has_not_seen(fitted, digits):
    X, y = digits
    untrained = clone(fitted).set_params(steps=0).fit(X[:300], y[:300])
    assert untrained.history_ == []
    assert len(fitted.history_) == SMALL["steps"]
    nats = [-c.log_joint(X[300:]).logsumexp(-1).mean().item() for c in (untrained, fitted)]
    assert nats[1] < nats[0] - 0.5  # 19 cells; on the whole digits it is 5 of 82 nats


def test_equal_data_give_equal_classifiers_and_leave_the_random_state(digits):
    X, y = digits
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b = (MixtureChainClassifier(**SMALL | {"steps": 5}).fit(X[:200], y[:200]).predict_proba(X[200:220]) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_with_nothing_visible_gets_the_prior(fitted, digits):
    nothing = np.zeros(digits[0].shape[1], dtype=bool)
    np.testing.assert_allclose(fitted.predict_proba(digits[0][:1], nothing)[0], fitted.log_prior_.exp(), rtol=1e-5)


def test_hidden_cells_are_never_read(fitted, digits):
    X = digits[0][:5].copy()
    visible = np.random.default_rng(1).random(X.shape) < 0.5
    wanted = fitted.predict_proba(X, visible)
    X[~visible] = np.nan
    np.testing.assert_array_equal(fitted.predict_proba(X, visible), wanted)


def test_parameters_are_those_of_mixtures_correction_and_prior(fitted, digits):
    n = digits[0].shape[1]
    mixtures = MixtureDiscriminantAnalysis.count_parameters(3, n, 2)
    K, H = 17, SMALL["hidden"]
    correction = n * K + 2 * n * H + H + 3 * H + n * H * 5
    assert fitted.num_parameters == mixtures + correction + fitted.mixture_.transform_.num_parameters


def test_low_rank_mixtures_and_hidden_training_cells_are_refused(digits):
    X, y = digits
    with pytest.raises(ValueError, match="rank=0"):
        MixtureChainClassifier(MixtureDiscriminantAnalysis(1, rank=2)).fit(X[:50], y[:50])
    with pytest.raises(ValueError, match="complete training rows"):
        MixtureChainClassifier().fit(X[:50], y[:50], X[:50] > 3)


@pytest.mark.parametrize(("options", "change", "words"), [
    ({}, lambda X: X + 0.5, "whole numbers from 0 to"),
    ({"num_levels": 8}, lambda X: X, "whole numbers from 0 to 7"),
    ({"num_levels": 1}, lambda X: X, "num_levels must be"),
    ({"steps": -1}, lambda X: X, "steps must be"),
])
def test_bad_values_are_named(digits, options, change, words):
    X, y = digits
    with pytest.raises(ValueError, match=words):
        MixtureChainClassifier(**options).fit(change(X[:50]), y[:50])


@pytest.mark.parametrize(("options", "top"), [({}, 4096), ({"num_levels": 4097}, 3), ({"num_levels": 10**9}, 3)])
def test_more_levels_than_a_conditional_can_price_are_refused(options, top):
    """4096 of them, 0 to 4095, before anything is fitted."""
    X, y = np.array([[0, 0], [1, 1], [2, 1], [top, 2]]), np.array([0, 0, 1, 1])
    levels = options.get("num_levels", 4097)
    with pytest.raises(ValueError, match=rf"values must lie on at most 4096 levels: each conditional prices all of them; got {levels}"):
        MixtureChainClassifier(steps=0, **options).fit(X, y)


def test_as_many_levels_as_a_conditional_can_price():
    X, y = np.array([[0, 0], [9, 1], [2, 1], [4095, 2]]), np.array([0, 0, 1, 1])
    for options in ({}, {"num_levels": 4096}):
        made = MixtureChainClassifier(MixtureDiscriminantAnalysis(1), steps=0, **options).fit(X, y)
        assert made.joint_.num_states == (4096, 4096)


def test_a_class_of_one_row_cannot_be_cross_fitted():
    X, y = np.array([[0, 0], [1, 1], [2, 2]]), np.array([0, 0, 1])
    with pytest.raises(ValueError, match="2 rows or more of every class"):
        MixtureChainClassifier(steps=2).fit(X, y)
