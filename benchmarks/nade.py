"""Training steps of NADE and OrderlessNADE against plain Python loops, in one process, one thread, CPU time.

    python benchmarks/nade.py [--quick]

Both sides alternate, so that a busy machine slows both; medians and the median of the ratios are shown, and the peak
of what each allocates above the weights and data (in a process of its own, as memory that was once freed is kept).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time

import torch
import torch.nn.functional as F

from pyro_ar.neural import NADENet, OrderlessNADENet
from pyro_ar.order import random_orders
from pyro_ar.outputs import Bernoulli


def nade_loop(net, x, order):
    W, V, b = net.input_weight[:, 0], net.output_weight[..., 0], net.output_bias[:, 0]
    a, logits = net.hidden_bias.expand(len(x), -1), []
    for i in range(x.shape[1]):
        logits.append(torch.sigmoid(a) @ V[i] + b[i])
        a = a + x[:, i:i + 1] * W[i]
    return torch.stack(logits, -1)


def orderless_loop(net, x, order):
    W, U, V, b = net.input_weight[:, 0], net.known_weight, net.output_weight[..., 0], net.output_bias[:, 0]
    a, logits = net.hidden_bias.expand(len(x), -1), []
    for i in range(x.shape[1]):
        # index_select: W[order[:, i]] would take the loop several times as long.
        w, u, v = (t.index_select(0, order[:, i]) for t in (W, U, V))
        logits.append((torch.sigmoid(a) * v).sum(-1) + b[order[:, i]])
        a = a + x[:, i:i + 1] * w + u
    return torch.stack(logits, -1)


def lean(net, x, order):
    return net(x, order=order)[..., 0] if net.any_order else net(x)[..., 0]


def step(forward, net, x, order):
    net.zero_grad()
    loss = F.binary_cross_entropy_with_logits(forward(net, x, order), x, reduction="sum")
    loss.backward()
    return loss.item(), [p.grad.clone() for p in net.parameters()]


def seconds(*args):
    start = time.process_time()
    result = step(*args)
    return time.process_time() - start, result


def problem(kind, rows, n, hidden):
    torch.manual_seed(0)
    net = {"nade": NADENet, "orderless": OrderlessNADENet}[kind](n, Bernoulli(), hidden=hidden)
    return net, (torch.rand(rows, n) < 0.3).float(), random_orders(rows, n)


def compare(kind, rows, n, hidden, repeats):
    args = problem(kind, rows, n, hidden)
    loop = {"nade": nade_loop, "orderless": orderless_loop}[kind]
    seconds(lean, *args), seconds(loop, *args)
    slow, fast = [], []
    for _ in range(repeats):
        a, expected = seconds(loop, *args)
        b, actual = seconds(lean, *args)
        slow.append(a)
        fast.append(b)
    worst = max(float((g - h).abs().max() / h.abs().max().clamp(min=1e-30))
                for g, h in zip(actual[1], expected[1], strict=True))
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    memory = [peak(kind, which, rows, n, hidden) for which in ("loop", "lean")]
    print(f"| {kind} | {rows} | {n} | {hidden} | {1e3 * statistics.median(slow):.0f} | {1e3 * statistics.median(fast):.0f} "
          f"| {ratio:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {worst:.0e} |", flush=True)


def peak(*case):
    """MB above what was resident before the step, measured in a fresh process."""
    run = subprocess.run([sys.executable, __file__, "--peak", *map(str, case)], capture_output=True, text=True, check=True)
    return float(run.stdout)


def print_peak(kind, which, rows, n, hidden):
    args = problem(kind, int(rows), int(n), int(hidden))
    small = problem(kind, 16, 4, 8)
    forward = lean if which == "lean" else {"nade": nade_loop, "orderless": orderless_loop}[kind]
    step(forward, *small)  # what the first step of any kind loads is not counted
    seen, done = [resident()], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(resident())
            time.sleep(1e-3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    F.binary_cross_entropy_with_logits(forward(*args), args[1], reduction="sum").backward()
    done.set()
    watcher.join()
    print(max(seen) - seen[0])


def resident():
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the reference size only, three repeats")
    parser.add_argument("--peak", nargs=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak)
        return
    print("| net | rows | n | hidden | loop ms | lean ms | times as fast | loop MB | lean MB | gradients differ by |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    sizes = [(256, 784, 500)]
    if not options.quick:
        sizes += [(1, 784, 500), (16, 784, 500), (64, 784, 500), (256, 196, 500), (256, 1568, 500), (256, 784, 125),
                  (256, 784, 1000)]
    for kind in ("nade", "orderless"):
        for size in sizes:
            compare(kind, *size, repeats=3 if options.quick else 5)


if __name__ == "__main__":
    main()
