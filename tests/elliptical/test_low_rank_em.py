"""Low-rank joints from rows with hidden cells: a step by a slow loop, no step down, the dense maximum, complete rows as before."""

import math

import numpy as np
import pytest
import torch

from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.elliptical import em_low_rank as module
from pyro_ar.elliptical.em_low_rank import Form, expect_complete, expect_rows, expect_scatter, maximise

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def rows():
    x = torch.randn(60, 5) @ torch.randn(5, 5) + torch.arange(5.0)
    visible = torch.rand(60, 5) > 0.4
    visible[0], visible[1], visible[2:5] = False, True, torch.tensor([True, False, True, False, True])
    return x, visible


def fit(x, df, **options):
    return LowRankGaussian.from_data(x, **options) if df is None else LowRankStudentT.from_data(x, df=df, **options)


def full(joint):
    return joint.cov_factor @ joint.cov_factor.mT + torch.diag_embed(joint.cov_diag)


def tau(x, visible, weights, df):
    seen = [(c[v], w[v]) for c, v, w in zip(x.numpy().T, visible.numpy().T, [weights] * x.shape[1], strict=True)]
    variances = np.array([np.average((c - np.average(c, weights=w))**2, weights=w) for c, w in seen])
    return variances * (1.0 if df is None else (df - 2) / df)


def units(x, visible):
    return np.array([np.ptp(c[v]) / 2 for c, v in zip(x.numpy().T, visible.numpy().T, strict=True)])


def target(x, visible, variances):
    """What all is shrunk to."""
    square = units(x, visible)**2
    return np.mean(variances / square) * np.diag(square)


def slow_step(x, visible, weights, loc, F, d, shrinkage, wanted, df):
    """One step of EM with the inverse of each row's own block, a cell and a row at a time."""
    n, r = F.shape
    sigma, gain_of_all = F @ F.T + np.diag(d), F.T @ np.linalg.inv(F @ F.T + np.diag(d))
    extra = shrinkage / (1 - shrinkage) * weights.sum()
    prior = extra * wanted
    of_prior = extra * (np.eye(r) - gain_of_all @ F) + gain_of_all @ prior @ gain_of_all.T
    means, covs, pulls = [], [], []
    for row, v, w in zip(x, visible, weights, strict=True):
        inverse = np.linalg.inv(sigma[np.ix_(v, v)])
        e = row[v] - loc[v]
        means.append(F[v].T @ inverse @ e)
        covs.append(np.eye(r) - F[v].T @ inverse @ F[v])
        pulls.append(w if df is None else w * (df + v.sum()) / (df + e @ inverse @ e))
    new_loc, new_F, new_d = np.zeros(n), np.zeros((n, r)), np.zeros(n)
    for i in range(n):
        A, b, square, count = np.zeros((r + 1, r + 1)), np.zeros(r + 1), prior[i, i], extra
        A[:r, :r] += of_prior
        b[:r] += (prior @ gain_of_all.T)[i]
        for row, v, w, u, C, p in zip(x, visible, weights, means, covs, pulls, strict=True):
            if v[i]:
                long = np.append(u, 1.0)
                A += p * np.outer(long, long)
                A[:r, :r] += w * C
                b += p * row[i] * long
                square += p * row[i]**2
                count += w
        theta = np.linalg.solve(A, b)
        new_F[i], new_loc[i] = theta[:r], theta[r]
        new_d[i] = (square - theta @ b) / count
    spread = of_prior + sum(p * np.outer(u, u) + w * C for w, u, C, p in zip(weights, means, covs, pulls, strict=True))
    return new_loc, new_F @ np.linalg.cholesky(spread / (weights.sum() + extra)), new_d


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_steps_are_those_of_a_slow_loop(df, shrinkage, rows):
    x, visible = rows
    weights = torch.rand(2, 60)
    weights[0, ::7] = 0
    torn, options = x.masked_fill(~visible, math.nan), {"visible": visible, "weights": weights, "shrinkage": shrinkage, "rank": 2}
    for b in range(2):
        w = weights[b].numpy()
        variances = tau(x, visible, w, df)
        start = fit(torn, df, em_steps=0, **options)
        wanted = target(x, visible, variances)
        np.testing.assert_allclose(full(start)[b].diagonal(), (1 - shrinkage) * variances + shrinkage * wanted.diagonal())
        loc, F, d = (t[b].numpy() for t in (start.loc, start.cov_factor, start.cov_diag))
        for steps in (1, 2, 3):
            loc, F, d = slow_step(x.numpy(), visible.numpy(), w, loc, F, d, shrinkage, wanted, df)
            fitted = fit(torn, df, em_steps=steps, **options)
            np.testing.assert_allclose(fitted.loc[b], loc, atol=1e-9)
            np.testing.assert_allclose(full(fitted)[b], F @ F.T + np.diag(d), atol=1e-9)


