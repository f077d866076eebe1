"""What is said of hidden variables: exact against enumeration, estimates against the exact answer, densities against integrals."""

import itertools
import math

import pytest
import torch

from scipy.stats import norm

from pyro_ar.checks import IntractableError
from pyro_ar.elliptical import Gaussian
from pyro_ar.enumeration import up_to
from pyro_ar.experiments.complete import answers
from pyro_ar.experiments.complete.answers import OfLevels, answer
from pyro_ar.mixture import Mixture
from pyro_ar.neural import FVSBN, OrderlessNADE
from pyro_ar.tables import ChowLiuTree

SEEN = torch.tensor([[True, False, True, False, True], [False, False, True, True, False]])


def rows(n=2, k=2, seed=0):
    return torch.randint(0, k, (n, 5), generator=torch.Generator().manual_seed(seed)).float()


def by_enumeration(joint, x, visible):
    """Log p(x) less the log of the sum over all values that agree where visible."""
    found = []
    for row, seen in zip(x, visible, strict=True):
        every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
        agree = (every == row)[:, seen].all(1)
        found.append(joint.log_prob(row) - joint.log_prob(every[agree]).logsumexp(0))
    return torch.stack(found).detach()


def test_exact_answers_are_those_of_enumeration(monkeypatch):
    monkeypatch.setattr(answers, "TOGETHER", 1)  # each row in a part of its own
    joint = ChowLiuTree.from_data(rows(40), num_states=2)
    x = rows(2, seed=1)
    found = answer(joint, x, SEEN, 7, 10)
    assert found.log_p == pytest.approx(by_enumeration(joint, x, SEEN))
    assert (found.kind, found.method) == ("exact", "elimination")
    assert found.draws.shape == (7, 2, 5)
    assert bool((found.draws == x)[:, SEEN].all())
    assert not found.error.any()
    assert found.trusted.all()


def test_a_chain_is_estimated_where_it_refuses():
    """Five standard errors: a false alarm in fewer than one of 10^6 runs."""
    torch.manual_seed(0)
    chain = FVSBN((5, 1))()
    x = rows(2, seed=1)
    exact = answer(chain, x, SEEN, 4, 10)
    assert (exact.kind, exact.method) == ("exact", "enumeration")
    assert exact.log_p == pytest.approx(by_enumeration(Flat(chain), x, SEEN), abs=1e-5)
    with up_to(1):
        found = answer(chain, x, SEEN, 4, 2000)
    assert (found.kind, found.method) == ("estimate", "sequential Monte Carlo")
    assert found.error.max() < 0.1
    assert found.error.min() > 0
    assert bool(((found.log_p - exact.log_p).abs() < 5 * found.error).all())
    assert found.trusted.all()
    assert found.draws.shape == (4, 2, 5)
    assert bool((found.draws == x)[:, SEEN].all())


class Flat:
    """A joint over images as one over rows."""

    def __init__(self, joint):
        self.joint = joint

    def log_prob(self, x):
        return self.joint.log_prob(x.reshape(*x.shape[:-1], *self.joint.event_shape))


def test_draws_follow_the_estimate():
    """Shares of the hidden variables within 0.1 of the exact conditionals: 4.4 standard errors of 500 draws and more, once in 10^5 runs."""
    torch.manual_seed(0)
    chain = FVSBN(5)()
    x = rows(2, seed=1)
    wanted = chain.given(x, SEEN).mean.detach()
    with up_to(1):
        found = answer(chain, x, SEEN, 500, 2000)
    assert found.draws.mean(0) == pytest.approx(wanted, abs=0.1)


def test_any_order_families_answer_exactly():
    torch.manual_seed(0)
    found = answer(OrderlessNADE(5, hidden=4)(), rows(2), SEEN, 3, 10)
    assert (found.kind, found.method) == ("exact", "visible-first chain")


def test_what_has_no_answer_says_so():
    torch.manual_seed(0)
    chain = FVSBN(5)()
    with up_to(1), pytest.raises(IntractableError):
        answer(Mixture(torch.zeros(2), [chain, chain]), rows(2), SEEN, 3, 10)


def test_densities_stand_for_levels(monkeypatch):
    """Independent cells: the law of the levels is a product of integrals over cells. The bound meets it where points are many."""
    loc, scale = torch.tensor([0.5, 2.0, 1.0, 3.0, 2.5]).double(), torch.tensor([1.0, 0.7, 2.0, 1.5, 0.6]).double()
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0, 2.0]]).repeat(40, 1)
    seen = SEEN[:1].expand(40, 5)
    wanted = sum(math.log(norm.cdf(x[0, i] + 1, loc[i], scale[i]) - norm.cdf(x[0, i], loc[i], scale[i])) for i in (1, 3))
    torch.manual_seed(0)
    found = answer(OfLevels(Gaussian(loc, scale.square().diag()), 4), x, seen, 2000, 10)
    assert found.kind == "at least"
    assert found.log_p.mean().item() == pytest.approx(wanted, abs=0.02)
    assert found.log_p.mean() <= wanted + 3 * found.log_p.std() / 40**0.5
    monkeypatch.setattr(answers, "SHIFTS", 1)
    assert answer(OfLevels(Gaussian(loc, scale.square().diag()), 4), x, seen, 2, 10).log_p.mean() < wanted + 0.02
    draws = found.draws[:, 0]
    assert bool((draws == x[0])[:, SEEN[0]].all())
    assert draws.unique().tolist() == [0, 1, 2, 3]
    shares = [norm.cdf(2, loc[1], scale[1]) - norm.cdf(1, loc[1], scale[1]), 1 - norm.cdf(3, loc[3], scale[3])]
    assert (draws[:, 1] == 1).double().mean().item() == pytest.approx(shares[0], abs=0.05)  # 4.4 standard errors of 2000 draws
    assert (draws[:, 3] == 3).double().mean().item() == pytest.approx(shares[1], abs=0.05)  # the last level reaches to infinity


def test_visible_levels_tell_of_hidden_ones():
    """Two cells of correlation nearly one: given the middle of a level the other lies in the same one."""
    joint = Gaussian(torch.full((2,), 2.0).double(), torch.tensor([[4.0, 3.999], [3.999, 4.0]]).double())
    found = answer(OfLevels(joint, 6), torch.tensor([[3.0, 3.0]]), torch.tensor([[True, False]]), 50, 10)
    assert (found.draws[..., 1] == 3).all()
    assert found.log_p.item() == pytest.approx(0, abs=0.3)
