"""Tables with holes, classified: cells hidden in training and at prediction, on eleven public tables.

The line-up is that of `pyro-ar occlusion --holes`: 0, 30 and 60 % of the cells of every row hidden at random, the same ones for all models, which are all
at their defaults or tuned on inner rows of the training part. Three of the tables are scikit-learn's, one is in the data folder, and the others are of the UCI
repository, as CSV files without names in the folder `--tables` (they are in github.com/jbrownlee/Datasets). Of large tables the first 600 rows of a shuffle
count. The last one, horse-colic, is as it comes: 30 % of its cells are empty in the file, and no others are hidden.

    PYRO_AR_DATA=... python benchmarks/holes.py --tables FOLDER [--folds 3] [--out holes]

A run that was interrupted goes on from what `--out` holds. Log score in nats with the error of `resampled_error`; in brackets the accuracy in %.
"""

import argparse
import os

from pathlib import Path

import numpy as np
import torch

from sklearn import datasets
from threadpoolctl import threadpool_limits

from pyro_ar import data
from pyro_ar.data.dataset import Dataset
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.run import run
from pyro_ar.experiments.occlusion.scoring import differences, summarise
from pyro_ar.experiments.store import Results

MOST = 600
UCI = {"pima-indians-diabetes": 8, "ionosphere": 34, "sonar": 60, "glass": 9, "wheat-seeds": 7, "banknote_authentication": 4}
OURS, RIVALS = "opinion pool", ("boosting", "forest", "iterative + logistic")


def tables(folder):
    for name in ("iris", "wine", "breast_cancer"):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        yield Dataset(name, torch.tensor(x), torch.tensor(y))
    wine = Path(os.environ.get("PYRO_AR_DATA", "")) / "wine/winequality-red.csv"
    if wine.is_file():
        red = data.load(wine).x.double()
        yield Dataset("red wine, 6 or better", red[:, :-1], (red[:, -1] >= 6).long())
    if folder is None:
        return
    for name, label in UCI.items():
        found = data.load(folder / f"{name}.csv", label=label)
        yield Dataset(name, found.x.double(), found.y)
    colic = data.load(folder / "horse-colic.csv", label=23)
    keep = [i for i in range(colic.x.shape[1]) if i != 2]  # the hospital's number of the horse
    yield Dataset("horse-colic", colic.x.double()[:, keep], colic.y)


def some(table):
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(table.x))[:MOST])
    return Dataset(table.name, table.x[rows], table.y[rows])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--tables", type=Path)
    asked.add_argument("--folds", type=int, default=3)
    asked.add_argument("--only")
    asked.add_argument("--out", type=Path, default=Path("holes"))
    options = asked.parse_args()
    torch.set_num_threads(1)
    first, better, settings = 0, 0, 0
    for table in map(some, tables(options.tables)):
        if options.only and table.name not in options.only.split(","):
            continue
        levels = None if table.visible is None else ("random-0",)
        plan = Plan(table, (2,), options.folds, occlusions=levels, holes=True)
        results = Results.open(options.out / f"{table.name}.json", plan.settings(), keep_old_results=True)
        with threadpool_limits(1):
            units = list(run(plan, results))
        summary, gaps = summarise(units), differences(units, OURS)
        print(f"{table.name}, {len(table.x)} rows of {table.x.shape[1]} cells, {len(set(plan.labels))} classes", flush=True)
        for model, cells in summary.items():
            print(f"    {model:22s}" + "".join(
                f"{'none':>24s}" if cell.reason else f"{cell.mean['log_score']:10.3f}±{cell.error['log_score']:.3f} ({100 * cell.mean['accuracy']:4.1f})"
                for cell in cells.values()), flush=True)
        for name in plan.occlusions:
            settings += 1
            rivals = {rival: gaps[rival][name] for rival in RIVALS}
            closest = min(rivals, key=lambda rival: rivals[rival].mean["log_score"])
            gap, error = rivals[closest].mean["log_score"], rivals[closest].error["log_score"]
            first += gap > 0
            better += all(gap > 0 or model == OURS for model, gap in ((m, g[name].mean["log_score"]) for m, g in gaps.items() if name in g))
            print(f"    {name}: {OURS} ahead of {closest} by {gap:+.3f}±{error:.3f}", flush=True)
    print(f"{OURS} has a better log score than {', '.join(RIVALS)} in {first} of {settings} settings, than every other model in {better}")


if __name__ == "__main__":
    main()
