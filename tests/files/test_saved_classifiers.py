"""Every classifier comes back from a file, fitted or not, with its parameters, what it learnt, and the same answers, bit by bit."""

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError

import pyro_ar as par

from pyro_ar import classify
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.files.classes import CLASSES
from pyro_ar.outputs import Categorical, Normal

RNG = np.random.default_rng(5)
Y = np.repeat(["a", "b", "c"], 8)
REAL = RNG.normal(size=(24, 4)) + 2 * np.arange(3).repeat(8)[:, None]
STATES = np.minimum(RNG.integers(3, size=(24, 4)) + (np.arange(3).repeat(8) == 2)[:, None], 2)
NEW = RNG.normal(size=(9, 4)) + 1.0
HIDDEN = REAL + np.where(RNG.random(REAL.shape) < 0.1, np.nan, 0)
SEEN = RNG.random((5, 4)) < 0.5
IMAGES = RNG.random((24, 6, 6))

SMALL = classify.PatternNet(8, 1, 2, steps=3, batch_size=4, seed=3)
MIXTURES = par.MixtureDiscriminantAnalysis((1, 2), rank=0, shrinkage=0.3)


def lda():
    return par.DiscriminantAnalysis(0.2, "shared", prior=[0.5, 0.25, 0.25])


def fixed():
    """Joints that are fitted elsewhere, and kept."""
    joints = [par.FullyIndependent(torch.randn(4, 3)) for _ in range(3)]
    return par.GenerativeClassifier(joints, prior="uniform", pattern=par.FullyIndependent(torch.randn(3, 4, 2)))


def around(wrapper, **options):
    """What learns on rows that its fitted classifier has not seen."""
    return lambda x: wrapper(lda().fit(x, Y), **options)


BRIEFLY = {"epochs": 1, "progress": False}

# What is made, from the training rows, and the rows it is fitted to.
CLASSIFIERS = {
    "tables": (lambda x: par.GenerativeClassifier(par.ChowLiuTree, fit_options={"num_states": 3, "pseudocount": 0.5}, pattern=par.FullyIndependent), STATES),
    "joints of one's own": (lambda x: fixed(), STATES),
    "gaussians": (lambda x: par.GenerativeClassifier(par.Gaussian, fit_options={"shrinkage": 0.1}), HIDDEN),
    "a family": (lambda x: par.GenerativeClassifier(par.NADE(4, 3, Categorical(3), 3, order=[1, 0, 3, 2]), fit_options=BRIEFLY), STATES),
    "any order": (lambda x: par.GenerativeClassifier(par.OverOrders(par.OrderlessNADE(4, 3, Normal(), 3), 2), fit_options=BRIEFLY), REAL),
    "discriminant": (lambda x: lda(), HIDDEN),
    "mixtures": (lambda x: clone(MIXTURES), HIDDEN),
    "mixtures of low rank, transformed": (lambda x: par.MixtureDiscriminantAnalysis(
        [1, 2], rank=1, feature_transform=torch.distributions.AffineTransform(1.0, 2.0).inv), REAL),
    "logistic": (lambda x: par.LogisticRegression("mean", C=10.0), HIDDEN),
    "logistic, filled by a classifier": (lambda x: par.LogisticRegression(lda()), HIDDEN),
    "logistic, filled by a joint": (lambda x: par.LogisticRegression(par.Gaussian.from_data(x)), REAL),
    "pattern net": (lambda x: clone(SMALL), REAL),
    "pattern net of images": (lambda x: classify.PatternNet(8, 1, 2, steps=3, batch_size=4, image_shape=(6, 6), ranks=False, channels=2), IMAGES),
    "pool": (lambda x: classify.OpinionPool([lda(), par.LogisticRegression("mean")], folds=2), HIDDEN),
    "estimated": (lambda x: classify.EstimatedClassifier(par.GenerativeClassifier(par.NADE(4, 3, Categorical(3), 3), fit_options=BRIEFLY)), STATES),
    "corrected": (lambda x: classify.CorrectedClassifier(lda(), clone(SMALL), folds=2), REAL),
    "class after cells": (lambda x: classify.AnyOrderClassifier(
        par.AnyOrderTransformer(4, 8, 1, 2, Categorical(3), num_classes=3), fit_options=BRIEFLY), STATES),
    "mixture chain": (lambda x: classify.MixtureChainClassifier(par.MixtureDiscriminantAnalysis(1), steps=2, hidden=3), STATES),
    "semi-supervised": (lambda x: classify.SemiSupervised(par.DiscriminantAnalysis(0.3), unlabelled_weight=0.5), HIDDEN),
    "temperature": (around(classify.TemperatureScaled), REAL),
    "plausibility": (around(classify.Plausibility, max_reference=7), REAL),
}


def there_and_back(thing, tmp_path):
    par.save(thing, tmp_path / "file")
    return par.load(tmp_path / "file")


def labels(name):
    if name != "semi-supervised":
        return Y
    unknown = Y.astype(object)
    unknown[::3] = None
    return unknown


def fitted(name, dtype):
    make, rows = CLASSIFIERS[name]
    made = make(rows.astype(dtype))
    if name in ("temperature", "plausibility"):
        return made.fit(*((NEW.astype(dtype), Y[:9]) if name == "temperature" else [NEW.astype(dtype)]))
    return made.fit(rows.astype(dtype), labels(name))


