"""Outputs against scipy, value by value, and with raw numbers of any size."""

import math

import numpy as np
import pytest
import torch

from scipy import stats
from scipy.special import expit, log_softmax, softmax

from pyro_ar import outputs

EVERY = {
    "bernoulli": outputs.Bernoulli(), "categorical": outputs.Categorical(4), "one-hot": outputs.Categorical(4, "one-hot"),
    "level": outputs.Categorical(4, "level"), "normal": outputs.Normal(), "mixture": outputs.MixtureOfNormals(3),
    "one normal": outputs.MixtureOfNormals(1), "logistics": outputs.DiscretisedLogisticMixture(5, 3),
    "one logistic": outputs.DiscretisedLogisticMixture(2, 1),
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
    if isinstance(output, outputs.Normal):
        return stats.norm(raw[0], softplus(raw[1] + math.log(math.e - 1)) + output.min_scale).logpdf(x)
    m = output.components
    weights = softmax(np.concatenate([[0.0], raw[: m - 1]]))
    loc = raw[m - 1: 2 * m - 1] + (np.linspace(-1, 1, m) if m > 1 else 0)
    if isinstance(output, outputs.MixtureOfNormals):
        scale = softplus(raw[2 * m - 1:] + math.log(math.e - 1)) + output.min_scale
        return math.log(sum(w * stats.norm(a, s).pdf(x) for w, a, s in zip(weights, loc, scale, strict=True)))
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
    (lambda: outputs.Normal(0.0), "above 0"), (lambda: outputs.MixtureOfNormals(0), "1 component"),
    (lambda: outputs.DiscretisedLogisticMixture(1), "2 states"), (lambda: outputs.DiscretisedLogisticMixture(4, 0), "1 component"),
])
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
