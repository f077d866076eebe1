"""Towards what should a covariance be shrunk? Accuracy and log score of discriminant analysis: the table of docs/which_joint.md.

    PYRO_AR_DATA=... python benchmarks/shrinkage.py [--tables wine iris ...] [--seeds 1 2] [--shrinkage 0.1]

`DiscriminantAnalysis` on columns divided by one number (the identity is the target), by their standard deviations, by those within classes, and by their
ranges, which is
what it does by itself. Two shuffles of five folds, cells hidden at random in each test row. Log scores are cut at 20 nats. Prints means over the splits.
The differences
from the ranges carry the standard errors of Nadeau and Bengio (2003): the folds share rows.
Without PYRO_AR_DATA the tables are scikit-learn's. About a minute and a half of one core.
"""

import argparse
import os

import numpy as np
import torch

from sklearn import datasets
from sklearn.model_selection import StratifiedKFold

from pyro_ar import DiscriminantAnalysis
from pyro_ar.data import load
from pyro_ar.elliptical import Gaussian
from pyro_ar.elliptical.dense import covariance_from
from pyro_ar.visible import random

SHARES = (0.0, 0.25, 0.5, 0.75)


def tables():
    """Names, rows and classes."""
    for name in ("wine", "breast_cancer", "iris", "digits"):
        both = getattr(datasets, f"load_{name}")()
        yield name, both.data, both.target
    rows = datasets.load_diabetes(scaled=False)
    yield "diabetes, thirds", rows.data, np.digitize(rows.target, np.quantile(rows.target, [1 / 3, 2 / 3]))
    if "PYRO_AR_DATA" in os.environ:
        wine = load("wine")
        yield "red wine, 3 qualities", wine.x.double().numpy(), np.digitize(wine.y.numpy(), [5.5, 6.5])
        some = load("uci8/ocr_letters", "train").head(4000)
        yield "letters", some.x.double().numpy(), some.y.numpy()


class InGivenUnits(DiscriminantAnalysis):
    """Shrinks towards a multiple of the identity, in the units that the rows come in."""

    def _fit_closed_form(self, like, x, weights, visible, options):
        return Gaussian(*covariance_from(x, weights / weights.sum(-1, keepdim=True), **options))


def units(x, y):
    """What the columns are divided by."""
    within = np.sqrt(sum(x[y == c].var(0) * (y == c).mean() for c in np.unique(y)))
    found = {"identity": np.ones(x.shape[1]), "standard deviations": x.std(0), "those within classes": within, "ranges": np.ptp(x, axis=0) / 2}
    return {name: np.where(unit > 0, unit, 1) for name, unit in found.items()}


def measure(classifier, x, y, patterns):
    """Accuracy in % and log score at each share, `(2, shares)`."""
    true, cells = np.searchsorted(classifier.classes_, y), []
    for visible in patterns:
        log_p = classifier.predict_log_proba(x, visible)
        cells.append((100 * (log_p.argmax(1) == true).mean(), -np.maximum(log_p[np.arange(len(y)), true], -20).mean()))
    return np.transpose(cells)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--tables", nargs="+")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options.add_argument("--shrinkage", type=float, default=0.1)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    for name, x, y in tables():
        if chosen.tables and name not in chosen.tables:
            continue
        found = {}
        for seed in chosen.seeds:
            for fold, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y)):
                generator = torch.Generator().manual_seed(100 * seed + fold)
                patterns = [random(x.shape[1], share, len(test), generator=generator) for share in SHARES]
                for target, unit in units(x[train], y[train]).items():
                    made = InGivenUnits(chosen.shrinkage).fit(x[train] / unit, y[train])
                    found.setdefault(target, []).append(measure(made, x[test] / unit, y[test], patterns))
                made = DiscriminantAnalysis(chosen.shrinkage).fit(x[train], y[train])
                np.testing.assert_allclose(measure(made, x[test], y[test], patterns), found["ranges"][-1], atol=1e-6)
        print(f"\n{name}: {len(x)} rows, {x.shape[1]} columns, {len(np.unique(y))} classes", flush=True)
        ranges = np.array(found["ranges"])
        for target, values in found.items():
            gap = np.array(values) - ranges
            error = gap.std(0, ddof=1) * np.sqrt(1 / len(gap) + 1 / 4)
            (accuracy, score), (more, _), (spread, _) = np.mean(values, 0), gap.mean(0), error
            print(f"| {target} | {' '.join(f'{v:.1f}' for v in accuracy)} | {' '.join(f'{a:+.1f}±{b:.1f}' for a, b in zip(more, spread, strict=True))} "
                  f"| {' '.join(f'{v:.3f}' for v in score)} |", flush=True)


if __name__ == "__main__":
    main()
