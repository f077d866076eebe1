"""`mean`, `variance`, `entropy` and `mode` of joints, marginals and completions: as enumeration and draws have them, or refused in words."""

import math

import pytest
import scipy.stats
import torch

from torch.distributions import transforms

import pyro_ar as par

from pyro_ar.queries import Marginal

pytestmark = pytest.mark.usefixtures("float64")
randn = torch.randn
NAN = math.nan
PATTERNS = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)


def matrix(*batch):
    root = randn(*batch, 3, 3)
    return root @ root.mT / 3 + 0.3 * torch.eye(3)


def net(output):
    family = par.NADE(event_shape=3, hidden=4, output=output)
    for p in family.parameters():
        p.data = randn(p.shape)
    return family()


def forbidding(logits):
    logits[..., 0, 1] = -torch.inf
    return logits


DISCRETE = {
    "full table": lambda: par.FullTable(randn(2, 3, 2)),
    "full table, batch": lambda: par.FullTable(randn(2, 2, 3, 2), num_states=(2, 3, 2)),
    "independent": lambda: par.FullyIndependent([randn(2), randn(4), randn(3)]),
    "independent, batch": lambda: par.FullyIndependent(randn(2, 3, 2)),
    "independent, impossible state": lambda: par.FullyIndependent(forbidding(randn(3, 3))),
    "chain": lambda: par.MarkovChain(randn(2), randn(2, 2, 2)),
    "chain of order 2, batch": lambda: par.MarkovChain(randn(2, 2, 2), randn(2, 1, 2, 2, 2), order=2),
    "chain, impossible steps": lambda: par.MarkovChain(randn(2), forbidding(randn(2, 2, 2))),
    "net": lambda: par.BayesNet([(2,), (0, 2), ()], [randn(2, 3), randn(3, 2, 3), randn(2)]),
    "nade": lambda: net(par.outputs.Bernoulli()),
    "nade of states": lambda: net(par.outputs.Categorical(3)),
    "mixture": lambda: par.Mixture(randn(2), par.MarkovChain(randn(2, 2), randn(2, 2, 2, 2))),
    "mixture of a list, batch": lambda: par.Mixture(randn(2, 2), [par.FullTable(randn(2, 2, 2)), par.FullyIndependent(randn(2, 3, 2))]),
    "mixture, a component excluded": lambda: par.Mixture(randn(2), par.FullyIndependent(forbidding(randn(2, 3, 2)))),
}


def listed(joint):
    """All values `(S, 1.., 3)` and log-probabilities `(S, *batch)`."""
    sizes = joint.num_states
    values = torch.cartesian_prod(*[torch.arange(float(k)) for k in sizes]).reshape(-1, *[1] * len(joint.batch_shape), 3)
    return values, joint.log_prob(values)


def by_list(values, log_p):
    """Mean, variance, entropy and largest probability of a list with these (unnormalised) log-probabilities."""
    p = log_p.double().softmax(0)
    mean = (p.unsqueeze(-1) * values).sum(0)
    variance = (p.unsqueeze(-1) * values.square()).sum(0) - mean.square()
    entropy = -torch.where(p > 0, p * torch.where(p > 0, p, 1).log(), 0).sum(0)  # torch.special.entr has no gradient at 0
    return mean, variance, entropy, p.max(0).values


@pytest.fixture(params=DISCRETE)
def joint(request):
    return DISCRETE[request.param]()


def answers(one):
    return one.mean, one.variance, one.entropy()


def test_of_joints(joint):
    values, log_p = listed(joint)
    *expected, best = by_list(values, log_p)
    torch.testing.assert_close(answers(joint), tuple(expected))
    torch.testing.assert_close(joint.log_prob(joint.mode).exp(), best)
    torch.testing.assert_close(joint.stddev, expected[1].clamp(min=0).sqrt(), atol=1e-7, rtol=1e-6)
    wide = joint.expand((4, *joint.batch_shape))
    for a, b in zip((*answers(wide), wide.mode), (*expected, joint.mode), strict=True):
        torch.testing.assert_close(a, b.expand(4, *b.shape))


