"""scikit-learn's own checks of estimators."""

import numpy as np
import pytest

from sklearn.utils.estimator_checks import check_estimator

from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, LogisticRegression
from pyro_ar.elliptical import Gaussian

ONE_ROW = {"check_fit2d_1sample": "the covariance of one row is 0: refused, in words that scikit-learn does not list"}


@pytest.mark.parametrize(("estimator", "expected"), [
    (DiscriminantAnalysis(), ONE_ROW),
    (DiscriminantAnalysis(covariance="shared"), ONE_ROW),
    (GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}), ONE_ROW),
    (LogisticRegression(fill="mean"), {}),
], ids=["own", "shared", "generative", "logistic"])
def test_check_estimator(estimator, expected):
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
    assert len(results) > 50


def test_views_are_read_as_they_are():
    images = np.random.default_rng(0).random((12, 3, 2))
    model = DiscriminantAnalysis(shrinkage=0.5).fit(images[:, ::-1], np.arange(12) % 2)
    np.testing.assert_array_equal(model.predict_proba(images[:, ::-1]), model.predict_proba(images[:, ::-1].copy()))


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 2)])
def test_no_rows_are_refused_in_any_shape(shape):
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
        DiscriminantAnalysis().fit(np.zeros(shape), np.zeros(0))
