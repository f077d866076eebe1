"""A classifier recognises rows of its training where new ones are wanted."""

import pickle

import numpy as np
import pytest
import torch

from sklearn.datasets import load_digits, load_iris

import pyro_ar as par

from pyro_ar.classify.known_rows import digests, require_new


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def test_digests_are_those_of_what_is_seen():
    x = torch.tensor([[0.1, 2.0], [0.1, 3.0], [-0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    first = digests(x, None)
    assert first[2] == first[3]
    assert len(set(first.tolist())) == 3
    np.testing.assert_array_equal(digests(x.float(), None), first)
    np.testing.assert_array_equal(digests(x.reshape(4, 1, 2), None), first)
    np.testing.assert_array_equal(digests(x[[3, 1]], None), first[[3, 1]])
    hidden = digests(x, torch.tensor([[True, False]]))
    assert hidden[0] == hidden[1]  # the second cell is not read
    assert not set(hidden.tolist()) & set(first.tolist())
    many = torch.arange(9000.0).reshape(-1, 1)
    assert len(set(digests(many, None).tolist())) == 9000


@pytest.mark.parametrize("make", [
    lambda x, y: par.DiscriminantAnalysis().fit(x, y),
    lambda x, y: par.MixtureDiscriminantAnalysis(1).fit(torch.tensor(x.reshape(-1, 8, 8)), y),
    lambda x, y: par.classify.SemiSupervised(par.DiscriminantAnalysis(), em_steps=1).fit(x, np.where(np.arange(len(y)) % 5, y, -1)).classifier_,
], ids=["Gaussian", "mixture of images", "semi-supervised"])
def test_plausibility_wants_new_rows(digits, make):
    x, y = digits
    model = make(x[:900], y[:900])
    with pytest.raises(ValueError, match=r"not fitted to: its own training rows look more plausible.*; got '300 of 300 that it was fitted to'"):
        par.classify.Plausibility(model).fit(x[200:500])
    with pytest.raises(ValueError, match="got '100 of 300"):
        par.classify.Plausibility(pickle.loads(pickle.dumps(model))).fit(torch.tensor(x[800:1100]).float())
    assert (par.classify.Plausibility(model).fit(x[900:1200]).p_value(x[1200:1400]) <= 0.05).mean() < 0.15


def test_what_training_rows_would_have_done(digits):
    """The harm that the refusal prevents: with its own training rows for reference the alarm of 5 % rings for nearly all ordinary rows."""
    x, y = digits
    model = par.DiscriminantAnalysis(shrinkage=0.001).fit(x[:900], y[:900])
    del model.training_rows_  # an older classifier
    rings = (par.classify.Plausibility(model).fit(x[:300]).p_value(x[900:1200]) <= 0.05).mean()
    assert rings > 0.5


def test_a_temperature_wants_new_rows(digits):
    x, y = digits
    for model in (par.DiscriminantAnalysis(), par.LogisticRegression()):
        model.fit(x[:900], y[:900])
        with pytest.raises(ValueError, match="surer of its own training rows"):
            par.classify.TemperatureScaled(model).fit(x[:300], y[:300])
        some = np.random.default_rng(0).random((300, 64)) < np.where(np.arange(300) % 5, 0.5, 1.1)[:, None]  # a fifth of the rows is seen whole
        with pytest.raises(ValueError, match="got '60 of 300"):
            par.classify.TemperatureScaled(model).fit(x[:300], y[:300], visible=some)
        assert par.classify.TemperatureScaled(model).fit(x[900:1200], y[900:1200]).temperature_ > 0


def test_rows_that_repeat_are_no_proof():
    """Tables of three bits have eight rows, all of them in training; iris has three pairs of equal rows. New rows of such kinds are no training rows."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, (400, 3)).astype(float), random.integers(0, 2, 400)
    model = par.GenerativeClassifier(par.FullyIndependent).fit(x[:200], y[:200])
    assert len(par.classify.Plausibility(model).fit(x[200:]).reference_) == 200
    flowers, kinds = load_iris(return_X_y=True)
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(150)
        par.classify.Plausibility(par.DiscriminantAnalysis().fit(flowers[order[:75]], kinds[order[:75]])).fit(flowers[order[75:]])


@pytest.mark.parametrize("kinds", [50, 1000, 100_000])
def test_new_rows_are_seldom_refused(kinds):
    """200 training rows and 100 new ones out of so many kinds: at an error of 1e-4, or a little more where the share of repeats is
    itself uncertain, 500 repeats refuse one or none but in 2e-3 of runs (Poisson with mean .05).
    """
    random, refused = np.random.default_rng(1), 0
    weights = random.gamma(1.0, size=kinds)

    class Known:
        training_rows_: np.ndarray

    for _ in range(500):
        rows = torch.from_numpy(random.choice(kinds, size=300, p=weights / weights.sum())).unsqueeze(1)
        Known.training_rows_ = digests(rows[:200], None)
        try:
            require_new(Known, rows[200:], None, why="")
        except ValueError:
            refused += 1
    assert refused <= 1
