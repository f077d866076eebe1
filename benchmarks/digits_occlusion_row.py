"""The row of the table: digits, five folds, exact shares of pixels hidden, three draws; mixture and Gaussian bar.

    python benchmarks/digits_occlusion_row.py [--components 6] [--no-shifts]

Protocol of shared/notes/occlusion.md: stratified 5-fold with random_state 1, `round(64 f)` pixels hidden in each row, hidden cells from
the seed [7, fold, 100 f, draw]; mean over folds and its standard error.
"""

import argparse
import time

import numpy as np
import torch

from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from pyro_ar.classify.discriminant import DiscriminantAnalysis
from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.experiments.occlusion.scoring import resampled_error

LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9)


def patterns(rows, fold, level):
    for draw in range(1 if level == 0 else 3):
        random = np.random.default_rng([7, fold, round(100 * level), draw])
        yield random.random((rows, 64)).argsort(1) >= round(64 * level)


def row(make, X, y):
    accuracy, scores, seconds, fitting = (np.zeros((5, len(LEVELS))) for _ in range(4))
    for fold, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=1).split(X, y)):
        start = time.perf_counter()
        classifier = make().fit(X[train], y[train])
        fitting[fold] = time.perf_counter() - start
        for i, level in enumerate(LEVELS):
            every = list(patterns(len(test), fold, level))
            for visible in every:
                start = time.perf_counter()
                log_p = classifier.predict_log_proba(X[test], visible)
                seconds[fold, i] += (time.perf_counter() - start) / len(every) / len(test)
                accuracy[fold, i] += 100 * (log_p.argmax(1) == y[test]).mean() / len(every)
                scores[fold, i] -= np.maximum(log_p[np.arange(len(test)), y[test]], -50).mean() / len(every)
    return accuracy, scores, seconds, fitting, classifier.num_parameters


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--components", type=int, nargs="+", default=[4, 6, 8, 10, 12])
    options.add_argument("--no-shifts", action="store_true")
    options.add_argument("--em-steps", type=int, default=0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    X, y = load_digits(return_X_y=True)
    models = {
        "Gaussian per class, shrinkage 0.1": lambda: DiscriminantAnalysis(0.1),
        f"mixture discriminant, K = {chosen.components}": lambda: MixtureDiscriminantAnalysis(
            chosen.components, image_shape=() if chosen.no_shifts else (8, 8), em_steps=chosen.em_steps),
    }
    print("hidden:", *(f"{100 * level:.0f} %" for level in LEVELS))
    for name, make in models.items():
        accuracy, scores, seconds, fitting, parameters = row(make, X, y)
        error = resampled_error(accuracy, 1 / 4)
        print(name, f"(fit {fitting.mean():.2f} s, {parameters} parameters)")
        print("  accuracy %   ", *(f"{m:.2f}±{s:.2f}" for m, s in zip(accuracy.mean(0), error, strict=True)))
        print("  log score    ", *(f"{m:.3f}" for m in scores.mean(0)))
        print("  ms per row   ", *(f"{1000 * m:.2f}" for m in seconds.mean(0)), flush=True)


if __name__ == "__main__":
    main()
