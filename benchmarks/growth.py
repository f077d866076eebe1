"""How time and memory of each registered family grow with the number of variables, the rows and the width.

    python benchmarks/growth.py [--families NADE PixelCNN] [--sides 12 18 28] [--rows 8 32 128] [--widths 32 64 128] [--repeats 3]

Of square black and white images: a training step (value and gradient of log p of the rows) and a draw of as many rows. One of side, rows and width takes
its values in turn while the others stay at their middle one. Each setting in a process of its own, one thread, median CPU time after a first call;
memory is by how much the largest resident size rises above that with the family made and a small one used. Exponents are slopes of least squares in
logarithms: at these sizes a part of the time is that of calling torch, which does not grow. Families are those that `pyro-ar families` trains, `hidden`,
`width` and `skip` all being the width.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time

import torch

from pyro_ar.neural.registry import FAMILIES

SHOWN = {name: entry for name, entry in FAMILIES.items() if entry.shown is not None}
WIDTHS = ("hidden", "width", "skip")


def make(name, side, width):
    entry = SHOWN[name]
    options = {key: value if key not in WIDTHS else (width,) * len(value) if isinstance(value, tuple) else width for key, value in entry.shown.options.items()}
    return entry.family((1, side, side), **options)


def has_width(name):
    return any(key in SHOWN[name].shown.options for key in WIDTHS)


def peak():
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def task_of(family, what, side, rows):
    """A training step, or a draw."""
    x, joint = (torch.rand(rows, 1, side, side) < 0.3).float(), family()

    def step():
        family.zero_grad()
        (-family.training_log_prob(x).mean()).backward()

    return step if what == "train" else lambda: joint.sample((rows,))


def measured(task):
    """Seconds and MB of a training step, or of a draw."""
    name, what, side, rows, width, repeats = task
    torch.manual_seed(0)
    task_of(make(name, 8, 16), what, 8, 2)()  # loads what is run
    function = task_of(make(name, side, width), what, side, rows)
    before = peak()
    function()
    memory, times = peak() - before, []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times), memory


def slope(sizes, found):
    """The exponent: least squares in logarithms."""
    a, b = [math.log(size) for size in sizes], [math.log(max(value, 0.05)) for value in found]
    return statistics.linear_regression(a, b).slope


def line_of(name, what, axes, repeats, pool):
    """Milliseconds, their exponents, megabytes, their exponents."""
    middle = {axis: values[len(values) // 2] for axis, values in axes.items()}
    settings = {axis: [{**middle, axis: value} for value in values] for axis, values in axes.items() if axis != "width" or has_width(name)}
    each = sorted({tuple(setting.values()) for some in settings.values() for setting in some})
    found = dict(zip(each, pool.map(measured, [(name, what, *setting, repeats) for setting in each], chunksize=1), strict=True))
    cells = []
    for k, scale in ((0, 1e3), (1, 1.0)):
        slopes = []
        for axis, some in settings.items():
            sizes = [setting[axis] ** 2 if axis == "side" else setting[axis] for setting in some]
            slopes.append(f"{slope(sizes, [scale * found[tuple(setting.values())][k] for setting in some]):.1f}")
        cells += [f"{scale * found[tuple(middle.values())][k]:.3g}", " ".join(slopes)]
    return cells


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--sides", type=int, nargs="+", default=[12, 18, 28])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    axes = {"side": options.sides, "rows": options.rows, "width": options.widths}
    middle = [values[len(values) // 2] for values in axes.values()]
    print(f"at {middle[0]}x{middle[0]} variables, {middle[1]} rows, width {middle[2]}; exponents of variables, rows, width\n")
    print("| family | step ms | exponents | step MB | exponents | draw ms | exponents | draw MB | exponents |\n|" + "---|" * 9, flush=True)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for name in options.families:
            cells = [cell for what in ("train", "sample") for cell in line_of(name, what, axes, options.repeats, pool)]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
