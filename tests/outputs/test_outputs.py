"""Outputs against scipy, value by value, and with raw numbers of any size."""

import math

import numpy as np
import pytest
import torch

from scipy import stats
from scipy.special import expit, log_softmax, softmax

import pyro_ar as par

from pyro_ar import outputs

EVERY = {
    "bernoulli": outputs.Bernoulli(), "categorical": outputs.Categorical(4), "one-hot": outputs.Categorical(4, "one-hot"),
    "level": outputs.Categorical(4, "level"), "normal": outputs.Normal(), "mixture": outputs.MixtureOfNormals(3),
    "one normal": outputs.MixtureOfNormals(1), "logistics": outputs.DiscretisedLogisticMixture(5, 3),
    "one logistic": outputs.DiscretisedLogisticMixture(2, 1), "logistic": outputs.Logistic(), "mixture of logistics": outputs.MixtureOfLogistics(3),
    "restricted": outputs.RestrictedBernoulli(0.2, 0.9), "restricted below": outputs.RestrictedBernoulli(0, 0.3),
    "restricted above": outputs.RestrictedBernoulli(0.7, 1), "die": outputs.TiedCategorical([[0, 1, 2], [3, 4, 5]]),
    "tied": outputs.TiedCategorical([[3], [0, 4], [2, 1]], "one-hot"),
}
every = pytest.mark.parametrize("output", EVERY.values(), ids=EVERY.keys())


def softplus(x):
    return np.logaddexp(0, x)


def by_scipy(output, raw, x):
    """log p(x) of one value from its raw parameters."""
    if isinstance(output, outputs.Bernoulli):
        return stats.bernoulli(expit(raw[0])).logpmf(x)
    if isinstance(output, outputs.Categorical):
        return log_softmax(np.concatenate([[0.0], raw]))[int(x)]
    if isinstance(output, outputs.RestrictedBernoulli):
        return stats.bernoulli(output.low + (output.high - output.low) * expit(raw[0])).logpmf(x)
    if isinstance(output, outputs.TiedCategorical):
        weights = {state: math.exp(r) for group, r in zip(output.groups, [0.0, *raw], strict=True) for state in group}
        return math.log(weights[int(x)] / sum(weights.values()))
    if isinstance(output, outputs.Normal | outputs.Logistic):
        kind = stats.norm if isinstance(output, outputs.Normal) else stats.logistic
        return kind(raw[0], softplus(raw[1] + math.log(math.e - 1)) + output.min_scale).logpdf(x)
    m = output.components
    weights = softmax(np.concatenate([[0.0], raw[: m - 1]]))
    loc = raw[m - 1: 2 * m - 1] + (np.linspace(-1, 1, m) if m > 1 else 0)
    if isinstance(output, outputs.MixtureOfNormals | outputs.MixtureOfLogistics):
        kind = stats.norm if isinstance(output, outputs.MixtureOfNormals) else stats.logistic
        scale = softplus(raw[2 * m - 1:] + math.log(math.e - 1)) + output.min_scale
        return math.log(sum(w * kind(a, s).pdf(x) for w, a, s in zip(weights, loc, scale, strict=True)))
    scale = softplus(raw[2 * m - 1:] - 1) + output.min_scale
    place, half = 2 * x / (output.states - 1) - 1, 1 / (output.states - 1)
    total = 0.0
    for w, a, s in zip(weights, loc, scale, strict=True):
        upper = 1.0 if x == output.states - 1 else stats.logistic(a, s).cdf(place + half)
        lower = 0.0 if x == 0 else stats.logistic(a, s).cdf(place - half)
        total += w * (upper - lower)
    return math.log(total)


def values(output):
    if output.num_states is None:
        return torch.tensor([-2.5, 0.0, 0.3, 4.0], dtype=torch.float64)
    return torch.arange(output.num_states, dtype=torch.float64)


@every
def test_log_prob_is_scipys(output):
    for _ in range(5):
        raw = torch.randn(output.raw, dtype=torch.float64)
        for x in values(output):
            wanted = by_scipy(output, raw.numpy(), x.item())
            assert output.log_prob(raw, x).item() == pytest.approx(wanted, abs=1e-9)
            assert output.distribution(raw).log_prob(x).item() == pytest.approx(wanted, abs=1e-9)


