"""How many of 64 pixels does it take to read a digit, if each look goes where it is expected to tell most?

Greedy looks (the next pixel by expected information, given what this digit has shown) against the same pixels for all digits, the
most telling ones first, random ones, and row by row. Run: python examples/next_pixel.py [--steps 24] [--out FILE.png]
"""

import argparse
import tempfile

from pathlib import Path

import numpy as np
import torch

from sklearn.datasets import load_digits

import pyro_ar as par

from pyro_ar.plots.looking import Revealed, reveal_panel

ROWS, GOAL = 100, 0.95


def accuracy(looks, label):
    """Share of right answers before the first look and after each."""
    return (looks.log_posterior.argmax(-1).numpy() == label[:, None]).mean(0)


def picture(looks, x, y, chosen):
    k = min(12, looks.cells.shape[1])
    shown = [Revealed(f"a {y[i]}", x[i].reshape(8, 8), looks.cells[i, :k].numpy(), looks.log_posterior[i, :k + 1].exp().numpy(),
                      looks.gains[i, :k].numpy(), y[i]) for i in chosen]
    maps = [at for at in (0, 2, 6) if at < k]
    return reveal_panel(shown, range(10), maps=maps, title="Looking where it is expected to tell most",
                        note="Bold: the most probable class is the right one. On the maps the next look is framed.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24, help="looks")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "pyro_ar_next_pixel.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    random = np.random.default_rng(0)
    x, y = load_digits(return_X_y=True)
    order = random.permutation(len(x))
    x, y = x[order], y[order]
    model = par.MixtureDiscriminantAnalysis(4, image_shape=(8, 8)).fit(x[:1400], y[:1400])
    x, y, k = x[1400:1400 + ROWS], y[1400:1400 + ROWS], options.steps

    telling = par.classify.information_gain(model, x[:1])[0].argsort(descending=True)  # nothing seen: the same for every digit
    looks = {"greedy": par.classify.reveal(model, x, steps=k),
             "most telling, fixed": par.classify.reveal(model, x, telling[:k]),
             "random": par.classify.reveal(model, x, random.random((ROWS, 64)).argsort(1)[:, :k]),
             "row by row": par.classify.reveal(model, x, np.arange(k))}

    at = sorted({min(n, k) for n in (1, 2, 4, 6, 8, 12, 16, 20, 24)})
    print(f"right of {ROWS} digits (%), after so many looks; the first look from which on it stays at {GOAL:.0%}")
    print(f"{'':22}" + "".join(f"{n:5d}" for n in at) + f"   {GOAL:.0%} from")
    for name, seen in looks.items():
        right = accuracy(seen, y)
        low = (right < GOAL).nonzero()[0]
        goal = f"{low[-1] + 1 if len(low) else 0}" if right[-1] >= GOAL else f"> {k}"
        print(f"{name:22}" + "".join(f"{100 * right[n]:5.0f}" for n in at) + f"   {goal:>5}")
    sure = [int((seen.log_posterior.exp().amax(-1) > 0.99).any(1).sum()) for seen in looks.values()]
    print("digits whose posterior has passed 99 %: " + ", ".join(f"{name} {n}" for name, n in zip(looks, sure, strict=True)))
    picture(looks["greedy"], x, y, [int((y == digit).nonzero()[0][0]) for digit in (0, 4, 8)]).savefig(options.out)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
