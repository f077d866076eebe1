"""Gaussian and Student-t from rows with hidden cells: a step by a slow loop, scipy's maximum, no step down, complete rows as before."""

import math

import numpy as np
import pytest
import torch

from scipy.optimize import minimize
from scipy.stats import multivariate_normal, multivariate_t

from pyro_ar.elliptical import Gaussian, StudentT
from pyro_ar.elliptical.em import fit_incomplete


@pytest.fixture
def rows():
    x = torch.randn(60, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + torch.arange(4.0)
    visible = torch.rand(60, 4) > 0.4
    visible[0], visible[1], visible[2:5] = False, True, torch.tensor([True, False, True, False])
    return x, visible


def matrix_of(joint):
    return joint.matrix


def half_ranges(x, visible):
    return np.array([np.ptp(c[v]) / 2 for c, v in zip(np.asarray(x).T, np.asarray(visible).T, strict=True)])


def slow_step(x, visible, weights, loc, matrix, shrinkage, target, df):
    """One step of EM, a row at a time."""
    filled, spread, pulls = [], np.zeros((4, 4)), []
    for row, v, w in zip(x, visible, weights, strict=True):
        h = ~v
        gain = matrix[np.ix_(h, v)] @ np.linalg.inv(matrix[np.ix_(v, v)]) if v.any() else np.zeros((h.sum(), 0))
        full = row.copy()
        full[h] = loc[h] + gain @ (row[v] - loc[v])
        rest = np.zeros((4, 4))
        rest[np.ix_(h, h)] = matrix[np.ix_(h, h)] - gain @ matrix[np.ix_(v, h)]
        q = (row[v] - loc[v]) @ np.linalg.inv(matrix[np.ix_(v, v)]) @ (row[v] - loc[v]) if v.any() else 0.0
        filled.append(full)
        pulls.append(w * (1.0 if df is None else (df + v.sum()) / (df + q)))
        spread += w * rest
    filled, pulls = np.array(filled), np.array(pulls)
    loc = pulls @ filled / pulls.sum()
    S = (sum(p * np.outer(r - loc, r - loc) for p, r in zip(pulls, filled, strict=True)) + spread) / weights.sum()
    return loc, (1 - shrinkage) * S + shrinkage * target


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_steps_are_those_of_a_slow_loop(df, shrinkage, rows):
    x, visible = rows
    make = Gaussian.from_data if df is None else lambda *a, **k: StudentT.from_data(*a, df=df, **k)
    weights = torch.rand(2, 60, dtype=torch.float64)
    weights[0, ::7] = 0
    torn = x.masked_fill(~visible, math.nan)
    for b in range(2):
        w, scale = weights[b].numpy(), 1.0 if df is None else (df - 2) / df
        variances = [np.average((c[v] - np.average(c[v], weights=w[v]))**2, weights=w[v])
                     for c, v in zip(x.numpy().T, visible.numpy().T, strict=True)]
        unit = half_ranges(x, visible)
        target = scale * np.mean(variances / unit**2) * np.diag(unit**2)
        start = make(torn, visible=visible, weights=weights, shrinkage=shrinkage, em_steps=0)
        np.testing.assert_allclose(matrix_of(start)[b], (1 - shrinkage) * scale * np.diag(variances) + shrinkage * target)
        loc, matrix = start.loc[b].numpy(), matrix_of(start)[b].numpy()
        for steps in (1, 2, 3):
            loc, matrix = slow_step(x.numpy(), visible.numpy(), w, loc, matrix, shrinkage, target, df)
            fitted = make(torn, visible=visible, weights=weights, shrinkage=shrinkage, em_steps=steps)
            np.testing.assert_allclose(fitted.loc[b], loc, atol=1e-9)
            np.testing.assert_allclose(matrix_of(fitted)[b], matrix, atol=1e-9)


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_no_step_lowers_the_penalised_log_likelihood(df, shrinkage, rows):
    x, visible = rows
    make = Gaussian.from_data if df is None else lambda *a, **k: StudentT.from_data(*a, df=df, **k)
    target = matrix_of(make(x, visible=visible, shrinkage=1.0, em_steps=0))
    scores = []
    for steps in (0, 1, 2, 4, 8, 30):
        fitted = make(x, visible=visible, shrinkage=shrinkage, em_steps=steps)
        matrix = matrix_of(fitted)
        penalty = 60 * shrinkage / (1 - shrinkage) / 2 * (matrix.logdet() + (target @ matrix.inverse()).trace())
        scores.append(float(fitted.marginal(visible).log_prob(x).sum() - penalty))
    assert (np.diff(scores) > 0).all(), scores


@pytest.mark.parametrize("df", [None, 5.0])
def test_the_maximum_is_scipys(df):
    torch.manual_seed(3)
    x = (torch.randn(40, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)).numpy()
    visible = np.random.default_rng(0).random((40, 2)) > 0.3
    visible = visible | ~visible.any(1, keepdims=True)

    def loss(free):
        root = np.array([[math.exp(free[2]), 0], [free[3], math.exp(free[4])]])
        loc, matrix, total = free[:2], root @ root.T, 0.0
        for row, v in zip(x, visible, strict=True):
            block = matrix[np.ix_(v, v)]
            total -= (multivariate_normal(loc[v], block) if df is None else multivariate_t(loc[v], block, df=df)).logpdf(row[v])
        return total

    best = minimize(loss, np.zeros(5), method="BFGS").fun
    make = Gaussian.from_data if df is None else lambda *a, **k: StudentT.from_data(*a, df=df, **k)
    fitted = make(torch.tensor(x), visible=torch.tensor(visible), em_steps=1000)
    found = -float(fitted.marginal(torch.tensor(visible)).log_prob(torch.tensor(x)).sum())
    assert found == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("joint", [Gaussian, StudentT])
def test_complete_rows_are_fitted_as_before(joint, rows):
    x, _ = rows
    plain, seen = joint.from_data(x, shrinkage=0.1), joint.from_data(x, shrinkage=0.1, visible=torch.ones(4, dtype=torch.bool))
    assert torch.equal(matrix_of(plain), matrix_of(seen))
    assert torch.equal(plain.loc, seen.loc)


def test_one_matrix_for_all_and_none_pooled(rows):
    """Pooling 0 leaves the entries apart; pooling 1 gives all one matrix, between theirs."""
    x, visible = rows
    weights = torch.nn.functional.one_hot(torch.arange(60) % 2).T.double()
    filled = torch.where(visible, x, 0)
    options = {"shrinkage": 0.0, "em_steps": 5}
    _, apart = fit_incomplete(filled, visible, weights, **options)
    _, one = fit_incomplete(filled, visible, weights, pooling=1.0, **options)
    for b in range(2):
        alone = Gaussian.from_data(x[b::2], visible=visible[b::2], em_steps=5)
        torch.testing.assert_close(apart[b], alone.covariance_matrix)
    torch.testing.assert_close(one[0], one[1])
    assert not torch.allclose(apart[0], apart[1], atol=0.1)


def test_single_precision_and_a_pattern_for_all(rows):
    x, _ = rows
    seen = torch.tensor([True, True, True, True])
    seen = seen.repeat(60, 1)
    seen[::2, 1] = False
    double = Gaussian.from_data(x, visible=seen)
    single = Gaussian.from_data(x.float(), visible=seen)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.covariance_matrix.double(), double.covariance_matrix, rtol=1e-3, atol=1e-3)


def test_refusals(rows):
    x, visible = rows
    visible[:, 2] = False
    with pytest.raises(ValueError, match="cell 2 hidden in all rows of entry 0"):
        Gaussian.from_data(x, visible=visible)
    x, visible = x[:3], torch.tensor([[True, True, False, True], [True, False, True, True], [False, True, True, True]])
    with pytest.raises(ValueError, match="3 rows of 4 features"):
        Gaussian.from_data(x, visible=visible)
    with pytest.raises(ValueError, match="need shrinkage"):
        Gaussian.from_data(torch.ones(9, 2), visible=torch.arange(18).reshape(9, 2) % 3 > 0)
    for options, match in (({"shrinkage": 2.0}, "between 0 and 1"), ({"em_steps": -1, "shrinkage": 0.5}, "em_steps")):
        with pytest.raises(ValueError, match=match):
            Gaussian.from_data(x, visible=visible, **options)
    visible[0, 0], x[0, 0] = True, math.nan
    with pytest.raises(ValueError, match="finite"):
        StudentT.from_data(x, visible=visible)
