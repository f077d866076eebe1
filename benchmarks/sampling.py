"""Sampling through the cache of each family against running the whole net for every variable.

    python benchmarks/sampling.py [--families PixelCNN WaveNet] [--rows 64] [--side 28] [--passes 4] [--repeats 3] [--threads 1]

Each family in a process of its own, CPU time, both sides alternating. The naive way is timed on a few variables spread over the image and scaled
to all of them: as a pass over the whole image for each variable, and as a pass that leaves out what comes after it (about half of the work).
Single precision. Peak memory is by how much a draw raises the largest resident size of the process, and by how much a pass behind it.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import torch

import pyro_ar as par

LEVELS = par.outputs.DiscretisedLogisticMixture(256, 5)
FAMILIES = {
    "FVSBN": lambda shape: par.FVSBN(shape),
    "NADE": lambda shape: par.NADE(shape, 500),
    "MADE": lambda shape: par.MADE(shape, (500,)),
    "OrderlessNADE": lambda shape: par.OrderlessNADE(shape, 500),
    "PixelCNN": lambda shape: par.PixelCNN(shape, 32, 4),
    "PixelCNN, 64 wide": lambda shape: par.PixelCNN(shape, 64, 4),
    "gated PixelCNN": lambda shape: par.PixelCNN(shape, 32, 4, gated=True),
    "gated PixelCNN, 64 wide": lambda shape: par.PixelCNN(shape, 64, 4, gated=True),
    "PixelCNN, RGB by groups": lambda shape: par.PixelCNN((3, *shape[1:]), 33, 4, LEVELS),
    "PixelCNN, RGB by linear channels": lambda shape: par.PixelCNN((3, *shape[1:]), 33, 4, LEVELS, channels="linear"),
    "RowLSTM": lambda shape: par.RowLSTM(shape, 32, 3),
    "DiagonalBiLSTM": lambda shape: par.DiagonalBiLSTM(shape, 32, 3),
    "WaveNet": lambda shape: par.WaveNet(shape, 32),
    "PerDimensionMLP": lambda shape: par.PerDimensionMLP(shape, 16),
    "RecurrentAR, GRU": lambda shape: par.RecurrentAR(shape, 128),
    "RecurrentAR, LSTM": lambda shape: par.RecurrentAR(shape, 128, cell="lstm"),
    "CausalTransformer": lambda shape: par.CausalTransformer(shape, 128, 3, 4),
    "CausalTransformer, a key per head": lambda shape: par.CausalTransformer(shape, 128, 3, 4, key_heads=4),
    "AnyOrderTransformer": lambda shape: par.AnyOrderTransformer(shape, 128, 3, 4),
}
"""A family joins by one entry: from the event shape to the family."""


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def peak():
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(name, rows, side, passes, repeats, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    family = FAMILIES[name]((1, side, side))
    joint, net = family(), family.net
    n = net.num_variables
    known = {"order": torch.arange(n).expand(rows, n)} if net.any_order else {}
    before = peak()
    x = joint.sample((rows,)).flatten(1)
    sampled = peak()
    net.in_chain(x, **known)
    passed = peak()
    places = [int((k + 0.5) * n / passes) for k in range(passes)]

    def naive(m):
        some = {key: t[:, :m] for key, t in known.items()}
        net.output.sample(net.in_chain(x[:, :m], **some)[:, -1])

    cached, whole, early = [], [], []
    for _ in range(repeats):
        cached.append(seconds(lambda: joint.sample((rows,))))
        whole.append(seconds(lambda: [naive(n) for _ in places]) * n / passes)
        early.append(seconds(lambda: [naive(i + 1) for i in places]) * n / passes)
    middle = statistics.median
    ratios = sorted(a / b for a, b in zip(whole, cached, strict=True))
    half = middle(a / b for a, b in zip(early, cached, strict=True))
    print(f"| {name} | {family.num_parameters:,} | {middle(cached):.3f} | {middle(whole):.0f} | {middle(ratios):.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f}) "
          f"| {half:.0f} | {sampled - before:.0f} | {passed - before:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--passes", type=int, default=4, help="variables that the naive way is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.rows} images of {options.side}x{options.side}; the naive way on {options.passes} variables, scaled\n")
    print("| family | parameters | cached s | naive s | ratio (least to most) | ratio, passes that stop early | peak MB, cached | peak MB, with a pass |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    spawned = multiprocessing.get_context("spawn")
    for name in options.families:
        process = spawned.Process(target=measure, args=(name, options.rows, options.side, options.passes, options.repeats, options.threads))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
