"""Composing a joint in a Pyro model: a mixture of Markov chains with Dirichlet priors, half of the cells missing.

The kind of each sequence is a latent variable that Pyro enumerates; the hidden cells are summed out inside the chain.
Run: python examples/mixture_of_chains.py [--steps 300]
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate, infer_discrete
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam

import pyro_ar as par

LENGTH, STATES, KINDS = 12, 3, 2


def model(x, visible):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(KINDS)))
    with pyro.plate("kinds", KINDS):
        start = pyro.sample("start", dist.Dirichlet(torch.ones(STATES)))
        step = pyro.sample("step", dist.Dirichlet(torch.ones(STATES, STATES)).to_event(1))
    with pyro.plate("rows", len(x)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        everywhere = step[kind].log().unsqueeze(-3).expand(*kind.shape, LENGTH - 1, STATES, STATES)
        chain = par.MarkovChain(start[kind].log(), everywhere)
        pyro.sample("x", chain.marginal(visible), obs=x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    pyro.set_rng_seed(0)
    sticky, jumpy = torch.eye(STATES) * 2.0, -torch.eye(STATES) * 2.0
    truth = par.MarkovChain(torch.zeros(KINDS, STATES), torch.stack([sticky, jumpy]).unsqueeze(1).expand(KINDS, LENGTH - 1, STATES, STATES))
    x = truth.sample((200,))                                     # (rows, kinds, length)
    kind = torch.arange(200) % KINDS
    x, visible = x[torch.arange(200), kind], torch.rand(200, LENGTH) > 0.5
    x = x.masked_fill(~visible, float("nan"))                    # what is hidden is never read

    guide = AutoDelta(pyro.poutine.block(model, hide=["kind"]))
    svi = SVI(config_enumerate(model), guide, Adam({"lr": 0.05}), TraceEnum_ELBO())
    for i in range(steps):
        loss = svi.step(x, visible)
        if i % max(steps // 5, 1) == 0:
            print(f"step {i:4d}   loss per row {loss / len(x):.3f}")
    found = infer_discrete(pyro.poutine.condition(config_enumerate(model), data=guide(x, visible)),
                           first_available_dim=-2, temperature=0)
    guess = pyro.poutine.trace(found).get_trace(x, visible).nodes["kind"]["value"]
    right = (guess == kind).float().mean().item()
    print(f"kinds recovered from half of the cells: {max(right, 1 - right):.0%}")


if __name__ == "__main__":
    main()
