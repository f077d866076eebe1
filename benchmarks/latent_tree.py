"""How long latent trees take: an epoch of EM, `log_prob` and `marginal`, over rows, variables and hidden states, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 \
        python benchmarks/latent_tree.py [--rows 6000] [--whole] [--mnist]

The variables are the pixels of a square image, each the child of its upper or left neighbour (784 of them: 55 levels deep), the rows are noise: what a
step costs does not depend on the values. Each line doubles one size. `--whole` also times an epoch over 60,000 rows of 784 binary variables at K = 16.
`--mnist` takes the tree and the rows of the binarised MNIST, from PYRO_AR_DATA.
"""

import argparse
import math
import time

import torch

from pyro_ar import LatentTree, data, outputs
from pyro_ar.latent.learner import Learner, Rows
from pyro_ar.latent.learning import Schedule, learn
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.start import alone, at_random, tree_of
from pyro_ar.latent.tree import read_tree


def image_tree(n):
    """Each pixel of a square image hangs on its upper or its left neighbour."""
    side, parents = math.isqrt(n), [-1]
    for i in range(1, n):
        choices = [j for j, near in ((i - side, i >= side), (i - 1, i % side > 0)) if near]
        parents.append(choices[int(torch.randint(len(choices), ()))])
    return read_tree(parents, None, n, n)


def cpu_seconds(function):
    start = time.process_time()
    answer = function()
    return time.process_time() - start, answer


def one_line(rows, tree, K, queries=1000):
    output = outputs.Bernoulli()
    own = alone(rows.take(slice(1000)), output, tree, K, torch.float64)
    learner = Learner(at_random(own, None), own, 0.1, torch.float32)
    epoch, _ = cpu_seconds(lambda: learn([learner], rows, None, Schedule(1, 1000, 1, False, None)))
    found: Parameters = learner.parameters().to(torch.float32)
    joint = LatentTree(*found[2:], output, parents=tree.parents)
    x = rows.x[:queries].float()
    visible = torch.rand(x.shape) < 0.5
    with torch.no_grad():
        whole, part = cpu_seconds(lambda: joint.log_prob(x))[0], cpu_seconds(lambda: joint.marginal(visible).log_prob(x))[0]
    print(f"{len(rows.x):6d} rows {len(tree.nodes):4d} variables K = {K:2d}   epoch {epoch:6.2f} s   log_prob {whole:5.2f} s   "
          f"marginal {part:5.2f} s of {len(x)} rows", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=6000)
    arguments.add_argument("--whole", action="store_true")
    arguments.add_argument("--mnist", action="store_true", help="the rows of the binarised MNIST, from PYRO_AR_DATA")
    args = arguments.parse_args()
    torch.manual_seed(0)
    for rows, n, K in ((args.rows, 784, 16), (args.rows // 2, 784, 16), (args.rows, 400, 16), (args.rows, 784, 8), (args.rows, 784, 32)):
        one_line(Rows((torch.rand(rows, n) < 0.3).to(torch.uint8)), image_tree(n), K)
    if args.whole:
        one_line(Rows((torch.rand(60000, 784) < 0.3).to(torch.uint8)), image_tree(784), 16)
    if args.mnist:
        x = torch.cat([data.load("binarized_mnist", split).x for split in ("train", "valid")]).to(torch.uint8)
        rows = Rows(x)
        seconds, tree = cpu_seconds(lambda: tree_of("chow-liu", None, rows, outputs.Bernoulli()))
        print(f"structure of {len(x)} rows: {seconds:.1f} s, {len(tree.levels)} levels")
        one_line(rows, tree, 16)


if __name__ == "__main__":
    main()
