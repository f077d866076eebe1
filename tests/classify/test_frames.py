"""NaN is a hidden cell in every classifier, from arrays, tensors and data frames, through pipelines and searches."""

import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_ar as par

LEVELS = {"num_states": 4}
NETS = {"members": 1, "hidden": 8, "layers": 1, "steps": 5, "batch_size": 8}
CLASSIFIERS = {
    "own": lambda: par.DiscriminantAnalysis(),
    "shared": lambda: par.DiscriminantAnalysis(covariance="shared"),
    "pattern": lambda: par.DiscriminantAnalysis(pattern=par.FullyIndependent),
    "student": lambda: par.GenerativeClassifier(par.StudentT, fit_options={"shrinkage": 0.1}),
    "low rank": lambda: par.GenerativeClassifier(par.LowRankGaussian, fit_options={"rank": 1, "shrinkage": 0.1}),
    "chain": lambda: par.GenerativeClassifier(par.MarkovChain, fit_options=LEVELS),
    "trees": lambda: par.GenerativeClassifier(par.ChowLiuTree, fit_options=LEVELS),
    "mixtures": lambda: par.MixtureDiscriminantAnalysis((1, 2)),
    "logistic": lambda: par.LogisticRegression("mean"),
    "any order": lambda: any_order(),
    "semi-supervised": lambda: par.classify.SemiSupervised(par.DiscriminantAnalysis()),
}


def any_order():
    torch.manual_seed(0)
    family = par.AnyOrderTransformer(4, 4, 1, 2, par.outputs.Categorical(4), num_classes=2).double()
    return par.classify.AnyOrderClassifier(family, fit_options={"epochs": 1, "progress": False})


COMPLETE = {
    "net": lambda: par.classify.PatternNet(**NETS),
    "corrected": lambda: par.classify.CorrectedClassifier(par.DiscriminantAnalysis(), par.classify.PatternNet(**NETS), folds=2),
    "levels": lambda: par.classify.MixtureChainClassifier(par.MixtureDiscriminantAnalysis(1), num_levels=4, steps=2),
    "logistic, unfilled": lambda: par.LogisticRegression(),
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("pyro_ar.classify.around.corrected.MOST_STEPS", 3)


@pytest.fixture(scope="module")
def levels():
    """Rows on levels 0 to 3, labels, and which cells are seen; one row shows nothing, one shows all."""
    random = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 20)
    X = random.integers(0, 3, (40, 4)) + (y == "b")[:, None]
    visible = random.random(X.shape) < 0.7
    visible[[3, 5]] = [[False], [True]]
    return X.astype(float), y, visible


def torn_of(X, visible):
    """The same rows with NaN where hidden, in all the forms in which they come."""
    torn = np.where(visible, X, np.nan)
    whole = pd.DataFrame(torn, columns=list("pqrs"))
    mixed = whole.astype({"p": "Int64", "q": "Float64", "r": object})
    mixed["r"] = [None if math.isnan(v) else v for v in torn[:, 2]]
    missing = torn.astype(object)
    missing[np.isnan(torn)] = pd.NA
    return {"array": torn, "tensor": torch.tensor(torn), "frame": whole, "nullable": mixed, "objects": missing}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_nan_is_a_hidden_cell_in_fit_and_in_every_answer(name, levels):
    X, y, visible = levels
    told = CLASSIFIERS[name]().fit(X, y, visible)
    torn = torn_of(X, visible)["objects"]
    model = CLASSIFIERS[name]().fit(torn, y)
    wanted = told.predict_proba(X, visible)
    np.testing.assert_array_equal(model.predict_proba(torn), wanted)
    np.testing.assert_array_equal(model.predict(torn), told.predict(X, visible))
    np.testing.assert_array_equal(model.posterior(torn).logits, told.posterior(X, visible).logits)
    assert model.score(torn, y) == told.score(X, y, visible=visible)
    if hasattr(model, "log_joint"):
        np.testing.assert_array_equal(model.log_joint(torn), told.log_joint(X, visible))
    if hasattr(model, "score_samples"):
        np.testing.assert_array_equal(model.score_samples(torn), told.score_samples(X, visible))
    np.testing.assert_allclose(model.predict_proba(torn[7:8])[0], wanted[7], rtol=1e-9)


@pytest.mark.parametrize("form", ["array", "tensor", "frame", "nullable", "objects"])
def test_all_forms_are_read_as_the_same_rows(form, levels):
    X, y, visible = levels
    told = par.LogisticRegression("mean").fit(X, y, visible)
    torn, whole = (torn_of(X, v)[form] for v in (visible, np.ones_like(visible)))
    model = par.LogisticRegression("mean").fit(torn, y)
    np.testing.assert_array_equal(model.regression_.coef_, told.regression_.coef_)
    np.testing.assert_array_equal(model.predict_proba(torn), told.predict_proba(X, visible))
    np.testing.assert_array_equal(model.predict_proba(whole, pd.DataFrame(visible)), told.predict_proba(X, visible))
    np.testing.assert_array_equal(model.predict_proba(whole, torch.tensor(visible)), told.predict_proba(X, visible))


@pytest.mark.parametrize("name", COMPLETE)
def test_fits_that_want_complete_rows_say_so_and_answer_hidden_cells(name, levels):
    X, y, visible = levels
    torn = np.where(visible, X, np.nan)
    with pytest.raises(ValueError, match=r"complete training rows|how to fill hidden cells"):
        COMPLETE[name]().fit(torn, y)
    model = COMPLETE[name]().fit(X, y)
    if name == "logistic, unfilled":
        with pytest.raises(ValueError, match="how to fill hidden cells"):
            model.predict(torn)
        return
    wanted = model.predict_proba(X, visible)
    for form, rows in torn_of(X, visible).items():
        if not isinstance(rows, pd.DataFrame):  # it was fitted without names of columns
            np.testing.assert_array_equal(model.predict_proba(rows), wanted, form)
    if hasattr(model, "log_joint"):
        np.testing.assert_array_equal(model.log_joint(torn), model.log_joint(X, visible))


