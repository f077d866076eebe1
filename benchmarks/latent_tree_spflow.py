"""Latent trees beside SPFlow's hidden Chow-Liu trees: the same tree over the hidden states, the same K, full-batch EM; time per step, nats, log_prob.

    pip install spflow==1.1.0
    PYRO_AR_DATA=shared/data OMP_NUM_THREADS=1 python benchmarks/latent_tree_spflow.py [SET ...] [--hidden 8] [--steps 30] [--rows 2000]

Both start at random, so after as many steps both stand at maxima of their own; `smoothing` is 0 here, as SPFlow has none. The two take turns at
each step, so that a busy machine slows both; CPU seconds of one thread, medians, and the median of the ratios.
"""

import argparse
import statistics
import time

import torch

from spflow.learn.expectation_maximization import expectation_maximization
from spflow.zoo.hclt.chow_liu import learn_chow_liu_tree_binary
from spflow.zoo.hclt.learn import learn_hclt_binary

from pyro_ar import LatentTree, data


def parents_of(edges, n):
    """Of each variable, the tree hung up at the first one; parents stand before children."""
    near = [[] for _ in range(n)]
    for i, j in edges:
        near[i].append(j)
        near[j].append(i)
    order, parents = [0], {0: -1}
    for v in order:
        for w in near[v]:
            if w not in parents:
                parents[w] = v
                order.append(w)
    return [parents[v] for v in range(n)]


def cpu_seconds(function):
    start = time.process_time()
    answer = function()
    return time.process_time() - start, answer


def compare(name, K, steps, rows):
    train, test = (data.load(name, split).x.float() for split in ("train", "test"))
    train, test = train[:rows], test[:rows]
    parents = parents_of(learn_chow_liu_tree_binary(train), train.shape[1])
    torch.manual_seed(0)
    theirs = learn_hclt_binary(train, num_hidden_cats=K, init="uniform")  # weights even, leaves at random; with "random" its sums have one channel
    options = {"num_hidden": K, "structure": parents, "smoothing": 0.0, "epochs": 1, "batch_size": None}
    ours = LatentTree.from_data(train, **options, num_states=2, generator=torch.Generator().manual_seed(0))
    own, other = [], []
    for _ in range(steps):
        seconds, ours = cpu_seconds(lambda ours=ours: LatentTree.from_data(train, **options, start=ours))
        own.append(seconds)
        other.append(cpu_seconds(lambda: expectation_maximization(theirs, train, max_steps=1))[0])
    with torch.no_grad():
        score, nats = cpu_seconds(lambda: ours.log_prob(test).mean())
        their_score, their_nats = cpu_seconds(lambda: theirs.log_likelihood(test).mean())
    for what, a, b in (("EM step", own, other), ("log_prob", [score], [their_score])):
        ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
        mine, peer = (1e3 * statistics.median(t) for t in (a, b))
        print(f"{name:14s} K = {K:2d} {len(train):6,d} rows  {what:8s}  pyro_ar {mine:8.1f} ms   SPFlow {peer:8.1f} ms   ratio {ratio:5.1f}", flush=True)
    print(f"{name:14s} test nats after {steps} steps: pyro_ar {nats:9.3f}   SPFlow {their_nats:9.3f}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("sets", nargs="*", default=["debd/nltcs", "debd/dna", "debd/plants"])
    arguments.add_argument("--hidden", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--rows", type=int, default=2000)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    for name in args.sets:
        compare(name, args.hidden, args.steps, args.rows)


if __name__ == "__main__":
    main()
