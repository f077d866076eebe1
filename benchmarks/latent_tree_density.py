"""Latent trees and mixtures of them as densities of binary data: the table of docs/latent_trees.md.

    PYRO_AR_DATA=shared/data OMP_NUM_THREADS=1 python benchmarks/latent_tree_density.py [SET ...] [--candidates K,M,smoothing ...] [--test]

One recipe for all sets: hidden Chow-Liu trees of K states, M of them in a mixture, EM by minibatches, the best epoch by validation nats. Each
candidate is one line, with its validation nats and CPU seconds; with `--test` the best of them by validation is scored on the test rows, once.
"""

import argparse
import time

import torch

from pyro_ar import LatentTree, data

SETS = ("debd/nltcs", "debd/plants", "debd/jester", "debd/dna")
CANDIDATES = ("32,1,0.01", "16,4,0.1", "16,8,0.1", "16,8,0.5")


def fit(train, valid, K, M, smoothing, seed=0):
    options = {"num_hidden": K, "smoothing": smoothing, "held_out": valid, "generator": torch.Generator().manual_seed(seed),
               "batch_size": min(250, max(100, len(train) // 10)), "epochs": 40}
    return LatentTree.from_data(train, **options) if M == 1 else LatentTree.mixture_from_data(train, num_components=M, **options)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("sets", nargs="*", default=SETS)
    arguments.add_argument("--candidates", nargs="+", default=CANDIDATES)
    arguments.add_argument("--test", action="store_true")
    args = arguments.parse_args()
    for name in args.sets:
        train, valid = (data.load(name, split).x.float() for split in ("train", "valid"))
        found = []
        for text in args.candidates:
            K, M, smoothing = int(text.split(",")[0]), int(text.split(",")[1]), float(text.split(",")[2])
            start = time.process_time()
            joint = fit(train, valid, K, M, smoothing)
            nats = float(joint.log_prob(valid).mean())
            found.append((nats, text, joint))
            print(f"{name:12s} K = {K:2d}, {M:2d} trees, smoothing {smoothing:<5g} valid {nats:9.3f}   {joint.num_parameters:8,d} parameters"
                  f"   {time.process_time() - start:6.1f} s", flush=True)
        if args.test:
            _, text, joint = max(found, key=lambda each: each[0])
            log_p = joint.log_prob(data.load(name, "test").x.float())
            print(f"{name:12s} {text}: test {float(log_p.mean()):9.3f} +- {float(log_p.std() / len(log_p)**0.5):.3f}", flush=True)


if __name__ == "__main__":
    main()
