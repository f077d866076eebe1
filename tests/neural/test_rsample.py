"""Draws that carry gradients: against a loop over variables that autograd follows, against draws of moved weights, and against quantiles held fixed."""

import pyro
import pytest
import torch

from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Logistic, MixtureOfLogistics, MixtureOfNormals, Normal, PerVariable

pytestmark = pytest.mark.usefixtures("float64")
REAL = [name for name, entry in FAMILIES.items() if name != "MixtureChain"]
EACH = PerVariable([Normal(), MixtureOfLogistics(2), Logistic(), Normal()])


def a_family(name="NADE", event_shape=(1, 2, 3), output=None, **options):
    torch.manual_seed(1)
    entry = FAMILIES[name]
    family = entry.family(event_shape, **{**entry.small, "output": output or Normal(), **options}).eval()
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return family


def by_loop(family, joint, drawn, context=None):
    """The same draws `(rows, *event)`, variable by variable, each a function of those before it; of Normal and Logistic variables."""
    x, xs, known = joint.to_chain(drawn.detach()), [], {}
    if context is not None:
        known["context"] = context.expand(len(x), -1)
    for i in range(x.shape[1]):
        so_far = torch.stack([*xs, x[:, i]], 1)
        order = {"order": joint.order[:i + 1].expand(len(x), -1)} if family.any_order else {}
        raw = family.net.in_chain(so_far, **known, **order)[:, i]
        loc, scale = raw[:, 0], torch.nn.functional.softplus(raw[:, 1] + outputs.base.UNIT) + 1e-3
        xs.append(loc + scale * ((x[:, i] - loc) / scale).detach())
    return joint.from_chain(torch.stack(xs, 1))


def gradients(x, *tensors):
    weight = torch.sin(torch.arange(x.numel()).double()).reshape(x.shape)
    return torch.autograd.grad((x * weight).sum() + x.square().sum(), tensors, allow_unused=True)


@pytest.mark.parametrize("output", [Normal(), Logistic()], ids=str)
@pytest.mark.parametrize("name", REAL)
def test_gradients_are_those_of_a_loop_over_the_variables(name, output):
    family, context = a_family(name, output=output, context_dim=2), torch.randn(2, requires_grad=True)
    joint = family(context)
    assert joint.has_rsample
    x = joint.rsample((3,))
    leaves = [*family.parameters(), context]
    for found, expected in zip(gradients(x, *leaves), gradients(by_loop(family, joint, x, context), *leaves), strict=True):
        assert_close(torch.zeros(()) if found is None else found, torch.zeros(()) if expected is None else expected)


@pytest.mark.parametrize("name", ["OrderlessNADE", "AnyOrderTransformer", "FVSBN"])
def test_gradients_in_an_order_of_its_own(name):
    family = a_family(name, 4, order=[2, 0, 3, 1])
    x = family().rsample((3,))
    for found, expected in zip(gradients(x, *family.parameters()), gradients(by_loop(family, family(), x), *family.parameters()), strict=True):
        assert_close(torch.zeros(()) if found is None else found, torch.zeros(()) if expected is None else expected)


@pytest.mark.parametrize("output", [Normal(), Logistic()], ids=str)
def test_gradients_are_finite_differences_of_the_same_draw(output):
    family = a_family("MADE", 4, output, order=[2, 0, 3, 1])
    torch.manual_seed(5)
    x = family().rsample((2,))
    torch.manual_seed(5)
    assert torch.equal(x, family().sample((2,)))
    weights, cells = dict(family.net.named_parameters()), ((0, 0), (0, 1), (1, 3))
    slopes = [dict(zip(weights, torch.autograd.grad(x[cell], list(weights.values()), retain_graph=True), strict=True)) for cell in cells]
    for name, index in (("layers.0.weight", (0, 0)), ("layers.0.bias", (3,)), ("layers.2.weight", (4, 1)), ("layers.2.bias", (1,))):
        p, step, moved = weights[name], 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                p[index] += sign * step
                torch.manual_seed(5)
                moved.append(family().sample((2,)))
                p[index] -= sign * step
        for cell, slope in zip(cells, slopes, strict=True):
            assert_close(slope[name][index], (moved[0] - moved[1])[cell] / (2 * step), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("output", "order"), [(MixtureOfNormals(3), None), (MixtureOfLogistics(2), None), (EACH, [2, 0, 3, 1])],
                         ids=["normals", "logistics", "each"])
def test_mixtures_move_as_their_quantiles(output, order):
    """The distribution function of each variable given those before is held, and solved for by bisection where a weight has moved."""
    family = a_family("NADE", 4, output, order=order)
    joint = family()
    x = joint.rsample((3,))
    chain = [output.at(i) if order is None else output.in_order(order).at(i) for i in range(4)]

    def level(i, so_far, value):
        raw = family.net.in_chain(torch.cat((so_far, value.unsqueeze(1)), 1))[:, i]
        return chain[i].distribution(raw).cdf(value)

    @torch.no_grad()
    def solved(levels):
        xs = torch.zeros(3, 0)
        for i in range(4):
            low, high = torch.full((3,), -20.0), torch.full((3,), 20.0)
            for _ in range(45):
                middle = (low + high) / 2
                below = level(i, xs, middle) < levels[i]
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            xs = torch.cat((xs, low.unsqueeze(1)), 1)
        return joint.from_chain(xs)

    drawn = joint.to_chain(x.detach())
    with torch.no_grad():
        levels = [level(i, drawn[:, :i], drawn[:, i]) for i in range(4)]
    assert_close(solved(levels), x.detach(), atol=1e-8, rtol=0)
    weights, weight = dict(family.net.named_parameters()), torch.randn(x.shape)
    slopes = dict(zip(weights, torch.autograd.grad((x * weight).sum(), list(weights.values())), strict=True))
    for name, index in (("input_weight", (0, 0, 1)), ("output_weight", (1, 2, 0)), ("output_bias", (2, 1)), ("hidden_bias", (3,))):
        p, step, moved = weights[name], 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                p[index] += sign * step
                moved.append(solved(levels))
                p[index] -= sign * step
        assert_close(slopes[name][index], ((moved[0] - moved[1]) * weight).sum() / (2 * step), atol=1e-5, rtol=1e-5)


