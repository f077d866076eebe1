"""MADE with direct connections and with several masks: against masks written out as matrices, unit by unit, as the paper writes them."""

import itertools
import math

import numpy as np
import pytest
import torch

from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.inference import Bayesian
from pyro_ar.neural import MADENet
from pyro_ar.testing import CHECKS, NotApplicable
from pyro_ar.testing.nets import NET_CHECKS, _prepared

pytestmark = pytest.mark.usefixtures("float64")
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)


def a_made(n=5, hidden=(7, 6), **options):
    torch.manual_seed(3)
    family = par.MADE(n, hidden, activation="tanh", **options)
    with torch.no_grad():
        for p in family.parameters():
            p.normal_()
    return family


def by_hand(family, x, mask, context=None):
    """Log p of binary rows under one mask: degrees of units and places of variables, a matrix of ones and zeros per layer."""
    net, n = family.net, x.shape[1]
    order = net.orders[mask].tolist() if net.orders is not None else (list(range(n)) if family.order is None else family.order.tolist())
    # The net keeps its variables as they come where masks have orders of their own, and in the order of the chain otherwise.
    x = x.numpy() if net.orders is not None else x[:, order].numpy()
    place = np.empty(n, dtype=int)
    place[order if net.orders is not None else list(range(n))] = np.arange(1, n + 1)
    degrees = [place]
    for layer, size in enumerate(net.hidden):
        low = 0 if family.context_dim else 1
        each = np.empty(size, dtype=int)
        each[getattr(net, f"units_{layer}")[mask].numpy()] = low + np.arange(size) * (n - low) // size
        degrees.append(each)
    degrees.append(place)
    h = x
    for i, layer in enumerate(net.layers):
        last = i == len(net.hidden)
        wired = degrees[i + 1][:, None] > degrees[i] if last else degrees[i + 1][:, None] >= degrees[i]
        h = h @ (layer.weight.detach().numpy() * wired).T + layer.bias.detach().numpy()
        if context is not None and i in (0, len(net.hidden)):
            h = h + context.numpy() @ (net.output_context if last else net.hidden_context).detach().numpy()
        h = h if last else np.tanh(h)
    if net.direct_weight is not None:
        h = h + x @ (net.direct_weight.detach().numpy() * (place[:, None] > place)).T
    return -np.logaddexp(0, np.where(x == 1, -h, h)).sum(1)


