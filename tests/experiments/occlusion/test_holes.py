"""Tables with holes in training and at prediction: which cells are hidden, that each occlusion has its own fit, and the rivals of practitioners."""

import numpy as np
import pytest
import torch

from sklearn.datasets import load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_ar.cli import app as cli
from pyro_ar.data import Dataset
from pyro_ar.enumeration import up_to
from pyro_ar.experiments.occlusion import lineup, practice, report
from pyro_ar.experiments.occlusion.filled import MeanFilled
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.practice import ReadsHoles
from pyro_ar.experiments.occlusion.run import run
from pyro_ar.experiments.store import Results
from tests.experiments.occlusion.test_hidden_training import by_hand

RIVALS = (practice.boosting, practice.forest, practice.iterative_logistic)


def levels_of_iris(empty=False):
    x, y = load_iris(return_X_y=True)
    levels = torch.from_numpy(np.floor(4.99 * (x - x.min(0)) / (x.max(0) - x.min(0))))
    if empty:
        levels[::7, 1] = torch.nan
    return Dataset("levels", levels, torch.from_numpy(y).long(), 5)


@pytest.fixture(scope="module")
def torn():
    X, y = load_wine(return_X_y=True)
    X, y = X[::2, :4], y[::2]
    return np.where(np.random.default_rng(1).random(X.shape) < 0.3, np.nan, X), y


def test_training_rows_hide_as_much_and_other_cells():
    plan = Plan(levels_of_iris(), (1, 2), 2, ("independent", "MDA"), ("random-0", "random-50"), holes=True)
    train, test = plan.split(1, 0)
    seen = plan.training_pattern("random-50", 1, train)
    assert seen.shape == (len(train), 4)
    assert (seen.sum(1) == 2).all()
    assert plan.training_pattern("random-0", 1, train).all()
    assert not torch.equal(seen, plan.training_pattern("random-50", 2, train))
    assert not torch.equal(seen[:len(test)], plan.pattern("random-50", 1, 0, len(test)))
    other = plan.split(1, 1)[0]
    everything = plan.training_pattern("random-50", 1, np.arange(150))
    assert torch.equal(everything[train], seen)  # a row hides the same cells in every fold
    assert torch.equal(everything[other], plan.training_pattern("random-50", 1, other))
    assert Plan(levels_of_iris(), (1,), 2, ("MDA",), ("random-50",)).training_pattern("random-50", 1, train) is None
    own = Plan(levels_of_iris(empty=True), (1,), 2, ("MDA",), ("random-0", "random-50"), holes=True)
    assert torch.equal(own.training_pattern("random-0", 1, np.arange(150)), own.data.visible)
    assert torch.equal(own.training_pattern("random-50", 1, np.arange(150)), own.data.visible & everything)


def test_each_occlusion_is_learnt_from_its_own_holes(tmp_path):
    """Naive Bayes by counting the visible cells of training rows."""
    plan = Plan(levels_of_iris(empty=True), (1,), 2, ("independent",), ("random-0", "random-50"), holes=True)
    results = Results.open(tmp_path / "results.json", plan.settings())
    units = list(run(plan, results))
    x, y = plan.data.x.double().numpy(), plan.labels
    for unit in units:
        train, test = plan.split(1, unit["fold"])
        for name in plan.occlusions:
            rows = x.copy()
            rows[train] = np.where(plan.training_pattern(name, 1, train).numpy(), x[train], np.nan)
            seen = plan.pattern(name, 1, unit["fold"], len(test)).expand(len(test), 4).numpy()
            accuracy, nats = by_hand(rows, y, train, test, seen, 5, 1 / 5)
            assert unit["cells"][name]["accuracy"] == pytest.approx(accuracy)
            assert unit["cells"][name]["log_score"] == pytest.approx(nats, abs=1e-4)
    whole = Plan(levels_of_iris(empty=True), (1,), 2, ("independent",), ("random-0", "random-50"))
    with pytest.raises(ValueError, match="other settings"):
        Results.open(results.path, whole.settings())


def test_the_usual_line_up_of_tables_with_holes():
    data = levels_of_iris()
    plan = Plan(data, holes=True)
    assert plan.models == lineup.TABLES_WITH_HOLES
    assert [o.removeprefix("random-") for o in plan.occlusions] == ["0", "30", "60"]
    with pytest.raises(ValueError, match=r"'boosting' does not fit levels: it learns from holes such as it will meet.*--holes"):
        Plan(data, models=("boosting",))
    with pytest.raises(ValueError, match="it learns from complete rows only"):
        Plan(data, models=("NADE",), holes=True)
    assert set(lineup.fitting(data, holes=True)) >= set(lineup.TORN)
    assert not set(lineup.fitting(data)) & set(lineup.TORN)
    assert isinstance(plan.fresh("kernel density"), MeanFilled)
    assert not isinstance(Plan(data).fresh("kernel density"), MeanFilled)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_settings_are_chosen_by_log_score_on_inner_folds(torn):
    """By hand with scikit-learn alone; the temperature by a grid over the same held-out answers."""
    X, y = torn
    grid = (0.01, 0.1, 1.0, 10.0)
    chain = make_pipeline(StandardScaler(), IterativeImputer(max_iter=3, random_state=0), LogisticRegression(max_iter=1000))
    mine = ReadsHoles(chain, {"C": grid}).fit(X, y)
    frequencies = np.bincount(y) / len(y)
    said = {}
    for C in grid:
        said[C] = np.empty((len(y), 3))
        for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(X, y):
            p = chain.set_params(logisticregression__C=C).fit(X[train], y[train]).predict_proba(X[test])
            said[C][test] = (len(train) * p + frequencies) / (len(train) + 1)
    losses = {C: -np.log(p[np.arange(len(y)), y]).mean() for C, p in said.items()}
    assert mine.chosen_["C"] == min(losses, key=losses.get)
    log_p = np.log(said[mine.chosen_["C"]])

    def loss(T):
        z = log_p / T
        return -(z[np.arange(len(y)), y] - np.log(np.exp(z).sum(1))).sum() + np.log(T) + 1 / T

    temperatures = np.geomspace(0.1, 10, 2001)
    assert mine.chosen_["temperature"] == pytest.approx(temperatures[np.argmin([loss(T) for T in temperatures])], rel=3e-3)
    p = chain.set_params(logisticregression__C=mine.chosen_["C"]).fit(X, y).predict_proba(X)
    z = np.log((len(y) * p + frequencies) / (len(y) + 1)) / mine.chosen_["temperature"]
    np.testing.assert_allclose(mine.predict_log_proba(X), z - np.log(np.exp(z).sum(1, keepdims=True)), atol=1e-6)


