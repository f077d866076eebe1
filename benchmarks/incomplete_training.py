"""Digits with hidden training cells: MixtureDiscriminantAnalysis by EM, on filled rows, and on the complete rows.

    python benchmarks/incomplete_training.py [--folds 3] [--em-steps 2] [--hidden 0.3 0.5]

Stratified 5-fold with random_state 1, of which the first so many; each training row hides its own random 30 or 50 % of the pixels.
Test rows come complete, and with half of their pixels hidden, the same ones for all. Accuracy in %, mean and standard error over folds;
then the gain over filling with the mean, with the standard error of that difference.
"""

import argparse
import time

import numpy as np
import torch

from sklearn.datasets import load_digits
from sklearn.impute import KNNImputer
from sklearn.model_selection import StratifiedKFold

import pyro_ar as par


def mean_filled(X, y, visible):
    return np.where(visible, X, np.nanmean(np.where(visible, X, np.nan), 0)), y, None


def knn_filled(X, y, visible):
    return KNNImputer(n_neighbors=5).fit_transform(np.where(visible, X, np.nan)), y, None


def hidden(X, y, visible):
    return np.where(visible, X, np.nan), y, visible


def complete(X, y, visible):
    return X, y, None


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--folds", type=int, default=3)
    options.add_argument("--em-steps", type=int, default=None)
    options.add_argument("--hidden", type=float, nargs="+", default=[0.3, 0.5])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    X, y = load_digits(return_X_y=True)
    mixture = {"image_shape": (8, 8), "em_steps": chosen.em_steps}
    models = {
        "mixture, EM over hidden cells": (hidden, lambda: par.MixtureDiscriminantAnalysis(**mixture)),
        "mixture, mean-filled": (mean_filled, lambda: par.MixtureDiscriminantAnalysis(image_shape=(8, 8))),
        "mixture, filled by 5 neighbours": (knn_filled, lambda: par.MixtureDiscriminantAnalysis(image_shape=(8, 8))),
        "mixture, complete rows": (complete, lambda: par.MixtureDiscriminantAnalysis(image_shape=(8, 8))),
        "Gaussian, EM over hidden cells": (hidden, par.DiscriminantAnalysis),
        "Gaussian, mean-filled": (mean_filled, par.DiscriminantAnalysis),
        "Gaussian, complete rows": (complete, par.DiscriminantAnalysis),
    }
    for level in chosen.hidden:
        accuracy, seconds = {name: [] for name in models}, dict.fromkeys(models, 0.0)
        for fold, (train, test) in zip(range(chosen.folds), StratifiedKFold(5, shuffle=True, random_state=1).split(X, y), strict=False):
            random = np.random.default_rng([11, fold, round(100 * level)])
            visible = random.random((len(train), 64)).argsort(1) >= round(64 * level)
            half = random.random((len(test), 64)).argsort(1) >= 32
            for name, (prepare, make) in models.items():
                start = time.process_time()
                model = make().fit(*prepare(X[train], y[train], visible))
                seconds[name] += (time.process_time() - start) / chosen.folds
                accuracy[name].append([100 * model.score(X[test], y[test], visible=v) for v in (None, half)])
        print(f"{level:.0%} of the training pixels hidden".ljust(36), "all seen    half seen    gain, half seen   fit, CPU s")
        for name, scores in accuracy.items():
            scores = np.array(scores)
            gain = scores - accuracy[name.split(",")[0] + ", mean-filled"]
            error, spread = (t.std(0, ddof=1) / len(t)**0.5 if len(t) > 1 else t[0] * np.nan for t in (scores, gain))
            print(name.ljust(36), *(f"{m:.2f}±{s:.2f}" for m, s in zip(scores.mean(0), error, strict=True)),
                  f"  {gain.mean(0)[1]:+.2f}±{spread[1]:.2f}      {seconds[name]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
