"""A regression some of whose covariates are missing, by SVI and by NUTS: `par.impute` makes the hidden cells latent.

Cells of x are hidden more often where y is large. Rows without a hidden cell are then no fair sample, and a regression on them alone is wrong
however many there are. The model that imputes learns the joint of x beside the coefficients and uses every row; what is hidden depends on what
is seen only, so its answer is right.
Run: python examples/missing_covariates.py [--steps 3000]
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_ar as par

COEFFICIENTS, INTERCEPT, NOISE = torch.tensor([1.0, -1.0, 0.5]), 0.5, 0.7
COVARIANCE = torch.tensor([[1.0, 0.6, 0.3], [0.6, 1.0, 0.5], [0.3, 0.5, 1.0]])


def data(rows, seed):
    """Covariates with NaN where hidden, responses, and the covariates as they were."""
    torch.manual_seed(seed)
    x = par.Gaussian(torch.zeros(3), COVARIANCE).sample((rows,))
    y = INTERCEPT + x @ COEFFICIENTS + NOISE * torch.randn(rows)
    hidden = torch.rand(rows, 3) < 0.8 * torch.sigmoid(3 * (y - INTERCEPT))[:, None]
    return x.masked_fill(hidden, torch.nan), y, x


def model(x, y=None):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    correlation = pyro.sample("correlation", dist.LKJCholesky(3))
    root = scale.unsqueeze(-1) * correlation
    intercept = pyro.sample("intercept", dist.Normal(0.0, 3.0))
    coefficients = pyro.sample("coefficients", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        joint = par.Gaussian(loc, root @ root.mT)
        full = par.impute("x", joint, x)                                        # NaN is hidden
        pyro.sample("y", dist.Normal(intercept + (full * coefficients).sum(-1), noise), obs=y)


def hidden_cells(x):
    """A normal guide for the cells of each row. Mean field (`AutoNormal` alone) ignores how they hang together, and its coefficients are too small."""
    loc = pyro.param("x_loc", torch.zeros(x.shape))
    root = pyro.param("x_root", torch.eye(3).repeat(len(x), 1, 1), constraint=constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        pyro.sample("x_unobserved", dist.MultivariateNormal(loc, scale_tril=root))


def by_svi(x, y, steps):
    """Posterior draws of the coefficients under a normal guide."""
    pyro.clear_param_store()
    parameters = AutoMultivariateNormal(poutine.block(model, hide=["x_unobserved", "rows"]), init_scale=0.1)

    def guide(x, y=None):
        parameters(x, y)
        hidden_cells(x)

    rate = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.05 ** (1 / steps)})
    svi = SVI(model, guide, rate, Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return Predictive(model, guide=guide, num_samples=500, return_sites=["coefficients"])(x, y)["coefficients"].squeeze(-2)


def by_nuts(x, y, steps):
    """Draws of the posterior of the coefficients."""
    kernel = NUTS(model, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=max(2, steps // 10), warmup_steps=max(2, steps // 20), disable_progbar=True)
    mcmc.run(x, y)
    return mcmc.get_samples()["coefficients"]


def by_least_squares(x, y):
    """Coefficients of a regression on complete rows only, and their standard errors."""
    seen = ~x.isnan().any(-1)
    design = torch.cat([torch.ones(int(seen.sum()), 1), x[seen]], -1)
    inverse = torch.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y[seen]
    variance = (y[seen] - design @ found).square().sum() / max(1, len(design) - 4)
    return found[1:], (variance * inverse.diagonal()).sqrt()[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000, help="of SVI; NUTS draws a tenth of that")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    x, y, whole = data(options.rows, options.seed)
    print(f"{int(x.isnan().sum())} of {x.numel()} cells are hidden; {int((~x.isnan().any(-1)).sum())} of {len(x)} rows are complete")
    lines = {"complete rows only": by_least_squares(x, y), "nothing hidden (not to be had)": by_least_squares(whole, y)}
    for name, draws in (("imputed, SVI", by_svi(x, y, options.steps)), ("imputed, NUTS", by_nuts(x, y, options.steps))):
        lines[name] = draws.mean(0), draws.std(0)
    print(f"{'truth':32}" + "".join(f"{c:14.2f}" for c in COEFFICIENTS))
    for name, (found, error) in lines.items():
        print(f"{name:32}" + "".join(f"{f:7.2f} ({e:.2f})" for f, e in zip(found, error, strict=True)))


if __name__ == "__main__":
    main()
