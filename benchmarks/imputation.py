"""Tables with holes, filled: `JointImputer` as it comes beside scikit-learn's imputers, on public tables of up to 300 rows.

Cells are hidden completely at random (10, 30, 50 %), or at random depending on the first column, which stays seen (30 %: 60 % times the rank of the row in
it). Every imputer is fitted to the very table it fills. Over hidden cells: NRMSE, the error of filled numbers over the standard deviation of their column;
the share of wrong states; the score of draws, of numbers their CRPS over that standard deviation, of states half the Brier score; and how many hidden
numbers lie between the second smallest and the second largest of 39 draws, which is 90 % where draws are right. scikit-learn's draws are those of
`IterativeImputer(sample_posterior=True)` with its BayesianRidge; the others give none, and their score is that of one draw, the absolute error or the share
of wrong states. All rivals see standardised columns, states as numbers in the order of the file, and are rounded to the nearest.

    PYRO_AR_DATA=... python benchmarks/imputation.py [--repeats 1] [--tables FOLDER] [--recipes] [--out imputation]

`--tables` names a folder with titanic.csv (github.com/mwaskom/seaborn-data); `--recipes` adds each joint by itself. A run that was interrupted goes on from
what `--out` holds. Behind the best rival's score stands how much `JointImputer` is ahead of it, with the standard error over the rows of the table.
"""

import argparse
import os
import time
import warnings

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sklearn import datasets
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

import pyro_ar as par

from pyro_ar.experiments.store import Results
from pyro_ar.imputation.recipes import NUMBERS_ONLY, RECIPES

DRAWS, BETWEEN = 39, 2  # of 39 draws and the truth, each is equally often the smallest: 36 of 40 lie between the second from below and from above
ROWS = 300
SHARES = ("10 %", "30 %", "50 %", "depending")
OURS = "JointImputer"


def tables(folder):
    """Rows, and which columns are states."""
    for name in ("iris", "wine", "breast_cancer", "diabetes"):
        x = getattr(datasets, f"load_{name}")().data
        yield name, x, np.array([len(set(column)) == 2 for column in x.T])
    yield "digits' middle rows", datasets.load_digits().data[:, 24:40], np.zeros(16, bool)
    data = Path(os.environ.get("PYRO_AR_DATA", ""))
    if (data / "wine/winequality-red.csv").is_file():
        yield "red wine", par.data.load(data / "wine/winequality-red.csv").x.double().numpy(), np.zeros(12, bool)
    for name, columns in (("nltcs", 16), ("adult", 24)):
        if (data / ("debd" if name == "nltcs" else "uci8") / f"{name}.npz").is_file():
            yield name, par.data.load(name).x.double().numpy()[:, :columns], np.ones(columns, bool)
    if folder is not None:
        ship = pd.read_csv(folder / "titanic.csv")[["age", "survived", "pclass", "sex", "sibsp", "parch", "fare", "embarked"]].dropna()
        words = ship.select_dtypes(exclude="number").columns
        for name in words:
            ship[name] = ship[name].astype("category").cat.codes
        yield "titanic", ship.to_numpy(float), np.array([name in (*words, "survived") for name in ship.columns])


def some(x, states):
    x = x[np.random.default_rng(0).permutation(len(x))[:ROWS]]
    moving = np.array([len(set(column)) > 1 for column in x.T])
    return x[:, moving], states[moving]


def hidden(x, share, seed):
    rng = np.random.default_rng(seed)
    if share != "depending":
        holes = rng.random(x.shape) < float(share.split()[0]) / 100
    else:
        rank = (x[:, 0] + 1e-9 * rng.random(len(x))).argsort().argsort() / len(x)
        holes = rng.random(x.shape) < 0.6 * rank[:, None]
        holes[:, 0] = False
    holes[holes.all(1), 0] = False
    holes[0] = False  # every column shows something
    return holes


def scaled(imputer):
    def fill(z, states, seed):
        scaler = StandardScaler().fit(z)
        filled = scaler.inverse_transform(imputer(seed).fit_transform(scaler.transform(z)))
        return filled, filled[None]
    return fill


def with_draws(z, states, seed):
    scaler = StandardScaler().fit(z)
    scores = scaler.transform(z)
    mean = IterativeImputer(random_state=seed).fit_transform(scores)
    draws = [IterativeImputer(max_iter=5, sample_posterior=True, random_state=seed + i).fit_transform(scores) for i in range(DRAWS)]
    return scaler.inverse_transform(mean), np.stack([scaler.inverse_transform(one) for one in draws])


def joint(recipe=None):
    def fill(z, states, seed):
        frame = pd.DataFrame({f"c{i}": pd.Series(column).map(lambda v: f"{v:g}", na_action="ignore") if s else column
                              for i, (column, s) in enumerate(zip(z.T, states, strict=True))})
        imputer = par.JointImputer(recipe, random_state=seed).fit(frame)
        return (imputer.transform(frame).astype(float).to_numpy(),
                np.stack([one.astype(float).to_numpy() for one in imputer.sample(frame, DRAWS)]), imputer.chosen_)
    return fill