def objective(joint, x, visible, shrinkage, wanted):
    sigma = full(joint) if hasattr(joint, "cov_diag") else joint.matrix
    penalty = len(x) * shrinkage / (1 - shrinkage) / 2 * (sigma.logdet() + (torch.tensor(wanted) @ sigma.inverse()).trace())
    return float(joint.marginal(visible).log_prob(x).sum() - penalty)


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_no_step_lowers_the_penalised_log_likelihood(df, shrinkage, rows):
    x, visible = rows
    wanted = target(x, visible, tau(x, visible, np.ones(60), df))
    scores = [objective(fit(x, df, rank=2, visible=visible, shrinkage=shrinkage, em_steps=k), x, visible, shrinkage, wanted)
              for k in (0, 1, 2, 3, 5, 9, 17, 33)]
    assert (np.diff(scores) > 0).all(), scores


@pytest.mark.parametrize("shrinkage", [0.3, 0.6])
def test_it_stops_where_the_penalised_rows_gain_nothing(shrinkage, rows, monkeypatch):
    x, visible = rows
    options = {"rank": 1, "visible": visible, "shrinkage": shrinkage, "em_steps": 1000}
    wanted = target(x, visible, tau(x, visible, np.ones(60), None))
    stopped = objective(fit(x, None, **options), x, visible, shrinkage, wanted)
    monkeypatch.setattr(module, "TOLERANCE", -math.inf)
    assert stopped == pytest.approx(objective(fit(x, None, **options), x, visible, shrinkage, wanted), abs=0.05)


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize(("rank", "shrinkage"), [(5, 0.0), (4, 0.0), (5, 0.2)])
def test_at_full_rank_the_maximum_is_the_dense_one(df, rank, shrinkage, monkeypatch):
    from pyro_ar.elliptical import em as incomplete
    for place in (module, incomplete):
        monkeypatch.setattr(place, "TOLERANCE", 1e-10)
    x = torch.randn(200, 5) @ torch.randn(5, 5)
    visible = torch.rand(200, 5) > 0.4
    dense = Gaussian.from_data if df is None else lambda *a, **k: StudentT.from_data(*a, df=df, **k)
    options, to = {"visible": visible, "shrinkage": shrinkage, "em_steps": 4000}, target(x, visible, tau(x, visible, np.ones(200), df))
    wanted = objective(dense(x, **options), x, visible, shrinkage, to)
    assert objective(fit(x, df, rank=rank, **options), x, visible, shrinkage, to) == pytest.approx(wanted, abs=0.02)


