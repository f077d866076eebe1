"""scikit-learn's own checks of estimators."""

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
