"""The classifier of a transformer that reads the class: its joint for each pattern, what it learns, and what it refuses."""

import math

import numpy as np
import pyro
import pytest
import torch

from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.classify import AnyOrderClassifier

BRIEFLY = {"epochs": 1, "progress": False}


def untrained(event_shape=4, classes=3, **options):
    torch.manual_seed(2)
    family = par.AnyOrderTransformer(event_shape, 8, 1, 2, outputs.Categorical(3), num_classes=classes, **options).double()
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return family


@pytest.fixture(scope="module")
def fitted():
    random = np.random.default_rng(0)
    X = random.integers(0, 3, (30, 4)).astype(float)
    return AnyOrderClassifier(untrained(), fit_options=BRIEFLY).fit(X, np.array(["a", "b", "c"])[random.integers(0, 3, 30)]), X, random.random(X.shape) < 0.5


def test_it_is_a_joint_of_visible_cells_and_class(fitted):
    model, X, visible = fitted
    posterior, evidence = model.predict_log_proba(X, visible), model.score_samples(X, visible)
    np.testing.assert_allclose(np.exp(posterior).sum(1), 1)
    np.testing.assert_allclose(model.log_joint(X, visible), evidence.numpy()[:, None] + posterior)
    np.testing.assert_allclose(posterior, model.family_.log_posterior(torch.tensor(X), torch.tensor(visible)))
    np.testing.assert_allclose(evidence, model.family_().marginal(torch.tensor(visible)).log_prob(torch.tensor(X)))
    # Over all values of the visible cells and all classes, the joint of one pattern sums to one.
    pattern = np.array([True, False, True, True])
    every = np.stack(np.meshgrid(*[np.arange(3.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rows = np.full((27, 4), np.nan)
    rows[:, pattern] = every
    assert float(model.log_joint(rows).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_a_row_alone_is_the_row_in_a_batch_and_turns_do_not_show(fitted, monkeypatch):
    model, X, visible = fitted
    whole = model.log_joint(X, visible).numpy()
    for i in (0, 7):
        np.testing.assert_allclose(model.log_joint(X[i:i + 1], visible[i:i + 1]).numpy()[0], whole[i], rtol=1e-9)
    monkeypatch.setattr("pyro_ar.budget.TURN", 3 * 4 * 8)
    np.testing.assert_allclose(model.log_joint(X, visible), whole, rtol=1e-9)


def test_nothing_visible_gives_what_is_said_of_the_empty_prefix(fitted):
    model, X, _ = fitted
    alone = model.predict_log_proba(np.full((2, 4), np.nan))
    np.testing.assert_allclose(alone[0], model.family_.prefix_log_posterior(torch.tensor(X[:1]))[0, 0])
    assert model.score_samples(np.full((1, 4), np.nan)).item() == 0


def test_the_model_is_the_joint(fitted):
    model, X, visible = fitted
    wanted = model.log_joint(X, visible)
    for k in range(3):
        trace = pyro.poutine.trace(pyro.poutine.condition(model.model, {"y": torch.full((30,), k)})).get_trace(X, visible)
        assert trace.log_prob_sum().item() == pytest.approx(wanted[:, k].sum().item(), abs=1e-8)
    assert model.model().shape == (1,)


def test_it_learns_the_class_from_whatever_is_visible():
    """The class is the first of four cells, and the others are noise: without it the classes are even."""
    random = np.random.default_rng(1)
    X = random.integers(0, 2, (300, 4)).astype(float)
    torch.manual_seed(0)
    family = par.AnyOrderTransformer(4, 16, 1, 2, num_classes=2)
    options = {"epochs": 12, "batch_size": 32, "lr": 1e-2, "progress": False}
    model = AnyOrderClassifier(family, class_weight=5.0, fit_options=options).fit(X, X[:, 0].astype(int))
    assert model.predict_proba(X)[np.arange(300), X[:, 0].astype(int)].min() > 0.9
    assert abs(model.predict_proba(X, np.array([False, True, True, True])) - 0.5).max() < 0.2
    again = family.log_posterior(torch.tensor(X).float())
    assert not torch.allclose(again.exp(), torch.from_numpy(model.predict_proba(X)))  # the family that was given stays as it was
    assert model.num_parameters == family.num_parameters


def test_scikit_learns_ways():
    X, y = np.random.default_rng(0).integers(0, 3, (24, 2, 2)).astype(float), np.arange(24) % 3
    model = AnyOrderClassifier(untrained((2, 2)), fit_options=BRIEFLY)
    assert clone(model).get_params()["class_weight"] == 1.0
    assert cross_val_score(model, X.reshape(24, 4), y, cv=2).shape == (2,)
    assert model.fit(X, y).predict(X).shape == (24,)
    few = AnyOrderClassifier(untrained(), fit_options=BRIEFLY).fit(X.reshape(24, 4), np.where(y == 1, 2, y))
    assert few.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("make", "match"), [
    (lambda: AnyOrderClassifier(par.AnyOrderTransformer(4, 8, 1, 2)), "with num_classes and without context"),
    (lambda: AnyOrderClassifier(untrained(context_dim=3)), "with num_classes and without context"),
    (lambda: AnyOrderClassifier(par.NADE(4)), "with num_classes and without context"),
    (lambda: AnyOrderClassifier(untrained(), class_weight=0.0), "class_weight must be a number above 0"),
    (lambda: AnyOrderClassifier(untrained(), class_weight=math.nan), "class_weight must be a number above 0"),
    (lambda: AnyOrderClassifier(untrained(5)), "as many cells"),
    (lambda: AnyOrderClassifier(untrained(classes=2)), "2 different labels"),
])
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make().fit(np.zeros((6, 4)), np.arange(6) % 3)
