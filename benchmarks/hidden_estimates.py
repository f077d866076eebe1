"""Estimates of log p(x_visible) where no exact answer exists: likelihood weighting, sequential Monte Carlo, and both with a look-ahead.

A NADE is trained on scikit-learn's digits (8x8, black and white), and the top half of held-out digits is hidden: 32 binary cells before 32 visible ones, 2^32
joint states. Each estimator answers every digit many times; its error is the root mean square of exp(estimate - reference) - 1 over these runs, the
reference the
mean over all estimators' longest runs. Errors are compared at equal processor time: an error falls with the root of it.

    python benchmarks/hidden_estimates.py [--rows 12] [--runs 40] [--particles 512]

takes about ten minutes of one core, nearly all of it for the look-aheads. With 8 rows, 12 runs and 256 particles:

    likelihood weighting                    0.1387   0.1431   0.033   1.000
    sequential Monte Carlo                  0.1677   0.1518   0.036   1.276
      with any-order NADE ahead             0.0593   0.0644   5.426   5.513
      with latent tree ahead                0.1308   0.1190   6.021  12.810

The halves of a digit tell too little of each other for more: of 256 particles drawn from the chain alone about 40 count. All visible cells come after all
hidden ones,
so resampling has nothing to guide, and a look-ahead asks for two marginals per state and step, which cost more than the particles that they save.
"""

import argparse
import math
import time

import torch

import pyro_ar as par

from pyro_ar.inference import estimate_log_marginal


def trained(family, x, epochs, seed):
    torch.manual_seed(seed)
    par.fit(family, x, epochs=epochs, batch_size=64, lr=3e-3, seed=seed, progress=False, accelerator="cpu")
    return family.eval()()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 12), ("runs", 40), ("particles", 512)):
        options.add_argument(f"--{name}", type=int, default=default)
    asked = options.parse_args()
    torch.set_num_threads(1)
    digits = (par.data.digits().x.float() > 7).float()
    digits = digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))]
    train, rows = digits[:1500], digits[1500:1500 + asked.rows]
    visible = torch.arange(64) >= 32
    chain = trained(par.NADE(64, 128), train, 60, 1)
    looks = {"any-order NADE": trained(par.OrderlessNADE(64, 128), train, 60, 2), "latent tree": par.LatentTree.from_data(train, num_hidden=16)}
    ways = {"likelihood weighting": {"num_islands": asked.particles}, "sequential Monte Carlo": {}}
    ways |= {f"  with {name} ahead": {"look_ahead": look} for name, look in looks.items()}
    torch.manual_seed(0)
    long = {name: estimate_log_marginal(chain, rows, visible, num_particles=16 * asked.particles, **{**way, "num_islands": 16})
            for name, way in ways.items() if name != "likelihood weighting"}
    weights = torch.stack([found.standard_error.clamp(min=1e-4) ** -2 for found in long.values()])
    reference = (torch.stack([found.estimate for found in long.values()]) * weights).sum(0) / weights.sum(0)
    print(f"{asked.rows} digits, top half hidden, {asked.particles} particles, {asked.runs} runs; log p(x_visible) about {reference.mean():.1f} nats")
    print(f"{'':36s}{'rms error':>10s}{'claimed':>9s}{'CPU s':>8s}{'trusted':>9s}{'error at equal time, as share of the first':>45s}")
    base = None
    for name, way in ways.items():
        estimate_log_marginal(chain, rows, visible, num_particles=asked.particles, **way)
        start = time.process_time()
        found = [estimate_log_marginal(chain, rows, visible, num_particles=asked.particles, **way) for _ in range(asked.runs)]
        seconds = (time.process_time() - start) / asked.runs
        off = torch.stack([(f.estimate - reference).exp() - 1 for f in found])
        error = off.square().mean().sqrt().item()
        claimed = torch.stack([f.standard_error for f in found]).square().mean().sqrt().item()
        trusted = torch.stack([f.trusted for f in found]).double().mean().item()
        cost = error * math.sqrt(seconds)
        base = cost if base is None else base
        print(f"{name:36s}{error:10.4f}{claimed:9.4f}{seconds:8.3f}{trusted:9.0%}{cost / base:45.3f}", flush=True)


if __name__ == "__main__":
    main()
