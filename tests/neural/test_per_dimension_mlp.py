"""A network per variable: against the same networks one by one."""

import itertools

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.neural import PerDimensionMLPNet
from pyro_ar.testing.nets import _prepared


@pytest.mark.parametrize(("hidden", "activation", "act"), [(3, "tanh", nn.Tanh), ((3, 4), "relu", nn.ReLU), ((2, 3, 2), "sigmoid", nn.Sigmoid)])
def test_each_variable_has_a_network_of_its_own(hidden, activation, act) -> None:
    n, inputs = 4, 2
    net, x, known = _prepared(PerDimensionMLPNet(n, outputs.Categorical(3), 2, hidden=hidden, activation=activation))
    sizes = (hidden,) if isinstance(hidden, int) else hidden
    features = net.output.encode(x)
    for i in range(n):
        layers = [nn.Linear(i * inputs + 2, sizes[0])]
        for below, above in itertools.pairwise(sizes):
            layers += [act(), nn.Linear(below, above)]
        mine = nn.Sequential(*layers, act(), nn.Linear(sizes[-1], net.output.raw)).double()
        with torch.no_grad():
            linears = [layer for layer in mine if isinstance(layer, nn.Linear)]
            linears[0].weight.copy_(torch.cat((*(net.input_weight[j, k, i].unsqueeze(1) for j in range(i) for k in range(inputs)),
                                               net.context_weight.reshape(2, n, -1)[:, i].mT), 1))
            linears[0].bias.copy_(net.hidden_bias[i])
            for linear, deep in zip(linears[1:-1], net.deep, strict=True):
                linear.weight.copy_(deep.weight[i].mT)
                linear.bias.copy_(deep.bias[i])
            linears[-1].weight.copy_(net.output_weight[i].mT)
            linears[-1].bias.copy_(net.output_bias[i])
            expected = mine(torch.cat((features[:, :i].flatten(1), known["context"]), 1))
            assert_close(net(x, **known)[:, i], expected)


def test_counting_allocates_nothing() -> None:
    n, h = 10**5, 10**3
    assert par.PerDimensionMLP.count_parameters(n, h) == h * n * (n - 1) // 2 + 2 * n * h + n


@pytest.mark.parametrize("options", [{"hidden": 0}, {"hidden": ()}, {"hidden": (3, -1)}, {"activation": "sine"}])
def test_bad_sizes_are_refused(options) -> None:
    with pytest.raises(ValueError, match=r"hidden|activation"):
        par.PerDimensionMLP(4, **options)
