"""Sampling through the caches of the families that read sequences, against running the whole net for every variable.

    python benchmarks/sequence_sampling.py [--family CausalTransformer] [--rows 64] [--variables 784] [--steps 4] [--repeats 3]

One process, one thread, CPU time, both sides alternating. The naive way passes all variables through the net for each of them, so that
every pass costs the same: a few are timed and multiplied. Peak memory is that of the process up to the first cached sample: run one family
at a time to compare it.
"""

import argparse
import resource
import statistics
import time

import torch

import pyro_ar as par

FAMILIES = {
    "CausalTransformer": lambda n: par.CausalTransformer(n),
    "CausalTransformer, a key per head": lambda n: par.CausalTransformer(n, key_heads=4),
    "RecurrentAR, GRU": lambda n: par.RecurrentAR(n),
    "RecurrentAR, LSTM": lambda n: par.RecurrentAR(n, cell="lstm"),
    "PerDimensionMLP": lambda n: par.PerDimensionMLP(n),
}


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def naive(net, rows, steps):
    """The first variables of a sample, by a whole pass of the net for each."""
    x = torch.zeros(rows, net.num_variables)
    for i in range(steps):
        x[:, i] = net.output.sample(net(x)[:, i])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def compare(name, make, options):
    n, rows = options.variables, options.rows
    family = make(n).eval()
    joint = family()
    joint.sample((2,))
    slow, fast, memory = [], [], float("inf")
    for _ in range(options.repeats):
        fast.append(seconds(lambda: joint.sample((rows,))))
        memory = min(memory, peak())
        slow.append(seconds(lambda: naive(family.net, rows, options.steps)) * n / options.steps)
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    print(f"| {name} | {rows} | {n} | {family.num_parameters:,} | {statistics.median(slow):.1f} | {statistics.median(fast):.2f} | {ratio:.0f} "
          f"| {memory:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES, help="this one alone")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--variables", type=int, default=784)
    parser.add_argument("--steps", type=int, default=2, help="passes of the naive way that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| family | rows | n | parameters | naive s | cached s | times as fast | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [options.family] if options.family else FAMILIES:
        compare(name, FAMILIES[name], options)


if __name__ == "__main__":
    main()
