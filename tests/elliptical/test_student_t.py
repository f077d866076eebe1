"""The Student-t against scipy, one pattern and one batch entry at a time; and the fast way against the plain one."""

import math

import numpy as np
import pytest
import torch

from scipy.stats import multivariate_normal, multivariate_t

from pyro_ar.elliptical import Gaussian, StudentT, dense

pytestmark = pytest.mark.usefixtures("float64")


def matrix(*batch, size=5, floor=0.5):
    root = torch.randn(*batch, size, size)
    return root @ root.mT / size + floor * torch.eye(size)


@pytest.fixture
def joint():
    return StudentT(torch.tensor([1.5, 4.0, 30.0]), torch.randn(3, 5), matrix(3))


@pytest.fixture
def rows():
    visible = torch.rand(40, 1, 5) > 0.5
    visible[0], visible[1] = False, True
    return torch.randn(40, 1, 5), visible


def by_scipy(joint, x, seen, b):
    if not seen.any():
        return 0.0
    block = joint.scale_matrix[b].numpy()[np.ix_(seen, seen)]
    return multivariate_t(joint.loc[b].numpy()[seen], block, df=float(joint.df[b])).logpdf(x[seen])


def test_log_prob_and_marginals_are_scipys(joint, rows):
    x, visible = rows
    whole, part = joint.log_prob(x), joint.marginal(visible).log_prob(x.masked_fill(~visible, math.nan))
    assert whole.shape == part.shape == (40, 3)
    for r in range(40):
        for b in range(3):
            row = x[r, 0].numpy()
            assert whole[r, b].item() == pytest.approx(by_scipy(joint, row, np.ones(5, bool), b), abs=1e-9)
            assert part[r, b].item() == pytest.approx(by_scipy(joint, row, visible[r, 0].numpy(), b), abs=1e-9)


def test_completions_have_the_conditional_mean_and_covariance(rows):
    joint = StudentT(4.0, torch.randn(5), matrix())
    x, visible = rows[0][4:7, 0], torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    given = joint.given(x, visible)
    draws = given.sample((40000,))
    for r in range(3):
        seen = visible[r].numpy()
        S, loc = joint.scale_matrix.numpy(), joint.loc.numpy()
        gain = S[np.ix_(~seen, seen)] @ np.linalg.inv(S[np.ix_(seen, seen)])
        error = x[r].numpy()[seen] - loc[seen]
        mean, m = loc[~seen] + gain @ error, seen.sum()
        q = error @ np.linalg.solve(S[np.ix_(seen, seen)], error)
        scale = (4 + q) / (4 + m) * (S[np.ix_(~seen, ~seen)] - gain @ S[np.ix_(seen, ~seen)])
        np.testing.assert_allclose(given.mode[r].numpy()[~seen], mean, rtol=1e-9)
        hidden = draws[0, r][~visible[r]]
        wanted = multivariate_t(mean, scale, df=4 + m).logpdf(hidden.numpy())
        value = torch.where(visible[r], x[r], draws[0, r])
        assert joint.given(x[r], visible[r]).log_prob(value).item() == pytest.approx(float(wanted), abs=1e-9)
        drawn = draws[:, r].numpy()[:, ~seen]
        spread = scale * (4 + m) / (2 + m)
        # 5.5 standard errors of means: false alarm 4e-8 each, seed fixed. Variances have fourth moments of a t: 12 %.
        assert (np.abs(drawn.mean(0) - mean) < 5.5 * np.sqrt(np.diag(spread) / 40000)).all()
        np.testing.assert_allclose(drawn.var(0), np.diag(spread), rtol=0.12)


def test_reparameterised_draws_carry_gradients_to_all_tensors():
    df, loc, scale = torch.tensor(5.0, requires_grad=True), torch.zeros(2, requires_grad=True), torch.eye(2, requires_grad=True)
    x = StudentT(df, loc, scale).rsample((1000,))
    x.square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in (df, loc, scale))


def test_many_degrees_of_freedom_are_a_gaussian(rows):
    x, visible = rows
    loc, S = torch.randn(5), matrix()
    t, gaussian = StudentT(1e7, loc, S), Gaussian(loc, S)
    torch.testing.assert_close(t.marginal(visible[:, 0]).log_prob(x[:, 0]), gaussian.marginal(visible[:, 0]).log_prob(x[:, 0]),
                               rtol=1e-5, atol=1e-5)


def test_from_data_matches_moments_and_em_raises_the_likelihood():
    x = StudentT(5.0, torch.randn(3), matrix(size=3)).sample((500,))
    w = (torch.arange(500) % 2 == torch.arange(2)[:, None]).double()
    joint = StudentT.from_data(x, df=5.0, weights=w)
    for c in range(2):
        np.testing.assert_allclose(joint.scale_matrix[c], np.cov(x[c::2].numpy().T, bias=True) * 3 / 5)
    scores = [StudentT.from_data(x, df=5.0, em_steps=k).log_prob(x).sum().item() for k in (0, 1, 2, 40)]
    assert scores == sorted(scores)
    both = StudentT.from_data(x, df=5.0, weights=w, em_steps=3)
    for c in range(2):
        one = StudentT.from_data(x[c::2], df=5.0, em_steps=3)
        torch.testing.assert_close(both.scale_matrix[c], one.scale_matrix)
        torch.testing.assert_close(both.loc[c], one.loc)


