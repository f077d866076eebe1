"""Nets whose weights are random: NUTS for FVSBN, stochastic variational inference for NADE, MADE, a PixelCNN and a transformer, on handwritten digits.

Each family is lifted to a Bayesian one: weights get a normal prior, and the posterior's draws are batch dimensions of one joint, so that all draws are
scored in one call. The mixture of the draws, the posterior predictive, is again a joint; it predicts better than single draws do.

Digits are black and white; for NUTS they are shrunk to 3 x 2 pixels, so that the FVSBN has 21 weights. About a minute.
Run: python examples/random_weights.py [--steps 200]
"""

import argparse
import time

import torch

import pyro_ar as par

from pyro_ar.data import digits

DRAWS = 10


def nets(pixels):
    """The families, and how the posterior of their weights is found."""
    return {
        "NADE": (par.NADE(pixels, 20), 0.5),
        "MADE": (par.MADE(pixels, 40, direct=True), 0.5),
        "PixelCNN": (par.PixelCNN(pixels, 8, 1, places=True, kernel=5), 0.5),
        "CausalTransformer": (par.CausalTransformer(pixels, 8, 1, 2), 0.5),
    }


def report(name, posterior, test, seconds):
    joint = posterior.predictive(DRAWS).joints  # of batch shape (DRAWS,)
    with torch.no_grad():
        start = time.perf_counter()
        each = joint.log_prob(test.unsqueeze(1))  # (rows, DRAWS): every row under every draw of the weights, in one call
        at_once = time.perf_counter() - start
        predictive = posterior.predictive(DRAWS).log_prob(test)
    nats, error = -predictive.mean(), predictive.std() / len(test) ** 0.5
    print(f"{name:18} {posterior.num_parameters:5} weights, {posterior.method:10} {seconds:4.0f} s | nats per held-out digit: {nats:5.2f} +- {error:.2f} "
          f"averaged over {DRAWS} draws, single draws {-each.mean(0).max():5.2f} to {-each.mean(0).min():5.2f} | "
          f"{1000 * at_once:.0f} ms for {each.numel():,} scores")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200, help="of variational inference; NUTS makes two chains of half as many draws")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    torch.manual_seed(0)
    x = digits().x.reshape(-1, 1, 8, 8)
    x = x[torch.randperm(len(x))]
    draws = max(options.steps // 2, 4)

    small = (torch.nn.functional.adaptive_avg_pool2d(x, (3, 2)).flatten(1) > 6).float()
    model = par.Bayesian(par.FVSBN(6), prior=1.0)
    print(f"{'Chow-Liu tree':18} nats per held-out digit: {-par.ChowLiuTree.from_data(small[:300], pseudocount=0.5).log_prob(small[300:800]).mean():5.2f}")
    start = time.perf_counter()
    posterior = model.fit(small[:300], method="nuts", num_draws=draws, num_chains=2, warmup=max(7 * options.steps // 10, 1), max_tree_depth=5, progress=False)
    report("FVSBN, 3 x 2", posterior, small[300:800], time.perf_counter() - start)
    worst = posterior.diagnostics()
    print(f"{'':18} R-hat at most {worst.r_hat:.2f}, effective draws {worst.ess_bulk:.0f} at least of {worst.draws}, {worst.divergences} divergent")

    black = (x > 7).float()
    train, test = black[:300], black[300:500]
    tree = par.ChowLiuTree.from_data(train.flatten(1), pseudocount=0.5)
    print(f"{'Chow-Liu tree':18} nats per held-out digit: {-tree.log_prob(test.flatten(1)).mean():5.2f}")
    for name, (family, prior) in nets((1, 8, 8)).items():
        start = time.perf_counter()
        posterior = par.Bayesian(family, prior).fit(train, method="mean-field", num_draws=DRAWS, num_chains=1, steps=options.steps, lr=0.02, start="family",
                                                    progress=False)
        report(name, posterior, test, time.perf_counter() - start)


if __name__ == "__main__":
    main()
