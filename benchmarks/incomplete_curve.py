"""What hidden training cells cost a joint: held-out nats per digit against the share of training pixels that are hidden at random.

scikit-learn's digits in black and white, 1437 rows to learn from, of which each hides its own pixels, and 360 complete rows to be judged by: mean of
-log p(x) in nats, ± the standard error over these rows. Trees learn by EM, the any-order NADE from the marginals of what is seen.

    python benchmarks/incomplete_curve.py [--shares 0 0.25 0.5 0.75 0.9] [--epochs 60] [--plot curve.png]
"""

import argparse

import torch

import pyro_ar as par

from pyro_ar import visible as patterns
from pyro_ar.data import digits


def nade(x, visible, epochs):
    torch.manual_seed(0)
    family = par.OrderlessNADE(64, 64)
    par.fit(family, x, visible=visible, epochs=epochs, batch_size=64, lr=5e-3, seed=0, progress=False, accelerator="cpu")
    return family.eval()()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 0.9])
    asked.add_argument("--epochs", type=int, default=60)
    asked.add_argument("--plot")
    options = asked.parse_args()
    torch.set_num_threads(1)
    x = digits(binary=True).x
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    train, test = x[360:], x[:360]
    ways = {
        "independent": lambda v: par.FullyIndependent.from_data(train, visible=v),
        "Chow-Liu tree": lambda v: par.ChowLiuTree.from_data(train, visible=v),
        "latent tree": lambda v: par.LatentTree.from_data(train, num_hidden=8, visible=v, generator=torch.Generator().manual_seed(0)),
        "any-order NADE": lambda v: nade(train, v, options.epochs),
    }
    found = {name: [] for name in ways}
    print("training pixels hidden".ljust(24), *(f"{share:>13.0%}" for share in options.shares))
    for name, learn in ways.items():
        for share in options.shares:
            visible = patterns.random(64, share, len(train), generator=torch.Generator().manual_seed(2))
            joint = learn(visible)
            with torch.no_grad():
                nats = -joint.marginal(torch.ones(64, dtype=torch.bool)).log_prob(test)
            found[name].append((float(nats.mean()), float(nats.std() / len(nats) ** 0.5)))
        print(name.ljust(24), *(f"{mean:8.2f}±{error:.2f}" for mean, error in found[name]), flush=True)
    if options.plot:
        import matplotlib.pyplot as plt

        for name, points in found.items():
            mean, error = zip(*points, strict=True)
            plt.errorbar([100 * share for share in options.shares], mean, error, label=name, marker="o", capsize=3)
        plt.xlabel("training pixels hidden, %")
        plt.ylabel("held-out nats per digit, less is better")
        plt.title(f"Digits, {len(train)} training rows, ± standard error over {len(test)} test rows")
        plt.legend()
        plt.savefig(options.plot, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
