"""Sampling through the caches of MADE, NADE and FVSBN against running the whole net for every variable.

    python benchmarks/made_sampling.py [--quick]

One process, one thread, CPU time, both sides alternating. The naive way costs the same for every variable, so that a
few of its passes are timed and multiplied (`--whole` runs all of them).
"""

import argparse
import statistics
import time

import torch

from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.made import MADE
from pyro_ar.neural.nade import NADE


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def naive(net, rows, steps):
    """The first variables of a sample, by a whole pass of the net for each."""
    x = torch.zeros(rows, net.num_variables)
    for i in range(steps):
        x[:, i] = torch.bernoulli(net(x)[:, i, 0].sigmoid())
    return x


@torch.no_grad()
def compare(name, family, rows, n, hidden, repeats, whole):
    joint, net = family(), family.net
    steps = n if whole else min(n, 16)
    joint.sample((rows,))
    naive(net, rows, 2)
    slow, fast = [], []
    for _ in range(repeats):
        slow.append(seconds(lambda: naive(net, rows, steps)) * n / steps)
        fast.append(seconds(lambda: joint.sample((rows,))))
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    print(f"| {name} | {rows} | {n} | {hidden} | {1e3 * statistics.median(slow):.0f} | {1e3 * statistics.median(fast):.1f} "
          f"| {ratio:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="MADE at the reference size only")
    parser.add_argument("--whole", action="store_true", help="run every pass of the naive way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| family | rows | n | hidden | naive ms | cached ms | times as fast |")
    print("|---|---|---|---|---|---|---|")
    sizes = [(100, 784, (500,))]
    if not options.quick:
        sizes += [(1, 784, (500,)), (1000, 784, (500,)), (100, 196, (500,)), (100, 1568, (500,)), (100, 784, (125,)),
                  (100, 784, (2000,)), (100, 784, (500, 500, 500))]
    for rows, n, hidden in sizes:
        compare("MADE", MADE(n, hidden=hidden), rows, n, hidden, 5, options.whole)
    if not options.quick:
        compare("NADE", NADE(784, hidden=500), 100, 784, 500, 3, options.whole)
        compare("FVSBN", FVSBN(784), 100, 784, "-", 3, options.whole)


if __name__ == "__main__":
    main()
