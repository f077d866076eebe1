"""The Gaussian against scipy, one pattern and one class at a time."""

import math

from functools import partial

import numpy as np
import pytest
import torch

from scipy.stats import multivariate_normal

from pyro_ar import Gaussian, LowRankGaussian, LowRankStudentT, StudentT


@pytest.fixture
def joint():
    root = torch.randn(3, 5, 5, dtype=torch.float64)
    return Gaussian(torch.randn(3, 5, dtype=torch.float64), root @ root.mT + 0.5 * torch.eye(5, dtype=torch.float64))


@pytest.fixture
def rows():
    visible = torch.rand(40, 1, 5) > 0.5
    visible[0], visible[1] = False, True
    return torch.randn(40, 1, 5, dtype=torch.float64), visible


def test_log_prob_is_scipys(joint, rows):
    x, _ = rows
    for b in range(3):
        wanted = multivariate_normal(joint.loc[b].numpy(), joint.covariance_matrix[b].numpy()).logpdf(x[:, 0].numpy())
        np.testing.assert_allclose(joint.log_prob(x)[:, b].numpy(), wanted, rtol=1e-10)


def test_marginals_are_scipys_with_a_pattern_per_row(joint, rows):
    x, visible = rows
    answer = joint.marginal(visible).log_prob(x.masked_fill(~visible, math.nan))
    assert answer.shape == (40, 3)
    for r in range(40):
        seen = visible[r, 0].numpy()
        for b in range(3):
            wanted = 0.0
            if seen.any():
                block = joint.covariance_matrix[b].numpy()[np.ix_(seen, seen)]
                wanted = multivariate_normal(joint.loc[b].numpy()[seen], block).logpdf(x[r, 0].numpy()[seen])
            assert answer[r, b].item() == pytest.approx(wanted, abs=1e-10)


def test_completions_have_the_conditional_mean_and_covariance(joint, rows):
    x, visible = rows
    given = joint.given(x, visible)
    draws = given.sample((20000,))
    for r in range(2, 8):
        seen = visible[r, 0].numpy()
        hidden = ~seen
        if not seen.any() or not hidden.any():
            continue
        for b in range(3):
            cov, loc = joint.covariance_matrix[b].numpy(), joint.loc[b].numpy()
            gain = cov[np.ix_(hidden, seen)] @ np.linalg.inv(cov[np.ix_(seen, seen)])
            mean = loc[hidden] + gain @ (x[r, 0].numpy()[seen] - loc[seen])
            spread = cov[np.ix_(hidden, hidden)] - gain @ cov[np.ix_(seen, hidden)]
            np.testing.assert_allclose(given.mode[r, b].numpy()[hidden], mean, rtol=1e-8, atol=1e-8)
            drawn = draws[:, r, b].numpy()
            assert (drawn[:, seen] == x[r, 0].numpy()[seen]).all()
            # 5 standard errors: about 1e-6 false alarms per number, some 100 numbers, seed fixed
            error = np.sqrt(np.diag(spread) / 20000)
            assert (np.abs(drawn[:, hidden].mean(0) - mean) < 5 * error).all()
            scale = np.sqrt(np.outer(np.diag(spread), np.diag(spread)) * 2 / 20000)
            assert (np.abs(np.cov(drawn[:, hidden].T).reshape(spread.shape) - spread) < 5.5 * scale).all()


def test_from_data_is_numpys_covariance_with_shrinkage():
    x = torch.randn(50, 4, dtype=torch.float64)
    w = (torch.arange(50) % 2 == torch.arange(2)[:, None]).double()
    joint = Gaussian.from_data(x, weights=w, shrinkage=0.2)
    for c in range(2):
        mine = x[c::2].numpy()
        cov = np.cov(mine.T, bias=True)
        np.testing.assert_allclose(joint.loc[c], mine.mean(0))
        unit = np.ptp(x.numpy(), axis=0) / 2
        np.testing.assert_allclose(joint.covariance_matrix[c], 0.8 * cov + 0.2 * np.mean(np.diag(cov) / unit**2) * np.diag(unit**2))


def test_gradients_reach_loc_and_covariance_through_every_pattern(joint, rows):
    x, visible = rows
    loc, root = joint.loc[0].clone().requires_grad_(), torch.linalg.cholesky(joint.covariance_matrix[0]).requires_grad_()
    seen = visible[:, 0]

    def score(loc, root):
        return Gaussian(loc, root @ root.mT, validate_args=False).marginal(seen).log_prob(x[:, 0]).sum()

    assert torch.autograd.gradcheck(score, (loc, root))


@pytest.mark.parametrize(("loc", "cov", "match"), [
    ((3,), torch.eye(2), r"loc \(\*B, D\) and covariance_matrix"),
    ((2,), torch.zeros(2, 2), "positive definite.*shrinkage"),
    ((2,), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric positive definite"),
    ((2,), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "symmetric positive definite"),
    ((4, 2), torch.eye(2).expand(3, 2, 2), "must broadcast"),
])
def test_bad_parameters_are_named(loc, cov, match):
    with pytest.raises(ValueError, match=match):
        Gaussian(torch.zeros(loc), cov)


@pytest.mark.parametrize(("x", "options", "match"), [
    (torch.zeros(3), {}, r"rows of shape \(N, D\)"),
    (torch.full((3, 2), math.nan), {}, "fewer different rows than features"),
    (torch.randn(9, 2), {"shrinkage": 2.0}, "between 0 and 1"),
    (torch.randn(9, 2), {"weights": torch.zeros(9)}, "positive sum"),
    (torch.randn(9, 2), {"weights": torch.ones(8)}, "must end in"),
    (torch.ones(9, 2), {"shrinkage": 0.5}, "positive definite"),
    (torch.cat([torch.randn(9, 1), torch.ones(9, 1)], 1), {}, "shrinkage"),
])
def test_bad_data_are_named(x, options, match):
    with pytest.raises(ValueError, match=match):
        Gaussian.from_data(x, **options)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 7.0, -1e9])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("make", [Gaussian.from_data, StudentT.from_data, partial(LowRankGaussian.from_data, rank=1),
                                  partial(LowRankStudentT.from_data, rank=1)],
                         ids=["gaussian", "student_t", "low_rank_gaussian", "low_rank_student_t"])
def test_a_constant_feature_is_constant_whatever_its_value(make, value, hide):
    x = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = value
    visible = torch.rand(600, 3, generator=torch.Generator().manual_seed(1)) < 0.7 if hide else None
    with pytest.raises(ValueError, match="shrinkage"):
        make(x, visible=visible)
    x[:5, 1] += 1.0  # rows that do not count
    with pytest.raises(ValueError, match="shrinkage"):
        make(x, visible=visible, weights=torch.arange(600) >= 5)
    x[:, 1] = value + 1e-3 * abs(value or 1) * x[:, 0]
    assert make(x[:, :2], visible=None, shrinkage=0.01).log_prob(x[:, :2]).isfinite().all()


def test_a_constant_feature_needs_only_shrinkage():
    x = torch.cat([torch.randn(30, 2), torch.ones(30, 1)], 1)
    assert Gaussian.from_data(x, shrinkage=0.1).log_prob(x).isfinite().all()
