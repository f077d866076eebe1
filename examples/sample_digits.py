"""Learn handwritten digits, pixel by pixel, and draw new ones: NADE in raster order, OrderlessNADE in any order.

Both give 8 x 8 pixels of 17 grey levels a probability, trained by maximum likelihood; digits are then drawn one pixel
after the other. Run: python examples/sample_digits.py [--steps 20] [--out FILE.png]
"""

import argparse
import tempfile
import time

from pathlib import Path

import torch

import pyro_ar as par

from pyro_ar.data import digits
from pyro_ar.plots.images import image_rows

COLUMNS = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20, help="epochs of training")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "pyro_ar_samples.png")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    torch.manual_seed(0)
    x = digits().x
    x = x[torch.randperm(len(x))]
    x, test = x[:1500], x[1500:]

    grey = par.outputs.DiscretisedLogisticMixture(17, 5)
    families = {"NADE": par.NADE(64, hidden=64, output=grey), "OrderlessNADE": par.OrderlessNADE(64, hidden=64, output=grey)}
    chain = par.MarkovChain.from_data(x, num_states=17, pseudocount=1 / 17)
    print(f"{'Markov chain':14} {-chain.log_prob(test).mean():6.1f} nats per held-out digit")
    rows = {"real digits": test[:COLUMNS], "": test[COLUMNS:2 * COLUMNS]}
    for name, family in families.items():
        start = time.perf_counter()
        par.fit(family, x, epochs=options.steps, lr=2e-2, batch_size=64, progress=False, accelerator="cpu")
        with torch.no_grad():
            joint = family()
            nats = -joint.log_prob(test).mean()
            rows |= {name: joint.sample((COLUMNS,)), " " * len(rows): joint.sample((COLUMNS,))}
        print(f"{name:14} {nats:6.1f} nats per held-out digit, {options.steps} epochs in {time.perf_counter() - start:.0f} s")

    images = {name: [image.reshape(8, 8).numpy() for image in row] for name, row in rows.items()}
    image_rows(images, title=f"Digits, and what the joints draw after {options.steps} epochs").savefig(options.out)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
