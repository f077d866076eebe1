"""Each net stepped through a given value computes what it computes in one pass, and sees earlier variables only."""

import math

import pytest
import torch

from torch.testing import assert_close

from pyro_ar import outputs
from pyro_ar.nets import LinearNet, MADENet, NADENet, Net, OrderlessNADENet
from pyro_ar.order import random_orders

pytestmark = pytest.mark.usefixtures("float64")


class Recent(Net):
    """A user's net: a softplus of the variable before and of a running mean; steps itself by running again."""

    def __init__(self, event_shape, output, context_dim=0) -> None:
        super().__init__(event_shape, output, context_dim)
        self.weight = torch.nn.Parameter(torch.randn(2 + context_dim, output.raw))

    def forward(self, x, context=None):
        flat = x.flatten(1)
        before = torch.cat((torch.zeros_like(flat[:, :1]), flat[:, :-1]), 1)
        features = [before.unsqueeze(-1), before.cumsum(1).unsqueeze(-1)]
        if context is not None:
            features.append(context.unsqueeze(1).expand(-1, flat.shape[1], -1))
        return torch.nn.functional.softplus(torch.cat(features, -1) @ self.weight).unflatten(1, self.event_shape)


NETS = {
    "linear": LinearNet,
    "nade": lambda *a: NADENet(*a, hidden=6),
    "relu nade": lambda *a: NADENet(*a, hidden=6, activation="relu"),
    "made": lambda *a: MADENet(*a, hidden=(7,)),
    "deep made": lambda *a: MADENet(*a, hidden=(200, 3, 90), activation="tanh"),
    "orderless": lambda *a: OrderlessNADENet(*a, hidden=6),
    "a user's": Recent,
}
OUTPUTS = [outputs.Bernoulli(), outputs.Categorical(3), outputs.Categorical(4, "one-hot"), outputs.Categorical(3, "level"),
           outputs.Normal(), outputs.MixtureOfNormals(2)]


def prepared(make, output, event_shape, context_dim, rows=3):
    net = make(event_shape, output, context_dim)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_().mul_(0.3)
    n = math.prod(net.event_shape)
    x = torch.randn(rows, n) if output.num_states is None else torch.randint(output.num_states, (rows, n)).double()
    known = {"context": torch.randn(rows, context_dim)} if context_dim else {}
    if net.any_order:
        known["order"] = random_orders(rows, n)
    return net, x.unflatten(1, net.event_shape), known


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("event_shape", [1, (1, 2, 2), 70])
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_steps_agree_with_one_pass(make, output, event_shape, context_dim) -> None:
    net, x, known = prepared(make, output, event_shape, context_dim)
    with torch.no_grad():
        raw = net(x, **known)
        assert raw.shape == (*x.shape, output.raw)
        state, flat = net.start(len(x), **known), x.flatten(1)
        steps = [net.advance(state, flat[:, i - 1] if i else None) for i in range(flat.shape[1])]
    assert_close(torch.stack(steps, 1), raw.flatten(1, -2))


@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Normal()], ids=str)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_only_earlier_variables_are_seen(make, output) -> None:
    """The Jacobian is strictly lower triangular, and no entry below the diagonal is zero for wide nets."""
    net, x, known = prepared(make, output, 8, 2, rows=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, **known).sum(-1).squeeze(0), x).squeeze(1)
    assert torch.equal(jacobian.triu(), torch.zeros(8, 8))


@pytest.mark.parametrize("name", ["linear", "nade", "made", "orderless"])
def test_every_earlier_variable_is_seen(name) -> None:
    wide = {"linear": LinearNet, "nade": lambda *a: NADENet(*a, hidden=30), "made": lambda *a: MADENet(*a, hidden=(60, 60)),
            "orderless": lambda *a: OrderlessNADENet(*a, hidden=30)}[name]
    net, x, known = prepared(wide, outputs.Normal(), 6, 0, rows=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, **known).sum(-1).squeeze(0), x).squeeze(1)
    assert bool((jacobian[torch.tril_indices(6, 6, -1).unbind()] != 0).all())


@pytest.mark.parametrize("name", ["linear", "made"])
def test_context_broadcasts(name) -> None:
    net, x, _ = prepared(NETS[name], outputs.Categorical(3), (2, 2), 2, rows=5)
    context = torch.randn(4, 1, 2)
    with torch.no_grad():
        expected = torch.stack([net(x, c.expand(5, 2)) for c in context])
        assert_close(net(x, context), expected)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("hidden", [(1,), (7,), (3, 9), (30, 30, 30)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_wires_are_counted(n, hidden, context_dim) -> None:
    output = outputs.Categorical(3)
    net = MADENet(n, output, context_dim, hidden=hidden)
    wires = sum(int(layer.wiring.sum()) for layer in net.layers)
    rest = sum(p.numel() for name, p in net.named_parameters() if not name.endswith(".weight"))
    assert net.num_parameters == MADENet.count(n, output, context_dim, hidden=hidden) == wires + rest


def test_counting_allocates_nothing_large() -> None:
    assert LinearNet.count(10**6, outputs.Bernoulli()) == 10**6 * (10**6 + 1) // 2
    assert NADENet.count(10**6, outputs.Bernoulli(), hidden=10**6) == (2 * 10**6 - 1) * 10**6 + 2 * 10**6