def test_of_completions(joint):
    many = joint.batch_shape
    x = joint.sample((len(PATTERNS),))
    visible = PATTERNS.reshape(-1, *[1] * len(many), 3)
    given = joint.given(torch.where(visible, x, NAN), visible)
    values, log_p = listed(joint)
    same = ((values.unsqueeze(1) == x) | visible.logical_not()).all(-1)
    mean, variance, entropy, best = by_list(values.unsqueeze(1), log_p.unsqueeze(1).masked_fill(~same, -math.inf))
    torch.testing.assert_close(answers(given), (mean, variance, entropy))
    assert torch.equal(torch.where(visible, given.mean, 0), torch.where(visible, x, 0))
    assert (given.variance[visible.expand(x.shape)] == 0).all()
    torch.testing.assert_close(given.log_prob(given.mode).exp(), best)
    for row, v in enumerate(visible):
        one = joint.given(x[row], v)
        torch.testing.assert_close(answers(one), (mean[row], variance[row], entropy[row]))


def test_of_marginals(joint):
    if isinstance(joint, par.Autoregressive):
        visible = torch.tensor([[True, False, False], [True, True, False], [True, True, True], [False] * 3])
    else:
        visible = PATTERNS
    marginal = joint.marginal(visible.reshape(-1, *[1] * len(joint.batch_shape), 3))
    for row, v in enumerate(visible):
        sizes = [k if seen else 1 for k, seen in zip(joint.num_states, v.tolist(), strict=True)]
        values = torch.cartesian_prod(*[torch.arange(float(k)) for k in sizes]).reshape(-1, *[1] * len(joint.batch_shape), 3)
        mean, variance, entropy, best = by_list(values, joint.marginal(v).log_prob(values))
        torch.testing.assert_close(marginal.mean[row], mean.masked_fill(~v, NAN), equal_nan=True)
        torch.testing.assert_close(marginal.variance[row], variance.masked_fill(~v, NAN), equal_nan=True)
        torch.testing.assert_close(marginal.entropy()[row], entropy)
        torch.testing.assert_close(joint.marginal(v).log_prob(marginal.mode[row]).exp(), best)
        assert torch.equal(marginal.mode[row].isnan(), ~v.expand(marginal.mode[row].shape))


def test_gradients_are_those_of_the_list(joint):
    joint = joint.with_tensors({k: t.detach().clone().requires_grad_() for k, t in joint.tensors.items()})
    x, v = joint.sample(), torch.tensor([True, False, False])
    values, log_p = listed(joint)
    same = ((values == x) | ~v).all(-1)
    for one, logs in ((joint, log_p), (joint.given(x, v), log_p.masked_fill(~same, -math.inf))):
        expected, tensors = by_list(values, logs), list(joint.tensors.values())
        for found, wanted in zip(answers(one), expected[:3], strict=True):
            weights = randn(wanted.shape)
            pair = [torch.autograd.grad((t * weights).sum(), tensors, retain_graph=True, allow_unused=True, materialize_grads=True) for t in (found, wanted)]
            for a, b in zip(*pair, strict=True):
                assert a.isfinite().all()
                torch.testing.assert_close(a, b.nan_to_num(0.0), atol=1e-8, rtol=1e-6)


def test_long_chains_and_impossible_products_are_answered_by_elimination():
    chain = par.MarkovChain(randn(3), randn(39, 3, 3))
    x = chain.sample((200_000,))
    # 40 means and 40 variances of 200,000 draws: 5.5 standard errors are missed with probability 3e-6.
    assert ((x.mean(0) - chain.mean).abs() < 5.5 * chain.stddev / 200_000**0.5).all()
    fourth = (x - chain.mean).pow(4).mean(0) - chain.variance.square()
    assert ((x.var(0) - chain.variance).abs() < 5.5 * (fourth / 200_000).sqrt()).all()
    log_p = chain.log_prob(x)
    assert abs(float(-log_p.mean() - chain.entropy())) < 5.5 * float(log_p.std()) / 200_000**0.5
    hard = par.FullyIndependent(torch.tensor([[0.0, -800.0]]).expand(3, 2))
    torch.testing.assert_close(hard.entropy(), torch.zeros(()))
    assert hard.mode.tolist() == [0.0, 0.0, 0.0]