@pytest.mark.parametrize("make", RIVALS)
def test_rivals_read_holes_and_nothing_under_them(make, torn, monkeypatch):
    X, y = torn
    rival = make()
    last = rival.classifier[-1] if hasattr(rival.classifier, "steps") else rival.classifier
    last.set_params(**{name: 10 for name in ("n_estimators", "max_iter") if name in last.get_params() and not isinstance(last, LogisticRegression)})
    rival.set_params(settings={name: values[:2] for name, values in rival.settings.items()})
    seen = ~np.isnan(X)
    fitted = rival.fit(X, np.array(["a", "b", "c"])[y])
    again = type(rival)(rival.classifier, rival.settings).fit(np.where(seen, X, 99.0), np.array(["a", "b", "c"])[y], seen)
    got = fitted.predict_log_proba(X[:9])
    np.testing.assert_array_equal(got, again.predict_log_proba(np.where(seen, X, -7.0)[:9], seen[:9]))
    np.testing.assert_allclose(np.exp(got).sum(1), 1, atol=1e-9)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(fitted.predict_log_proba(X[:1])[0], got[0])  # a row alone is the row in a batch
    assert fitted.num_parameters > 0
    assert set(fitted.chosen_) == {*rival.settings, "temperature"}
    assert fitted.score(X, np.array(["a", "b", "c"])[y]) > 0.6


def test_what_the_rivals_are():
    assert isinstance(practice.boosting().classifier, HistGradientBoostingClassifier)
    fill, trees = (step for _, step in practice.forest().classifier.steps)
    assert isinstance(fill, SimpleImputer)
    assert fill.add_indicator
    assert isinstance(trees, RandomForestClassifier)
    scaler, chained, _ = (step for _, step in practice.iterative_logistic().classifier.steps)
    assert isinstance(scaler, StandardScaler)
    assert isinstance(chained, IterativeImputer)


def test_a_class_of_one_row_is_refused(torn):
    X, _ = torn
    with pytest.raises(ValueError, match="inner folds want 2 rows or more of every class"):
        practice.boosting().fit(X, [0] * (len(X) - 1) + [1])


def test_the_command(tmp_path, capsys):
    x, y = load_iris(return_X_y=True)
    path = tmp_path / "iris.csv"
    path.write_text("\n".join(["a,b,c,d,kind", *(",".join(map(str, [*row, label])) for row, label in zip(x[::3].tolist(), y[::3], strict=True))]))
    threads = torch.get_num_threads()
    arguments = ["occlusion", "--data", str(path), "--label", "kind", "--holes", "--folds", "2", "--seeds", "1", "--models", "Gaussian,kernel density",
                 "--occlusions", "random-0,random-30", "--workers", "1", "--out", str(tmp_path / "out"), "--full"]
    assert cli.main(arguments) == 0
    torch.set_num_threads(threads)
    said = " ".join(capsys.readouterr().out.split())
    assert "as many cells of the training rows are hidden; every occlusion has fits of its own" in said
    assert "kernel density: hidden training cells filled with the mean of their column" in said
    assert "2 occlusions" in said
    assert "none (" not in said


def test_estimates_stand_under_every_pattern_and_are_marked(tmp_path, monkeypatch):
    """A fixed-order family has no exact answer where cells are hidden at random; with estimates it has one, with its error, and a ~ before it."""
    monkeypatch.setattr(lineup, "PARTICLES", 8)
    monkeypatch.setattr(lineup, "MAX_STEPS", 3)
    data = levels_of_iris()
    data = Dataset("few", data.x[::6], data.y[::6], 5)
    plan = Plan(data, (1,), 2, ("FVSBN", "FVSBN (estimates)"), ("random-0", "random-50"))
    with up_to(1):
        units = list(run(plan, Results.open(tmp_path / "results.json", plan.settings())))
    exact, estimated = units[:2]
    assert "no exact answer" in exact["cells"]["random-50"]["reason"]
    assert "estimate_error" not in estimated["cells"]["random-0"]
    cell = estimated["cells"]["random-50"]
    assert 0 < cell["estimate_error"] < 0.5
    assert 0 <= cell["estimate_trusted"] <= 1
    report.write(plan, units, tmp_path)
    text = (tmp_path / "report.txt").read_text()
    assert "~: an estimate by sequential Monte Carlo; the standard error of the probability of the true class is 0." in text
    row = next(line for line in text.splitlines() if line.startswith("FVSBN (estimates)"))
    assert row.count("~") == 1
    assert "estimate_error" in (tmp_path / "results.csv").read_text().splitlines()[0]
