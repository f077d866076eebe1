"""Outputs against scipy, at ordinary and at extreme raw parameters."""

import pytest
import torch

from scipy import stats
from torch.testing import assert_close

from pyro_ar import outputs

pytestmark = pytest.mark.usefixtures("float64")
DISCRETE = [outputs.Bernoulli(), outputs.Categorical(2), outputs.Categorical(5), outputs.Categorical(5, "one-hot"),
            outputs.Categorical(5, "level")]
CONTINUOUS = [outputs.Normal(), outputs.MixtureOfNormals(1), outputs.MixtureOfNormals(3)]


@pytest.mark.parametrize("output", DISCRETE + CONTINUOUS, ids=str)
def test_shapes(output) -> None:
    raw = torch.randn(3, 2, output.raw)
    d = output.distribution(raw)
    x = output.sample(raw)
    assert d.batch_shape == x.shape == output.log_prob(raw, x).shape == (3, 2)
    assert d.event_shape == ()
    assert output.encode(x).shape == (3, 2, output.inputs)
    assert bool(output.support.check(x).all())
    assert x.dtype == raw.dtype
    assert_close(output.log_prob(raw, x), d.log_prob(x))
    every = output.log_prob(raw.unsqueeze(1), x)  # raw and values broadcast
    assert every.shape == (3, 3, 2)
    assert_close(every[torch.arange(3), torch.arange(3)], d.log_prob(x))


@pytest.mark.parametrize("output", DISCRETE, ids=str)
def test_states_sum_to_one(output) -> None:
    raw = 3 * torch.randn(7, output.raw)
    states = torch.arange(float(output.num_states)).unsqueeze(-1)
    assert_close(output.log_prob(raw, states).logsumexp(0), torch.zeros(7), atol=1e-12, rtol=0)


def test_against_scipy() -> None:
    raw, x = torch.randn(6, 8), torch.randn(6)
    scale = torch.nn.functional.softplus(raw + outputs.UNIT) + 1e-3
    assert_close(outputs.Normal().log_prob(raw[:, :2], x),
                 torch.as_tensor(stats.norm.logpdf(x, raw[:, 0], scale[:, 1])))
    weights = torch.nn.functional.pad(raw[:, :2], (1, 0)).softmax(-1)
    parts = torch.as_tensor(stats.norm.pdf(x[:, None], raw[:, 2:5] + torch.tensor([-1.0, 0.0, 1.0]), scale[:, 5:]))
    assert_close(outputs.MixtureOfNormals(3).log_prob(raw, x), (weights * parts).sum(-1).log())
    states = torch.arange(6) % 3
    logits = torch.nn.functional.pad(raw[:, :2], (1, 0))
    assert_close(outputs.Categorical(3).log_prob(raw[:, :2], states), (logits.exp() / logits.exp().sum(-1, keepdim=True))[
        torch.arange(6), states].log())
    assert_close(outputs.Bernoulli().log_prob(raw[:, :1], torch.ones(6)), torch.as_tensor(stats.logistic.logcdf(raw[:, 0])))


@pytest.mark.parametrize("output", DISCRETE + CONTINUOUS, ids=str)
@pytest.mark.parametrize("size", [1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_raw_parameters_stay_finite(output, size, dtype) -> None:
    for sign in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * min(output.raw, 4)).reshape(-1, min(output.raw, 4)):
        raw = torch.cat((sign, -sign))[: output.raw].repeat(3)[: output.raw].to(dtype) * size
        raw.requires_grad_()
        for value in (0.0, 1.0):
            log_p = output.log_prob(raw, torch.tensor(value, dtype=dtype))
            (grad,) = torch.autograd.grad(log_p, raw)
            assert bool(log_p.isfinite()), (raw, value)
            assert bool(grad.isfinite().all()), (raw, value)


def test_encodings() -> None:
    x = torch.tensor([0.0, 1.0, 3.0])
    assert outputs.Categorical(4).encode(x).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert outputs.Categorical(4, "one-hot").encode(x).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert_close(outputs.Categorical(4, "level").encode(x), torch.tensor([[0], [1 / 3], [1]]))
    assert torch.equal(outputs.Bernoulli().encode(x), x.unsqueeze(-1))


@pytest.mark.parametrize("make", [
    lambda: outputs.Categorical(1), lambda: outputs.Categorical(3, "ones"), lambda: outputs.MixtureOfNormals(0),
    lambda: outputs.Normal(0.0), lambda: outputs.MixtureOfNormals(2, min_scale=-1.0), lambda: outputs.Categorical(2.5),
])
def test_bad_options_are_named(make) -> None:
    with pytest.raises(ValueError, match=r"Categorical needs|encoding must|MixtureOfNormals needs|min_scale must"):
        make()
