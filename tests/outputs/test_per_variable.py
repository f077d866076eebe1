"""Outputs per variable: own numbers of states against the joint of one output given that every variable is in a possible state, listed value by
value; mixed rows against conditionals written out with scipy and numerical integration."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

from scipy import stats
from scipy.integrate import quad

import pyro_ar as par

from pyro_ar import outputs, testing
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.inference.divergence import kl_divergence
from pyro_ar.neural import LinearNet, MADENet, NADENet, OrderlessNADENet
from pyro_ar.neural.family import Family
from pyro_ar.outputs import Bernoulli, Categorical, Constant, MixtureOfNormals, Normal, PerVariable
from pyro_ar.tables import FullyIndependent

SIZES = (2, 4, 1, 3)
ONE, OWN = Categorical(4), PerVariable.of_states(SIZES)
NETS = {
    "linear": lambda output: LinearNet(4, output),
    "nade": lambda output: NADENet(4, output, hidden=5),
    "made": lambda output: MADENet(4, output, hidden=(6,)),
    "orderless": lambda output: OrderlessNADENet(4, output, hidden=5),
}


def values(sizes):
    return torch.tensor(list(itertools.product(*map(range, sizes)))).float()


@pytest.fixture(params=NETS)
def pair(request):
    """The joint of one output for all variables, and that of the same weights over own numbers of states."""
    whole, own = NETS[request.param](ONE), NETS[request.param](OWN)
    with torch.no_grad():
        for p in whole.parameters():
            p.normal_()
    own.load_state_dict(whole.state_dict())
    return Family(whole, ONE)(), Family(own, OWN)()


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
        for seen in ([False, True, True, True], [False, False, True, True]):  # mixed radices
            hidden = tuple(i for i, s in enumerate(seen) if not s)
            summed = own.log_prob(x).reshape(SIZES).logsumexp(hidden).flatten()
            rows = x.reshape(*SIZES, 4)[tuple(0 if not s else slice(None) for s in seen)].reshape(-1, 4)
            torch.testing.assert_close(own.marginal(torch.tensor(seen)).log_prob(rows), summed, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(kl_divergence(own, FullyIndependent([torch.zeros(k) for k in SIZES])))


def test_gradients_are_finite(pair):
    weights = {name: t.detach().clone().requires_grad_() for name, t in pair[1].tensors.items()}
    pair[1].with_tensors(weights).log_prob(values(SIZES)).sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in weights.values() if t.grad is not None)


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_those_that_matter(name):
    """With all states it is the count of one output; with own numbers what is left of it, by hand and by the gradients that are not zero."""
    assert NETS[name](PerVariable.of_states((4,) * 4)).num_parameters == NETS[name](ONE).num_parameters
    net = NETS[name](OWN)
    raw, read = sum(k - 1 for k in SIZES), [k - 1 for k in SIZES]
    expected = {"linear": raw + 3 * read[0] + 0 + 2 * sum(read[:3]), "nade": 5 * sum(read[:3]) + 5 * raw + 5 + raw,
                "orderless": 5 * sum(read) + 5 * 4 + 5 * raw + 5 + raw}
    if name in expected:
        assert net.num_parameters == expected[name]
    live = dict.fromkeys(dict(net.named_parameters()), 0)
    for draw in range(8):
        torch.manual_seed(draw)
        weights = {k: torch.randn(p.shape).requires_grad_() for k, p in net.named_parameters()}
        order = torch.rand(200, 4).argsort(-1) if net.any_order else None
        x = values(SIZES).repeat(10, 1)[:200]
        joint = par.Autoregressive(net, weights, OWN, order)
        score = (joint.conditional_log_prob(x) * torch.randn(200, 4)).sum()
        for (k, _), g in zip(weights.items(), torch.autograd.grad(score, list(weights.values()), allow_unused=True), strict=True):
            live[k] = live[k] | (g != 0) if g is not None else live[k]
    assert net.num_parameters == sum(int(torch.as_tensor(t).sum()) for t in live.values())


def test_priors_on_the_weights_that_matter():
    model = Bayesian(par.FVSBN(4, OWN))
    assert model.num_weights == model.family.num_parameters
    x = torch.stack([torch.randint(0, k, (30,)) for k in SIZES], -1).float()
    posterior = model.fit(x, method="laplace", num_draws=5, num_chains=1, steps=20, progress=False)
    assert posterior.predictive().log_prob(values(SIZES)).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"an output of par\.outputs for each variable"):
        PerVariable([Bernoulli(), "Normal"])
    with pytest.raises(ValueError, match=r"an output of par\.outputs for each variable"):
        PerVariable([PerVariable([Bernoulli()])])
    with pytest.raises(ValueError, match="outputs for 4 variables; got 3"):
        par.NADE(3, output=OWN)
    with pytest.raises(ValueError, match="in the order of the chain"):
        par.FVSBN(4, OWN)(order=torch.tensor([3, 2, 1, 0]))
    with pytest.raises(ValueError, match="take one order"):
        par.FVSBN(4, OWN)(order=torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]]))
    with pytest.raises(ValueError, match="several kinds"):
        OWN.distribution(torch.zeros(4, 3))


@pytest.mark.parametrize("name", ["FVSBN", "OrderlessNADE"])
def test_the_joint_keeps_all_promises(name):
    joint = getattr(par, name)(4, output=PerVariable.of_states((2, 3, 1, 2)), order=[2, 0, 3, 1])()
    kept = 0
    for check in testing.CHECKS:
        with contextlib.suppress(testing.NotApplicable):
            check(joint)
            kept += 1
    assert kept > len(testing.CHECKS) / 2


KINDS = [Normal(), Bernoulli(), Categorical(3, "one-hot"), MixtureOfNormals(2)]
ORDER = [1, 3, 2, 0]


def by_hand(family, x):
    """log p of each variable of an FVSBN from its raw weights, variable by variable, the densities from scipy."""
    w, b = (t.detach().numpy() for t in (family.net.weight, family.net.bias))
    seen, answer = [], np.zeros(4)
    for place, i in enumerate(ORDER):
        raw = b[place] + sum(w[place, :, j, :len(f)] @ f for j, f in enumerate(seen))
        v = float(x[i])
        if i == 0:
            answer[i] = stats.norm(raw[0], np.log1p(np.exp(raw[1] + np.log(np.e - 1))) + 1e-3).logpdf(v)
        elif i == 1:
            answer[i] = stats.bernoulli(1 / (1 + np.exp(-raw[0]))).logpmf(int(v))
        elif i == 2:
            logits = np.array([0, raw[0], raw[1]])
            answer[i] = logits[int(v)] - np.logaddexp.reduce(logits)
        else:
            logits = np.array([0, raw[0]])
            scale = np.log1p(np.exp(raw[3:5] + np.log(np.e - 1))) + 1e-3
            answer[i] = np.logaddexp.reduce(logits - np.logaddexp.reduce(logits) + stats.norm(raw[1:3] + np.array([-1, 1]), scale).logpdf(v))
        seen.append(np.array([v == 1, v == 2]) if i == 2 else np.array([v]))
    return answer


@pytest.mark.usefixtures("float64")
def test_a_mixed_row_in_an_order_is_what_its_formula_says():
    torch.manual_seed(2)
    family = par.FVSBN(4, PerVariable(KINDS), order=ORDER)
    with torch.no_grad():
        for p in family.parameters():
            p.normal_()
    joint = family()
    x = torch.tensor([[0.3, 1.0, 2.0, -0.7], [-1.2, 0.0, 1.0, 0.4]])
    for row, got in zip(x, joint.conditional_log_prob(x), strict=True):
        np.testing.assert_allclose(got.detach(), by_hand(family, row), atol=1e-10)
    for bad in ([0.3, 0.5, 0.0, 0.0], [0.3, 1.0, 3.0, 0.0], [0.3, 1.0, 2.0, np.nan]):
        with pytest.raises(ValueError, match="support"):
            joint.log_prob(torch.tensor(bad))
    assert joint.num_states is None
    assert not joint.has_enumerate_support


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["NADE", "MADE", "OrderlessNADE"])
def test_mixed_rows_normalise_and_hide_what_can_be_summed(name):
    """Discrete hidden cells of a mixed row are summed, real ones are integrated only where they trail."""
    torch.manual_seed(3)
    kinds = PerVariable([Bernoulli(), Normal(), Categorical(3)])
    joint = getattr(par, name)(3, hidden=6, output=kinds)()

    def mass(*, seen_real=None):
        def density(r):
            rows = torch.tensor([[b, r, c] for b in (0.0, 1.0) for c in (0.0, 1.0, 2.0)])
            return float(joint.log_prob(rows).exp().sum().detach())
        return quad(density, -8, 8, epsabs=1e-9)[0] if seen_real is None else density(seen_real)

    assert mass() == pytest.approx(1, abs=1e-6)
    if joint.coherent:
        hidden = joint.marginal(torch.tensor([False, True, False]))
        assert hidden.method == "enumeration"
        assert float(hidden.log_prob(torch.tensor([np.nan, 0.4, np.nan])).exp().detach()) == pytest.approx(mass(seen_real=0.4), abs=1e-9)
        with pytest.raises(par.IntractableError, match="infinitely many"):
            joint.marginal(torch.tensor([True, False, True]))
    drawn = joint.sample((2000,))
    assert joint.log_prob(drawn).isfinite().all()
    # The first variable is a coin: its share within 4.5 standard errors, false alarm 7e-6.
    if joint.coherent:
        p = joint.marginal(torch.tensor([True, False, False])).log_prob(torch.tensor([1.0, np.nan, np.nan])).exp().item()
        assert abs(drawn[:, 0].mean().item() - p) < 4.5 * (p * (1 - p) / 2000) ** 0.5


def test_rows_of_every_kind_of_output_keep_all_promises():
    """Each variable's conditionals are those of its own output, asked with its own raw parameters."""
    kinds = (Normal(), outputs.Logistic(), outputs.RestrictedBernoulli(0.1, 0.6), outputs.TiedCategorical([[1], [0, 2]]), outputs.MixtureOfLogistics(2),
             Categorical(3), Bernoulli(), MixtureOfNormals(2), outputs.DiscretisedLogisticMixture(4, 2), Constant())
    mixed = PerVariable(kinds)
    raw = torch.randn(5, len(kinds), mixed.raw)
    x = torch.stack([o.sample(raw[:, i, :o.raw]) for i, o in enumerate(kinds)], -1)
    expected = torch.stack([o.log_prob(raw[:, i, :o.raw], x[:, i]) for i, o in enumerate(kinds)], -1)
    torch.testing.assert_close(mixed.log_prob(raw, x), expected)
    places = torch.stack([torch.randperm(len(kinds)) for _ in range(5)])
    moved = raw.gather(1, places.unsqueeze(-1).expand_as(raw)), x.gather(1, places)
    torch.testing.assert_close(mixed.at(places).log_prob(*moved), expected.gather(1, places))
    assert mixed.num_states is None
    joint = par.NADE(len(kinds), 4, mixed)()
    drawn = joint.sample((20,))
    assert joint.support.check(drawn).all()
    assert joint.log_prob(drawn).isfinite().all()


