"""A net run once per draw of its weights, against a loop over the draws."""

import pytest
import torch

from torch import nn
from torch.testing import assert_close

from pyro_ar.neural.draws import over_draws, skeleton

pytestmark = pytest.mark.usefixtures("float64")


def run(net, values):
    x = values["x"]
    return net(x.flatten(0, -2)).reshape(*x.shape[:-1], -1) if x.ndim > 1 else net(x)


@pytest.mark.parametrize(("weight", "bias", "x"), [
    ((), (), ()), ((), (), (5,)), ((4,), (), ()), ((4,), (4,), (5, 4)), ((4, 1), (), (5,)), ((4, 1), (3,), (2, 1, 3)),
    ((), (4,), (4,)), ((2, 1, 3), (2, 1, 1), (5, 1)), ((1, 1), (1,), (5,)),
])
@pytest.mark.parametrize("map_all", [False, True])
def test_agrees_with_a_loop(weight, bias, x, map_all) -> None:
    net = nn.Linear(3, 2)
    weights = {"weight": torch.randn(*weight, 2, 3), "bias": torch.randn(*bias, 2)}
    value = torch.randn(*x, 3)
    got = over_draws(skeleton(net), weights, {name: p.ndim for name, p in net.named_parameters()}, {"x": value}, run, {}, map_all=map_all)
    expected = (weights["weight"] @ value.unsqueeze(-1)).squeeze(-1) + weights["bias"]
    assert_close(got, expected)


def test_a_skeleton_keeps_buffers_and_holds_no_parameters() -> None:
    net = nn.BatchNorm1d(3)
    copy = skeleton(net)
    assert all(p.is_meta for p in copy.parameters())
    assert not any(b.is_meta for b in copy.buffers())
    assert not any(p.is_meta for p in net.parameters())
