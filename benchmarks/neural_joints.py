"""Does a neural joint beat the mixture of Student-t? Digits with hidden pixels: the tables of docs/neural_joints.md.

    python benchmarks/neural_joints.py [--quick] [--shapes] [--seeds 1 2] [--folds 0 1 2 3 4]
    PYRO_AR_DATA=... python benchmarks/neural_joints.py --letters [--quick]

Rows, splits and hidden pixels are those of `pyro-ar occlusion`. For each split: `MixtureDiscriminantAnalysis`, the same with a temperature learnt on a fifth of
the training rows, `MixtureChainClassifier` without a net (steps=0) and with it, and `CorrectedClassifier`. Prints means over the splits, and differences
from the first model
with their standard errors over the splits. One split takes about four minutes of one core; `--quick` does one, with few components. `--shapes` hides
halves, centre, border and stripes too.
MNIST is a matter of `pyro-ar occlusion --data mnist --models "MDA,pattern net,MDA + pattern net"`. `--letters` asks the same of 16x8 black and white
letters (uci8/ocr_letters, 32,152 training rows, 26 classes), where rows are plenty:
trees, mixtures, `OrderlessNADE` and `CorrectedClassifier` on 1000 test rows. About half an hour of one core.
"""

import argparse
import time

import numpy as np
import torch

from sklearn.model_selection import train_test_split

from pyro_ar import ChowLiuTree, GenerativeClassifier, MixtureDiscriminantAnalysis, OrderlessNADE, OverOrders
from pyro_ar.classify import CorrectedClassifier, MixtureChainClassifier, PatternNet, TemperatureScaled
from pyro_ar.data import digits, load
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import resampled_error, scores
from pyro_ar.visible import random

LEVELS = ("random-0", "random-25", "random-50", "random-75", "random-90")
SHAPES = ("left", "right", "top", "bottom", "centre", "border", "stripes")


def tempered(mixture, whole, x, y):
    """`whole`, with the temperature that suits a mixture fitted to four fifths of the rows."""
    a, b = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
    hidden = np.resize([0, 16, 32, 48, 58], len(b))
    cells = np.random.default_rng(0).random((len(b), 64)).argsort(1).argsort(1)
    scaled = TemperatureScaled(mixture.fit(x[a], y[a])).fit(x[b], y[b], cells >= hidden[:, None])
    scaled.classifier = whole
    return scaled


def one_split(plan, seed, fold, components, steps):
    train, test = plan.split(seed, fold)
    x, y = plan.data.x.double(), plan.labels

    def mixture():
        return MixtureDiscriminantAnalysis(components, image_shape=(8, 8))

    first = mixture().fit(x[train], y[train])
    models = {
        "MixtureDiscriminantAnalysis": lambda: first,
        "  with a temperature": lambda: tempered(mixture(), first, x[train], y[train]),
        "  priced on levels (steps=0)": lambda: MixtureChainClassifier(mixture(), steps=0, random_state=fold).fit(x[train], y[train]),
        "MixtureChainClassifier": lambda: MixtureChainClassifier(mixture(), steps=steps, random_state=fold).fit(x[train], y[train]),
        "CorrectedClassifier": lambda: CorrectedClassifier(mixture(), PatternNet(members=1), image_shape=(8, 8)).fit(x[train], y[train]),
    }
    found = {}
    for name, make in models.items():
        start = time.perf_counter()
        model = make()
        cells = [scores(model.predict_log_proba(x[test], plan.pattern(level, seed, fold, len(test))), y[test]) for level in plan.occlusions]
        found[name] = np.array([[100 * c["accuracy"], c["log_score"], 100 * (c["calibration"] - c["calibration_floor"])] for c in cells])
        print(f"seed {seed} fold {fold} {name:30s}", " ".join(f"{a:5.2f}/{s:.3f}" for a, s, _ in found[name]),
              f"{time.perf_counter() - start:.0f} s", flush=True)
    return found


def show(splits):
    first = next(iter(splits[0]))
    for m, (metric, digits_) in enumerate((("accuracy %", 2), ("log score", 3), ("calibration error above its floor, %", 1))):
        print(f"\n{metric} (mean; difference from {first} ± corrected standard error over {len(splits)} splits)")
        for name in splits[0]:
            values = np.stack([s[name][:, m] for s in splits])
            gap = values - np.stack([s[first][:, m] for s in splits])
            error = resampled_error(gap, 1 / 4)  # five folds
            print(f"{name:30s}", "  ".join(f"{v:.{digits_}f} ({d:+.{digits_}f}±{e:.{digits_}f})"
                                           for v, d, e in zip(values.mean(0), gap.mean(0), error, strict=True)))


def letters(quick, only=None):
    train, test = load("uci8/ocr_letters", "train"), load("uci8/ocr_letters", "test").head(1000)
    rows = 4000 if quick else len(train.x)
    net = OverOrders(OrderlessNADE(128, 500, context_dim=26), 2)
    options = {"epochs": 2 if quick else 80, "batch_size": 256, "lr": 4e-3, "progress": False, "accelerator": "cpu"}
    shape = (16, 8)
    small = MixtureDiscriminantAnalysis(5, rank=0, image_shape=shape)
    pattern_net = PatternNet(128, members=1, steps=200 if quick else 6000, batch_size=128, weight_decay=0.05, ranks=False, image_shape=shape)
    models = {
        "Chow-Liu trees": GenerativeClassifier(ChowLiuTree, fit_options={"num_states": 2, "pseudocount": 1.0}),
        "MixtureDiscriminantAnalysis(5)": small,
        "MixtureDiscriminantAnalysis(rank=0)": MixtureDiscriminantAnalysis(rank=0, image_shape=shape),
        "MixtureDiscriminantAnalysis()": MixtureDiscriminantAnalysis(image_shape=shape),
        "OrderlessNADE, 2 orders": GenerativeClassifier(net, fit_options=options),
        "PatternNet": pattern_net,
        "CorrectedClassifier(.(5), .)": CorrectedClassifier(small, pattern_net, image_shape=shape),
    }
    if quick:
        del models["MixtureDiscriminantAnalysis(rank=0)"]
    for name in only or models:
        model = models[name]
        start = time.perf_counter()
        model.fit(train.x[:rows], train.y[:rows])
        fitted = time.perf_counter()
        cells = []
        for share in (0.0, 0.25, 0.5, 0.75, 0.9):
            visible = random(128, share, len(test.x), generator=torch.Generator().manual_seed(3))
            log_p = np.concatenate([model.predict_log_proba(test.x[i:i + 50], visible[i:i + 50]) for i in range(0, len(test.x), 50)])
            cells.append(scores(log_p, test.y.numpy()))
        print(f"{name:36s}", " ".join(f"{100 * c['accuracy']:.1f}" for c in cells), "|", " ".join(f"{c['log_score']:.3f}" for c in cells),
              f"| fit {fitted - start:.0f} s, {time.perf_counter() - fitted:.0f} s", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--shapes", action="store_true")
    options.add_argument("--letters", action="store_true")
    options.add_argument("--only", nargs="+", help="models of the letters, by name")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.letters:
        letters(chosen.quick, chosen.only)
        return
    plan = Plan(digits(), occlusions=LEVELS + SHAPES if chosen.shapes else LEVELS, models=("Gaussian",))
    components, steps = ((3,), 100) if chosen.quick else ((4, 6, 8, 10, 12), 600)
    keys = [(1, 0)] if chosen.quick else [(seed, fold) for seed in chosen.seeds for fold in chosen.folds]
    show([one_split(plan, seed, fold, components, steps) for seed, fold in keys])


if __name__ == "__main__":
    main()