def test_where_em_of_complete_rows_stops_no_step_goes_on(rows):
    x, _ = rows
    done = LowRankGaussian.from_data(x, rank=2, em_steps=20000)
    form, every = Form(done.loc, done.cov_factor, done.cov_diag), torch.ones(60, 5, dtype=torch.bool)
    again = maximise(form, expect_rows(form, x, every, torch.ones(60))[0], torch.zeros(5))
    for a, b in zip(again, form, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    first = LowRankGaussian.from_data(x, rank=2)
    torch.testing.assert_close(full(LowRankGaussian.from_data(x, rank=2, visible=every)), full(first), rtol=0, atol=0)


@pytest.mark.parametrize("df", [None, 4.0])
def test_rows_in_turns_complete_rows_and_scatters_sum_to_the_same(df, rows, monkeypatch):
    x, visible = rows
    form, share = Form(torch.randn(5), torch.randn(5, 2), torch.rand(5) + 0.1), torch.rand(60)
    at_once, q, half = expect_rows(form, x, visible, share, df)
    complete = expect_complete(form, x, share, df)
    everything = expect_rows(form, x, torch.ones_like(visible), share, df)
    monkeypatch.setattr("pyro_ar.budget.TURN", 200)
    in_turns = expect_rows(form, x, visible, share, df)
    for a, b in [(q, in_turns[1]), (half, in_turns[2]), (complete[1], everything[1]), *zip(at_once, in_turns[0], strict=True),
                 *zip(complete[0], everything[0], strict=True)]:
        torch.testing.assert_close(a.expand(b.shape), b)
    if df is None:
        around = x - share @ x / share.sum() + form.loc
        scatter = expect_scatter(form, ((around - form.loc) * share[:, None]).mT @ (around - form.loc), share.sum())
        alone = expect_complete(form, around, share)[0]
        torch.testing.assert_close(scatter.second[:, :2, :2], alone.second[:, :2, :2])
        for a, b in zip(scatter[1:], alone[1:], strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_a_batch_is_fitted_as_one_by_one_and_what_is_hidden_is_not_read(rows):
    x, visible = rows
    x, visible = x.clone(), visible.clone()
    x[:2], x[2:4], visible[:4] = x.amin(0), x.amax(0), True  # both entries have the ranges of all rows, which are the units
    weights = (torch.arange(60) % 2 == torch.arange(2)[:, None]).double()
    torn = x.masked_fill(~visible, math.nan)
    both = LowRankGaussian.from_data(torn, rank=2, weights=weights[:, None], shrinkage=0.1, visible=visible)
    assert both.batch_shape == (2, 1)
    for b in range(2):
        alone = LowRankGaussian.from_data(x[b::2], rank=2, shrinkage=0.1, visible=visible[b::2])
        torch.testing.assert_close(full(both)[b, 0], full(alone))
        torch.testing.assert_close(both.loc[b, 0], alone.loc)
    single = LowRankStudentT.from_data(x.float(), rank=2, shrinkage=0.1, visible=visible)
    assert single.dtype == torch.float32
    torch.testing.assert_close(full(single).double(), full(LowRankStudentT.from_data(x, rank=2, shrinkage=0.1, visible=visible)),
                               atol=1e-2, rtol=1e-2)


def test_all_shrunk_is_the_squared_ranges(rows):
    x, visible = rows
    joint = LowRankGaussian.from_data(x, rank=2, shrinkage=1.0, visible=visible, em_steps=20)
    torch.testing.assert_close(full(joint), torch.tensor(target(x, visible, tau(x, visible, np.ones(60), None))), atol=1e-5, rtol=1e-5)


def test_a_cell_that_follows_from_others_keeps_a_millionth_of_its_variance(rows):
    x, visible = rows
    x = torch.cat([x, 3 * x[:, :1], x[:, :1] - 1], 1)
    seen = torch.cat([visible, visible[:, :1], visible[:, :1]], 1)
    joint = LowRankGaussian.from_data(x, rank=1, visible=seen, em_steps=300)
    least = joint.cov_diag / torch.from_numpy(tau(x, seen, np.ones(60), None))
    torch.testing.assert_close(least[[0, 5, 6]], torch.full((3,), 1e-6), rtol=1e-6, atol=0)


def test_many_features_find_the_factors_behind_them():
    """Half of 300 cells hidden: the covariance of 600 rows is nearer than that of the closed form with hidden cells at the mean."""
    factor, diag = torch.randn(300, 4), torch.rand(300) + 0.5
    x, visible = LowRankGaussian(torch.zeros(300), factor, diag).sample((600,)), torch.rand(600, 300) > 0.5
    sigma = full(LowRankGaussian(torch.zeros(300), factor, diag))
    em = LowRankGaussian.from_data(x, rank=4, visible=visible)
    filled = LowRankGaussian.from_data(torch.where(visible, x, 0), rank=4)
    assert (full(em) - sigma).norm() < 0.15 * sigma.norm() < 0.5 * (full(filled) - sigma).norm()


def test_refusals(rows):
    x, visible = rows
    few, some = x[:3], torch.tensor([[True, True, False, True, True], [True, False, True, True, True], [False, True, True, True, True]])
    never = visible & torch.tensor([True, True, False, True, True])
    cases = [((x, {"visible": never, "rank": 2}), "cell 2 hidden in all rows of entry 0"), ((few, {"visible": some, "rank": 2}), "got 3 rows"),
             ((torch.ones(9, 2), {"visible": torch.arange(18).reshape(9, 2) % 3 > 0, "rank": 1}), "need shrinkage"),
             ((x, {"visible": visible, "rank": 6}), "rank must be from 1"), ((x, {"visible": visible, "rank": 2, "shrinkage": 2.0}), "between 0"),
             ((x, {"visible": visible, "rank": 2, "em_steps": -1}), "em_steps"), ((x, {"rank": 2, "em_steps": -1}), "em_steps"),
             ((x * math.nan, {"visible": visible, "rank": 2}), "finite")]
    for df in (None, 5.0):
        for (data, options), match in cases:
            with pytest.raises(ValueError, match=match):
                fit(data, df, **options)
    assert fit(few, None, visible=some, rank=2, shrinkage=0.1).cov_diag.min() > 0
