"""Distances: against sums over all values, torch's own closed forms, and draws."""

import math

import pytest
import torch

from pyro.distributions import Bernoulli
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_ar.checks import IntractableError
from pyro_ar.elliptical import Gaussian, LowRankGaussian
from pyro_ar.enumeration import all_states
from pyro_ar.inference.divergence import closest_table, estimate_kl
from pyro_ar.mixture import Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

SIZES = (2, 3, 2, 2)


def tables(batch=()):
    """One joint of each class over SIZES, of random logits."""
    def r(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64)

    a, b, c, d = SIZES
    return {
        "full": FullTable(r(*SIZES), num_states=SIZES),
        "independent": FullyIndependent([r(k) for k in SIZES]),
        "chain": MarkovChain(r(a), [r(a, b), r(b, c), r(c, d)]),
        "chain 2": MarkovChain(r(a, b), [r(a, b, c), r(b, c, d)], order=2),
        "net": BayesNet([(3,), (), (0, 1), ()], [r(d, a), r(b), r(a, b, c), r(d)]),
        "tree": ChowLiuTree([(), (0,), (0,), (1,)], [r(a), r(a, b), r(a, c), r(b, d)]),
    }


def by_listing(p, q):
    x = all_states(SIZES, torch.float64, torch.device("cpu"))
    x = x.reshape(len(x), *[1] * len(torch.broadcast_shapes(p.batch_shape, q.batch_shape)), len(SIZES))
    return (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum(0)


@pytest.mark.parametrize("p", tables())
@pytest.mark.parametrize("q", tables())
def test_tables_equal_the_sum_over_all_values(p, q):
    p, q = tables()[p], tables((2,))[q]
    torch.testing.assert_close(kl_divergence(p, q), by_listing(p, q))
    torch.testing.assert_close(kl_divergence(q, p), by_listing(q, p))


def test_a_joint_is_at_distance_zero_from_itself():
    for joint in tables().values():
        assert kl_divergence(joint, joint).item() == pytest.approx(0.0, abs=1e-12)
        assert kl_divergence(joint, joint) >= 0


def test_zero_probabilities():
    p = FullTable(torch.tensor([0.5, 0.5, 0.0]).log())
    q = FullTable(torch.tensor([0.5, 0.0, 0.5]).log())
    assert kl_divergence(p, q).item() == math.inf
    r = FullTable(torch.tensor([0.25, 0.75, 0.0]).log())  # 0 log 0 is 0
    assert kl_divergence(p, r).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(Mixture(torch.zeros(1), [p]), q).item() == math.inf
    assert math.isfinite(kl_divergence(Mixture(torch.zeros(1), [p]), r).item())


def test_a_long_chain_is_exact_without_enumeration():
    """Of a homogeneous chain of 300 fair steps: the sum over its steps."""
    def chain(stay):
        step = torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=torch.float64).log()
        return MarkovChain(torch.zeros(2, dtype=torch.float64), step.expand(299, 2, 2))

    each = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert kl_divergence(chain(0.9), chain(0.6)).item() == pytest.approx(299 * each)


def test_gaussians_against_torch(float64):
    factor = torch.randn(3, 4, 4)
    covariance = factor @ factor.mT + torch.eye(4)
    p, q = Gaussian(torch.randn(4), covariance), Gaussian(torch.randn(3, 4), torch.eye(4))
    expected = kl_divergence(MultivariateNormal(p.loc, covariance), MultivariateNormal(q.loc, torch.eye(4)))
    torch.testing.assert_close(kl_divergence(p, q), expected)
    assert kl_divergence(q.expand((2, 3)), p).shape == (2, 3)


