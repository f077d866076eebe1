"""Training of `DiagonalBiLSTM`, whose layers take a step per diagonal, against the same net with a step per pixel.

    python benchmarks/pixel_rnn.py [--side 28] [--rows 4 16 64] [--hidden 16 32] [--layers 2] [--repeats 3]

Value and gradient of log p of a batch, one thread, CPU time, medians, all sides alternating in one process. The two gradients are compared. What is left of a
step when nothing recurs (states are a part of the gates) says how much faster than a step per pixel the quickest recurrence could make it.
"""

import argparse
import statistics
import time

import torch

import pyro_ar as par

from pyro_ar.neural import pixel_rnn


def pixel_by_pixel(left, right, weight, height, width):
    """`pixel_rnn.sweep` with a step per pixel and direction."""
    return tuple(one_side(gates, weight[d], height, range(width)[::1 - 2 * d]) for d, gates in enumerate((left, right)))


def one_side(gates, weight, height, columns):
    states, cells, width = {}, {}, len(columns)
    zeros, gates = gates.new_zeros(gates.shape[1], gates.shape[2] // 4), gates.unbind(0)
    for y in range(height):
        for x in columns:
            before = y, x - columns.step
            near = torch.cat((states.get(before, zeros), states.get((y - 1, x), zeros)), -1)
            states[y, x], cells[y, x] = pixel_rnn.lstm(torch.addmm(gates[y * width + x], near, weight), cells.get(before, zeros))
    return torch.stack([states[y, x] for y in range(height) for x in range(width)])


def without_recurrence(left, right, weight, height, width):
    """All that is not a recurrence, and no joint."""
    hidden = left.shape[-1] // 4
    return left[..., :hidden] + 0 * weight.sum(), right[..., :hidden]


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(side, rows, hidden, layers, repeats):
    torch.manual_seed(0)
    family = par.DiagonalBiLSTM((side, side), hidden, layers)
    x = torch.randint(0, 2, (rows, side, side)).float()
    sweeps, times, gradients = [pixel_rnn.sweep, pixel_by_pixel, without_recurrence], [[], [], []], [None, None, None]
    for turn in range(repeats + 1):
        for k, sweep in enumerate(sweeps):
            pixel_rnn.sweep = sweep
            family.zero_grad()
            took = seconds(lambda: family.training_log_prob(x).mean().backward())
            if turn:  # the first one warms up
                times[k].append(took)
            gradients[k] = torch.cat([p.grad.flatten() for p in family.parameters()])
    pixel_rnn.sweep = sweeps[0]
    torch.testing.assert_close(*gradients[:2], rtol=1e-3, atol=1e-4)
    fast, slow, rest = (1000 * statistics.median(t) for t in times)
    ratios = sorted(b / a for a, b in zip(*times[:2], strict=True))
    print(f"| {side}x{side} | {rows} | {hidden} | {layers} | {fast:.0f} | {slow:.0f} | {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) "
          f"| {rest:.0f} | {slow / rest:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| image | rows | hidden | layers | a step per diagonal, ms | a step per pixel, ms | times as fast (least to most) | no recurrence, ms | at most |")
    print("|---|---|---|---|---|---|---|---|---|")
    for hidden in options.hidden:
        for rows in options.rows:
            measure(options.side, rows, hidden, options.layers, options.repeats)


if __name__ == "__main__":
    main()
