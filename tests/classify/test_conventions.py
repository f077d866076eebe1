"""scikit-learn's own checks of estimators, of every classifier of real values; exceptions by name."""

import numpy as np
import pytest

from sklearn.utils.estimator_checks import check_estimator

from pyro_ar.classify import (
    CorrectedClassifier,
    DiscriminantAnalysis,
    GenerativeClassifier,
    LogisticRegression,
    MixtureDiscriminantAnalysis,
    OpinionPool,
    PatternNet,
    SemiSupervised,
)
from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT

NET = PatternNet(hidden=32, members=1, layers=1, steps=60, batch_size=32, dropout=0.0)
UNKNOWN = {"check_classifiers_classes": "-1 says that a label is not known, as in scikit-learn's own semi-supervised classifiers; the check takes it for one"}
ONE_ROW = {"check_sample_weight_equivalence_on_dense_data": "a class of the check has one different row, which has no covariance: refused, and said"}
COMPLETE = {"check_estimators_pickle": "fits a row with NaN where the tag allows NaN: these answer incomplete rows, and train on complete ones; "
            "the tag knows one word for both"}
IN_FOLDS = {"check_fit2d_1feature": "a class of the check has one row in a fold, which has no covariance: refused, and said"}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("pyro_ar.classify.around.corrected.MOST_STEPS", 20)


@pytest.mark.parametrize(("estimator", "expected"), [
    (DiscriminantAnalysis(), ONE_ROW),
    (LogisticRegression(fill="mean"), {}),
    (MixtureDiscriminantAnalysis(num_components=(1, 2)), {}),
    (SemiSupervised(DiscriminantAnalysis()), UNKNOWN),
    pytest.param(DiscriminantAnalysis(covariance="shared"), {}, marks=pytest.mark.slow),
    pytest.param(GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}), ONE_ROW, marks=pytest.mark.slow),
    pytest.param(GenerativeClassifier(StudentT, fit_options={"shrinkage": 0.1}), ONE_ROW, marks=pytest.mark.slow),
    pytest.param(GenerativeClassifier(LowRankGaussian, fit_options={"shrinkage": 0.1, "rank": 1}), ONE_ROW, marks=pytest.mark.slow),
    pytest.param(GenerativeClassifier(LowRankStudentT, fit_options={"shrinkage": 0.1, "rank": 1}), ONE_ROW, marks=pytest.mark.slow),
    pytest.param(OpinionPool([DiscriminantAnalysis(0.5, "shared"), LogisticRegression("mean")], folds=2), {}, marks=pytest.mark.slow),
    pytest.param(NET, COMPLETE, marks=pytest.mark.slow),
    pytest.param(CorrectedClassifier(DiscriminantAnalysis(shrinkage=0.1), NET, folds=2), COMPLETE | IN_FOLDS, marks=pytest.mark.slow),
], ids=["own", "logistic", "mixtures", "semi-supervised", "shared", "gaussian", "student", "low rank", "low-rank student", "pool", "net", "corrected"])
def test_check_estimator(estimator, expected):
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
    assert len(results) > 50


def test_a_class_of_one_row_is_named():
    X = np.random.default_rng(0).normal(size=(9, 2))
    for model in (DiscriminantAnalysis(), SemiSupervised(DiscriminantAnalysis())):
        with pytest.raises(ValueError, match=r"of class 'rare' \(1 row\)"):
            model.fit(X, ["rare", *8 * ["common"]])


def test_views_are_read_as_they_are():
    images = np.random.default_rng(0).random((12, 3, 2))
    model = DiscriminantAnalysis(shrinkage=0.5).fit(images[:, ::-1], np.arange(12) % 2)
    np.testing.assert_array_equal(model.predict_proba(images[:, ::-1]), model.predict_proba(images[:, ::-1].copy()))


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 2)])
def test_no_rows_are_refused_in_any_shape(shape):
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
        DiscriminantAnalysis().fit(np.zeros(shape), np.zeros(0))
