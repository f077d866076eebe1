"""A class with too few rows is named, whatever the classifier."""

import re

import numpy as np
import pytest

from pyro_ar import (
    DiscriminantAnalysis,
    FullyIndependent,
    GenerativeClassifier,
    LogisticRegression,
    MixtureDiscriminantAnalysis,
)
from pyro_ar.classify import CorrectedClassifier, MixtureChainClassifier, PatternNet, SemiSupervised
from pyro_ar.classify.rows_of_classes import require_rows
from pyro_ar.elliptical import Gaussian, LowRankGaussian, StudentT

ROWS = np.random.default_rng(0).integers(0, 4, (41, 3)).astype(float)
LABELS = np.array(20 * ["many"] + 20 * ["more"] + ["lonely"])
HIDDEN = np.random.default_rng(1).random((41, 3)) < 0.8
HIDDEN[-1] = True, False, True

WANTS = {
    "own covariance": (DiscriminantAnalysis(0.1), "positive definite.* of class 'lonely' [(]1 row[)]"),
    "Gaussian without shrinkage": (GenerativeClassifier(Gaussian), "positive definite.* of class 'lonely' [(]1 row[)]"),
    "Student-t": (GenerativeClassifier(StudentT, fit_options={"shrinkage": 0.1}), "positive definite.* of class 'lonely' [(]1 row[)]"),
    "low rank": (GenerativeClassifier(LowRankGaussian, fit_options={"rank": 1, "shrinkage": 0.1}), "cov_diag.* of class 'lonely' [(]1 row[)]"),
    "semi-supervised": (SemiSupervised(DiscriminantAnalysis(0.1)), "positive definite.* of class 'lonely' [(]1 row[)]"),
    "mixture without pooling": (MixtureDiscriminantAnalysis(2, pooling=0.0, shrinkage=0.0), "positive definite.* of class 'lonely' [(]1 row[)]"),
    "selected mixture": (MixtureDiscriminantAnalysis(2, select=True), "2 rows or more of every class; got 1 of 'lonely'"),
    "corrected": (CorrectedClassifier(folds=2), "2 folds want 2 rows or more of every class; got 1 of 'lonely'"),
    "chain": (MixtureChainClassifier(MixtureDiscriminantAnalysis(1), num_levels=4, steps=3), "2 rows or more of every class; got 1 of 'lonely'"),
}


def test_just_enough_rows_are_enough():
    require_rows(np.array(["a", "b", "a", "b"]), 2, "this wants")
    with pytest.raises(ValueError, match=r"this wants 3 rows or more of every class; got 2 of 'b'$"):
        require_rows(np.array(["a", "b", "a", "b", "a"]), 3, "this wants")


@pytest.mark.parametrize("name", WANTS)
def test_the_class_is_named(name):
    classifier, wanted = WANTS[name]
    with pytest.raises(ValueError, match=wanted) as caught:
        classifier.fit(ROWS, LABELS)
    assert not re.search("many|more'", str(caught.value))


@pytest.mark.parametrize(("classifier", "wanted"), [
    (DiscriminantAnalysis(0.1), "cell 1 hidden in all rows.* of class 'lonely' [(]1 row[)]"),
    (DiscriminantAnalysis(0.1, "shared"), "cell 1 hidden in all rows.* of class 'lonely' [(]1 row[)]"),
    (GenerativeClassifier(LowRankGaussian, fit_options={"rank": 1, "shrinkage": 0.1}), "cell 1 hidden in all rows.* of class 'lonely' [(]1 row[)]"),
    (MixtureDiscriminantAnalysis(2), "cell 1 hidden in all rows.* of class 'lonely' [(]1 row[)]"),
])
def test_the_class_is_named_where_cells_are_hidden(classifier, wanted):
    with pytest.raises(ValueError, match=wanted):
        classifier.fit(ROWS, LABELS, HIDDEN)


def test_classes_with_fewer_rows_than_cells_are_named():
    few = np.array(20 * ["many"] + 18 * ["more"] + 3 * ["few"])
    with pytest.raises(ValueError, match=r"of class 'few' \(3 rows\)"):
        DiscriminantAnalysis(0.0).fit(ROWS, few)
    with pytest.raises(ValueError, match=r"of class 'few' \(3 rows\)"):
        DiscriminantAnalysis(0.0).fit(ROWS, few, np.arange(123).reshape(41, 3) % 7 > 0)


@pytest.mark.parametrize("classifier", [
    DiscriminantAnalysis(0.1, "shared"), GenerativeClassifier(FullyIndependent, fit_options={"num_states": 4}), LogisticRegression(),
    MixtureDiscriminantAnalysis(2), PatternNet(hidden=4, members=1, steps=3),
])
def test_one_row_is_enough_for_the_rest(classifier):
    fitted = classifier.fit(ROWS, LABELS)
    np.testing.assert_allclose(fitted.predict_proba(ROWS).sum(1), 1, atol=1e-6)
    assert fitted.classes_.tolist() == ["lonely", "many", "more"]
