"""Tables with holes: the classifier of the digits on tables, against gradient boosting, which takes NaN itself, and imputation.

Titanic has real, count, binary and categorical columns, a fifth of the ages and three quarters of the decks truly missing; breast cancer,
and wine with --wine, are complete. More cells are then hidden at random in the test rows. In "as they are" the training rows keep their own holes
alone; in "hidden alike" they have as many hidden as the test rows. Run: python examples/tabular.py [--steps 5] [--wine]
"""

import argparse
import csv
import gzip
import importlib.resources
import io
import time

import numpy as np
import torch

from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_ar as par

from pyro_ar.experiments.occlusion.scoring import resampled_error

HIDDEN = (0.0, 0.25, 0.5, 0.75)


def titanic():
    """1309 passengers, NaN where missing; scikit-learn carries the file for its own tests."""
    file = importlib.resources.files("sklearn") / "datasets/tests/data/openml/id_40945/data-v1-dl-16826755.arff.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    rows = csv.reader(io.StringIO(text[text.upper().index("@DATA") + 5:].strip()), skipinitialspace=True)
    x, y = [], []
    for pclass, survived, _, sex, age, siblings, parents, _, fare, cabin, port, *_ in rows:
        cells = [pclass, str(int(sex == "female")), age, siblings, parents, fare]
        cells += ["?" if port == "?" else str(int(port == letter)) for letter in "CQ"]  # the third port is neither
        cells.append("?" if cabin == "?" else str("ABCDEFGT".index(cabin[0])))  # decks from the top
        x.append([float("nan") if cell == "?" else float(cell) for cell in cells])
        y.append(int(survived))
    return np.array(x), np.array(y)


class Mixture:
    """`MixtureDiscriminantAnalysis` in the manner of the others: NaN is what is hidden."""

    def __init__(self, tempered=False):
        self.tempered = tempered

    def fit(self, x, y):
        rest = None
        if self.tempered:  # the temperature is learnt on rows that the mixtures have not seen
            x, rest, y, y_rest = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
        self.model = par.MixtureDiscriminantAnalysis((1, 2, 3)).fit(x, y, visible=~np.isnan(x))
        if rest is not None:
            self.model = par.classify.TemperatureScaled(self.model).fit(rest, y_rest, visible=~np.isnan(rest))
        return self

    def predict_proba(self, x):
        return self.model.predict_proba(x, visible=~np.isnan(x))


OURS, BOOSTING = "mixtures of Student-t", "gradient boosting"
WAYS = ("as they are", "hidden alike")
MODELS = {
    OURS: Mixture,
    # Smaller steps and trees than by default, which did worse on Titanic.
    BOOSTING: lambda: HistGradientBoostingClassifier(learning_rate=0.05, max_iter=60, max_leaf_nodes=8),
    "logistic, mean-filled": lambda: make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression()),
}


def with_holes(x, share, random):
    return np.where(random.random(x.shape) < share, np.nan, x)


def scores(x, y, models, folds):
    """By model and way of training: accuracy in % and log score in nats, `(2, folds, shares)`."""
    found = {(name, way): np.zeros((2, folds, len(HIDDEN))) for way in WAYS for name in models}
    for fold, (train, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y)):
        for name, make in models.items():
            as_they_are = make().fit(x[train], y[train])
            for h, share in enumerate(HIDDEN):
                random = np.random.default_rng([fold, h])  # the same holes for all models
                rows, alike = with_holes(x[test], share, random), with_holes(x[train], share, random)
                for way in WAYS:
                    model = make().fit(alike, y[train]) if way == "hidden alike" and share else as_they_are
                    p = model.predict_proba(rows)
                    found[name, way][:, fold, h] = 100 * (p.argmax(1) == y[test]).mean(), log_loss(y[test], p)
    return found


def line(values, digits):
    """Means over the folds, with standard errors that are corrected for the training rows that folds share."""
    error = resampled_error(values, 1 / (len(values) - 1))
    return "  ".join(f"{m:6.{digits}f} ±{e:5.{digits}f}" for m, e in zip(values.mean(0), error, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5, help="folds")
    parser.add_argument("--wine", action="store_true", help="a third table, of 178 rows")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    folds, tables = options.steps, {"breast cancer": load_breast_cancer(return_X_y=True)}
    if options.wine:
        tables["wine"] = load_wine(return_X_y=True)
    try:
        tables = {"titanic": titanic()} | tables
    except FileNotFoundError:
        print("This scikit-learn comes without its tests, and so without Titanic.")
    for title, (x, y) in tables.items():
        # Columns of few values make the mixtures too sure. A temperature needs rows to learn it from: wine has too few.
        models = MODELS | ({"mixtures, tempered": lambda: Mixture(tempered=True)} if title == "titanic" else {})
        start = time.perf_counter()
        found = scores(x, y, models, folds)
        print(f"\n{title}: {len(x)} rows, {x.shape[1]} columns, {np.isnan(x).mean():.0%} missing; {folds} folds, {time.perf_counter() - start:.0f} s")
        print(f"{'hidden besides, in the test rows':37}" + "".join(f"{f'{share:.0%}':>16}" for share in HIDDEN))
        for way in WAYS:
            for name in models:
                print(f"{name:22} {way:12}  {line(found[name, way][0], 1)}   % right")
            difference = found[OURS, way][0] - found[BOOSTING, way][0]
            print(f"{'the first minus boosting, paired':37}{line(difference, 1)}")
            for name in models:
                print(f"{name:22} {way:12}  {line(found[name, way][1], 3)}   nats lost per row")


if __name__ == "__main__":
    main()