@pytest.mark.parametrize("name", [*CLASSIFIERS, *COMPLETE])
def test_all_say_that_they_read_nan_and_none_that_a_visible_cell_may_be_nan(name, levels):
    X, y, visible = levels
    model = (CLASSIFIERS | COMPLETE)[name]().fit(X, y)
    assert model.__sklearn_tags__().input_tags.allow_nan
    torn = np.where(visible, X, np.nan)
    for rows, pattern in ((torn, np.ones(4, bool)), (np.where(visible, X, np.inf), None), (np.where(visible, X, -np.inf), ~visible)):
        with pytest.raises(ValueError, match="finite where it is visible"):
            model.predict(rows, pattern)
        with pytest.raises(ValueError, match="finite where it is visible"):
            (CLASSIFIERS | COMPLETE)[name]().fit(rows, y, pattern)


def test_what_stands_beside_the_classifiers_reads_nan_too(levels):
    X, y, visible = levels
    torn = np.where(visible, X, np.nan)
    X, torn = X + 0.01, torn + 0.01
    model = par.DiscriminantAnalysis().fit(X - 0.02, y)
    np.testing.assert_array_equal(par.classify.information_gain(model, torn), par.classify.information_gain(model, X, visible))
    gain = par.classify.information_gain(model, X[:2])  # no NaN at all: nothing is seen yet
    np.testing.assert_array_equal(gain, par.classify.information_gain(model, X[:2], np.zeros(4, bool)))
    with pytest.raises(ValueError, match="so all of X must be finite"):
        par.classify.reveal(model, torn)
    plausible = par.classify.Plausibility(model).fit(X)
    np.testing.assert_array_equal(plausible.p_value(torn), plausible.p_value(X, visible))
    np.testing.assert_array_equal(plausible.log_prob(torn), model.score_samples(X, visible))
    with pytest.raises(ValueError, match="complete rows are wanted"):
        par.classify.Plausibility(model).fit(torn)
    found = par.classify.decide(model, torn, least_posterior=0.6, plausibility=plausible, least_p_value=0.1)
    for a, b in zip(found, par.classify.decide(model, X, visible, least_posterior=0.6, plausibility=plausible, least_p_value=0.1), strict=True):
        np.testing.assert_array_equal(a, b)
    scaled = par.classify.TemperatureScaled(model).fit(torn, y)
    assert scaled.temperature_ == par.classify.TemperatureScaled(model).fit(X, y, visible).temperature_
    np.testing.assert_array_equal(scaled.predict_proba(torn), scaled.predict_proba(X, visible))


def test_the_pyro_models_read_nan_too(levels):
    X, y, visible = levels
    for model in (par.DiscriminantAnalysis().fit(X, y), COMPLETE["corrected"]().fit(X, y)):
        scores = []
        for data in ((np.where(visible, X, np.nan),), (X, visible)):
            pyro.set_rng_seed(0)
            scores.append(pyro.poutine.trace(model.model).get_trace(*data).log_prob_sum())
        assert scores[0] == scores[1]


@pytest.fixture(scope="module")
def wine():
    frame = load_wine(as_frame=True)
    visible = np.random.default_rng(1).random(frame.data.shape) < 0.7
    return frame.data, frame.target, visible


def test_an_incomplete_wine_table_passes_through_cross_validation_as_told_by_visible(wine):
    X, y, visible = wine
    torn = X.mask(~visible)
    model = par.DiscriminantAnalysis(0.3, covariance="shared")
    found = cross_val_score(model, torn, y, cv=3)
    assert found.tolist() == told_by_hand(model, X, y, visible)
    assert np.mean(found) > 0.6


def told_by_hand(model, X, y, visible):
    X, y = X.to_numpy(), y.to_numpy()
    parts = StratifiedKFold(3).split(X, y)
    return [clone(model).fit(X[a], y[a], visible[a]).score(X[b], y[b], visible=visible[b]) for a, b in parts]


def test_an_incomplete_wine_table_passes_through_a_pipeline_in_a_search(wine):
    X, y, visible = wine
    torn = X.mask(~visible).astype({"proline": "Float64"})
    search = GridSearchCV(make_pipeline(StandardScaler(), par.DiscriminantAnalysis()), {"discriminantanalysis__shrinkage": [0.1, 0.5, 1.0]}, cv=3)
    search.fit(torn, y)
    assert search.best_score_ > 0.9
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    np.testing.assert_allclose(search.predict_proba(torn).sum(1), 1)


def test_names_of_columns_are_kept_and_checked(wine):
    X, y, visible = wine
    for torn in (X.mask(~visible), X.mask(~visible).astype("Float64")):
        model = par.DiscriminantAnalysis().fit(torn, y)
        assert model.feature_names_in_.tolist() == X.columns.tolist()
        assert model.n_features_in_ == 13
        with pytest.raises(ValueError, match="feature names"):
            model.predict(torn[X.columns[::-1]])
        with pytest.raises(ValueError, match="expecting 13 features"):
            par.DiscriminantAnalysis().fit(X.to_numpy(), y).predict(X.to_numpy()[:, :5])
    assert not hasattr(par.DiscriminantAnalysis().fit(X.to_numpy(), y), "feature_names_in_")
    with pytest.raises(ValueError, match="must be numbers"):
        par.DiscriminantAnalysis().fit(X.assign(ash="much"), y)
