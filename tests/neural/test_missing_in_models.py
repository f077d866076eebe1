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

FREE = [name for name, entry in FAMILIES.items() if entry.free]


def rows_of(family):
    """Rows of bits and a pattern that every fixed order answers: the last variables hidden."""
    x = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    visible = torch.arange(4) < torch.tensor([4, 3, 2, 1, 3, 2])[:, None]
    return torch.where(visible, x, math.nan), visible


@pytest.mark.parametrize("name", FREE)
def test_svi_learns_from_the_visible_cells(name):
    """The loss of a step is minus the log-likelihood of the visible cells, and NaN under the others reaches no gradient."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    family = FAMILIES[name].family(4, **FAMILIES[name].small)
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


@pytest.mark.parametrize("name", FREE)
def test_svi_and_nuts_infer_what_stands_above(name):
    """A context with a standard normal prior: NUTS and the maximum by SVI move, with finite energies, where cells are missing."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    family = FAMILIES[name].family(4, context_dim=1, **FAMILIES[name].small).requires_grad_(False)
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
