"""P-values of rows: a slow count, their guarantee on real digits, and what they ring for."""

import numpy as np
import pytest
import torch

from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_digits

import pyro_ar as par


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


@pytest.fixture(scope="module")
def gaussian(digits):
    x, y = digits
    return par.DiscriminantAnalysis().fit(x[:900], y[:900])


def patterns(rows, hidden, seed):
    return np.random.default_rng(seed).random((rows, 64)).argsort(1) >= round(64 * hidden)


def test_score_samples_is_the_evidence(digits, gaussian):
    x, _ = digits
    visible = patterns(5, 0.5, 0)
    visible[0] = False
    scores = gaussian.score_samples(x[:5], visible)
    torch.testing.assert_close(scores, gaussian.log_joint(x[:5], visible).logsumexp(1))
    torch.testing.assert_close(scores, gaussian.joint_.marginal(torch.tensor(visible)).log_prob(torch.tensor(x[:5])))
    assert abs(scores[0]) < 1e-12
    tables = par.GenerativeClassifier(par.FullyIndependent, fit_options={"pseudocount": 0.0}).fit(np.array([[0, 0], [0, 1]]), [0, 1])
    assert tables.score_samples(np.array([[1, 0]]), np.array([True, True])).tolist() == [-np.inf]


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_slow_count(digits, gaussian, two_sided):
    x, _ = digits
    reference, rows, visible = x[900:960], x[1000:1006].copy(), patterns(6, 0.6, 1)
    visible[1], visible[2] = True, False
    visible[4] = visible[3]
    rows[5] = 16 - rows[5]
    seen_only = np.where(visible, rows, np.nan)
    got = par.classify.Plausibility(gaussian).fit(reference).p_value(seen_only, visible, two_sided=two_sided)
    for r in range(6):
        own = gaussian.score_samples(rows[r:r + 1], visible[r:r + 1]).item()
        others = [gaussian.score_samples(z[None], visible[r:r + 1]).item() for z in reference]
        low, high = (1 + sum(sign * o <= sign * own + 1e-9 for o in others) for sign in (1, -1))
        assert got[r] == pytest.approx(min(61, 2 * min(low, high)) / 61 if two_sided else low / 61)
    assert got[2] == 1  # nothing seen, nothing strange


def test_ties_count_as_plausible():
    X, y = np.array([[0, 0], [0, 1], [1, 1], [1, 1]]), np.array([0, 0, 1, 1])
    classifier = par.GenerativeClassifier(par.FullyIndependent).fit(X, y)
    reference = np.repeat([[0, 0], [1, 1]], [3, 6], axis=0)  # two kinds of rows alone
    p = par.classify.Plausibility(classifier).fit(reference)
    assert p.p_value(np.array([[0, 0], [1, 1]])).tolist() == [0.4, 1.0]
    assert p.p_value(np.array([[0, 0], [1, 1]]), two_sided=True).tolist() == [0.8, 1.0]


@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("two_sided", [False, True])
def test_ordinary_rows_ring_as_rarely_as_promised(digits, gaussian, hidden, two_sided):
    """300 fresh references and 300 fresh rows, each under a pattern of its own in groups of 30.

    Given p-values that are exactly uniform, one-sided binomial tests at three levels ring with probability 3 * 1e-4 per case
    (rows share their reference rows, which widens the spread a little; hence the factor of two in the variance).
    """
    x, _ = digits
    visible = np.repeat(patterns(10, hidden, 2), 30, axis=0)
    p = par.classify.Plausibility(gaussian).fit(x[900:1200]).p_value(x[1200:1500], visible, two_sided=two_sided)
    for level in (0.05, 0.1, 0.5):
        spread = np.sqrt(2 * level * (1 - level) / 300)
        assert (p <= level).mean() < level + stats.norm.isf(1e-4) * spread


def test_it_holds_whatever_the_joint(digits):
    """A classifier fitted to noise is no use, yet its alarms are as rare: the guarantee is that of exchangeable rows."""
    x, _ = digits
    random = np.random.default_rng(3)
    useless = par.DiscriminantAnalysis().fit(random.normal(size=(100, 64)), random.integers(0, 2, 100))
    p = par.classify.Plausibility(useless).fit(x[:300]).p_value(x[300:1000])
    assert (p <= 0.1).mean() < 0.1 + stats.norm.isf(1e-4) * np.sqrt(0.09 * (1 / 300 + 1 / 700))


def test_other_things_ring(digits, gaussian):
    """What the fixed digits gave, at level 0.05: noise and inverted digits always, digits on their heads in most cases."""
    x, _ = digits
    plausible, rows = par.classify.Plausibility(gaussian).fit(x[900:1200]), x[1200:1400]
    random = np.random.default_rng(4)
    strange = {"noise": random.integers(0, 17, rows.shape), "inverted": 16 - rows, "shuffled": random.permuted(rows, axis=1),
               "mirrored": rows.reshape(-1, 8, 8).swapaxes(1, 2).reshape(-1, 64)}
    for hidden, least in ((0.0, 0.97), (0.5, 0.97), (0.75, 0.7)):
        visible = patterns(1, hidden, 5)
        for name, other in strange.items():
            assert (plausible.p_value(other, visible) <= 0.05).mean() > least, (name, hidden)
    assert (plausible.p_value(rows[:, ::-1].copy()) <= 0.05).mean() > 0.5


def test_too_plausible_is_strange_too(digits):
    """A blank image is more probable than any digit to the mixture: one-sided it passes, two-sided it rings."""
    x, y = digits
    model = par.GenerativeClassifier(par.ChowLiuTree, fit_options={"num_states": 17, "pseudocount": 0.1}).fit(x[:900], y[:900])
    plausible = par.classify.Plausibility(model).fit(x[900:1200])
    assert plausible.p_value(np.zeros((1, 64)))[0] > 0.9
    assert plausible.p_value(np.zeros((1, 64)), two_sided=True)[0] < 0.05


def test_images_tensors_and_conventions(digits):
    x, y = digits
    images = torch.tensor(x.reshape(-1, 8, 8))
    classifier = par.DiscriminantAnalysis().fit(images[:500], y[:500])
    plausible = par.classify.Plausibility(classifier, max_reference=50).fit(images[500:600])
    assert plausible.reference_.shape == (50, 8, 8)
    visible = par.visible.half((8, 8), "left")
    p = plausible.p_value(images[600:605], visible)
    flat = par.classify.Plausibility(classifier, max_reference=50).fit(x[500:600])
    np.testing.assert_array_equal(p, flat.p_value(x[600:605], visible.flatten().numpy()))
    np.testing.assert_allclose(plausible.log_prob(images[:3], visible), classifier.score_samples(images[:3], visible))
    assert clone(plausible).get_params()["max_reference"] == 50


def test_bad_input(digits, gaussian):
    x, _ = digits
    with pytest.raises(ValueError, match="GenerativeClassifier"):
        par.classify.Plausibility(par.LogisticRegression()).fit(x)
    with pytest.raises(ValueError, match="max_reference"):
        par.classify.Plausibility(gaussian, max_reference=0).fit(x)
    with pytest.raises(ValueError, match="complete rows"):
        par.classify.Plausibility(gaussian).fit(x * np.nan)
    with pytest.raises(ValueError, match="not fitted"):
        par.classify.Plausibility(gaussian).p_value(x)