CASES = {
    "direct": {"masks": 2, "direct": True}, "one order": {"masks": 3, "order": [3, 0, 4, 2, 1]}, "orders": {"masks": 4, "order": "random"},
    "all": {"masks": 3, "order": "random", "direct": True, "context_dim": 2},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_probabilities_of_the_masks_are_averaged(options):
    family = a_made(**options)
    context = torch.randn(2) if "context_dim" in options else None
    each = np.stack([by_hand(family, EVERY, mask, context) for mask in range(options["masks"])])
    assert np.abs(each[0] - each[1]).max() > 0.01
    joint = family(context)
    np.testing.assert_allclose(joint.log_prob(EVERY).detach(), np.logaddexp.reduce(each) - math.log(len(each)), atol=1e-10)
    for mask in range(options["masks"]):
        np.testing.assert_allclose(family.of_mask(mask, context).log_prob(EVERY).detach(), each[mask], atol=1e-10)


def test_direct_connections_alone_are_a_linear_net():
    made, linear = a_made(direct=True, order=[3, 0, 4, 2, 1]), par.FVSBN(5, order=[3, 0, 4, 2, 1])
    with torch.no_grad():
        made.net.layers[-1].weight.zero_()
        linear.net.weight.copy_(made.net.direct_weight.reshape(5, 1, 5, 1))
        linear.net.bias.copy_(made.net.layers[-1].bias.reshape(5, 1))
    assert_close(made().log_prob(EVERY), linear().log_prob(EVERY))
    assert made.num_parameters == par.MADE.count_parameters(5, (7, 6), direct=True) == par.MADE.count_parameters(5, (7, 6)) + 10


def test_each_step_of_training_is_under_a_mask_that_is_drawn():
    """Over 60 steps each of 4 masks is missed with probability 1e-7; held-out rows are scored by the mixture."""
    family, x = a_made(masks=4, order="random"), EVERY[::5]
    each = torch.stack([family.of_mask(mask).log_prob(x) for mask in range(4)])
    torch.manual_seed(1)
    found = [(family.training_log_prob(x) - each).abs().amax(-1).argmin().item() for _ in range(60)]
    assert set(found) == {0, 1, 2, 3}
    assert all(bool((family.training_log_prob(x) - each).abs().amax(-1).min() < 1e-12) for _ in range(3))
    assert_close(family.eval().training_log_prob(x), each.logsumexp(0) - math.log(4))
    visible = torch.tensor([True, True, False, True, True]).expand(len(x), 5)
    hidden = torch.stack([family.of_mask(mask).marginal(visible).log_prob(x) for mask in range(4)])
    assert bool((family.train().training_log_prob(x, visible=visible) - hidden).abs().amax(-1).min() < 1e-12)


def test_training_fits_all_masks_at_once():
    torch.manual_seed(0)
    x = (torch.rand(300, 1) < 0.5).double().expand(300, 4).clone()
    family = par.MADE(4, 16, masks=4, order="random", activation="tanh")
    before = -family().log_prob(x).mean()
    adam = torch.optim.Adam(family.parameters(), lr=1e-1)
    for _ in range(60):
        adam.zero_grad()
        (-family.training_log_prob(x).mean()).backward()
        adam.step()
    worst = max(-family.of_mask(mask).log_prob(x).mean() for mask in range(4))
    assert worst < 1.0 < before  # log 2 is the least there is


def test_hidden_cells_are_summed_out_of_every_mask():
    joint = a_made(masks=3, order="random")()
    visible = torch.tensor([False, True, False, True, True])
    expected = joint.log_prob(EVERY).reshape([2] * 5).logsumexp((0, 2)).flatten()
    rows = EVERY.reshape(2, 2, 2, 2, 2, 5)[0, :, 0].reshape(-1, 5)
    assert_close(joint.marginal(visible).log_prob(torch.where(visible, rows, torch.nan)), expected)
    with pytest.raises(par.IntractableError, match="different orders"):
        joint.conditional_log_prob(EVERY)
    one_order = a_made(masks=3, order=[3, 0, 4, 2, 1])()
    assert_close(one_order.conditional_log_prob(EVERY).sum(-1), one_order.log_prob(EVERY))


@pytest.mark.parametrize("options", [{"order": "random"}, {"order": [1, 0, 2]}, {"order": "random", "direct": True, "context_dim": 2},
                                     {"output": outputs.PerVariable.of_states([1, 3, 2])}])
def test_weights_counted_are_those_that_some_mask_reads(options):
    made = {"n": 3, "hidden": (4, 5), "masks": 2, "mask_seed": 1, **options}
    family = a_made(**made)
    output = family.output
    x = torch.stack([torch.arange(12) // 2 ** i % o.num_states for i, o in enumerate(output.variables(3))], 1)
    joint = family(torch.randn(12, 2) if "context_dim" in options else None)
    total = sum((part.log_prob(x) * torch.randn(12)).sum() for part in joint.joints)
    grads = torch.autograd.grad(total, list(family.parameters()))
    at_least = sum(int((g != 0).sum()) for g in grads)
    assert family.num_parameters == joint.num_parameters == par.MADE.count_parameters(3, (4, 5), masks=2, mask_seed=1, **options) >= at_least
    assert family.num_parameters - at_least <= 4  # units that a last layer cannot hear, counted as those of one mask are


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("output", "options"), [
    (outputs.Bernoulli(), {"order": "random"}), pytest.param(outputs.Categorical(3), {"direct": True, "context_dim": 2}, marks=pytest.mark.slow)])
def test_the_mixture_keeps_all_promises(output, options, check):
    family = a_made(3, (5,), output=output, masks=3, **options)
    try:
        check(family(torch.randn(2, 2) if "context_dim" in options else None))
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("orders", [False, True])
@pytest.mark.parametrize("check", NET_CHECKS[:-1], ids=lambda check: check.__name__)
def test_the_net_of_a_mask_keeps_the_contract(check, orders):
    net = MADENet((1, 2, 2), outputs.Categorical(3), 2, hidden=(7, 5), masks=3, orders=orders, direct=True)
    net.mask.fill_(2)
    check(net)


@pytest.mark.parametrize("cut", [1, 39, 40, 85])
def test_long_chains_of_a_mask_step_and_prefill_as_they_pass(cut):
    """Longer than any block of steps."""
    net, x, known = _prepared(MADENet(90, outputs.Categorical(3), 2, hidden=(200, 3, 90), masks=2, orders=True, direct=True))
    with torch.no_grad():
        whole = net.in_chain(x, **known)
        state = net.start(len(x), **known)
        net.advance(state, None)
        net.prefill(state, x[:, :cut])
        net.advance(state, None)
        for i in range(cut + 1, 90):
            assert_close(net.advance(state, x[:, i - 1]), whole[:, i])


def test_a_classifier_takes_it():
    x, y = (torch.rand(10, 5) < 0.5).double(), torch.arange(10) % 2
    family = a_made(context_dim=2, masks=2, order="random")
    model = par.GenerativeClassifier(family, prior="uniform", train=lambda *a, **k: None).fit(x, y)
    each = np.stack([[by_hand(family, x, mask, context) for mask in range(2)] for context in torch.eye(2)])
    log_p = np.logaddexp.reduce(each, 1).T
    np.testing.assert_allclose(model.predict_log_proba(x), log_p - np.logaddexp.reduce(log_p, 1, keepdims=True), atol=1e-10)
    assert model.num_parameters == family.num_parameters


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="masks must be 1 or more; got 0"):
        par.MADE(4, masks=0)
    with pytest.raises(ValueError, match="must be None, a permutation or 'random'"):
        par.MADE(4, masks=2, order="raster")
    with pytest.raises(ValueError, match="take one order, not one for each mask"):
        par.MADE(3, masks=2, order="random", output=outputs.PerVariable.of_states([2, 3, 1]))
    with pytest.raises(ValueError, match="no order but theirs"):
        par.MADE(3, masks=2)(order=torch.tensor([2, 1, 0]))
    with pytest.raises(ValueError, match="mask must be one of several, 0 to 1; got 2"):
        par.MADE(3, masks=2).of_mask(2)
    with pytest.raises(ValueError, match="Bayesian wants a family of one joint"):
        Bayesian(par.MADE(3, masks=2))


def test_masks_are_those_of_the_seed():
    one, same, other = (MADENet(6, outputs.Bernoulli(), hidden=(8,), masks=2, orders=True, mask_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.units_0, same.units_0)
    assert torch.equal(one.orders, same.orders)
    assert not torch.equal(one.units_0, other.units_0)
    assert not torch.equal(one.units_0[0], one.units_0[1])
