"""Missing cells inside Pyro models, `pyro.sample("x", joint.marginal(visible), obs=x)`, under SVI and NUTS, for every registered family."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam

from pyro_ar.neural.registry import FAMILIES


def small(name, **options):
    """Of vectors of four bits, or of images of 2x3; `MixtureChain` is made of a mixture."""
    entry = FAMILIES[name]
    if name == "MixtureChain":
        return entry.family(torch.randn(1, 2), 4.0, torch.randn(1, 2, 4), torch.eye(4).expand(1, 2, 4, 4), torch.tensor([-0.7, 0.7]).expand(4, 2), hidden=5)
    return entry.family(4 if entry.free else (1, 2, 3), **options, **entry.small)


def rows_of(family):
    """Rows of bits and a pattern that every fixed order answers exactly, without enumeration: the last variables hidden."""
    n = math.prod(family.event_shape)
    x = (torch.rand(6, n, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    visible = torch.arange(n) < torch.tensor([n, 3, 2, 1, 3, 2])[:, None]
    return tuple(part.reshape(6, *family.event_shape) for part in (torch.where(visible, x, math.nan), visible))


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_are_answered_as_prefixes(name):
    """By summing p over all completions, where one chain answers; an any-order family has one of its own for each pattern."""
    torch.manual_seed(2)
    family = small(name)
    x, visible = rows_of(family)
    marginal = family().marginal(visible)
    assert set(marginal.method.tolist()) == {"visible-first chain" if family.any_order else "prefix"}
    if not family.any_order:
        n = math.prod(family.event_shape)
        every = torch.cartesian_prod(*n * [torch.tensor([0.0, 1.0])]).reshape(-1, *family.event_shape)
        log_p = family().log_prob(every)
        for row, seen, found in zip(x, visible, marginal.log_prob(x), strict=True):
            agree = ((every == row) | ~seen).flatten(1).all(1)
            torch.testing.assert_close(found, log_p[agree].logsumexp(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_svi_learns_from_the_visible_cells(name):
    """The loss of a step is minus the log-likelihood of the visible cells, and NaN under the others reaches no gradient."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    family = small(name)
    x, visible = rows_of(family)

    def model():
        pyro.module("family", family)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", family().marginal(visible), obs=x)

    with torch.no_grad():
        wanted = -float(family().marginal(visible).log_prob(x.nan_to_num(0.0)).sum())
    before = {key: p.detach().clone() for key, p in family.named_parameters()}
    loss = SVI(model, lambda: None, Adam({"lr": 0.01}), Trace_ELBO()).step()
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert all(bool(p.isfinite().all()) for p in family.parameters())
    assert any(not torch.equal(p, before[key]) for key, p in family.named_parameters())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "MixtureChain"])  # whose contexts are classes
def test_svi_and_nuts_infer_what_stands_above(name):
    """A context with a standard normal prior: NUTS and the maximum by SVI move, with finite energies, where cells are missing."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    family = small(name, context_dim=1).requires_grad_(False)
    x, visible = rows_of(family)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", family(z.expand(len(x), 1)).marginal(visible), obs=x)

    guide = AutoDelta(model)
    svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(15)]
    assert math.isfinite(losses[-1])
    assert min(losses[5:]) <= losses[0] + 1e-4
    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_samples=4, warmup_steps=4, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples()["z"]
    assert bool(drawn.isfinite().all())
    assert len(drawn.unique()) > 1
