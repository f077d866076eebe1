"""Value, gradient and Hessian of single-precision tables whose probabilities go down to where the dtype ends, and beyond.

The oracle lists all values in double precision and shares nothing with elimination.
"""

import functools
import itertools

import pytest
import torch

from pyro_ar.mixture import Mixture
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

PARENTS = [(), (0,), (0,), (1, 2)]
TREE = [(), (0,), (1,), (1,)]
SCALES = [0.0, 1.0, 10.0, 20.0, 30.0, 40.0, 43.0, 45.0, 47.0, 50.0, 55.0, 58.0, 60.0, 70.0, 80.0, 87.0, 90.0, 100.0, 110.0, 120.0]


def cpts(parents):
    return [(2,) * (len(p) + 1) for p in parents]


def split(flat, shapes):
    sizes = [torch.Size(s).numel() for s in shapes]
    return [t.reshape(s) for t, s in zip(flat.split(sizes), shapes, strict=True)]


def net(kind, parents, flat):
    return kind(parents, split(flat, cpts(parents)))


MAKE = {
    "independent": (8, lambda t: FullyIndependent(t.reshape(4, 2))),
    "full table": (16, lambda t: FullTable(t.reshape(2, 2, 2, 2))),
    "chain": (14, lambda t: MarkovChain(t[:2], t[2:].reshape(3, 2, 2))),
    "second-order chain": (20, lambda t: MarkovChain(t[:4].reshape(2, 2), t[4:].reshape(2, 2, 2, 2), order=2)),
    "net with a loop": (2 + 4 + 4 + 8, functools.partial(net, BayesNet, PARENTS)),
    "tree": (14, functools.partial(net, ChowLiuTree, TREE)),
    "mixture over a batch": (18, lambda t: Mixture(t[:2], FullyIndependent(t[2:].reshape(2, 4, 2)))),
    "mixture of a list": (2 + 8 + 14, lambda t: Mixture(t[:2], [
        FullyIndependent(t[2:10].reshape(4, 2)), MarkovChain(t[10:12], t[12:].reshape(3, 2, 2))])),
}


def by_listing(make, x, visible, flat):
    """Log of the sum of the probabilities of all completions."""
    hidden = (~visible).nonzero().squeeze(-1).tolist()
    rows = []
    for states in itertools.product((0.0, 1.0), repeat=len(hidden)):
        row = x.clone()
        row[hidden] = torch.tensor(states, dtype=x.dtype)
        rows.append(row)
    return make(flat).log_prob(torch.stack(rows)).logsumexp(0)


def by_elimination(make, x, visible, flat):
    return make(flat).marginal(visible).log_prob(x)


def derivatives(function, at):
    at = at.clone().requires_grad_()
    value = function(at)
    (slope,) = torch.autograd.grad(value, at, create_graph=True)
    rows = [torch.autograd.grad(s, at, retain_graph=True)[0] for s in slope]
    return value.detach(), slope.detach(), torch.stack(rows)


@pytest.mark.parametrize("scale", [pytest.param(s, marks=pytest.mark.slow if i % 3 else ()) for i, s in enumerate(SCALES)])
@pytest.mark.parametrize("name", MAKE)
def test_single_precision_follows_double(name, scale):
    size, make = MAKE[name]
    generator = torch.Generator().manual_seed(len(name))
    for turn in range(4):
        flat = torch.rand(size, generator=generator) * scale if turn else torch.arange(size).float().remainder(2) * scale
        x = torch.zeros(4) if turn == 0 else (torch.rand(4, generator=generator) < 0.5).float()  # the improbable states first
        visible = torch.rand(4, generator=generator) < (0.2, 0.5, 0.8, 1.1)[turn]
        visible[0] |= not visible.any()
        wanted = derivatives(functools.partial(by_listing, make, x.double(), visible), flat.double())
        found = derivatives(functools.partial(by_elimination, make, x, visible), flat)
        # single precision knows logits of this size to 1e-5
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("logit", [float(k) for k in range(0, 121, 5)] + [44.4, 57.5, 87.4, 103.5])
def test_a_coin_in_closed_form(logit):
    """p = sigmoid(-logit): the second derivative of its log is -p (1 - p), to relative precision wherever float32 has p at all."""
    visible = torch.tensor([True])
    _, slope, curve = derivatives(
        lambda t: FullyIndependent(t.unsqueeze(0)).marginal(visible).log_prob(torch.zeros(1)), torch.tensor([0.0, logit]))
    p = torch.tensor(-logit, dtype=torch.float64).sigmoid()
    least = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(slope.double(), torch.stack([1 - p, p - 1]), atol=least, rtol=2e-6)
    wanted = -p * (1 - p) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert curve.isfinite().all()
    torch.testing.assert_close(curve[0].double(), wanted[0], atol=least, rtol=5e-5)
    torch.testing.assert_close(curve[1].double(), wanted[1], atol=2e-7, rtol=5e-5)  # p (1 - p) as a difference of numbers near 1


def test_the_third_derivative_too():
    visible = torch.tensor([True, False])

    def third(flat):
        flat = flat.clone().requires_grad_()
        chain = MarkovChain(flat[:2], flat[2:].reshape(1, 2, 2))
        (first,) = torch.autograd.grad(chain.marginal(visible).log_prob(torch.zeros(2)), flat, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), flat, create_graph=True)
        return torch.autograd.grad(second.square().sum(), flat)[0]

    for logit in (0.5, 5.0, 46.0, 58.0, 100.0):
        flat = torch.tensor([0.0, logit, 0.0, 1.0, 2.0, 0.0])
        torch.testing.assert_close(third(flat).double(), third(flat.double()), atol=1e-6, rtol=1e-4)