def test_single_precision_stays_and_rows_may_be_none():
    for one in (par.MarkovChain(randn(2).float(), randn(3, 2, 2).float()), par.Gaussian(torch.zeros(2).float(), torch.eye(2).float())):
        assert {t.dtype for t in (*answers(one), one.mode)} == {torch.float32}
        assert one.given(one.sample(), torch.ones(one.event_shape, dtype=torch.bool)).mean.dtype == torch.float32


# Real values.

REAL = {
    "gaussian": lambda: par.Gaussian(randn(3), matrix()),
    "gaussian, batch": lambda: par.Gaussian(randn(2, 3), matrix(2)),
    "student": lambda: par.StudentT(torch.tensor([6.0, 30.0]), randn(2, 3), matrix()),
    "low rank": lambda: par.LowRankGaussian(randn(2, 3), randn(2, 3, 2), torch.rand(3) + 0.1),
    "low rank student": lambda: par.LowRankStudentT(7.0, randn(3), randn(3, 1), torch.rand(3) + 0.1),
    "affine": lambda: par.Transformed(par.StudentT(8.0, randn(3), matrix()), transforms.AffineTransform(1.0, torch.tensor([-2.0, 3.0, 0.5]))),
    "two affine": lambda: par.Transformed(par.Gaussian(randn(3), matrix()), transforms.ComposeTransform(
        [transforms.AffineTransform(1.0, 2.0), transforms.AffineTransform(0.0, 4.0).inv])),
    "mixture": lambda: par.Mixture(randn(2), par.StudentT(7.0, randn(2, 3), matrix(2))),
    "mixture of a list": lambda: par.Mixture(randn(2), [par.Gaussian(randn(3), matrix()), par.StudentT(9.0, randn(3), matrix())]),
}


@pytest.mark.parametrize("name", REAL)
def test_of_real_joints_against_draws(name):
    joint, many = REAL[name](), 100_000
    x, visible = joint.sample((4,)), torch.tensor([[True, True, False], [False, True, False], [False] * 3, [True] * 3])
    visible = visible.reshape(4, *[1] * len(joint.batch_shape), 3)
    given, marginal = joint.given(torch.where(visible, x, NAN), visible), joint.marginal(visible)
    for one in (joint, given, marginal):
        draws = one.sample((many,))
        seen = ~draws[0].isnan()
        mean, variance = one.mean, one.variance
        assert torch.equal(mean.isnan(), ~seen)
        assert torch.equal(variance.isnan(), ~seen)
        # At most 24 means, 24 variances and 8 entropies of 100,000 draws: 6 standard errors. The tails of the squares are heavy (df 6): their
        # errors are estimated from the draws themselves, and 6 of them are missed with probability below 1e-4 (seeded).
        error = (draws.var(0) / many).sqrt()
        assert ((draws.mean(0) - mean).abs() <= 6 * error + 1e-9)[seen].all()
        square = (draws - draws.mean(0)).square()
        assert ((square.mean(0) - variance).abs() <= 6 * square.std(0) / many**0.5 + 1e-9)[seen].all()
        if "mixture" in name:
            for ask in (one.entropy, lambda one=one: one.mode):
                with pytest.raises(par.IntractableError, match="draws"):
                    ask()
            continue
        log_p = one.log_prob(draws)
        assert ((log_p.mean(0) + one.entropy()).abs() <= 6 * log_p.std(0) / many**0.5 + 1e-9).all()
        assert (one.log_prob(one.mode) >= log_p.max(0).values).all()
    assert torch.equal(torch.where(visible, given.mean, 0), torch.where(visible, x, 0))
    assert (given.variance[visible.expand(x.shape)] == 0).all()
    each = [joint.given(value, v) for value, v in zip(x, visible, strict=True)]
    torch.testing.assert_close(given.mean, torch.stack([one.mean for one in each]))
    torch.testing.assert_close(given.variance, torch.stack([one.variance for one in each]))


