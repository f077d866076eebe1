"""Own numbers of states: against the net's joint given that every variable is in a possible state, listed value by value."""

import contextlib
import itertools

import pytest
import torch

from pyro_ar import testing
from pyro_ar.bayesian import Bayesian
from pyro_ar.divergence import kl_divergence
from pyro_ar.families import Family
from pyro_ar.nets import LinearNet, MADENet, NADENet, OrderlessNADENet
from pyro_ar.nets.own_states import OwnStates
from pyro_ar.outputs import Bernoulli, Categorical
from pyro_ar.tables import FullyIndependent

SIZES = (2, 4, 1, 3)
OUTPUT = Categorical(4)
NETS = {
    "linear": lambda: LinearNet(4, OUTPUT),
    "nade": lambda: NADENet(4, OUTPUT, hidden=5),
    "made": lambda: MADENet(4, OUTPUT, hidden=(6,)),
    "orderless": lambda: OrderlessNADENet(4, OUTPUT, hidden=5),
}


def values(sizes):
    return torch.tensor(list(itertools.product(*map(range, sizes)))).float()


@pytest.fixture(params=NETS)
def pair(request):
    """The joint of a net, and that of the same weights over own numbers of states."""
    net = NETS[request.param]()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    return Family(net, OUTPUT)(), Family(OwnStates(net, SIZES), OUTPUT)()


def test_conditionals_are_those_given_a_possible_state(pair):
    """By hand: each conditional over its possible states, divided by their sum."""
    whole, own = pair
    x = values(SIZES)
    expected = torch.zeros(len(x))
    for i, k in enumerate(SIZES):
        each = torch.stack([whole.conditional_log_prob(torch.cat([x[:, :i], torch.full_like(x[:, :1], s), x[:, i + 1:]], 1))[:, i] for s in range(k)])
        expected += each.log_softmax(0).gather(0, x[None, :, i].long())[0]
    torch.testing.assert_close(own.log_prob(x), expected, atol=1e-5, rtol=1e-5)
    assert own.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert own.num_states == SIZES
    with pytest.raises(ValueError, match=r"at most \(1, 3, 0, 2\)"):
        own.log_prob(torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_samples_and_queries(pair):
    """All values of 5000 draws are possible, with their probabilities: chi-square of 23 degrees below 60, false alarm 4e-5."""
    _, own = pair
    drawn = own.sample((5000,))
    x = values(SIZES)
    counts = (drawn[:, None] == x).all(-1).sum(0)
    assert counts.sum() == 5000
    expected = 5000 * own.log_prob(x).exp()
    assert ((counts - expected) ** 2 / expected).sum() < 60
    if own.coherent:
        seen = torch.tensor([False, True, True, True])
        pairs = own.log_prob(x).reshape(SIZES).logsumexp(0).flatten()
        torch.testing.assert_close(own.marginal(seen).log_prob(x[: len(pairs)]), pairs, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(kl_divergence(own, FullyIndependent([torch.zeros(k) for k in SIZES])))


def test_gradients_are_finite(pair):
    weights = {name: t.detach().clone().requires_grad_() for name, t in pair[1].tensors.items()}
    pair[1].with_tensors(weights).log_prob(values(SIZES)).sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in weights.values() if t.grad is not None)


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_those_that_matter(name):
    """With all states it is the net's own count; with its own, what is left of it by hand."""
    net = NETS[name]()
    assert OwnStates(net, (4,) * 4).num_parameters == net.num_parameters
    raw, read = sum(k - 1 for k in SIZES), [k - 1 for k in SIZES]
    expected = {"linear": raw + 3 * read[0] + 0 + 2 * sum(read[:3]), "nade": 5 * sum(read[:3]) + 5 * raw + 5 + raw,
                "orderless": 5 * sum(read) + 5 * 4 + 5 * raw + 5 + raw}
    if name in expected:
        assert OwnStates(net, SIZES).num_parameters == expected[name]
    assert OwnStates(net, SIZES).num_parameters < net.num_parameters


def test_priors_on_the_weights_that_matter():
    model = Bayesian(Family(OwnStates(NETS["linear"](), SIZES), OUTPUT))
    assert model.num_weights == model.family.num_parameters
    x = torch.stack([torch.randint(0, k, (30,)) for k in SIZES], -1).float()
    posterior = model.fit(x, method="laplace", num_draws=5, num_chains=1, steps=20, progress=False)
    assert posterior.predictive().log_prob(values(SIZES)).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="Categorical output"):
        OwnStates(LinearNet(4, Bernoulli()), (2, 2, 2, 2))
    for sizes in ((2, 4, 1), (2, 5, 1, 3), (2, 4, 0, 3)):
        with pytest.raises(ValueError, match="num_states must be 4 numbers from 1 to the output's 4"):
            OwnStates(LinearNet(4, OUTPUT), sizes)
    with pytest.raises(ValueError, match="takes no order"):
        Family(OwnStates(LinearNet(4, OUTPUT), SIZES), OUTPUT, order=[3, 2, 1, 0])()


@pytest.mark.parametrize("name", ["linear", "orderless"])
def test_the_joint_keeps_all_promises(name):
    joint = Family(OwnStates(NETS[name](), (2, 3, 1, 2)), OUTPUT)()
    kept = 0
    for check in testing.CHECKS:
        with contextlib.suppress(testing.NotApplicable):
            check(joint)
            kept += 1
    assert kept > len(testing.CHECKS) / 2
