"""Rows with hidden cells from a file through the occlusion experiment."""

import math

from dataclasses import replace

import numpy as np
import pytest
import torch

from sklearn.datasets import load_iris

from pyro_ar import data
from pyro_ar.classify import GenerativeClassifier, MixtureDiscriminantAnalysis
from pyro_ar.cli import app as cli
from pyro_ar.experiments.occlusion import lineup
from pyro_ar.experiments.occlusion.bars import Binarised, KernelDensity, SupportVectors
from pyro_ar.experiments.occlusion.filled import MeanFilled
from pyro_ar.experiments.occlusion.inner import Tempered
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.run import run
from pyro_ar.experiments.store import Results
from pyro_ar.tables import FullyIndependent


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Iris on five levels with a fifth of its cells empty, as a file."""
    x, y = load_iris(return_X_y=True)
    levels = np.floor(4.99 * (x - x.min(0)) / (x.max(0) - x.min(0))).astype(int)
    draws = np.random.default_rng(0)
    cells = np.where(draws.random(levels.shape) < 0.2, draws.choice(["", "NA", "?"], levels.shape), levels.astype(str))
    path = tmp_path_factory.mktemp("tables") / "iris.csv"
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    path.write_text("\n".join(["a,b,c,d,kind", *(",".join([*row, name]) for row, name in zip(cells, names, strict=True))]))
    return path


def by_hand(x, y, train, test, seen, states, pseudocount):
    """Naive Bayes from counts of the visible cells, one by one: mean accuracy and mean -log p(true class)."""
    right, nats = [], []
    classes = sorted(set(y))
    for i, shown in zip(test, seen, strict=True):
        scores = []
        for c in classes:
            rows = [j for j in train if y[j] == c]
            score = math.log(len(rows) / len(train))
            for v in range(x.shape[1]):
                if shown[v] and not math.isnan(x[i, v]):
                    known = [x[j, v] for j in rows if not math.isnan(x[j, v])]
                    score += math.log((known.count(x[i, v]) + pseudocount) / (len(known) + states * pseudocount))
            scores.append(score)
        total = math.log(sum(map(math.exp, scores)))
        right.append(classes[int(np.argmax(scores))] == y[i])
        nats.append(total - scores[classes.index(y[i])])
    return np.mean(right), np.mean(nats)


def test_independent_cells_learn_from_what_is_visible(table, tmp_path):
    loaded = data.load(table, label="kind")
    assert 90 < int(loaded.x.isnan().sum()) < 150
    plan = Plan(loaded, (1,), 2, ("independent",), ("random-0", "random-50"))
    units = list(run(plan, Results.open(tmp_path / "results.json", plan.settings())))
    x, y = loaded.x.double().numpy(), plan.labels
    for unit in units:
        train, test = plan.split(1, unit["fold"])
        for name in plan.occlusions:
            seen = plan.pattern(name, 1, unit["fold"], len(test)).expand(len(test), 4).numpy()
            accuracy, nats = by_hand(x, y, train, test, seen, 5, 1 / 5)
            assert unit["cells"][name]["accuracy"] == pytest.approx(accuracy)
            assert unit["cells"][name]["log_score"] == pytest.approx(nats, abs=1e-4)


def test_every_model_of_the_line_up_learns_or_is_left_out(table):
    """Nothing is left to an error in the middle of a run."""
    loaded = data.load(table, label="kind")
    loaded = replace(loaded, x=loaded.x[::4], y=loaded.y[::4])
    for name in lineup.MODELS:
        if reason := lineup.unfit(name, loaded):
            assert "complete rows only" in reason
            continue
        classifier = lineup.fresh(name, loaded)
        if name in lineup.TORN:
            continue  # test_holes.py
        if name in ("pattern net", "OrderlessNADE", "OrderlessNADE (4 orders)"):
            if name == "pattern net":
                assert isinstance(classifier, MeanFilled)
                classifier.classifier.set_params(steps=3)
            else:
                classifier.fit_options = classifier.fit_options | {"epochs": 1}
        if "MDA" in name:
            getattr(classifier, "classifier", classifier).set_params(num_components=1, em_steps=2)
        classifier.fit(loaded.x, loaded.y.numpy(), visible=loaded.visible)
        before = classifier.predict_log_proba(loaded.x[:9], loaded.visible[:9])
        assert np.isfinite(before).all()
        junk = torch.where(loaded.visible, loaded.x, 3.0)[:9]
        assert np.array_equal(before, classifier.predict_log_proba(junk, loaded.visible[:9])), name


def test_models_that_want_complete_rows_are_named(table):
    loaded = data.load(table, label="kind")
    out = [name for name in lineup.MODELS if lineup.unfit(name, loaded)]
    assert out == [name for name in lineup.MODELS if name in lineup.COMPLETE]
    assert not set(out) & set(lineup.TORN)
    whole = data.load(table, label="kind")
    whole = type(whole)(whole.name, whole.x.nan_to_num(0), whole.y, whole.num_states)
    assert not any("complete rows" in lineup.unfit(name, whole) for name in lineup.MODELS)
    assert not isinstance(lineup.fresh("kernel density", whole), MeanFilled)
    with pytest.raises(ValueError, match=r"'NADE' does not fit iris\.csv: it learns from complete rows only"):
        Plan(loaded, models=("NADE",))


def test_means_fill_where_a_rival_wants_complete_rows():
    x = np.array([[0.0, 1.0], [np.nan, 3.0], [4.0, np.nan], [5.0, 5.0]])
    filled = np.array([[0.0, 1.0], [3.0, 3.0], [4.0, 3.0], [5.0, 5.0]])
    y, seen = np.array([0, 0, 1, 1]), ~np.isnan(x)
    for rival in (KernelDensity(bandwidth=2.0), SupportVectors(C=1.0)):
        mine = MeanFilled(rival).fit(x, y, visible=seen)
        other = type(rival)(**rival.get_params()).fit(filled, y)
        assert np.array_equal(mine.predict_log_proba(x, seen), other.predict_log_proba(x, seen))
        assert mine.num_parameters == other.num_parameters
        assert mine.chosen_ == getattr(other, "chosen_", {})


def test_bits_and_temperatures_learn_from_what_is_visible():
    torch.manual_seed(0)
    x, y = torch.randint(0, 4, (32, 3)).double(), np.arange(32) % 2
    x[:, 0] = torch.as_tensor(y) * 3
    seen = torch.rand(32, 3) < 0.7
    bits = Binarised(GenerativeClassifier(FullyIndependent, fit_options={"num_states": 2}), 2).fit(x, y, seen)
    alone = GenerativeClassifier(FullyIndependent, fit_options={"num_states": 2}).fit((x >= 2).double(), y, seen)
    assert torch.equal(bits.classifier_.joint_.joints.tensors["logits"], alone.joint_.joints.tensors["logits"])
    junk = torch.where(seen, x, 99.0)
    once, again = (Tempered(MixtureDiscriminantAnalysis(1, em_steps=1)).fit(rows, y, seen) for rows in (x, junk))
    assert once.chosen_ == again.chosen_
    assert np.array_equal(once.predict_log_proba(x, seen), again.predict_log_proba(junk, seen))


def test_the_command_says_what_is_hidden(table, tmp_path, capsys):
    threads = torch.get_num_threads()
    arguments = ["occlusion", "--data", str(table), "--label", "kind", "--folds", "2", "--seeds", "1", "--models", "independent,MDA,logistic (mean)",
                 "--occlusions", "random-0,random-50", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    torch.set_num_threads(threads)
    said = " ".join(capsys.readouterr().out.split())
    assert "empty cells are hidden cells, in 4 columns: a (" in said
    assert "words became 0, 1, ... in alphabetical order: kind (setosa, versicolor, virginica)" in said
    assert "none (" not in said
