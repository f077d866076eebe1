"""What do unsupervised families know of the class? A linear classifier on their features, on PCA and on raw pixels: the table of docs/neural_joints.md.

    python benchmarks/representation.py [--data digits] [--seeds 0 1 2] [--epochs 40] [--families NADE MADE ...]
    PYRO_AR_DATA=... python benchmarks/representation.py --data mnist [--rows 10000]

Of each seed: rows to learn from and rows to test on (a random 1297 and 500 of the digits; of MNIST the first so many training rows in random order, and
the official test rows). Families learn the pixels without labels, the digits as 17 grey levels, MNIST black and white; then scikit-learn's logistic
regression learns the class from standardised features of 10, 50 or all labelled rows per class, its penalty chosen among nine by three folds of these rows.
PCA keeps 32 components. Prints the accuracy on test rows, mean and standard error over seeds, and pairs each with raw pixels.
"""

import argparse
import math
import time

import numpy as np
import torch

from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_ar as par

LABELS = (10, 50, None)
FAMILIES = {
    "NADE": lambda shape, output: par.NADE(shape, 200, output),
    "OrderlessNADE": lambda shape, output: par.OrderlessNADE(shape, 200, output),
    "OrderlessNADE, two layers": lambda shape, output: par.OrderlessNADE(shape, (200, 200), output, activation="relu"),
    "MADE": lambda shape, output: par.MADE(shape, (200, 200), output),
    "RecurrentAR": lambda shape, output: par.RecurrentAR(shape, 128, output),
    "CausalTransformer": lambda shape, output: par.CausalTransformer(shape, 48, 3, 4, output),
    "PixelCNN": lambda shape, output: par.PixelCNN(shape, 32, 3, output),
}


def rows_of(name, many, seed):
    """Pixels and labels to learn from and to test on, and the output that suits them."""
    order = np.random.default_rng(seed).permutation
    data = par.data.load(name)
    if name == "digits":
        places = order(len(data.x))
        train, test = places[:-500], places[-500:]
        return (data.x[train], data.y[train]), (data.x[test], data.y[test]), data.image_shape, par.outputs.DiscretisedLogisticMixture(17, 5)
    held = par.data.load(name, "test")
    train = order(min(many, len(data.x)))
    return ((data.x[train] > 127).float(), data.y[train]), ((held.x > 127).float(), held.y), data.image_shape, par.outputs.Bernoulli()


def features(make, epochs, seed, x, test, shape, output):
    torch.manual_seed(seed)
    family = make((1, *shape), output)
    x, test = (t.reshape(-1, 1, *shape) for t in (x, test))
    seen = par.fit(family, x, epochs=epochs, lr=5e-3, patience=8, seed=seed, progress=False, accelerator="cpu")
    family.eval()
    with torch.no_grad():
        return *(torch.cat([family.features(part) for part in t.split(500)]).numpy() for t in (x, test)), seen.best_nats


def few_of(y, per_class, seed):
    """Positions of so many rows of each class; None: all."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(y == c))[:per_class] for c in np.unique(y)])


def accuracy(train, y, test, true, per_class, seed):
    some = few_of(y, per_class, seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"logisticregression__C": 10.0 ** np.arange(-6, 3)}, cv=folds)
    return 100 * search.fit(train[some], y[some]).score(test, true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rows", type=int, default=10_000, help="training rows of other data than the digits")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {}
    about: dict[str, list[float]] = {}
    for seed in options.seeds:
        (x, y), (test, true), shape, output = rows_of(options.data, options.rows, seed)
        y, true = y.numpy(), true.numpy()
        pca = PCA(32, random_state=seed).fit(x)
        for name in ("raw pixels", "PCA", *options.families):
            start = time.perf_counter()
            if name in FAMILIES:
                a, b, nats = features(FAMILIES[name], options.epochs, seed, x, test, shape, output)
            else:
                a, b, nats = *(t.numpy() if name == "raw pixels" else pca.transform(t) for t in (x, test)), math.nan
            about.setdefault(name, []).append(nats)
            found.setdefault(name, []).append([accuracy(a, y, b, true, k, seed) for k in LABELS])
            print(f"seed {seed} {name:28} {a.shape[1]:5} features {nats:7.1f} nats  {found[name][-1]}  {time.perf_counter() - start:.0f} s", flush=True)
    raw = np.array(found["raw pixels"])
    print("\n| | held-out nats | " + " | ".join(f"{k or 'all'} per class, minus raw" for k in LABELS) + " |\n|---|---|---|---|---|")
    for name, each in found.items():
        each = np.array(each)
        cells = []
        for k in range(len(LABELS)):
            mean, apart = each[:, k].mean(), each[:, k] - raw[:, k]
            errors = [t.std(ddof=1) / len(t) ** 0.5 if len(t) > 1 else math.nan for t in (each[:, k], apart)]
            cells.append(f"{mean:.1f}±{errors[0]:.1f}" + ("" if name == "raw pixels" else f", {apart.mean():+.1f}±{errors[1]:.1f}"))
        nats = np.mean(about[name])
        print(f"| {name} | {'' if math.isnan(nats) else f'{nats:.1f}'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
