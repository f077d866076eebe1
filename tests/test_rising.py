"""Differences of log-gamma functions against arithmetic of 60 digits, in value and derivatives, and all that rests on them."""

import math

import mpmath
import pytest
import torch

from scipy import stats

from pyro_ar.classify.looking.quadrature import _log_front
from pyro_ar.elliptical import LowRankStudentT, StudentT
from pyro_ar.elliptical.em import radial
from pyro_ar.rising import log_rising_over_power
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

SIZES = [1e-12, 1e-3, 0.5, 1.0, 9.99, 10.0, 10.01, 47.0, 1e3, 1e6, 1e8, 1e12, 1e14, 1e20, 1e100]
NUMBERS = [0.0, 0.5, 1.0, 2.0, 32.5, 1000.0, 1e6]


def exact(a, n):
    with mpmath.workdps(700):
        a, n = mpmath.mpf(a), mpmath.mpf(n)
        return mpmath.loggamma(a + n) - mpmath.loggamma(a) - n * mpmath.log(a)


def exact_slope(a, n):
    with mpmath.workdps(700):
        a, n = mpmath.mpf(a), mpmath.mpf(n)
        return mpmath.digamma(a + n) - mpmath.digamma(a) - n / a


@pytest.mark.parametrize("n", NUMBERS)
@pytest.mark.parametrize("a", SIZES)
def test_value_and_slopes_have_all_digits(a, n):
    where = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    many = torch.tensor(n, dtype=torch.float64, requires_grad=True)
    value = log_rising_over_power(where, many)
    by_a, by_n = torch.autograd.grad(value, (where, many))
    scale = abs(math.log(a)) * (n + 1) if a < 10 else n / a  # below Stirling's range the powers are taken off in the end
    assert value.item() == pytest.approx(float(exact(a, n)), rel=1e-12, abs=1e-14 * scale)
    scale = n / a + 1 / a if a < 10 else n / a**2
    assert by_a.item() == pytest.approx(float(exact_slope(a, n)), rel=1e-10, abs=1e-13 * scale)
    with mpmath.workdps(700):
        slope = mpmath.digamma(mpmath.mpf(a) + n) - mpmath.log(mpmath.mpf(a))
    assert by_n.item() == pytest.approx(float(slope), rel=1e-12, abs=1e-14 * max(abs(math.log(a)), 1))


def test_the_second_derivative_too():
    for a in (0.7, 9.0, 11.0, 300.0, 1e9):
        where = torch.tensor(a, dtype=torch.float64)
        (curve,) = torch.autograd.functional.hessian(lambda t: log_rising_over_power(t, t.new_tensor(7.5)), where).reshape(1)
        with mpmath.workdps(200):
            wanted = mpmath.psi(1, mpmath.mpf(a) + 7.5) - mpmath.psi(1, mpmath.mpf(a)) + 7.5 / mpmath.mpf(a) ** 2
        assert float(curve) == pytest.approx(float(wanted), rel=1e-9)


def exact_evidence(alpha, *tables):
    """Dirichlet-multinomial evidence of independent tables of counts, from rising factorials of 60 digits."""
    with mpmath.workdps(400):
        alpha, total = mpmath.mpf(alpha), mpmath.mpf(0)
        for counts in tables:
            A, N = alpha * len(counts), sum(counts)
            total += sum(mpmath.loggamma(alpha + c) - mpmath.loggamma(alpha) for c in counts)
            total -= mpmath.loggamma(A + N) - mpmath.loggamma(A)
        return float(total)


STRENGTHS = [1e-10, 1e-3, 1.0, 1e4, 1e8, 1e12, 1e14, 1e16, 1e20, 1e100, 1e300]


@pytest.mark.parametrize("alpha", STRENGTHS)
def test_evidence_keeps_its_digits_however_strong_the_prior(alpha):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(1000, 2, generator=generator) < torch.tensor([0.5, 0.9])).long()
    single = [torch.bincount(x[:, i], minlength=2).tolist() for i in (0, 1)]
    pair = torch.bincount(2 * x[:, 0] + x[:, 1], minlength=4).tolist()

    def near(value):
        return pytest.approx(value, abs=1e-9)

    assert FullyIndependent.log_evidence(x, concentration=alpha).item() == near(exact_evidence(alpha, *single))
    assert FullTable.log_evidence(x, concentration=alpha).item() == near(exact_evidence(alpha, pair))
    chain = exact_evidence(alpha, single[0], pair[:2], pair[2:])
    assert MarkovChain.log_evidence(x, concentration=alpha).item() == near(chain)
    assert BayesNet.log_evidence(x, concentration=alpha, parents=[(), (0,)]).item() == near(chain)
    # of two variables there is one tree, and one sample size gives it the evidence of the full table
    assert ChowLiuTree.log_evidence(x, equivalent_sample_size=4 * alpha).item() == near(exact_evidence(alpha, pair))


