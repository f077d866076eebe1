"""Hierarchical pooling across classes, in pure Pyro: small classes borrow strength from the large ones.

Each class has its own Markov chain; the tables of all classes are drawn around shared ones, as close to them as the data say. A class of
five rows then leans on the others, where a table of its own would believe every accident of five rows.
Run: python examples/pooled_classes.py [--steps 1500]
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

import pyro_ar as par

LENGTH, STATES = 8, 3
ROWS = (200, 100, 40, 10, 5, 5)                                  # of each class
CLASSES = len(ROWS)


def model(x, label):
    shared_start = pyro.sample("shared_start", dist.Normal(0.0, 1.0).expand([STATES]).to_event(1))
    shared_step = pyro.sample("shared_step", dist.Normal(0.0, 1.0).expand([LENGTH - 1, STATES, STATES]).to_event(3))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))         # how far classes differ: learnt from all of them
    with pyro.plate("classes", CLASSES):
        start = pyro.sample("start", dist.Normal(0.0, 1.0).expand([STATES]).to_event(1))
        step = pyro.sample("step", dist.Normal(0.0, 1.0).expand([LENGTH - 1, STATES, STATES]).to_event(3))
    start, step = shared_start + spread * start, shared_step + spread * step
    with pyro.plate("rows", len(x)):
        pyro.sample("x", par.MarkovChain(start[label], step[label]), obs=x)
    return par.MarkovChain(start, step)                          # one chain per class, as one joint of batch shape (CLASSES,)


def make_data():
    """Classes that differ a little from a common chain."""
    common = 1.5 * torch.randn(LENGTH - 1, STATES, STATES)
    truth = par.MarkovChain(torch.zeros(CLASSES, STATES), common + 0.8 * torch.randn(CLASSES, LENGTH - 1, STATES, STATES))
    label = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(ROWS))
    x = truth.sample((max(ROWS),))
    x = torch.cat([x[:n, c] for c, n in enumerate(ROWS)])
    return x, label, truth.sample((1000,))                       # test rows (1000, CLASSES, LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    pyro.set_rng_seed(0)
    x, label, test = make_data()

    guide = AutoNormal(model, init_scale=0.1)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO())
    for i in range(steps):
        loss = svi.step(x, label)
        if i % max(steps // 5, 1) == 0:
            print(f"step {i:5d}   loss per row {loss / len(x):.3f}")

    with torch.no_grad():                                        # the predictive: a mixture over draws, again a joint
        draws = [pyro.poutine.condition(model, data=guide(x, label))(x, label).log_prob(test) for _ in range(50)]
        pooled = torch.stack(draws).logsumexp(0).mean(0) - torch.tensor(50.0).log()
    onehot = torch.nn.functional.one_hot(label, CLASSES).T.to(x.dtype)
    options = {"num_states": STATES, "pseudocount": 1.0}
    apart = par.MarkovChain.from_data(x, weights=onehot, **options).log_prob(test).mean(0)
    together = par.MarkovChain.from_data(x, **options).log_prob(test).mean(0)

    print("\nheld-out nats per row, lower is better\nclass  rows   apart  together  pooled")
    for c, n in enumerate(ROWS):
        print(f"{c:5d} {n:5d} {-apart[c]:7.3f}  {-together[c]:8.3f} {-pooled[c]:7.3f}")
    print(f" mean       {-apart.mean():7.3f}  {-together.mean():8.3f} {-pooled.mean():7.3f}")


if __name__ == "__main__":
    main()