def test_closed_forms_against_scipy():
    loc, scale = randn(3), matrix()
    normal, student = par.Gaussian(loc, scale), par.StudentT(5.0, loc, scale)
    assert float(normal.entropy()) == pytest.approx(scipy.stats.multivariate_normal(loc, scale).entropy())
    assert float(student.entropy()) == pytest.approx(scipy.stats.multivariate_t(loc, scale, 5.0).entropy())
    torch.testing.assert_close(student.variance, scale.diagonal() * 5 / 3)
    one = torch.tensor([False, True, False])
    assert float(student.marginal(one).entropy()) == pytest.approx(scipy.stats.t(5.0, scale=float(scale[1, 1].sqrt())).entropy())
    # Ding (2016): given one cell, df + 1 degrees of freedom, stretched by (df + q) / (df + 1).
    q = (1.5 - loc[1]) ** 2 / scale[1, 1]
    cut = (scale - torch.outer(scale[1], scale[1]) / scale[1, 1])[[0, 2]][:, [0, 2]] * (5 + q) / 6
    given = student.given(torch.tensor([NAN, 1.5, NAN]), one)
    torch.testing.assert_close(given.variance[[0, 2]], cut.diagonal() * 6 / 4)
    assert float(given.entropy()) == pytest.approx(scipy.stats.multivariate_t([0, 0], cut, 6.0).entropy())


@pytest.mark.parametrize("make", [lambda df: par.StudentT(df, torch.zeros(3), torch.eye(3)),
                                  lambda df: par.LowRankStudentT(df, torch.zeros(3), torch.ones(3, 1), torch.ones(3))], ids=["dense", "low rank"])
def test_moments_that_do_not_exist_are_those_of_torch(make):
    df = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])
    joint, torchs = make(df), torch.distributions.StudentT(df)
    torch.testing.assert_close(joint.mean[:, 0], torchs.mean, equal_nan=True)
    scale = joint.variance[4, 0] / torchs.variance[4]
    torch.testing.assert_close(joint.variance[:, 0], torchs.variance * scale, equal_nan=True)
    given = joint.given(torch.zeros(3), torch.tensor([True, True, False]))  # two more degrees of freedom
    assert given.variance.isfinite().all()
    assert joint.given(torch.zeros(3), torch.ones(3, dtype=torch.bool)).mean.eq(0).all()


@pytest.mark.parametrize("make", [lambda: par.Transformed(par.Gaussian(torch.zeros(3), torch.eye(3)), transforms.ExpTransform()),
                                  lambda: net(par.outputs.Normal()),
                                  lambda: par.NADE(event_shape=20, hidden=2, output=par.outputs.Bernoulli())()], ids=["exp", "normal", "long"])
def test_refused_in_words(make):
    joint = make()
    x, prefix = joint.sample(), torch.arange(joint.event_shape[0]) < 1
    for one in (joint, joint.given(x, prefix), joint.marginal(prefix)):
        for ask in (lambda one=one: one.mean, lambda one=one: one.variance, lambda one=one: one.stddev, lambda one=one: one.mode,
                    lambda one=one: one.entropy()):
            if one is not joint and isinstance(one, Marginal) and joint.num_states is not None:
                ask()  # one cell is few enough
                continue
            with pytest.raises(par.IntractableError, match="draws"):
                ask()
    latent = par.Gaussian(torch.zeros(3), torch.eye(3)).given(torch.zeros(3), torch.ones(3, dtype=torch.bool)).latent()
    with pytest.raises(par.IntractableError, match="draws"):
        latent.entropy()


def test_rows_that_hide_few_cells_each_are_enumerated_one_by_one():
    joint = par.NADE(event_shape=20, hidden=2, output=par.outputs.Bernoulli())()
    x = joint.sample((4,))
    visible = ~torch.eye(20, dtype=torch.bool).reshape(4, 5, 20).any(1)
    given = joint.given(x, visible)
    assert given.mean.shape == (4, 20)
    torch.testing.assert_close(given.mean[2], joint.given(x[2], visible[2]).mean)
    torch.testing.assert_close(given.entropy()[3], joint.given(x[3], visible[3]).entropy())