def test_weight_draws_contexts_and_samples_keep_to_themselves():
    family = a_family("NADE", 3, context_dim=2)
    joint = family(torch.randn(2, 2))
    weights = {name: (t + 0.1 * torch.randn(4, 1, *t.shape)).detach().requires_grad_() for name, t in joint.arguments["weights"].items()}
    joint = par.Autoregressive(joint.net, weights, joint.output, context=joint.context)
    x = joint.rsample((5,))
    assert x.shape == (5, 4, 2, 3)
    found = gradients(x, *weights.values())
    alone = []
    for k in range(4):  # the same draws from the weights of one draw alone
        with torch.no_grad():
            for p, t in zip(family.net.parameters(), weights.values(), strict=True):
                p.copy_(t[k, 0])
        part = family(joint.context)
        again = part._moving(x[:, k].detach(), None, None)
        weight = torch.sin(torch.arange(x.numel()).double()).reshape(x.shape)[:, k]
        alone.append(torch.autograd.grad((again * weight).sum() + again.square().sum(), list(family.net.parameters())))
    for f, parts in zip(found, zip(*alone, strict=True), strict=True):
        assert_close(f, torch.stack(parts).unsqueeze(1))


def test_completions_move_with_weights_and_with_what_is_seen():
    family = a_family("OrderlessNADE", 4)
    visible = torch.tensor([[True, False, False, True], [False, True, False, False]])
    seen = torch.randn(2, 4, requires_grad=True)
    given = family().given(seen, visible)
    x = given.rsample()
    assert torch.equal(torch.where(visible, x, 0), torch.where(visible, seen, 0))
    expected = []
    for r in range(2):
        joint = family(order=par.order.visible_first(torch.arange(4), visible[r]))
        loop = by_loop_given(family, joint, x[r], seen[r], int(visible[r].sum()))
        expected.append(loop)
    for f, e in zip(gradients(x, seen, *family.parameters()), gradients(torch.stack(expected), seen, *family.parameters()), strict=True):
        assert_close(f, e)
    assert given.latent().rsample((2,)).requires_grad


def by_loop_given(family, joint, drawn, seen, many):
    order, xs = joint.order, []
    for i in range(4):
        if i < many:
            xs.append(seen[order[i]])
            continue
        raw = family.net.in_chain(torch.stack([*xs, drawn.detach()[order[i]]]).unsqueeze(0), order=order[:i + 1].unsqueeze(0))[0, i]
        loc, scale = raw[0], torch.nn.functional.softplus(raw[1] + outputs.base.UNIT) + 1e-3
        xs.append(loc + scale * ((drawn.detach()[order[i]] - loc) / scale).detach())
    return torch.stack(xs)[order.argsort()]


def test_a_guide_of_a_chain_is_fitted_by_its_draws():
    """SVI finds a correlated pair of normals: mean 1 and -1, deviations 1 and 1/2, correlation .8."""
    target = par.Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.4], [0.4, 0.25]]))
    family = par.FVSBN(2, Normal())
    pyro.clear_param_store()

    def guide():
        pyro.module("family", family)
        with pyro.plate("particles", 32):
            pyro.sample("x", family())

    def model():
        with pyro.plate("particles", 32):
            pyro.sample("x", target)

    torch.manual_seed(0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.08}), pyro.infer.Trace_ELBO())
    losses = [svi.step() / 32 for _ in range(90)]
    assert losses[0] > 1
    x = target.sample((2000,))
    assert (target.log_prob(x) - family().log_prob(x)).mean() < 0.05  # nats
    pyro.clear_param_store()


def test_what_carries_no_gradients_says_so():
    for output in (outputs.Bernoulli(), PerVariable([Normal(), outputs.Categorical(3)])):
        joint = par.NADE(2, 3, output)()
        assert not joint.has_rsample
        with pytest.raises(NotImplementedError, match="carry no gradients"):
            joint.rsample()
        assert not joint.given(torch.zeros(2), torch.tensor([True, False])).has_rsample
        with pytest.raises(NotImplementedError, match="carry no gradients"):
            joint.given(torch.zeros(2), torch.tensor([True, False])).rsample()
    with pytest.raises(NotImplementedError, match=r"draws of DiscretisedLogisticMixture carry no gradients"):
        outputs.DiscretisedLogisticMixture(4).reparameterised(torch.zeros(14), torch.zeros(()))
    family = a_family("NADE", 3)
    x = family().rsample()
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(x.sum(), list(family.parameters()), create_graph=True)
    assert not family().sample().requires_grad
    with torch.no_grad():
        assert not family().rsample().requires_grad
    joint = family()
    assert torch.vmap(lambda t: 0 * t + joint.has_rsample)(torch.zeros(2)).tolist() == [0, 0]