def answers(classifier, rows):
    patterns = np.tile(SEEN, (1, rows[0].size // 4)).reshape(5, *rows.shape[1:])
    if isinstance(classifier, classify.Plausibility):
        return [classifier.p_value(rows, v) for v in (None, patterns)] + [classifier.log_prob(rows, patterns)]
    if isinstance(classifier, par.LogisticRegression) and classifier.fill is None:
        patterns = None
    found = [classifier.predict(rows), classifier.predict_log_proba(rows), classifier.predict_proba(rows, patterns)]
    if hasattr(classifier, "score_samples"):
        found.append(classifier.score_samples(rows, patterns).detach().numpy())
    if isinstance(classifier, par.GenerativeClassifier):
        torch.manual_seed(4)
        found.append(classifier.model().numpy())
    return found


def alike(ours, theirs):
    """Equal, type by type."""
    assert type(ours) is type(theirs) or isinstance(ours, torch.nn.Parameter)
    if isinstance(ours, BaseEstimator):
        alike(vars(ours), vars(theirs))
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            alike(value, theirs[name])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            alike(a, b)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    elif isinstance(ours, str | int | float | bool | type | None):
        assert ours == theirs
    else:
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fitted_classifiers_answer_as_before(name, dtype, tmp_path):
    ours = fitted(name, dtype)
    theirs = there_and_back(ours, tmp_path)
    alike(ours, theirs)
    rows = CLASSIFIERS[name][1].astype(dtype)[:5]
    rows = np.nan_to_num(rows)
    for a, b in zip(answers(ours, rows), answers(theirs, rows), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)  # NaN where nothing is seen, in draws


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_that_are_not_fitted(name, tmp_path):
    make, rows = CLASSIFIERS[name]
    ours = make(rows)
    theirs = there_and_back(ours, tmp_path)
    alike(ours, theirs)
    with pytest.raises(NotFittedError):
        (theirs.p_value if name == "plausibility" else theirs.predict)(np.nan_to_num(rows))


def test_no_classifier_is_forgotten():
    exported = {getattr(space, name) for space in (par, classify) for name in space.__all__}
    wanted = {cls for cls in exported if isinstance(cls, type) and issubclass(cls, PartlySeenClassifier | classify.Plausibility)}
    assert {par.LogisticRegression, classify.Plausibility, classify.PatternNet} < wanted
    assert wanted <= set(CLASSES.values())
    assert wanted <= {type(make(rows)) for make, rows in CLASSIFIERS.values()}, "add a case above"


@pytest.mark.parametrize("classes", [
    np.array(["x", "longer", "z"]), np.array(["x", "longer", "z"], dtype=object), np.array([3, -1, 7]), np.array([3, 1, 7], dtype=np.uint8),
    np.array([0.0, 1.0, 2.0]), np.array([True, False]),
], ids=["text", "objects", "whole", "bytes", "floats", "bool"])
def test_labels_of_every_kind(classes, tmp_path):
    y = classes[np.arange(24) % len(classes)]
    ours = lda().set_params(prior=None).fit(REAL, y)
    theirs = there_and_back(ours, tmp_path)
    assert theirs.classes_.dtype == ours.classes_.dtype
    assert theirs.predict(NEW).tolist() == ours.predict(NEW).tolist()
    assert type(theirs.predict(NEW)[0]) is type(ours.predict(NEW)[0])


def test_names_of_columns_are_kept(tmp_path):
    frame = pd.DataFrame(REAL, columns=["length", "width", "height", "weight"])
    theirs = there_and_back(lda().fit(frame, Y), tmp_path)
    assert theirs.feature_names_in_.tolist() == list(frame)
    with pytest.raises(ValueError, match="feature names"):
        theirs.predict(frame[frame.columns[::-1]])


def test_what_it_was_fitted_to_is_still_known(tmp_path):
    """Rows of the training are refused where new ones are wanted, after loading too."""
    theirs = there_and_back(lda().fit(REAL, Y), tmp_path)
    with pytest.raises(ValueError, match="not fitted to"):
        classify.TemperatureScaled(theirs).fit(REAL, Y)


def test_a_family_inside_stays_frozen_in_eval_mode_and_bound(tmp_path):
    theirs = there_and_back(fitted("a family", np.float64), tmp_path)
    assert not theirs.likelihood_.training
    assert not any(p.requires_grad for p in theirs.likelihood_.parameters())
    assert theirs.likelihood.training
    assert all(p.requires_grad for p in theirs.likelihood.parameters())
    assert theirs.joint_.joints.context.shape == (3, 3)


def test_a_loaded_classifier_can_be_fitted_again(tmp_path):
    theirs = there_and_back(fitted("gaussians", np.float64), tmp_path)
    theirs.fit(REAL, Y)
    assert np.array_equal(theirs.predict_proba(NEW), clone(theirs).fit(REAL, Y).predict_proba(NEW))


def test_trees_are_refused(tmp_path):
    """Files hold numbers and no code: those of scikit-learn's forests are pickles."""
    with pytest.raises(ValueError, match=r"classifiers_.*RandomForestClassifier"):
        par.save(classify.OpinionPool(folds=2).fit(REAL, Y), tmp_path / "file")


def test_random_generators_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.arguments\.random_state.*RandomState"):
        par.save(par.MixtureDiscriminantAnalysis(random_state=np.random.RandomState(0)), tmp_path / "file")


def test_arrays_lie_as_before(tmp_path):
    across = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    theirs = there_and_back(par.GenerativeClassifier(par.Gaussian, prior=across), tmp_path).prior
    assert np.array_equal(theirs, across)
    assert theirs.strides == across.strides
