"""Latent trees as class conditionals: the tables of docs/latent_trees.md, validation rows with random cells hidden.

    PYRO_AR_DATA=shared/data OMP_NUM_THREADS=1 python benchmarks/latent_tree_classifier.py [--letters] [--digits] [--only NAME ...] [--rows N]

`--letters`: ocr_letters, 26 classes, 128 binary pixels, 2,500 validation rows. `--digits`: 8x8 digits of 17 levels, an inner split of the training part of the
first split. One line for each setting: accuracy in %, log score, and CPU seconds of one thread to fit and to answer.
"""

import argparse
import time

import numpy as np
import torch

from sklearn.model_selection import train_test_split

from pyro_ar import GenerativeClassifier, LatentTree, MixtureDiscriminantAnalysis, data, outputs
from pyro_ar.classify.images import shifted
from pyro_ar.experiments.occlusion.run import Plan
from pyro_ar.visible import random

SHARES = {"letters": (0.0, 0.25, 0.5, 0.75, 0.9), "digits": (0.0, 0.5, 0.75, 0.9)}


def trees(**options):
    return GenerativeClassifier(LatentTree, fit_options={"num_hidden": 16, "batch_size": 200, "generator": torch.Generator().manual_seed(0), **options})


class Moved:
    """Latent trees that learn from each letter, 16x8 pixels, and from the four that lie a pixel beside it, which count for `weight` rows each."""

    def __init__(self, weight, **options):
        self.weight, self.trees = weight, trees(**options)

    def fit(self, x, y):
        copies = torch.cat([x, *shifted(x, (16, 8))])
        return self.trees.fit(copies, np.tile(y, 5), sample_weight=np.repeat([1.0, *[self.weight] * 4], len(x)))


LETTERS = {
    "nothing shared": lambda: trees(num_states=2, smoothing=0.3, epochs=20),
    "shared": lambda: trees(num_states=2, shared=10.0, epochs=20),
    "shared, K = 32": lambda: trees(num_states=2, num_hidden=32, shared=30.0, epochs=20),
    "shared, finish": lambda: trees(num_states=2, shared=10.0, epochs=15, finish=3),
    "moved, shared": lambda: Moved(0.3, num_states=2, shared=10.0, epochs=8),
    "moved, shared, finish": lambda: Moved(0.3, num_states=2, shared=10.0, epochs=8, finish=1),
}
SMALL = {"smoothing": 1.0, "epochs": 25, "num_hidden": 8}
DIGITS = {
    "smooth": lambda: trees(**SMALL, output=outputs.DiscretisedLogisticMixture(17, 2)),
    "table": lambda: trees(**SMALL, num_states=17),
    "table, shared": lambda: trees(**SMALL, num_states=17, shared=10.0),
    "normal": lambda: trees(**SMALL | {"num_hidden": 16}, output=outputs.Normal(min_scale=1.0)),
    "normal, shared": lambda: trees(**SMALL, output=outputs.Normal(), shared=5.0),
    "black and white": lambda: trees(**SMALL, num_states=2),
    "mixture": MixtureDiscriminantAnalysis,
}


def letters(rows):
    train, valid = (data.load("uci8/ocr_letters", split) for split in ("train", "valid"))
    return train.x.float()[:rows], train.y.numpy()[:rows], valid.x.float()[:2500], valid.y.numpy()[:2500]


def digits(rows):
    found = data.digits()
    train, _ = Plan(found, occlusions=("random-0",), models=("Gaussian",)).split(0, 0)
    inner, judged = train_test_split(train, test_size=0.2, stratify=found.y[train], random_state=0)
    return found.x[inner][:rows], found.y[inner].numpy()[:rows], found.x[judged], found.y[judged].numpy()


def line(name, model, rows, shares):
    x, y, judged, truth = rows
    if name == "black and white":
        x, judged = (x > x.max() / 2).float(), (judged > x.max() / 2).float()
    start = time.process_time()
    model = model.fit(x, y)
    fitted = time.process_time()
    found = []
    for share in shares:
        seen = random(x.shape[1:], share, len(judged), generator=torch.Generator().manual_seed(3))
        log_p = model.predict_log_proba(judged, seen)
        at = np.searchsorted(model.classes_, truth)
        found.append(f"{100 * (log_p.argmax(1) == at).mean():5.1f} {-log_p[np.arange(len(at)), at].mean():5.2f}")
    print(f"{name:21s}", "  ".join(found), f"  fit {fitted - start:5.0f} s, answers {time.process_time() - fitted:4.0f} s", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--letters", action="store_true")
    arguments.add_argument("--digits", action="store_true")
    arguments.add_argument("--only", nargs="+")
    arguments.add_argument("--rows", type=int, help="training rows; all of them by default")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    for chosen, settings, read, shares in ((args.letters, LETTERS, letters, SHARES["letters"]), (args.digits, DIGITS, digits, SHARES["digits"])):
        if not chosen:
            continue
        rows = read(args.rows)
        for name in args.only or settings:
            line(name, settings[name](), rows, shares)


if __name__ == "__main__":
    main()