def test_a_constant_is_certain():
    output = Constant()
    assert output.log_prob(torch.zeros(5, 0), torch.zeros(5)).tolist() == [0] * 5
    assert output.distribution(torch.zeros(2, 0)).sample().tolist() == [0, 0]
    assert output.encode(torch.zeros(4)).shape == (4, 0)


def test_kinds_that_alternate_keep_their_places():
    """Two of a kind are asked together; places 0, 3, 1, 4, 2 are no permutation that is its own inverse."""
    torch.manual_seed(0)
    kinds = [Bernoulli(), Normal(0.1), Categorical(3), Bernoulli(), Normal(0.1)]
    output = PerVariable(kinds)
    x = torch.tensor([1.0, 0.3, 2.0, 0.0, -0.7]).expand(6, 5)
    raw = 40 * torch.randn(6, 5, output.raw).sign()  # a coin or a die is certain, but for ties
    raw[:, [1, 4]] /= 20
    found, features, drawn = output.log_prob(raw, x), output.encode(x), output.sample(raw)
    for i, kind in enumerate(kinds):
        torch.testing.assert_close(found[:, i], kind.log_prob(raw[:, i, :kind.raw], x[:, i]))
        own = kind.encode(x[:, i])
        torch.testing.assert_close(features[:, i, :own.shape[-1]], own)
        assert bool((features[:, i, own.shape[-1]:] == 0).all())
        assert bool(kind.support.check(drawn[:, i]).all())
    torch.testing.assert_close(drawn[:, [0, 3]], (raw[:, [0, 3], 0] > 0).float())
    assert not bool((drawn[:, [1, 4]] == drawn[:, [1, 4]].round()).any())