@every
@pytest.mark.parametrize("size", [0.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_raw_number_is_legal(output, size, dtype):
    raw = (size * torch.randn(50, 1, output.raw, dtype=dtype)).requires_grad_()
    log_p = output.log_prob(raw, values(output).to(dtype))
    assert log_p.isfinite().all()
    if output.num_states:
        torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros(50, dtype=dtype), atol=2e-4 if dtype == torch.float32 else 1e-9, rtol=0)
    log_p.sum().backward()
    assert raw.grad.isfinite().all()


@every
def test_samples_and_features_have_the_promised_shape(output):
    raw = torch.randn(6, 7, output.raw)
    x = output.sample(raw)
    assert x.shape == (6, 7)
    assert x.is_floating_point()
    assert output.support.check(x).all()
    assert output.encode(x).shape == (6, 7, output.inputs)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: outputs.Categorical(1), "2 states"), (lambda: outputs.Categorical(3, "hot"), "encoding must be"),
    (lambda: outputs.Normal(0.0), "above 0"), (lambda: outputs.Logistic(-1.0), "above 0"),
    (lambda: outputs.Normal(1e-9), "1e-08 or more: a scale that collapses"),
    (lambda: outputs.Logistic(1e-30), "collapses"), (lambda: outputs.MixtureOfLogistics(2, 1e-9), "collapses"),
    (lambda: outputs.DiscretisedLogisticMixture(4, 2, 1e-9), "collapses"), (lambda: outputs.MixtureOfLogistics(0), "MixtureOfLogistics needs 1 component"),
    (lambda: outputs.RestrictedBernoulli(0.5, 0.5), "bounds 0 <= low < high <= 1; got 0.5, 0.5"), (lambda: outputs.RestrictedBernoulli(-0.1, 0.5), "bounds"),
    (lambda: outputs.RestrictedBernoulli(0.1, 1.1), "bounds"), (lambda: outputs.RestrictedBernoulli(math.nan, 1.0), "bounds"),
    (lambda: outputs.RestrictedBernoulli("a", 1.0), "bounds"), (lambda: outputs.TiedCategorical([[0, 1, 2]]), "two groups or more"),
    (lambda: outputs.TiedCategorical([[0, 1], [1, 2]]), "each state from 0 on once"), (lambda: outputs.TiedCategorical([[0, 1], [3]]), "once"),
    (lambda: outputs.TiedCategorical([[0, 1], []]), "once"), (lambda: outputs.TiedCategorical(6), "once"),
    (lambda: outputs.TiedCategorical([[0], [1]], "hot"), "encoding must be"), (lambda: outputs.MixtureOfNormals(0), "1 component"),
    (lambda: outputs.DiscretisedLogisticMixture(1), "2 states"), (lambda: outputs.DiscretisedLogisticMixture(4, 0), "1 component"),
])
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [outputs.Normal, outputs.Logistic, lambda s: outputs.MixtureOfNormals(2, s), lambda s: outputs.MixtureOfLogistics(2, s)])
def test_the_smallest_scale_is_still_finite(make, dtype):
    """Scales driven to nothing, at the mean and a thousand units from it: value and gradient."""
    output = make(1e-8)
    raw = torch.zeros(3, output.raw, dtype=dtype)
    raw[:, 1 if output.raw == 2 else 3:] = torch.tensor([-50.0, -1e4, -1e30]).unsqueeze(-1)
    raw.requires_grad_()
    log_p = output.log_prob(raw.unsqueeze(1), torch.tensor([0.0, -1.0, 1e3], dtype=dtype))
    assert log_p.isfinite().all()
    assert torch.autograd.grad(log_p.sum(), raw)[0].isfinite().all()
    assert output.sample(raw).isfinite().all()


@every
def test_samples_follow_the_density(output):
    """Of 4000 draws from one distribution: chi-square over states or ten equally likely cells by quadrature; false alarm 1e-5 each."""
    torch.manual_seed(0)
    raw = torch.randn(output.raw, dtype=torch.float64)
    drawn = output.sample(raw.expand(4000, -1)).numpy()
    if output.num_states is not None:
        p = output.log_prob(raw, values(output)).exp().numpy()
        counts = np.bincount(drawn.astype(int), minlength=len(p))
    else:
        grid = np.linspace(-60, 60, 600_001)
        cdf = np.cumsum(output.log_prob(raw, torch.from_numpy(grid)).exp().numpy()) * (grid[1] - grid[0])
        edges = grid[np.searchsorted(cdf, np.arange(1, 10) / 10)]
        p, counts = np.full(10, 0.1), np.bincount(np.searchsorted(edges, drawn), minlength=10)
    statistic = ((counts - 4000 * p) ** 2 / (4000 * p)).sum()
    assert statistic < stats.chi2(len(p) - 1).isf(1e-5)


def test_ties_count_as_one_parameter():
    """A fair die of tied faces in a table of one variable is one number, and states of a group keep one probability whatever was learnt."""
    die = outputs.TiedCategorical([[0, 1, 2], [3, 4, 5]])
    assert die.num_states == 6
    family = par.FVSBN(1, die)
    assert family.num_parameters == 1
    p = family().log_prob(torch.arange(6.0).unsqueeze(-1)).exp()
    torch.testing.assert_close(p, torch.full((6,), 1 / 6))
    with torch.no_grad():
        family.net.bias.fill_(math.log(3))
    torch.testing.assert_close(family().log_prob(torch.arange(6.0).unsqueeze(-1)).exp(), torch.tensor([1.0, 1, 1, 3, 3, 3]) / 12)
    assert par.FVSBN(3, outputs.RestrictedBernoulli(0.1, 0.2)).num_parameters == 6


@pytest.mark.parametrize("size", [0.5, 4.0])
def test_many_levels_are_drawn_without_a_table_of_them(size, monkeypatch, float64):
    """Of 20,000 draws over 257 levels the distribution function, by Kolmogorov's bound with a false alarm of 1e-5 each."""
    torch.manual_seed(1)
    output = outputs.DiscretisedLogisticMixture(257, 3)
    raw = size * torch.randn(output.raw)
    p = output.distribution(raw).probs
    monkeypatch.setattr(outputs.DiscretisedLogisticMixture, "distribution", None)
    drawn = output.sample(raw.expand(20_000, -1))
    counts = torch.bincount(drawn.long(), minlength=257) / 20_000
    assert float((counts.cumsum(0) - p.cumsum(0)).abs().max()) < math.sqrt(math.log(2e5) / 40_000)


def test_levels_beyond_the_ends_are_the_ends():
    output = outputs.DiscretisedLogisticMixture(9, 1)
    assert set(output.sample(torch.tensor([1e6, 0.0]).expand(50, 2)).tolist()) == {8.0}
    assert set(output.sample(torch.tensor([-1e6, 0.0]).expand(50, 2)).tolist()) == {0.0}
    assert set(output.sample(torch.tensor([0.0, 1e9]).expand(50, 2)).tolist()) == {0.0, 8.0}
