import math

import numpy as np
import pytest
import torch

from sklearn.base import clone
from sklearn.neighbors import KernelDensity as OtherKernelDensity
from sklearn.svm import SVC

from pyro_ar import data
from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, TemperatureScaled
from pyro_ar.experiments import bars, inner
from pyro_ar.experiments.bars import Binarised, KernelDensity, SupportVectors
from pyro_ar.experiments.inner import Tempered, inner_split, some_rows
from pyro_ar.tables import FullyIndependent


@pytest.fixture(scope="module")
def digits():
    """Training rows, their labels, test rows and theirs, and a pattern of the test rows."""
    few = data.digits().head(500)
    seen = torch.rand(100, 64, generator=torch.Generator().manual_seed(0)) < 0.4
    return few.x[:400].double(), few.y[:400].numpy(), few.x[400:].double(), few.y[400:].numpy(), seen


# Inner splits.


def test_inner_splits():
    labels = np.repeat([0, 1, 2], [40, 60, 100])
    split = inner_split(labels, 16)
    test, times = np.unique(split.test, return_counts=True)
    assert sorted([*split.train, *test]) == list(range(200))
    assert (times == len(inner.SHARES)).all()
    assert np.bincount(labels[test]).tolist() == [10, 15, 25]
    hidden = (~split.visible).sum(1).reshape(len(inner.SHARES), -1)
    assert hidden.unique(dim=1).tolist() == [[round(16 * share)] for share in inner.SHARES]
    assert len(np.unique(inner_split(labels, 16, most=8).test)) == 8
    again = inner_split(labels, 16)
    assert (again.test == split.test).all()
    assert again.visible.equal(split.visible)


def test_some_rows_are_stratified():
    labels = np.repeat([0, 1], [300, 100])
    kept = some_rows(labels, 40)
    assert np.bincount(labels[kept]).tolist() == [30, 10]
    assert some_rows(labels, None).tolist() == some_rows(labels, 400).tolist() == list(range(400))


# Kernel density.


def test_kernel_density_against_scikit_learn(digits):
    x, y, test, _, seen = digits
    classifier = KernelDensity(2.5).fit(x, y)
    found = classifier.predict_log_proba(test[:20], seen[:20])
    for row in range(20):
        cells = seen[row].numpy()
        scores = [OtherKernelDensity(bandwidth=2.5).fit(x[y == c][:, cells]).score_samples(test[row:row + 1, cells])[0] + math.log((y == c).mean())
                  for c in range(10)]
        expected = np.array(scores) - np.logaddexp.reduce(scores)
        assert found[row] == pytest.approx(expected, abs=1e-8)


def test_kernel_density_does_not_read_hidden_cells_and_knows_its_prior(digits):
    x, y, test, _, seen = digits
    classifier = KernelDensity(3.0).fit(x, y)
    torn = torch.where(seen, test, math.nan)
    assert classifier.predict_log_proba(torn, seen) == pytest.approx(classifier.predict_log_proba(test, seen))
    nothing = classifier.predict_proba(test, torch.zeros(64, dtype=torch.bool))
    assert nothing[0] == pytest.approx(np.bincount(y) / 400)


def test_kernel_density_in_pieces(digits, monkeypatch):
    x, y, test, _, seen = digits
    whole = KernelDensity().fit(x, y)
    monkeypatch.setattr(bars, "WORK", 400 * 7)
    parts = KernelDensity().fit(x, y)
    assert parts.chosen_ == whole.chosen_
    assert parts.predict_log_proba(test, seen) == pytest.approx(whole.predict_log_proba(test, seen))
    assert parts.predict_log_proba(test, seen[:1]) == pytest.approx(whole.predict_log_proba(test, seen[:1]))


def test_the_bandwidth_is_the_best_of_the_inner_split(digits):
    x, y, _, _, _ = digits
    split = inner_split(y, 64, most=1000)
    right = []
    for share in bars.BANDWIDTHS:
        trial = KernelDensity(16 * share).fit(x[split.train], y[split.train])
        right.append(trial.score(x[split.test], y[split.test], visible=split.visible))
    assert KernelDensity().fit(x, y).chosen_ == {"bandwidth": 16 * bars.BANDWIDTHS[int(np.argmax(right))]}
    assert max(right) > min(right)


def test_kernel_density_of_some_rows(digits):
    x, y, test, _, _ = digits
    classifier = KernelDensity(3.0, max_rows=100).fit(x, y)
    assert classifier.num_parameters == 100 * 64 + 10
    assert classifier.predict_proba(test, torch.zeros(64, dtype=torch.bool))[0] == pytest.approx(np.bincount(y) / 400)  # the prior of all rows
    assert classifier.score(test, digits[3]) > 0.8


def test_no_bandwidth_for_constants():
    with pytest.raises(ValueError, match="only where the values differ"):
        KernelDensity().fit(torch.ones(20, 4), np.arange(20) % 2)


# Support vectors.


def test_support_vectors_fill_with_means(digits):
    x, y, test, _, seen = digits
    classifier = SupportVectors(10.0).fit(x, y)
    filled = np.where(seen, test, x.mean(0))
    machine = SVC(C=10.0).fit(x, y)
    assert classifier.predict(test, seen).tolist() == machine.decision_function(filled).argmax(1).tolist()
    assert (classifier.predict(test) == machine.predict(test)).mean() > 0.98  # ties of its votes are broken in another way
    chosen = SupportVectors().fit(x, y).chosen_["C"]
    assert chosen in bars.PENALTIES
    assert classifier.num_parameters > len(machine.support_) * 64


def test_support_vectors_of_two_classes(digits):
    x, y, test, _, _ = digits
    classifier = SupportVectors(1.0).fit(x, y >= 5)
    assert classifier.predict(test).tolist() == SVC().fit(x, y >= 5).predict(test).tolist()


# Temperatures.


def test_the_temperature_comes_from_inner_rows_alone(digits):
    x, y, test, _, seen = digits
    tempered = Tempered(DiscriminantAnalysis(0.1)).fit(x, y)
    split = inner_split(y, 64, most=1000)
    trial = DiscriminantAnalysis(0.1).fit(x[split.train], y[split.train])
    scaled = TemperatureScaled(trial).fit(x[split.test], y[split.test], split.visible)
    assert tempered.chosen_ == {"temperature": pytest.approx(scaled.temperature_)}
    assert scaled.temperature_ > 1.2  # the Gaussian of so few rows is overconfident
    scaled.classifier = whole = DiscriminantAnalysis(0.1).fit(x, y)
    assert tempered.predict_log_proba(test, seen) == pytest.approx(scaled.predict_log_proba(test, seen))
    assert tempered.num_parameters == whole.num_parameters + 1
    assert not hasattr(tempered.classifier, "joint_")  # what was given stays as it is
    assert clone(tempered).get_params()["classifier__shrinkage"] == 0.1


# Black and white.


def test_binarised(digits):
    x, y, test, _, seen = digits
    make = GenerativeClassifier(FullyIndependent, fit_options={"num_states": 2, "pseudocount": 0.5})
    wrapped = Binarised(make, 8).fit(x, y)
    plain = clone(make).fit((x >= 8).double(), y)
    assert wrapped.predict_log_proba(torch.where(seen, test, math.nan), seen) == pytest.approx(plain.predict_log_proba((test >= 8).double(), seen))
    assert wrapped.num_parameters == plain.num_parameters