RIVALS = {
    OURS: joint(),
    "iterative (ridge)": with_draws,
    "iterative (forest)": scaled(lambda seed: IterativeImputer(RandomForestRegressor(30, max_features="sqrt", random_state=seed), max_iter=3,
                                                              random_state=seed)),
    "k neighbours": scaled(lambda seed: KNNImputer(n_neighbors=10)),
    "median": scaled(lambda seed: SimpleImputer(strategy="median")),
}


def rounded(values, states, x):
    """States of the rivals: the nearest of those there are."""
    values = values.copy()
    for i in np.flatnonzero(states):
        known = np.unique(x[:, i])
        values[..., i] = known[np.abs(values[..., i, None] - known).argmin(-1)]
    return values


def measures(x, states, holes, filled, draws):
    """Sums over hidden cells, and the score of each row."""
    s = np.where(states, 1.0, x.std(0))
    filled, draws = (rounded(v, states, x) for v in (filled, draws))

    def apart(a, b):
        return np.where(states, a != b, np.abs(a - b) / s)

    score = apart(draws, x).mean(0)
    if len(draws) > 1:
        score = score - sum(apart(draws, np.roll(draws, k, 0)).mean(0) for k in range(1, len(draws))) / (len(draws) - 1) / 2
    numbers, of_states = holes & ~states, holes & states
    ordered = np.sort(draws, 0)
    inside = (ordered[BETWEEN - 1] <= x) & (x <= ordered[-BETWEEN]) if len(draws) > 1 else np.full(x.shape, np.nan)
    return {
        "nrmse": float(np.sqrt((((filled - x) / s)[numbers] ** 2).mean())) if numbers.any() else None,
        "wrong": float(100 * (filled != x)[of_states].mean()) if of_states.any() else None,
        "score": float(score[holes].mean()),
        "inside": float(100 * inside[numbers].mean()) if numbers.any() and len(draws) > 1 else None,
        "rows": [round(float(v), 5) for v in np.where(holes, score, 0).sum(1)], "cells": int(holes.sum()),
    }


def ahead(mine, theirs):
    """How much smaller our score is, and its standard error over rows."""
    gap = np.concatenate([np.subtract(b["rows"], a["rows"]) for a, b in zip(mine, theirs, strict=True)])
    cells = sum(a["cells"] for a in mine)
    return gap.sum() / cells, gap.std(ddof=1) * np.sqrt(len(gap)) / cells


def shown(value, digits):
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--repeats", type=int, default=1)
    asked.add_argument("--recipes", action="store_true")
    asked.add_argument("--tables", type=Path)
    asked.add_argument("--out", type=Path, default=Path("imputation"))
    options = asked.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = Results.open(options.out / "results.json", {"experiment": "imputation", "draws": DRAWS, "rows": ROWS}, keep_old_results=True)
    found = {name: some(x, states) for name, x, states in tables(options.tables)}

    def work(table, share, rival, repeat):
        x, states = found[table]
        holes = hidden(x, share, repeat)
        fill = RIVALS[rival] if rival in RIVALS else joint(rival)
        start = time.process_time()
        filled, draws, *chosen = fill(np.where(holes, np.nan, x), states, repeat)
        unit = {"table": table, "share": share, "rival": rival, "repeat": repeat} | measures(x, states, holes, filled, draws)
        return unit | {"seconds": time.process_time() - start, "chosen": chosen[0] if chosen else None}

    first, settings = dict.fromkeys(("nrmse", "wrong", "score"), 0), dict.fromkeys(("nrmse", "wrong", "score"), 0)
    for table, (x, states) in found.items():
        names = [*RIVALS, *([r for r in RECIPES if r not in NUMBERS_ONLY or not states.any()] if options.recipes else [])]
        for share in SHARES:
            units = {name: list(results.each([{"table": table, "share": share, "rival": name, "repeat": r} for r in range(options.repeats)], work))
                     for name in names}
            mean = {name: {key: np.mean([u[key] for u in some]) if some[0][key] is not None else None
                           for key in ("nrmse", "wrong", "score", "inside", "seconds")} for name, some in units.items()}
            print(f"{table} {x.shape}, {share} hidden; chosen: {units[OURS][0]['chosen']}")
            for name, m in mean.items():
                print(f"    {name:24s} NRMSE {shown(m['nrmse'], 3):>6s}  wrong {shown(m['wrong'], 1):>5s} %  score {m['score']:.3f}  "
                      f"between {shown(m['inside'], 1):>5s} %  {m['seconds']:6.1f} s", flush=True)
            rivals = [name for name in RIVALS if name != OURS]
            for key in first:
                if mean[OURS][key] is not None:
                    settings[key] += 1
                    first[key] += mean[OURS][key] < min(mean[name][key] for name in rivals)
            best = min(rivals, key=lambda name: mean[name]["score"])
            print("    ahead of {} by {:.3f}±{:.3f}".format(best, *ahead(units[OURS], units[best])), flush=True)
    print(", ".join(f"first in {key} in {first[key]} of {settings[key]} settings" for key in first))


if __name__ == "__main__":
    main()