def test_an_infinitely_strong_prior_is_a_uniform_guess():
    x = torch.zeros(1000, 1, dtype=torch.long)
    assert FullyIndependent.log_evidence(x, concentration=1e20).item() == pytest.approx(-1000 * math.log(2), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-30, 1.0, 1e12, 1e20, 1e37])
def test_posterior_tables_of_any_prior_are_tables(alpha, dtype):
    x = torch.tensor([[0, 1], [1, 1], [1, 1]]).to(dtype)
    posterior = FullyIndependent.posterior(x, concentration=alpha)
    mean = (torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64) + alpha) / (3 + 2 * alpha)
    torch.testing.assert_close(posterior.predictive().logits.softmax(-1), mean.to(dtype), atol=1e-6, rtol=1e-5)
    drawn = posterior.sample((100,)).logits.softmax(-1)
    assert drawn.isfinite().all()
    if alpha >= 1e12:
        torch.testing.assert_close(drawn, torch.full_like(drawn, 0.5), atol=1e-5, rtol=0)


def test_priors_whose_sum_is_no_number_are_refused():
    x = torch.zeros(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="finite sum"):
        FullTable.log_evidence(x, concentration=1e308)
    with pytest.raises(ValueError, match="positive concentrations"):
        FullTable.log_evidence(x, equivalent_sample_size=5e-324)
    with pytest.raises(ValueError, match="a Gaussian"):
        StudentT(math.inf, torch.zeros(2), torch.eye(2))


def exact_student(df, q, m, q_seen=0.0, m_seen=0):
    """Log density of m whitened coordinates of squared length q, given others."""
    with mpmath.workdps(400):
        spread, df = mpmath.mpf(df) + q_seen, mpmath.mpf(df) + m_seen
        front = mpmath.loggamma((df + m) / 2) - mpmath.loggamma(df / 2) - m * mpmath.log(mpmath.pi * spread) / 2
        return float(front - (df + m) / 2 * mpmath.log1p(q / spread))


DEGREES = [0.3, 3.0, 25.0, 1e3, 1e6, 1e8, 1e12, 1e16, 1e30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", DEGREES)
def test_student_t_of_many_degrees_of_freedom_keeps_its_digits(df, dtype):
    close = 2e-6 if dtype == torch.float32 else 1e-14
    df = float(torch.tensor(df, dtype=dtype))
    x = torch.linspace(-1, 2, 64, dtype=dtype)
    q = float(x.double().square().sum())
    joints = [StudentT(df, torch.zeros(64, dtype=dtype), torch.eye(64, dtype=dtype)),
              LowRankStudentT(df, torch.zeros(64, dtype=dtype), torch.zeros(64, 1, dtype=dtype), torch.ones(64, dtype=dtype))]
    wanted = exact_student(df, q, 64)
    for joint in joints:
        assert joint.log_prob(x).item() == pytest.approx(wanted, rel=20 * close)
        terms, squares, before = joint.conditional_log_prob(x), x.double().square().tolist(), 0.0
        for i, square in enumerate(squares):
            assert terms[i].item() == pytest.approx(exact_student(df, square, 1, before, i), rel=50 * close, abs=50 * close)
            before += square
    expected = radial(torch.tensor(q, dtype=torch.float64), torch.tensor(64.0), df)
    assert expected.item() == pytest.approx(wanted, rel=1e-7)
    assert _log_front(torch.tensor(df, dtype=dtype)).item() == pytest.approx(exact_student(df, 0.0, 1), rel=20 * close)


@pytest.mark.parametrize("df", [3.0, 1e3, 1e6, 1e9])
def test_the_slope_by_the_degrees_of_freedom(df):
    leaf = torch.tensor(df, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-1, 2, 8, dtype=torch.float64)
    (slope,) = torch.autograd.grad(StudentT(leaf, torch.zeros_like(x), torch.eye(8, dtype=torch.float64)).log_prob(x), leaf)
    q, m = float(x.square().sum()), 8
    with mpmath.workdps(400):
        d = mpmath.mpf(df)
        wanted = (mpmath.digamma((d + m) / 2) - mpmath.digamma(d / 2) - m / d - mpmath.log1p(q / d) + (d + m) * q / (d * (d + q))) / 2
    assert slope.item() == pytest.approx(float(wanted), rel=1e-6, abs=1e-15 * q / df)


def test_a_student_t_is_scipys():
    x = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    for df in (0.5, 4.0, 30.0, 1e5):
        joint = StudentT(df, torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
        assert joint.log_prob(x).item() == pytest.approx(stats.multivariate_t(torch.zeros(3), torch.eye(3), df).logpdf(x), abs=1e-9)
