"""Annealed evidence: against a Gaussian integral in closed form, and against quadrature for an FVSBN."""

import math

import pytest
import torch

from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_ar.checks import IntractableError
from pyro_ar.comparison import structure_posterior, table_models
from pyro_ar.inference.annealing import Evidence, annealed_log_evidence
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.nade import NADE


@pytest.mark.parametrize("method", ["smc", "ais"])
def test_a_conjugate_model(float64, method):
    """Linear regression with normal weights: within 5 standard errors (Student-t of 7 degrees: false alarm 2e-3; the seed is fixed)."""
    torch.manual_seed(1)
    A = torch.randn(20, 4)
    y = A @ torch.randn(4) + 0.5 * torch.randn(20)
    truth = MultivariateNormal(torch.zeros(20), 0.25 * torch.eye(20) + A @ A.T).log_prob(y).item()
    prior = Independent(Normal(torch.zeros(4), 1.0), 1)
    found = annealed_log_evidence(lambda w: Normal(w @ A.T, 0.5).log_prob(y).sum(-1), prior, method=method, num_particles=64)
    assert abs(found.value - truth) < 5 * found.error
    assert found.error < 0.5
    assert found.reliable
    assert found.method == method.upper()
    assert len(found.runs) == 8


def test_an_fvsbn_by_quadrature(float64):
    """Two variables, three weights: its evidence is a one-dimensional times a two-dimensional integral."""
    x = torch.tensor([[0.0, 0.0]] * 5 + [[1.0, 1.0]] * 8 + [[1.0, 0.0]] * 2 + [[0.0, 1.0]])
    grid = torch.linspace(-15, 15, 1501)
    step = grid[1] - grid[0]
    prior = Normal(0.0, 2.0).log_prob(grid)

    def coin(logit, ones, zeros):
        return ones * torch.nn.functional.logsigmoid(logit) + zeros * torch.nn.functional.logsigmoid(-logit)

    first = (prior + coin(grid, 10, 6)).logsumexp(0) + step.log()
    b, w = grid[:, None], grid[None, :]
    second = (prior[:, None] + prior + coin(b, 1, 5) + coin(b + w, 8, 2)).flatten().logsumexp(0) + 2 * step.log()
    model = Bayesian(FVSBN(2).double(), 2.0)
    found = model.log_evidence(x, num_particles=64)
    assert abs(found.value - (first + second).item()) < 5 * found.error
    assert found.error < 0.2


def test_the_evidence_picks_the_fvsbn_as_rows_grow(float64):
    """On rows of an FVSBN over 5 variables, against the tables' exact evidence: behind on 10 rows, ahead on 400 by more than 5 nats."""
    torch.manual_seed(7)
    model = Bayesian(FVSBN(5).double(), 2.0)
    truth = FVSBN(5).double()()
    x = truth.with_tensors({k: 2.0 * torch.randn_like(t) for k, t in truth.tensors.items()}).sample((400,))
    gaps = []
    for rows in (10, 400):
        tables = structure_posterior(x[:rows], table_models([2] * 5, (0.5, 2.0, 8.0, 32.0)))
        found = model.log_evidence(x[:rows], num_particles=64, num_runs=4)
        gaps.append(found.value - max(tables.log_evidence.values()))
    assert gaps[0] < 1
    assert gaps[1] > 5


def test_hidden_cells_enter_the_evidence(float64):
    """A column that nobody saw leaves the evidence of the others: quadrature in one dimension."""
    x = torch.tensor([[1.0, math.nan]] * 9 + [[0.0, math.nan]] * 3)
    visible = torch.tensor([True, False]).expand(12, 2)
    grid = torch.linspace(-15, 15, 3001)
    log_p = Normal(0.0, 1.5).log_prob(grid) + 9 * torch.nn.functional.logsigmoid(grid) + 3 * torch.nn.functional.logsigmoid(-grid)
    truth = (log_p.logsumexp(0) + (grid[1] - grid[0]).log()).item()
    found = Bayesian(FVSBN(2).double(), 1.5).log_evidence(x, visible, num_particles=64)
    assert abs(found.value - truth) < 5 * found.error


def test_an_evidence_that_is_not_to_be_had():
    with pytest.raises(IntractableError, match=r"not to be had.*PSIS-LOO"):
        Bayesian(NADE(20, hidden=50)).log_evidence(torch.zeros(3, 20))


def test_runs_that_disagree_are_not_reliable():
    assert not Evidence(0.0, math.inf).reliable
    assert Evidence(-3.0, 0.0).reliable


def test_bad_input_is_named():
    prior = Independent(Normal(torch.zeros(2), 1.0), 1)
    with pytest.raises(ValueError, match="method must be"):
        annealed_log_evidence(lambda w: w.sum(-1), prior, method="mcmc")
    with pytest.raises(ValueError, match="num_particles and num_runs"):
        annealed_log_evidence(lambda w: w.sum(-1), prior, num_runs=1)
    with pytest.raises(ValueError, match="finite somewhere"):
        annealed_log_evidence(lambda w: w.sum(-1) * math.nan, prior)
    with pytest.raises(ValueError, match=r"must return \(128,\)"):
        annealed_log_evidence(lambda w: w, prior)
    with pytest.raises(ValueError, match="max_temperatures=2"):
        annealed_log_evidence(lambda w: -1000 * (w - 3).square().sum(-1), prior, max_temperatures=2)
