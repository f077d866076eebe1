"""Tables with holes, filled: `JointImputer` as it comes beside scikit-learn's imputers, on public tables.

Cells are hidden completely at random (10, 30, 50 %), or at random depending on the first column, which stays seen (30 %). Errors are over hidden cells:
NRMSE of the filled value and CRPS of draws, both over the column's standard deviation, and the share of hidden values inside 90 % intervals of draws. Every
imputer is fitted to the very table it fills. scikit-learn's draws: `IterativeImputer(sample_posterior=True)` with its BayesianRidge; the others give no
draws, and their CRPS is the absolute error. Means over `--repeats` patterns.

    python benchmarks/imputation.py [--repeats 3] [--forest]

`--forest` adds `IterativeImputer` with random forests (MissForest; minutes).
"""

import argparse
import os
import time
import warnings

import numpy as np
import torch

from sklearn import datasets
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

import pyro_ar as par

DRAWS = 40


def tables():
    found = {name: getattr(datasets, f"load_{name}")().data for name in ("iris", "wine", "breast_cancer", "diabetes", "linnerud")}
    found["digits' middle rows"] = datasets.load_digits().data[:600, 24:40]
    folder = os.environ.get("PYRO_AR_DATA")
    for name, path in (("red wine", "wine/winequality-red.csv"), ("white wine", "wine/winequality-white.csv")):
        if folder and os.path.exists(os.path.join(folder, path)):
            found[name] = par.data.load(os.path.join(folder, path)).x.double().numpy()[:1000]
    return found


def hidden(X, share, rng):
    if share != "depending":
        holes = rng.random(X.shape) < share
    else:
        rank = X[:, 0].argsort().argsort() / len(X)
        holes = rng.random(X.shape) < 0.6 * rank[:, None]
        holes[:, 0] = False
    holes[holes.all(1), 0] = False
    return holes


def scaled(imputer):
    """Distances and penalties want columns of one scale."""
    def fill(Z, seed):
        scaler = StandardScaler().fit(Z)
        filled = scaler.inverse_transform(imputer().fit_transform(scaler.transform(Z)))
        return filled, filled[None]
    return fill


def bayesian_ridge(Z, seed):
    scaler = StandardScaler().fit(Z)
    scores = scaler.transform(Z)
    mean = IterativeImputer(max_iter=20, random_state=seed).fit_transform(scores)
    draws = [IterativeImputer(max_iter=10, sample_posterior=True, random_state=seed + i).fit_transform(scores) for i in range(DRAWS)]
    return scaler.inverse_transform(mean), np.stack([scaler.inverse_transform(one) for one in draws])


def joint(Z, seed):
    imputer = par.JointImputer(random_state=seed).fit(Z)
    return imputer.transform(Z), np.stack(imputer.sample(Z, DRAWS))


def measures(X, holes, filled, draws):
    s = X.std(0)
    off = ((filled - X) / s)[holes]
    d, x = (draws / s)[:, holes], (X / s)[holes]
    crps = np.abs(d - x).mean(0)
    if len(d) > 1:
        ordered = np.sort(d, 0)
        k = np.arange(1, len(d) + 1)[:, None]
        crps = crps - ((2 * k - len(d) - 1) * ordered).sum(0) / (len(d) * (len(d) - 1))
    inside = np.nan
    if len(d) > 1:
        low, high = np.quantile(d, 0.05, 0), np.quantile(d, 0.95, 0)
        inside = 100 * ((low <= x) & (x <= high)).mean()
    return np.sqrt((off**2).mean()), crps.mean(), inside


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--forest", action="store_true")
    options = asked.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rivals = {"JointImputer": joint, "iterative (ridge)": bayesian_ridge, "k neighbours": scaled(lambda: KNNImputer(n_neighbors=10)),
              "median": scaled(lambda: SimpleImputer(strategy="median"))}
    if options.forest:
        rivals["iterative (forest)"] = scaled(lambda: IterativeImputer(RandomForestRegressor(100, random_state=0), max_iter=5, random_state=0))
    first = dict.fromkeys(("NRMSE", "CRPS"), 0)
    settings = 0
    for name, X in tables().items():
        for share in (0.1, 0.3, 0.5, "depending"):
            lines = {}
            for rival, fill in rivals.items():
                start, found = time.process_time(), []
                for repeat in range(options.repeats):
                    holes = hidden(X, share, np.random.default_rng(repeat))
                    found.append(measures(X, holes, *fill(np.where(holes, np.nan, X), repeat)))
                lines[rival] = (*np.mean(found, 0), (time.process_time() - start) / options.repeats)
            settings += 1
            for i, measure in enumerate(first):
                first[measure] += lines["JointImputer"][i] <= min(line[i] for line in lines.values())
            print(f"{name} {X.shape}, {share if share == 'depending' else f'{share:.0%}'} hidden")
            for rival, (nrmse, crps, inside, seconds) in lines.items():
                print(f"    {rival:20s} NRMSE {nrmse:.3f}  CRPS {crps:.3f}  in 90 % intervals {inside:5.1f}  {seconds:6.1f} s", flush=True)
    print(f"JointImputer is first in NRMSE in {first['NRMSE']} and in CRPS in {first['CRPS']} of {settings} settings")


if __name__ == "__main__":
    main()
