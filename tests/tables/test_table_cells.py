"""Probabilities of single cells: against the marginal of every state of every cell, asked one by one."""

import pytest
import torch

from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.tables import base as base_module
from pyro_ar.tables.cells import cell_probabilities

pytestmark = pytest.mark.usefixtures("float64")

CASES = {
    "table": lambda: FullTable(torch.randn(2, 3, 2, 2), num_states=(3, 2, 2)),
    "independent": lambda: FullyIndependent([torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 4)]),
    "chain": lambda: MarkovChain(torch.randn(2, 3), torch.randn(2, 4, 3, 3)),
    "net": lambda: BayesNet([(), (0,), (0,), (1, 2)], [torch.randn(2, 2), torch.randn(2, 2, 3), torch.randn(2, 2, 2),
                                                       torch.randn(2, 3, 2, 2)]),
    "tree without batch": lambda: ChowLiuTree.from_data(torch.randint(0, 3, (50, 5))),
    "zero probabilities": lambda: MarkovChain.from_data(torch.tensor([[0, 1, 2], [0, 0, 1], [2, 1, 1]]), pseudocount=0.0),
}


def asked_one_by_one(joint, x, visible):
    sizes = joint.num_states
    answer = torch.zeros(*x.shape, max(sizes))
    before = joint.marginal(visible).log_prob(x)
    for i, states in enumerate(sizes):
        more = visible.clone()
        more[..., i] = True
        for k in range(states):
            asked = x.clone()
            asked[..., i] = k
            answer[..., i, k] = (joint.marginal(more).log_prob(asked) - before).exp()
    return torch.where(visible[..., None], 0, answer)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("small", [False, True], ids=["products", "logarithms"])
def test_every_cell_and_state(make, small, monkeypatch):
    if small:  # as where products underflow
        monkeypatch.setattr(base_module, "log_total", lambda *_: None)
    joint = make()
    x = joint.sample((6,))
    visible = torch.rand(6, *[1] * len(joint.batch_shape), len(joint.num_states)) < 0.5
    visible[0], visible[1] = False, True
    visible = visible.expand(x.shape).clone()
    torch.testing.assert_close(cell_probabilities(joint, x, visible), asked_one_by_one(joint, x, visible))


def test_products_that_underflow():
    """p(x_0 = 1) = e^-800 / (1 + e^-800), and x_1 = 1 has probability e^-900 after 0, a half after 1."""
    joint = MarkovChain(torch.tensor([0.0, -800.0]), torch.tensor([[[0.0, -900.0], [0.0, 0.0]]]))
    p = cell_probabilities(joint, torch.tensor([float("nan"), 1.0]), torch.tensor([False, True]))
    odds = torch.tensor(-900.0 + 800.0).exp() * 2  # of x_0 = 0
    torch.testing.assert_close(p[0], torch.stack([odds, torch.ones(())]))


def test_gradients_off_and_parameters_untouched():
    logits = torch.randn(3, 2, requires_grad=True)
    with torch.no_grad():
        p = cell_probabilities(FullyIndependent(logits), torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(p, logits.detach().softmax(-1))
    assert logits.grad is None
    assert not p.requires_grad
