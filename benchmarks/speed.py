"""The speed of neural joints beside other ways of doing the same: one table.

    python benchmarks/speed.py [--quick] [--repeats 25] [--pytorch-generative DIRECTORY]

One process, one thread, CPU time. All rivals take turns, so that a busy machine slows them alike; medians are shown, and the median of the
ratios of neighbouring turns: read the ratios. The C library's allocator is told to keep what is freed, which helps all of them.
Naive masked nets are written down here; zuko's takes part where it is installed, and pytorch-generative's where its repository
(EugenHotaj/pytorch-generative) is given. benchmarks/nade.py and benchmarks/made_sampling.py compare NADE's training and sampling with plain loops.
"""

import argparse
import importlib
import os
import statistics
import sys
import time
import types

from pathlib import Path

import torch
import torch.nn.functional as F

from torch import nn

from pyro_ar import FVSBN, MADE, NADE

ROWS, VARIABLES, HIDDEN, DRAWS = 256, 784, 500, 100
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}


class Masked(nn.Linear):
    """What a plain masked net multiplies by."""

    def __init__(self, wiring):
        super().__init__(wiring.shape[1], wiring.shape[0])
        self.register_buffer("wiring", wiring.float())

    def forward(self, x):
        return F.linear(x, self.weight * self.wiring, self.bias)


def plain_made():
    net = MADE(VARIABLES, hidden=HIDDEN).net
    masks = [torch.arange(layer.weight.shape[1]) < layer.ends[:, None] for layer in net.layers]
    return nn.Sequential(Masked(masks[0]), nn.ReLU(), Masked(masks[1]))


def step_of_net(net, x):
    def step():
        net.zero_grad()
        F.binary_cross_entropy_with_logits(net(x), x, reduction="none").sum(-1).mean().backward()
    return step


def step_of_family(family, x):
    def step():
        family.zero_grad()
        (-family().log_prob(x).mean()).backward()
    return step


def sampler(family):
    joint = family()
    return lambda: joint.sample((DRAWS,))


def zuko_made():
    try:
        from zuko.nn import MaskedMLP
    except ImportError:
        return None
    return MaskedMLP(torch.ones(VARIABLES, VARIABLES).tril(-1).bool(), [HIDDEN])


def peer(repository, name):
    """A module of pytorch-generative, without the rest of it, which wants torchvision."""
    if repository is None:
        return None
    for package in ("pytorch_generative", "pytorch_generative.models", "pytorch_generative.models.autoregressive"):
        module = sys.modules.setdefault(package, types.ModuleType(package))
        module.__path__ = [str(Path(repository, *package.split(".")))]
    sys.modules["pytorch_generative.models"].base = importlib.import_module("pytorch_generative.models.base")
    return importlib.import_module(f"pytorch_generative.models.autoregressive.{name}")


def tasks(x, repository):
    """Of each task what is ours, and its rivals by name."""
    square = Masked(torch.ones(VARIABLES, VARIABLES).tril(-1))
    push = torch.randn(ROWS, VARIABLES)
    made = {"plain masked net": step_of_net(plain_made(), x)}
    if (net := zuko_made()) is not None:
        made["zuko"] = step_of_net(net, x)
    nade, sampled = peer(repository, "nade"), {}
    if nade is not None:
        made["pytorch-generative"] = step_of_net(peer(repository, "made").MADE(VARIABLES, [HIDDEN]), x)
        theirs = nade.NADE(VARIABLES, HIDDEN)
        theirs._c, theirs._h, theirs._w = 1, 1, VARIABLES
        sampled["pytorch-generative (relu)"] = lambda: theirs.sample(DRAWS)
    return {
        "MADE, training step": (step_of_family(MADE(VARIABLES, hidden=HIDDEN), x), made),
        "FVSBN, training step": (step_of_family(FVSBN(VARIABLES), x), {
            "one masked product alone": lambda: torch.autograd.grad(square(x), list(square.parameters()), push),
            "one masked product and its loss": step_of_net(square, x)}),
        "NADE (relu), 100 samples": (sampler(NADE(VARIABLES, hidden=HIDDEN, activation="relu")), sampled),
        "NADE (sigmoid), 100 samples": (sampler(NADE(VARIABLES, hidden=HIDDEN)), sampled),
        "MADE, 100 samples": (sampler(MADE(VARIABLES, hidden=HIDDEN)), {}),
    }


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(name, ours, rivals, repeats):
    both = {"": ours, **rivals}
    times = {label: [] for label in both}
    for turn in range(repeats + 2):
        for label, function in both.items():
            taken = seconds(function)
            if turn >= 2:
                times[label].append(1e3 * taken)
    mine = statistics.median(times[""])
    for label in rivals or ("",):
        ratios = [a / b for a, b in zip(times[label], times[""], strict=True)]
        rest = f"{label} | {statistics.median(times[label]):.1f} | {statistics.median(ratios):.2f}" if label else " | | "
        print(f"| {name} | {mine:.1f} | {rest} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="three turns")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--pytorch-generative", type=Path)
    options = parser.parse_args()
    if not KEEP.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.rand(ROWS, VARIABLES) < 0.3).float()
    print(f"batch {ROWS}, {VARIABLES} variables, {HIDDEN} units; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; torch {torch.__version__}\n")
    print("| task | pyro_ar, ms | beside | ms | times as fast |")
    print("|---|---|---|---|---|")
    for name, (ours, rivals) in tasks(x, options.pytorch_generative).items():
        compare(name, ours, rivals, 3 if options.quick else options.repeats)


if __name__ == "__main__":
    main()
