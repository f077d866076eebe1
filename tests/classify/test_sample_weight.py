"""Integer weights are repeated rows, and weight zero is removal, in every fit in closed form: scikit-learn's words, on rows with hidden cells too."""

import numpy as np
import pytest
import torch

import pyro_ar as par

CLASSIFIERS = {
    "own": lambda: par.DiscriminantAnalysis(0.2),
    "shared": lambda: par.DiscriminantAnalysis(0.2, covariance="shared"),
    "uniform prior": lambda: par.DiscriminantAnalysis(0.2, prior="uniform"),
    "pattern": lambda: par.DiscriminantAnalysis(0.2, pattern=par.FullyIndependent),
    "student, EM": lambda: par.GenerativeClassifier(par.StudentT, fit_options={"shrinkage": 0.2, "em_steps": 3}),
    "low rank": lambda: par.GenerativeClassifier(par.LowRankGaussian, fit_options={"rank": 1, "shrinkage": 0.2}),
    "independent": lambda: par.GenerativeClassifier(par.FullyIndependent),
    "chain": lambda: par.GenerativeClassifier(par.MarkovChain),
    "trees": lambda: par.GenerativeClassifier(par.ChowLiuTree, fit_options={"num_states": 3}),
    "mixtures": lambda: par.MixtureDiscriminantAnalysis((1, 2, 3)),
    "mixtures, EM": lambda: par.MixtureDiscriminantAnalysis(2, em_steps=1, feature_transform=None),
    "mixtures, low rank": lambda: par.MixtureDiscriminantAnalysis(2, rank=1),
    "logistic": lambda: par.LogisticRegression("mean"),
    "logistic, filled": lambda: par.LogisticRegression(par.DiscriminantAnalysis(0.2)),
}


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [20, 20, 3])
    X = (random.integers(0, 2, (43, 3)) + (y == 1)[:, None]).astype(float)
    weights = random.integers(0, 4, 43)
    weights[:2], weights[40:] = 0, 0  # the third class is no class, and neither is its state
    X[40:] = 7
    return X, y, weights, random.random(X.shape) < 0.75, random.permutation(int(weights.sum()))


def test_weights_count_in_the_score(rows):
    X, y, weights, visible, _ = rows
    classifier = par.DiscriminantAnalysis(0.2).fit(X[:40], y[:40])
    for seen in (None, visible):
        right = classifier.predict(X, seen) == y
        assert 0 < right.mean() < 1
        assert classifier.score(X, y, visible=seen) == pytest.approx(right.mean())
        weighted = classifier.score(X, y, weights, seen)
        assert weighted == pytest.approx((weights * right).sum() / weights.sum())
        assert weighted != pytest.approx(right.mean())


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("hidden", [False, True], ids=["whole", "hidden"])
def test_integer_weights_are_repeated_rows_and_zero_is_removal(name, hidden, rows):
    X, y, weights, visible, order = rows
    X = np.where(visible, X, np.nan) if hidden else X
    again = np.arange(43).repeat(weights)[order]
    once = CLASSIFIERS[name]().fit(X, y, sample_weight=weights)
    twice = CLASSIFIERS[name]().fit(X[again], y[again])
    assert once.classes_.tolist() == [0, 1]
    np.testing.assert_allclose(once.predict_proba(X[:40]), twice.predict_proba(X[:40]), rtol=2e-4 if "logistic" in name else 1e-6)
    if hasattr(once, "score_samples"):
        np.testing.assert_allclose(once.score_samples(X[:40]), twice.score_samples(X[:40]), rtol=1e-6)
    plain = CLASSIFIERS[name]().fit(X[:40], y[:40])
    assert np.abs(once.predict_proba(X[:40]) - plain.predict_proba(X[:40])).max() > 1e-3  # they do something


def test_weights_are_read_in_all_forms_and_ones_change_nothing(rows):
    X, y, _, _, _ = rows
    weights = np.linspace(0.5, 2.0, 43)
    wanted = par.DiscriminantAnalysis(0.2).fit(X[:40], y[:40], sample_weight=weights[:40]).log_prior_
    share = weights[:20].sum() / weights[:40].sum()
    np.testing.assert_allclose(wanted.exp(), [share, 1 - share])
    for form in (torch.tensor(weights[:40]), weights[:40].tolist(), weights[:40].astype(object)):
        assert torch.equal(par.DiscriminantAnalysis(0.2).fit(X[:40], y[:40], sample_weight=form).log_prior_, wanted)
    for make in CLASSIFIERS.values():
        np.testing.assert_array_equal(make().fit(X[:40], y[:40], sample_weight=np.ones(40)).predict_proba(X[:40]),
                                      make().fit(X[:40], y[:40]).predict_proba(X[:40]))


def test_rank_normal_scores_of_weighted_rows_are_those_of_repeated_ones():
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(300, 2)), random.integers(0, 4, 300)
    for options in ({}, {"max_points": 8}):
        a = par.RankNormal.from_data(x, weights=weights, **options)
        b = par.RankNormal.from_data(x.repeat(weights, 0), **options)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=0)
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=0)
        c = par.RankNormal.from_data(x, weights=weights / weights.sum(), **options)  # the scale does not matter
        torch.testing.assert_close(a.scores, c.scores)


@pytest.mark.parametrize(("weights", "match"), [
    (np.ones(39), "one number for each of the 40 rows"), (np.ones((40, 1)), "one number for each"), (-np.ones(40), "0 or more"),
    (np.full(40, np.nan), "finite"), (np.zeros(40), "zero"),
])
def test_bad_weights_are_refused(weights, match, rows):
    X, y, *_ = rows
    for model in (par.DiscriminantAnalysis(0.2), par.LogisticRegression(), par.MixtureDiscriminantAnalysis(1)):
        with pytest.raises(ValueError, match=match):
            model.fit(X[:40], y[:40], sample_weight=weights)


def test_fits_by_steps_refuse_weights(rows):
    X, y, *_ = rows
    family = par.FVSBN(3, output=par.outputs.Categorical(3), context_dim=2)
    for model in (par.GenerativeClassifier(family), par.classify.MixtureChainClassifier(par.MixtureDiscriminantAnalysis(1), steps=1)):
        with pytest.raises(ValueError, match="take no sample_weight"):
            model.fit(X[:40], y[:40], sample_weight=np.ones(40))
