"""Low rank plus diagonal against the dense joints of the same matrix, and against scipy."""

import math

import numpy as np
import pytest
import torch

from scipy.stats import multivariate_normal, multivariate_t
from sklearn.decomposition import FactorAnalysis

from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.elliptical.factor_analysis import low_rank_of

pytestmark = pytest.mark.usefixtures("float64")


def parts(*batch, size=7, rank=3):
    return torch.randn(*batch, size), torch.randn(*batch, size, rank), torch.rand(*batch, size) + 0.2


def full(factor, diag):
    return factor @ factor.mT + torch.diag_embed(diag)


@pytest.mark.parametrize("per_entry", [False, True], ids=["rows for all entries", "rows per entry"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_answers_are_scipys(batch, per_entry):
    loc, factor, diag = parts(*batch)
    normal, student = LowRankGaussian(loc, factor, diag), LowRankStudentT(4.0, loc, factor, diag)
    shape = (20, *(batch if per_entry else [1] * len(batch)), 7)
    x, visible = torch.randn(shape), torch.rand(shape) < 0.5
    visible[0], visible[1] = False, True
    seen_x = x.masked_fill(~visible, math.nan)
    answers = [j.marginal(visible).log_prob(seen_x).reshape(20, -1) for j in (normal, student)]
    whole = [j.log_prob(x).reshape(20, -1) for j in (normal, student)]
    locs, matrices = loc.reshape(-1, 7).numpy(), full(factor, diag).reshape(-1, 7, 7).numpy()
    xs, vs = (t.expand(20, *batch, 7).reshape(20, -1, 7).numpy() for t in (x, visible))
    for r in range(20):
        for b in range(len(locs)):
            for scores, v in ((answers, vs[r, b]), (whole, np.ones(7, bool))):
                wanted = [0.0, 0.0]
                if v.any():
                    block, e = matrices[b][np.ix_(v, v)], xs[r, b][v]
                    wanted = [multivariate_normal(locs[b][v], block).logpdf(e), multivariate_t(locs[b][v], block, df=4.0).logpdf(e)]
                assert [s[r, b].item() for s in scores] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("patterns", ["one per row", "two for all", "one"])
def test_ways_agree_with_the_dense_joint_and_carry_its_gradients(patterns):
    loc, factor, diag = parts(2, 2, size=9)
    x = torch.randn(12, 1, 1, 9)
    visible = torch.rand({"one per row": 12, "two for all": 2, "one": 1}[patterns], 1, 1, 9) < 0.5
    visible = visible.repeat(12 // len(visible), 1, 1, 1)
    tensors = [t.clone().requires_grad_() for t in (loc, factor, diag)]
    plain = LowRankStudentT(5.0, *tensors).marginal(visible).log_prob(x)
    fast = LowRankStudentT(5.0, loc, factor, diag).marginal(visible).log_prob(x)
    again = [t.clone().requires_grad_() for t in (loc, factor, diag)]
    dense = StudentT(5.0, again[0], full(*again[1:])).marginal(visible).log_prob(x)
    torch.testing.assert_close(fast, dense.detach())
    torch.testing.assert_close(plain, dense)
    (plain.sin().sum()).backward()
    (dense.sin().sum()).backward()
    for a, b in zip(tensors, again, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_chain_and_completions_are_the_dense_joints():
    loc, factor, diag = parts(2)
    low, dense = LowRankStudentT(5.0, loc, factor, diag), StudentT(5.0, loc, full(factor, diag))
    x, visible = torch.randn(5, 2, 7), torch.rand(5, 2, 7) < 0.5
    torch.testing.assert_close(low.conditional_log_prob(x), dense.conditional_log_prob(x))
    torch.testing.assert_close(low.given(x, visible).mode, dense.given(x, visible).mode)
    a, b = (j.given(x, visible).sample((20000,)) for j in (low, dense))
    # 6 standard errors (t with at least 5 degrees of freedom): some 140 numbers, false alarm below 1e-6, seed fixed
    error = (a.var(0) / 20000 + b.var(0) / 20000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 6 * error).all()
    assert ((a.var(0) / b.var(0))[~visible] - 1).abs().max() < 0.2


def test_from_data_keeps_variances_and_em_reaches_sklearns_likelihood():
    loc, factor, diag = parts(size=8, rank=2)
    x = LowRankGaussian(loc, factor, diag).sample((400,))
    first = LowRankGaussian.from_data(x, rank=2)
    np.testing.assert_allclose(full(first.cov_factor, first.cov_diag).diagonal(), x.numpy().var(0))
    scores = [LowRankGaussian.from_data(x, rank=2, em_steps=k).log_prob(x).mean().item() for k in (0, 1, 5, 2000)]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(FactorAnalysis(2, tol=1e-12, max_iter=5000).fit(x.numpy()).score(x.numpy()), abs=1e-6)
    student = LowRankStudentT.from_data(x, rank=2, df=6.0)
    torch.testing.assert_close(full(student.cov_factor, student.cov_diag) * 1.5, full(first.cov_factor, first.cov_diag))


def test_full_rank_is_the_matrix_and_many_features_find_the_leading_space():
    root = torch.randn(6, 6)
    S = root @ root.T + torch.eye(6)
    torch.testing.assert_close(full(*low_rank_of(S, 6)), S, rtol=1e-5, atol=1e-5)
    factor, diag = torch.randn(300, 4), torch.rand(300) + 0.5
    S = full(factor, diag)
    found, rest = low_rank_of(S, 4, em_steps=30)
    torch.testing.assert_close(full(found, rest), S, rtol=1e-3, atol=5e-2)


def test_weights_give_a_batch_as_one_by_one():
    x, w = torch.randn(60, 5), (torch.arange(60) % 2 == torch.arange(2)[:, None]).double()
    x[:2], x[2:4] = -6.0, 6.0  # both entries have the ranges of all rows, which are the units
    both = LowRankGaussian.from_data(x, rank=2, weights=w, shrinkage=0.1)
    for c in range(2):
        one = LowRankGaussian.from_data(x[c::2], rank=2, shrinkage=0.1)
        torch.testing.assert_close(both.log_prob(x[:, None])[:, c], one.log_prob(x))


def test_parameters():
    assert LowRankGaussian(*parts()).num_parameters == LowRankGaussian.count_parameters(7, 3) == 7 + 7 + 21 - 3
    assert LowRankStudentT(3.0, *parts()).num_parameters == 1 + 7 + 7 + 21 - 3
    assert LowRankGaussian.count_parameters(4, 4) == Gaussian.count_parameters(4)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: LowRankGaussian(torch.zeros(3), torch.zeros(2, 1), torch.ones(3)), r"cov_factor \(\*B, D, r\)"),
    (lambda: LowRankGaussian(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3)), "cov_diag must be positive"),
    (lambda: LowRankGaussian(torch.zeros(3), torch.full((3, 1), math.nan), torch.ones(3)), "finite"),
    (lambda: LowRankStudentT(-1.0, *parts()), "df must be positive"),
    (lambda: LowRankGaussian.from_data(torch.randn(9, 2), rank=3), "rank must be from 1 to"),
    (lambda: LowRankStudentT.from_data(torch.randn(9, 2), rank=1, df=1.0), "more than 2"),
    (lambda: LowRankGaussian.from_data(torch.ones(9, 2), rank=1), "positive"),
])
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()
