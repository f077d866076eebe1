"""The ledger itself: it must see a leak wherever it is used."""

import numpy as np
import pytest
import torch

from recording import Frequencies, Ledger, RecordingFamily, joint_recipe, numbered, recording
from sklearn.base import clone
from sklearn.naive_bayes import GaussianNB

import pyro_ar as par

from pyro_ar.classify import CorrectedClassifier, DiscriminantAnalysis
from pyro_ar.comparison import cross_validate

LEAK = r"model \d was fitted to rows that it is scored on: \[3\]"


@pytest.fixture
def ledger():
    return Ledger(numbered(20, 4))


@pytest.mark.parametrize("make", [DiscriminantAnalysis, Frequencies, GaussianNB], ids=lambda c: c.__name__)
def test_classifiers_and_their_clones_write(ledger, make):
    y = np.arange(20) % 2
    model = clone(recording(make, ledger)()).fit(ledger.x[:10], y[:10])
    assert isinstance(model, make)
    assert ledger.fits == [set(range(10))]
    with pytest.raises(AssertionError, match="no model was fitted to rows and scored"):
        ledger.assert_apart()
    answer = model.predict_proba(ledger.x[10:])
    np.testing.assert_allclose(answer, make().fit(ledger.x[:10], y[:10]).predict_proba(ledger.x[10:]))
    assert set(ledger.scores[0]) == set(range(10, 20))
    ledger.assert_apart()
    model.predict(ledger.x[3:4])
    with pytest.raises(AssertionError, match=LEAK):
        ledger.assert_apart()
    model.fit(ledger.x[10:], y[10:])  # forgets what it was fitted to
    model.predict(ledger.x[3:4])
    ledger.assert_apart()
    assert ledger.fits == [set(range(10, 20))]


def test_rows_are_known_by_what_is_seen_of_them(ledger):
    visible = torch.eye(4, dtype=torch.bool).repeat(5, 1)
    assert ledger.numbers(torch.where(visible, ledger.x, torch.nan)) == list(range(20))
    assert ledger.numbers(torch.where(visible, ledger.x, 0), visible) == list(range(20))
    assert ledger.numbers(ledger.x[:2], torch.zeros(4, dtype=torch.bool)) == [None, None]
    with pytest.raises(AssertionError, match="none of the ledger's"):
        ledger.numbers(ledger.x + 0.5)
    with pytest.raises(AssertionError, match="no cell tells from others"):
        Ledger(torch.ones(2, 3)).numbers(torch.ones(1, 3))


def test_joints_and_families_write(ledger):
    cross_validate({"a": joint_recipe(ledger)}, ledger.x, folds=4)
    ledger.assert_apart()
    assert sorted(row for rows in ledger.scores for row in rows) == list(range(20))
    assert [len(fit) for fit in ledger.fits] == [15] * 4
    found = Ledger(ledger.x)
    family = RecordingFamily(found, 4)
    par.fit(family, ledger.x.float(), epochs=1, progress=False, held_out=(ledger.x[:3].float(),))
    with pytest.raises(AssertionError, match=r"\[0, 1, 2\]"):
        found.assert_apart()
    joint = joint_recipe(found)(ledger.x[:4])
    joint.marginal(torch.tensor([True, False, True, False])).log_prob(ledger.x[3])
    with pytest.raises(AssertionError, match=LEAK):
        found.assert_apart([1])


def test_a_classifier_of_classifiers(ledger):
    """The weights of `CorrectedClassifier` are learnt from rows that neither part has seen."""
    y = np.arange(20) % 2
    parts = recording(DiscriminantAnalysis, ledger)(0.5), recording(Frequencies, ledger)()
    CorrectedClassifier(*parts, folds=2).fit(ledger.x + 0.0, y)
    ledger.assert_apart()
    assert sum(map(len, ledger.fits)) == 2 * (10 + 10 + 20)