def test_low_rank_gaussians_are_gaussians(float64):
    low = LowRankGaussian(torch.randn(3, 4), torch.randn(3, 4, 2), torch.rand(4) + 0.5)
    dense = Gaussian(low.loc, low.cov_factor @ low.cov_factor.mT + torch.diag_embed(low.cov_diag))
    other = LowRankGaussian(torch.zeros(4), torch.randn(4, 1), torch.ones(4))
    torch.testing.assert_close(kl_divergence(low, dense), torch.zeros(3), atol=1e-9, rtol=0)
    torch.testing.assert_close(kl_divergence(low, other), kl_divergence(dense, other))
    torch.testing.assert_close(kl_divergence(other, low), kl_divergence(other, dense))


def test_neural_joints_by_enumeration():
    p, q = FVSBN(4)(), FullTable(torch.randn(2, 2, 2, 2))
    x = all_states((2,) * 4, torch.float32, torch.device("cpu"))
    expected = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum()
    torch.testing.assert_close(kl_divergence(p, q), expected)


def test_gradients_flow():
    logits = torch.randn(5, 2, requires_grad=True)
    kl_divergence(FullyIndependent(logits), FullyIndependent(torch.zeros(5, 2))).backward()
    assert logits.grad.abs().sum() > 0


def test_refused_where_not_exact():
    with pytest.raises(IntractableError, match=r"KL\(Autoregressive.*estimate_kl") as refusal:
        kl_divergence(FVSBN(100)(), FVSBN(100)())
    assert isinstance(refusal.value, NotImplementedError)  # Pyro's TraceMeanField_ELBO then draws
    mixture = Mixture(torch.zeros(2), Gaussian(torch.zeros(2, 3), torch.eye(3)))
    with pytest.raises(IntractableError, match="real values"):
        kl_divergence(mixture, mixture)


def test_bad_pairs_are_named():
    with pytest.raises(ValueError, match="one event shape"):
        kl_divergence(FullyIndependent(torch.zeros(3, 2)), FullyIndependent(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match="the same states"):
        kl_divergence(FullyIndependent(torch.zeros(3, 2)), FullyIndependent(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="num_samples must be 2"):
        estimate_kl(FVSBN(3)(), FVSBN(3)(), 1)
    with pytest.raises(ValueError, match="one event shape"):
        estimate_kl(FVSBN(3)(), Bernoulli(torch.zeros(())))


def test_estimates_agree_with_the_exact_distance():
    """Within 4.5 standard errors: false alarm 1e-5 per pair."""
    for name, p in tables().items():
        estimate = estimate_kl(p, tables()["full"].expand(()), 4000)
        torch.manual_seed(0)
        q = tables((3,))["chain"]
        estimate = estimate_kl(p, q, 4000)
        gap = (estimate.value - kl_divergence(p, q)).abs() / estimate.error
        assert bool((gap < 4.5).all()), (name, gap)


@pytest.mark.parametrize(("table", "structure"), [(FullyIndependent, {}), (MarkovChain, {"order": 1}), (MarkovChain, {"order": 2}),
                                                   (ChowLiuTree, {}), (FullTable, {})])
def test_closest_table_is_the_closest(table, structure):
    truth = FullTable(2 * torch.randn(2, 2, 2, 2, dtype=torch.float64))
    nearest = closest_table(truth, table, **structure)
    distance = kl_divergence(truth, nearest)
    for _ in range(20):  # any other joint of the class is farther away
        other = nearest.with_tensors({k: t + 0.1 * torch.randn_like(t) for k, t in nearest.tensors.items()})
        assert kl_divergence(truth, other) >= distance - 1e-12
    if table is FullTable:
        assert distance < 1e-12
    with pytest.raises(ValueError, match="one joint, without batch"):
        closest_table(truth.expand((2,)), table, **structure)


def test_marginals_and_conditionals_are_refused():
    from pyro_ar.tables import FullyIndependent

    joint, x, seen = FullyIndependent(torch.zeros(3, 2)), torch.zeros(3), torch.tensor([True, False, True])
    for p, q in ((joint.marginal(seen), joint.marginal(seen)), (joint, joint.marginal(seen)), (joint.given(x, seen), joint)):
        with pytest.raises(IntractableError, match="What works: a Monte Carlo mean"):
            torch.distributions.kl_divergence(p, q)
