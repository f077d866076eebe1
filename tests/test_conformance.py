"""Every joint of the library passes every check of the conformance kit, or says why it does not apply."""

import pytest
import torch

from pyro_ar.elliptical import Gaussian
from pyro_ar.mixture import Mixture
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.testing import CHECKS, NotApplicable

randn = torch.randn
NET = [(), (), (0, 1), (2,)]  # x3 <- x2 <- x0, x1
BACKWARDS = [(2,), (0,), ()]  # x2 -> x0 -> x1: not the order of the event


def forbidding(logits, *where):
    """Some states with probability zero."""
    logits = logits.clone()
    for index in where:
        logits[index] = -torch.inf
    return logits


def net_tables(*batch):
    return [randn(*batch, 2), randn(*batch, 3), randn(*batch, 2, 3, 2), randn(*batch, 2, 3)]


def tree(weights=None):
    x = torch.stack([torch.randint(k, (40,)) for k in (2, 3, 2, 2)], -1)
    return ChowLiuTree.from_data(x.double(), num_states=(2, 3, 2, 2), weights=weights)


TABLES = {
    "full table": lambda: FullTable(randn(2, 3, 2)),
    "full table, batch": lambda: FullTable(randn(3, 2, 2, 2), num_states=(2, 2)),
    "full table, impossible states": lambda: FullTable(forbidding(randn(2, 3, 2), (0, 1), (1, 1, 0))),
    "full table, one variable": lambda: FullTable(randn(3)),
    "independent": lambda: FullyIndependent(randn(4, 2)),
    "independent, batch": lambda: FullyIndependent(randn(2, 3, 3, 2)),
    "independent, ragged": lambda: FullyIndependent([randn(2), randn(4), randn(3)]),
    "independent, ragged, mixed batch": lambda: FullyIndependent([randn(2), randn(3, 4), randn(2, 1, 3)]),
    "independent, impossible states": lambda: FullyIndependent(forbidding(randn(3, 3), (1, 0))),
    "independent, one variable": lambda: FullyIndependent(randn(1, 2)),
    "independent, too many to enumerate": lambda: FullyIndependent(randn(14, 2)),
    "chain": lambda: MarkovChain(randn(2), randn(3, 2, 2)),
    "chain, batch": lambda: MarkovChain(randn(3, 2), randn(3, 2, 2, 2)),
    "chain, shared transitions": lambda: MarkovChain(randn(3, 2), randn(2, 2, 2)),
    "chain of order 2": lambda: MarkovChain(randn(2, 2), randn(2, 2, 2, 2), order=2),
    "chain of order 2, batch": lambda: MarkovChain(randn(2, 2, 2), randn(2, 1, 2, 2, 2), order=2),
    "chain, ragged": lambda: MarkovChain(randn(2), [randn(2, 3), randn(3, 2)]),
    "chain, impossible steps": lambda: MarkovChain(randn(2), forbidding(randn(3, 2, 2), (0, 0, 1), (2, 1, 0))),
    "chain, one variable": lambda: MarkovChain(randn(3), []),
    "chain, too long to enumerate": lambda: MarkovChain(randn(3), randn(19, 3, 3)),
    "chain, one table": lambda: MarkovChain(randn(3), randn(3, 3), num_variables=4),
    "chain, one table, batch": lambda: MarkovChain(randn(2, 1, 2), randn(3, 2, 2), num_variables=4),
    "chain of order 2, one table, impossible steps": lambda: MarkovChain(randn(2, 2), forbidding(randn(2, 2, 2), (0, 0, 1)), 2, num_variables=5),
    "stationary chain": lambda: MarkovChain(None, randn(3, 3), num_variables=4),
    "stationary chain of order 2, batch": lambda: MarkovChain(None, randn(2, 2, 2, 2), order=2, num_variables=4),
    "bayes net": lambda: BayesNet(NET, net_tables()),
    "bayes net, batch": lambda: BayesNet(NET, net_tables(2)),
    "bayes net, against the event's order": lambda: BayesNet(BACKWARDS, [randn(2, 3), randn(3, 2), randn(2)]),
    "bayes net, one variable": lambda: BayesNet([()], [randn(2)]),
    "tree": tree,
    "tree, batch": lambda: tree(torch.rand(2, 40)),
}


def gaussian(*batch, size=3):
    root = randn(*batch, size, size)
    return Gaussian(randn(*batch, size), root @ root.mT / size + 0.2 * torch.eye(size))


OTHERS = {
    "gaussian": gaussian,
    "gaussian, batch": lambda: gaussian(2),
    "gaussian, shared covariance": lambda: Gaussian(randn(2, 3), gaussian().covariance_matrix),
    "gaussian, one variable": lambda: gaussian(size=1),
    "mixture over a batch": lambda: Mixture(randn(3), FullyIndependent(randn(3, 4, 2))),
    "mixture over a batch, batch": lambda: Mixture(randn(2, 3), MarkovChain(randn(2, 3, 2), randn(2, 3, 2, 2, 2))),
    "mixture of a list": lambda: Mixture(randn(2), [FullTable(randn(2, 2, 2)), MarkovChain(randn(2), randn(2, 2, 2))]),
    "mixture of a list, batch": lambda: Mixture(randn(2), [FullyIndependent(randn(3, 3, 2)), BayesNet(BACKWARDS, [randn(2, 2), randn(2, 2), randn(2)])]),
    "mixture of gaussians": lambda: Mixture(randn(2), gaussian(2)),
}
JOINTS = TABLES | OTHERS
PLAIN = {name for name in JOINTS if f"{name}, batch" in JOINTS and name not in ("tree", "gaussian")}  # a batch of the same shows it too


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=pytest.mark.slow if name in PLAIN else ()) for name, make in JOINTS.items()])
def test_conforms(make, check) -> None:
    try:
        check(make())
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms_in_single_precision(check) -> None:
    try:
        check(MarkovChain(randn(2), randn(3, 2, 2)))
    except NotApplicable as reason:
        pytest.skip(str(reason))