def test_em_reaches_a_stationary_point():
    x = StudentT(5.0, torch.randn(2), matrix(size=2)).sample((300,))
    joint = StudentT.from_data(x, df=5.0, em_steps=200)
    loc, scale = joint.loc.requires_grad_(), joint.scale_matrix.requires_grad_()
    StudentT(5.0, loc, scale).log_prob(x).sum().backward()
    assert loc.grad.abs().max() < 1e-6
    assert scale.grad.abs().max() < 1e-6


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("make", [lambda b, D: Gaussian(torch.randn(*b, D), matrix(*b, size=D)),
                                  lambda b, D: StudentT(6.0, torch.randn(*b, D), matrix(*b, size=D))])
def test_fast_way_is_scipys_at_every_number_of_visible_cells(make, batch):
    """Columns of the visible block, and of the precision where most is visible: both, against scipy."""
    joint = make(batch, 9)
    visible = torch.stack([torch.randperm(9) < m for m in range(10)] + [torch.rand(9) < 0.5 for _ in range(9)])
    x = torch.randn(len(visible), 9)
    v, xs = (t.reshape(len(visible), *[1] * len(batch), 9) for t in (visible, x))
    assert joint._part_by_columns(torch.where(v, xs, 0), v) is not None
    answer = joint.marginal(v).log_prob(xs.masked_fill(~v, math.nan)).reshape(len(visible), -1)
    flat = [t.reshape(-1, *t.shape[len(batch):]) for t in (joint.loc, joint.matrix)]
    for r in range(len(visible)):
        for b in range(answer.shape[1]):
            seen = visible[r].numpy()
            loc, block = flat[0][b].numpy()[seen], flat[1][b].numpy()[np.ix_(seen, seen)]
            wanted = 0.0
            if seen.any():
                oracle = multivariate_normal(loc, block) if isinstance(joint, Gaussian) else multivariate_t(loc, block, df=6.0)
                wanted = oracle.logpdf(x[r].numpy()[seen])
            assert answer[r, b].item() == pytest.approx(wanted, abs=1e-9)


def test_fast_way_and_plain_way_agree_where_values_differ_by_entry():
    joint = StudentT(torch.tensor([3.0, 8.0]), torch.randn(2, 6), matrix(2, size=6))
    x, visible = torch.randn(30, 2, 6), torch.rand(30, 1, 6) < 0.4
    plain = StudentT(joint.df, joint.loc.requires_grad_(), joint.scale_matrix)
    fast = joint.marginal(visible).log_prob(x)
    with torch.no_grad():
        assert joint._part_by_columns(x, visible) is not None
    slow = plain.marginal(visible).log_prob(x)
    assert slow.requires_grad
    torch.testing.assert_close(fast.detach(), slow.detach(), rtol=1e-11, atol=1e-11)


def test_nearly_dependent_cells_do_not_use_the_precision(monkeypatch):
    base = torch.randn(1, 8)
    S = base.T @ base + 1e-9 * torch.eye(8)
    monkeypatch.setattr(dense, "_by_hidden", None)  # a call would fail
    visible = torch.stack([torch.randperm(8) < m for m in (6, 7, 6, 5)])
    x = torch.randn(4, 1) * base
    assert Gaussian(torch.zeros(8), S).marginal(visible).log_prob(x).isfinite().all()


@pytest.mark.parametrize(("make", "match"), [
    (lambda: StudentT(0.0, torch.zeros(2), torch.eye(2)), "df must be positive"),
    (lambda: StudentT(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.eye(2)), "df must be positive"),
    (lambda: StudentT(3.0, torch.zeros(2), torch.zeros(2, 2)), "scale_matrix must be symmetric positive definite"),
    (lambda: StudentT(3.0, torch.zeros(3), torch.eye(2)), r"loc \(\*B, D\) and scale_matrix"),
    (lambda: StudentT(torch.ones(3), torch.zeros(2, 2), torch.eye(2)), "must broadcast"),
    (lambda: StudentT.from_data(torch.randn(9, 2), df=2.0), "more than 2"),
    (lambda: StudentT.from_data(torch.randn(9, 2), em_steps=-1), "em_steps"),
    (lambda: StudentT.from_data(torch.ones(9, 2)), "shrinkage"),
])
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_parameters():
    assert StudentT(3.0, torch.zeros(4), torch.eye(4)).num_parameters == StudentT.count_parameters(4) == 1 + 4 + 10
