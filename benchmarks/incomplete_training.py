"""Hidden training cells: MixtureDiscriminantAnalysis by EM, on filled rows, and on the complete rows; of digits, or of MNIST.

    python benchmarks/incomplete_training.py [--folds 3] [--em-steps 2] [--hidden 0.3 0.5]
    PYRO_AR_DATA=... python benchmarks/incomplete_training.py --data mnist [--rows 5000] [--folds 3] [--hidden 0.5]

Digits: stratified 5-fold with random_state 1, of which the first so many, images moved by a pixel. MNIST: so many training rows and 2000 test
rows, others in every fold, without moved images; mixtures are of rank 15 there, as above 150 cells. Each training row hides its own random 30
or 50 % of the pixels. Test rows come complete, and with half of their pixels hidden, the same ones for all. Accuracy in %, mean and standard
error over folds; then the gain over filling with the mean, with the standard error of that difference.
"""

import argparse
import time

from functools import partial

import numpy as np
import torch

from sklearn.datasets import load_digits
from sklearn.impute import KNNImputer
from sklearn.model_selection import StratifiedKFold

import pyro_ar as par
import pyro_ar.data

from pyro_ar.experiments.occlusion.scoring import resampled_error


def mean_filled(X, y, visible):
    return np.where(visible, X, np.nanmean(np.where(visible, X, np.nan), 0)), y, None


def knn_filled(X, y, visible):
    return KNNImputer(n_neighbors=5).fit_transform(np.where(visible, X, np.nan)), y, None


def hidden(X, y, visible):
    return np.where(visible, X, np.nan), y, visible


def complete(X, y, visible):
    return X, y, None


def digits_folds(folds):
    X, y = load_digits(return_X_y=True)
    for _, (train, test) in zip(range(folds), StratifiedKFold(5, shuffle=True, random_state=1).split(X, y), strict=False):
        yield X[train], y[train], X[test], y[test]


def mnist_folds(folds, rows):
    train, test = (par.data.load("mnist", split) for split in ("train", "test"))
    random = np.random.default_rng(1)
    order, test_order = (random.permutation(len(part.x)) for part in (train, test))
    for fold in range(folds):
        mine, other = order[fold * rows:(fold + 1) * rows], test_order[fold * 2000:(fold + 1) * 2000]
        yield *(np.asarray(t, dtype=float) for t in (train.x[mine], train.y[mine], test.x[other], test.y[other])),


def models_of(data, em_steps):
    shape = {"image_shape": (8, 8)} if data == "digits" else {}

    def mixture(**more):
        return par.MixtureDiscriminantAnalysis(**shape, **more)

    models = {
        "mixture, EM over hidden cells": (hidden, lambda: mixture(em_steps=em_steps)),
        "mixture, mean-filled": (mean_filled, mixture),
        "mixture, filled by 5 neighbours": (knn_filled, mixture),
        "mixture, complete rows": (complete, mixture),
        "Gaussian, EM over hidden cells": (hidden, par.DiscriminantAnalysis),
        "Gaussian, mean-filled": (mean_filled, par.DiscriminantAnalysis),
        "Gaussian, complete rows": (complete, par.DiscriminantAnalysis),
    }
    if data == "mnist":  # full matrices and neighbours of 784 cells take too long; factors instead
        low = partial(par.GenerativeClassifier, par.LowRankGaussian, fit_options={"rank": 15, "shrinkage": 0.1})
        models = {name: made for name, made in models.items() if name.startswith("mixture") and "neighbours" not in name}
        models |= {"Gaussian, EM over hidden cells": (hidden, low), "Gaussian, mean-filled": (mean_filled, low),
                   "Gaussian, complete rows": (complete, low)}
    return models


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--data", choices=["digits", "mnist"], default="digits")
    options.add_argument("--rows", type=int, default=5000)
    options.add_argument("--folds", type=int, default=3)
    options.add_argument("--em-steps", type=int, default=None)
    options.add_argument("--hidden", type=float, nargs="+", default=[0.3, 0.5])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    models = models_of(chosen.data, chosen.em_steps)
    for level in chosen.hidden:
        accuracy, seconds = {name: [] for name in models}, dict.fromkeys(models, 0.0)
        folds = digits_folds(chosen.folds) if chosen.data == "digits" else mnist_folds(chosen.folds, chosen.rows)
        for fold, (X, y, X_test, y_test) in enumerate(folds):
            random, cells = np.random.default_rng([11, fold, round(100 * level)]), X.shape[1]
            visible = random.random(X.shape).argsort(1) >= round(cells * level)
            half = random.random(X_test.shape).argsort(1) >= cells // 2
            for name, (prepare, make) in models.items():
                start = time.process_time()
                model = make().fit(*prepare(X, y, visible))
                seconds[name] += (time.process_time() - start) / chosen.folds
                accuracy[name].append([100 * model.score(X_test, y_test, visible=v) for v in (None, half)])
        print(f"{level:.0%} of the training pixels hidden".ljust(36), "all seen    half seen    gain, half seen   fit, CPU s")
        for name, scores in accuracy.items():
            scores = np.array(scores)
            gain = scores - accuracy[name.split(",")[0] + ", mean-filled"]
            share = 1 / max(1, chosen.folds - 1) if chosen.data == "digits" else 0.0  # the rows of MNIST's splits are no others'
            error, spread = (resampled_error(t, share) for t in (scores, gain))
            print(name.ljust(36), *(f"{m:.2f}±{s:.2f}" for m, s in zip(scores.mean(0), error, strict=True)),
                  f"  {gain.mean(0)[1]:+.2f}±{spread[1]:.2f}      {seconds[name]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
