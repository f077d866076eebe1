"""`PixelCNN` and `CausalTransformer` beside pytorch-generative's PixelCNN and ImageGPT of the same size: a training step, and sampling.

    python benchmarks/image_peers.py --pytorch-generative DIRECTORY [--models PixelCNN ImageGPT] [--rows 16] [--samples 64] [--steps 4] [--repeats 5]

DIRECTORY is a checkout of EugenHotaj/pytorch-generative. Sizes are those with which its `reproduce` trains on MNIST; with as many keys as queries, as
ImageGPT has them, and with one key for all queries. Black and white images of 28x28, single precision, one thread, CPU time; both sides take turns,
medians, and the median of the ratios of neighbouring turns. A step is value and gradient. Theirs draws by a pass of the whole net for each of the 784
pixels, all of which cost the same: the body of its loop is timed on some pixels, and scaled.
"""

import argparse
import os
import statistics
import sys

from pathlib import Path

import torch

from speed import KEEP, peer, seconds, step_of_family, step_of_net

import pyro_ar as par

SIDE = 28


def models(repository):
    """Of each model theirs, and ours by name."""
    shape = (1, SIDE, SIDE)
    cnn = peer(repository, "pixel_cnn").PixelCNN(1, 1, n_residual=15, residual_channels=16, head_channels=32)
    gpt = peer(repository, "image_gpt").ImageGPT(1, 1, in_size=SIDE, n_transformer_blocks=8, n_attention_heads=2, n_embedding_channels=64)
    return {
        "PixelCNN": (cnn, {"PixelCNN": par.PixelCNN(shape, 16, 15)}),
        "ImageGPT": (gpt, {"CausalTransformer, a key per head": par.CausalTransformer(shape, 64, 8, 2, key_heads=2),
                           "CausalTransformer": par.CausalTransformer(shape, 64, 8, 2)}),
    }


@torch.no_grad()
def some_steps(net, rows, steps):
    """The body of its `sample`, on pixels spread over the image."""
    x = torch.full((rows, 1, SIDE, SIDE), -1.0)
    for k in range(steps):
        row, column = divmod(int((k + 0.5) * SIDE**2 / steps), SIDE)
        drawn = net._sample_fn(net.forward(x)[:, :, row, column]).view(rows, 1)
        x[:, :, row, column] = torch.where(x[:, :, row, column] < 0, drawn, x[:, :, row, column])


def compare(what, theirs, ours, scale, repeats):
    """Their time, multiplied by `scale`, and those of ours by name; a turn to warm up."""
    times = {name: [] for name in ["", *ours]}
    for turn in range(repeats + 1):
        for name, function in {"": theirs, **ours}.items():
            taken = seconds(function)
            if turn:
                times[name].append(taken)
    for name in ours:
        ratios = sorted(scale * a / b for a, b in zip(times[""], times[name], strict=True))
        print(f"| {name}, {what} | {1e3 * statistics.median(times[name]):.0f} | {1e3 * scale * statistics.median(times['']):.0f} "
              f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pytorch-generative", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=["PixelCNN", "ImageGPT"], default=["PixelCNN", "ImageGPT"])
    parser.add_argument("--rows", type=int, default=16, help="of a training batch")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="pixels on which their sampling is timed")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not KEEP.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.rand(options.rows, 1, SIDE, SIDE) < 0.3).float()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; torch {torch.__version__}; their sampling on {options.steps} pixels, scaled\n")
    for name, (theirs, ours) in models(options.pytorch_generative).items():
        if name not in options.models:
            continue
        sizes = ", ".join(f"{ours_name} {family.num_parameters:,}" for ours_name, family in ours.items())
        print(f"{name}: {sum(p.numel() for p in theirs.parameters()):,} numbers in its parameters; ours: {sizes} free ones\n")
        print("| ours, what | ours, ms | theirs, ms | times as fast (least to most) |\n|---|---|---|---|")
        compare(f"training step, {options.rows} rows", step_of_net(theirs, x), {n: step_of_family(f, x) for n, f in ours.items()}, 1, options.repeats)
        joints = {n: f() for n, f in ours.items()}
        compare(f"{options.samples} samples", lambda net=theirs: some_steps(net, options.samples, options.steps),
                {n: (lambda joint=joint: joint.sample((options.samples,))) for n, joint in joints.items()}, SIDE**2 / options.steps, options.repeats)


if __name__ == "__main__":
    main()