def test_pieces_of_a_mixed_output_agree():
    """A tensor of variables, one variable, and all of them in turn."""
    torch.manual_seed(0)
    output = PerVariable([*KINDS, Constant()])
    raw, x = torch.randn(7, 5, output.raw), torch.tensor([0.2, 1.0, 2.0, -1.0, 0.0]).expand(7, 5)
    order = torch.rand(7, 5).argsort(-1)
    whole = output.log_prob(raw, x)
    mixed = output.at(order).log_prob(raw.gather(1, order.unsqueeze(-1).expand_as(raw)), x.gather(1, order))
    torch.testing.assert_close(mixed, whole.gather(1, order))
    features = output.encode(x)
    torch.testing.assert_close(output.at(order).encode(x.gather(1, order)), features.gather(1, order.unsqueeze(-1).expand_as(features)))
    for i, kind in enumerate(output.outputs):
        torch.testing.assert_close(output.at(i).log_prob(raw[:, i], x[:, i]), kind.log_prob(raw[:, i, :kind.raw], x[:, i]))
        torch.testing.assert_close(output.at(i).encode(x[:, i]), features[:, i])
        torch.testing.assert_close(whole[:, i], kind.log_prob(raw[:, i, :kind.raw], x[:, i]))
        drawn = output.at(order).sample(raw)
        assert bool(kind.support.check(drawn[order == i]).all())
        assert bool(kind.support.check(output.sample(raw)[:, i]).all())
