"""GenerativeClassifier: its posteriors against enumeration and Pyro's own, and what it refuses."""

import copy
import itertools
import math
import pickle

import numpy as np
import pyro
import pytest
import torch

from pyro.infer import Predictive, TraceEnum_ELBO, config_enumerate, infer_discrete
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from pyro_ar.checks import IntractableError
from pyro_ar.classify import GenerativeClassifier
from pyro_ar.elliptical import Gaussian
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

BINARY = {"num_states": 2, "pseudocount": 0.5}
TABLES = {
    "full table": (FullTable, BINARY),
    "independent": (FullyIndependent, BINARY),
    "chain": (MarkovChain, BINARY),
    "second-order chain": (MarkovChain, BINARY | {"order": 2}),
    "net": (BayesNet, BINARY | {"parents": [(), (0,), (0, 1), (1,), (2, 3)]}),
    "tree": (ChowLiuTree, BINARY),
}


@pytest.fixture
def binary():
    """60 rows of 5 binary cells, three classes of unequal size, and a pattern per row, one of them all hidden."""
    random = np.random.default_rng(3)
    y = random.choice(["ant", "bee", "cat"], 60, p=[0.5, 0.3, 0.2])
    X = (random.random((60, 5)) < np.array([0.2, 0.5, 0.8])[np.unique(y, return_inverse=True)[1], None]).astype(float)
    visible = random.random((60, 5)) < 0.5
    visible[7] = False
    return X, y, visible


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def oracle(joints, classifier, X, visible):
    """log p(y) + log p(x_visible | y): class by class, row by row, sum over all completions."""
    scores = np.zeros((len(X), len(classifier.classes_)))
    for row, seen in enumerate(visible):
        rows = np.repeat(X[row : row + 1], 2 ** int((~seen).sum()), 0)
        rows[:, ~seen] = list(itertools.product([0.0, 1.0], repeat=int((~seen).sum())))
        rows = torch.tensor(rows)
        each = torch.stack([j.log_prob(rows) for j in joints]) if isinstance(joints, list) else joints.log_prob(rows[:, None]).T
        scores[row] = (each.logsumexp(1) + classifier.log_prior_).numpy()
    return scores


@pytest.mark.parametrize("name", TABLES)
def test_log_joint_is_the_sum_over_hidden_cells(name, binary):
    X, y, visible = binary
    joint, options = TABLES[name]
    classifier = GenerativeClassifier(joint, fit_options=options).fit(X, y)
    np.testing.assert_allclose(classifier.log_joint(X, visible), oracle(classifier.likelihood_, classifier, X, visible), atol=1e-9)
    np.testing.assert_allclose(classifier.log_joint(X), oracle(classifier.likelihood_, classifier, X, np.ones_like(visible)), atol=1e-9)


def test_full_tables_against_counts(binary):
    X, y, visible = binary
    classifier = GenerativeClassifier(FullTable, fit_options={"num_states": 2, "pseudocount": 1.0}).fit(X, y)
    for row in range(10):
        seen = visible[row]
        scores = []
        for c in np.unique(y):
            mine = X[y == c]
            cells = int(2 ** (~seen).sum())  # states that agree with what is seen, each with one pseudocount
            agree = (mine[:, seen] == X[row, seen]).all(1).sum()
            scores.append((len(mine) / len(X)) * (agree + cells) / (len(mine) + 32))
        np.testing.assert_allclose(classifier.predict_proba(X[row : row + 1], seen)[0], scores / np.sum(scores), atol=1e-12)


def test_each_class_has_a_tree_of_its_own():
    coins = torch.randint(0, 2, (200, 2), generator=torch.Generator().manual_seed(0)).double()
    X = torch.cat([coins[:, [0, 0, 1, 1]], coins[:, [0, 1, 0, 1]]])
    trees = GenerativeClassifier(ChowLiuTree).fit(X, np.repeat([0, 1], 200)).likelihood_
    edges = [{frozenset((i, *p)) for i, p in enumerate(tree.parents) if p} for tree in trees]
    assert {frozenset((0, 1)), frozenset((2, 3))} < edges[0]
    assert {frozenset((0, 2)), frozenset((1, 3))} < edges[1]


def test_nothing_visible_gives_the_prior(binary):
    X, y, visible = binary
    frequencies = np.array([(y == c).mean() for c in np.unique(y)])
    for prior, wanted in [(None, frequencies), ("uniform", np.full(3, 1 / 3)), ([0.7, 0.3, 0.0], [0.7, 0.3, 0.0])]:
        classifier = GenerativeClassifier(MarkovChain, prior=prior).fit(X, y)
        np.testing.assert_allclose(classifier.predict_proba(np.full_like(X, np.nan), visible=np.zeros(5, bool))[3], wanted)
    assert classifier.predict_proba(X, visible)[:, 2].max() == 0
    assert "cat" not in classifier.predict(X, visible)


@pytest.mark.parametrize("joint", [FullyIndependent, ChowLiuTree, Gaussian])
def test_hidden_cells_are_never_read(joint, binary):
    X, y, visible = binary
    options = {"shrinkage": 0.1} if joint is Gaussian else BINARY
    classifier = GenerativeClassifier(joint, fit_options=options).fit(X, y)
    torn = np.where(visible, X, np.nan)
    np.testing.assert_array_equal(classifier.predict_proba(torn, visible), classifier.predict_proba(X, visible))
    np.testing.assert_array_equal(classifier.predict_proba(np.where(visible, X, 99.0), visible),
                                  classifier.predict_proba(X, visible))
    x = torch.tensor(torn, requires_grad=True)
    if joint is Gaussian:
        (gradient,) = torch.autograd.grad(classifier.log_joint(x, torch.tensor(visible)).sum(), x)
        assert (gradient[~torch.tensor(visible)] == 0).all()
        assert (gradient[torch.tensor(visible)] != 0).any()


def test_numpy_torch_images_and_turns_agree(digits, monkeypatch):
    X, y = digits
    X, y = X[:300], y[:300]
    visible = np.random.default_rng(0).random(X.shape) < 0.5
    classifier = GenerativeClassifier(FullyIndependent, fit_options={"num_states": 17}).fit(X, y)
    wanted = classifier.predict_log_proba(X, visible)
    images = GenerativeClassifier(FullyIndependent, fit_options={"num_states": 17}).fit(X.reshape(-1, 8, 8), y)
    assert images.event_shape_ == (8, 8)
    assert images.n_features_in_ == 64
    for rows, seen in [(X.reshape(-1, 8, 8), visible.reshape(-1, 8, 8)), (X, visible), (torch.tensor(X), visible),
                       (torch.tensor(X).reshape(-1, 8, 8).long(), torch.tensor(visible).reshape(-1, 8, 8))]:
        np.testing.assert_allclose(images.predict_log_proba(rows, seen), wanted, atol=1e-12)
    one = np.zeros((8, 8), bool)
    one[:4] = True
    np.testing.assert_allclose(images.predict_log_proba(X, one), classifier.predict_log_proba(X, one.ravel()))
    monkeypatch.setattr("pyro_ar.classify.generative.CACHE", 64 * 10 * 7)
    np.testing.assert_allclose(classifier.predict_log_proba(X, visible), wanted, atol=1e-12)
    np.testing.assert_allclose(classifier.posterior(X, visible).probs, np.exp(wanted), atol=1e-12)


def test_dtype_follows_the_data(binary):
    X, y, _ = binary
    for rows, dtype in [(X, torch.float64), (X.astype(np.float32), torch.float32), (X.astype(int), torch.float64),
                        (torch.tensor(X), torch.float64), (torch.tensor(X).float(), torch.float32)]:
        classifier = GenerativeClassifier(MarkovChain).fit(rows, y)
        assert classifier.log_joint(X).dtype == classifier.log_prior_.dtype == dtype
    assert classifier.predict_proba(X).shape == (60, 3)


# Inside Pyro.


@pytest.mark.parametrize("joint", [MarkovChain, ChowLiuTree, Gaussian])
def test_model_gives_the_posterior_by_enumeration(joint, binary):
    X, y, visible = binary
    options = {"shrinkage": 0.2} if joint is Gaussian else BINARY
    classifier = GenerativeClassifier(joint, fit_options=options).fit(X, y)
    torn = np.where(visible, X, np.nan)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    marginals = elbo.compute_marginals(config_enumerate(classifier.model), lambda *_: None, torn, visible)
    np.testing.assert_allclose(marginals["y"].probs, classifier.posterior(torn, visible).probs, atol=1e-9)
    evidence = -elbo.loss(classifier.model, lambda *_: None, torn, visible)
    assert evidence == pytest.approx(float(classifier.log_joint(torn, visible).logsumexp(-1).sum()))
    known = pyro.poutine.trace(classifier.model).get_trace(torn, visible, y)
    index = torch.tensor(np.searchsorted(classifier.classes_, y))
    wanted = classifier.log_joint(torn, visible).gather(-1, index[:, None]).sum()
    torch.testing.assert_close(known.log_prob_sum(), wanted)


def test_infer_discrete_finds_the_most_probable_class(binary):
    X, y, visible = binary
    classifier = GenerativeClassifier(FullyIndependent, fit_options=BINARY).fit(X, y)
    decoded = infer_discrete(classifier.model, first_available_dim=-2, temperature=0)
    trace = pyro.poutine.trace(decoded).get_trace(X, visible)
    assert classifier.classes_[trace.nodes["y"]["value"].numpy()].tolist() == classifier.predict(X, visible).tolist()


@pytest.mark.parametrize("joint", [FullyIndependent, ChowLiuTree])
def test_predictive_draws_classes_and_rows(joint, binary):
    """Frequencies of 4000 draws against exact probabilities: five standard errors, false alarms under 1e-5."""
    X, y, _ = binary
    pyro.set_rng_seed(0)
    classifier = GenerativeClassifier(joint, fit_options=BINARY).fit(X, y)
    for parallel in (False, True):
        draws = Predictive(classifier.model, num_samples=4000 if parallel else 100, parallel=parallel)()
    assert draws["x"].shape == (4000, 1, 5)
    share = torch.nn.functional.one_hot(draws["y"].flatten(), 3).double().mean(0)
    prior = classifier.log_prior_.exp()
    assert ((share - prior).abs() < 5 * (prior * (1 - prior) / 4000).sqrt()).all()
    cell = torch.zeros(5, dtype=torch.bool)
    cell[2] = True
    ones = classifier.joint_.marginal(cell).log_prob(torch.ones(5).double()).exp()
    assert abs(draws["x"][..., 2].mean() - ones) < 5 * (ones * (1 - ones) / 4000).sqrt()
    seen = classifier.model(visible=cell.repeat(8, 1), y=["bee"] * 8)
    assert seen.isnan().equal(~cell.expand(8, 5))


# Likelihoods that are already there, and families.


@pytest.mark.parametrize("joint", [MarkovChain, ChowLiuTree])
def test_a_fitted_likelihood_is_kept(joint, binary):
    X, y, visible = binary
    fitted = GenerativeClassifier(joint, fit_options=BINARY).fit(X, y)
    again = GenerativeClassifier(fitted.likelihood_, 3).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X, visible), fitted.predict_proba(X, visible))
    assert again.likelihood_ is fitted.likelihood_
    assert clone(again).fit(X, y).score(X, y) == fitted.score(X, y)
    numbers = GenerativeClassifier(fitted.likelihood_, prior="uniform").fit(X[:2], [0, 2])  # label 1 is not there
    assert numbers.classes_.tolist() == [0, 1, 2]


class Logits(torch.nn.Module):
    """The least family: independent cells, their logits linear in the context."""

    def __init__(self, event_shape, context_dim):
        super().__init__()
        self.event_shape, self.context_dim = event_shape, context_dim
        self.weight = torch.nn.Parameter(torch.zeros(context_dim, event_shape, dtype=torch.float64))

    def forward(self, context):
        ones = context @ self.weight
        return FullyIndependent(torch.stack([torch.zeros_like(ones), ones], -1))


def train_logits(family, x, *, context, visible, steps):
    optimiser = torch.optim.Adam(family.parameters(), 0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        joint = family(context)
        (-(joint.log_prob(x) if visible is None else joint.marginal(visible).log_prob(x)).mean()).backward()
        optimiser.step()


def test_a_family_is_trained_as_a_copy(binary):
    X, y, visible = binary
    family = Logits(5, 3)
    classifier = GenerativeClassifier(family, train=train_logits, fit_options={"steps": 300}).fit(X, y)
    counts = GenerativeClassifier(FullyIndependent, fit_options={"num_states": 2, "pseudocount": 0.0}).fit(X, y)
    np.testing.assert_allclose(classifier.predict_proba(X, visible), counts.predict_proba(X, visible), atol=1e-2)
    assert (family.weight == 0).all()
    assert classifier.likelihood_ is not family
    partly = clone(classifier).fit(np.where(visible, X, np.nan), y, visible=visible)
    share = np.array([X[y == "bee"][:, i][visible[y == "bee"][:, i]].mean() for i in range(5)])
    np.testing.assert_allclose(partly.likelihood_.weight[1].sigmoid(), share, atol=5e-3)
    with pytest.raises(ValueError, match="over \\(4,\\)"):
        GenerativeClassifier(Logits(4, 3), train=train_logits).fit(X, y)


def test_a_neural_family_is_a_likelihood(binary, monkeypatch):
    X, y, visible = binary
    family = FVSBN(event_shape=5, context_dim=3)
    before = copy.deepcopy(family.state_dict())
    monkeypatch.setattr("pyro_ar.inference.training.fit", train_logits)  # the default
    classifier = GenerativeClassifier(family, fit_options={"steps": 20}).fit(X, y)
    np.testing.assert_allclose(classifier.log_joint(X, visible), oracle(classifier.joint_.joints, classifier, X, visible), atol=1e-5)
    assert all(torch.equal(before[name], t) for name, t in family.state_dict().items())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    marginals = elbo.compute_marginals(classifier.model, lambda *_: None, X, visible)
    np.testing.assert_allclose(marginals["y"].probs, classifier.predict_proba(X, visible), atol=1e-5)
    assert classifier.num_parameters == 2 + classifier.joint_.joints.num_parameters
    assert pickle.loads(pickle.dumps(classifier)).predict(X, visible).tolist() == classifier.predict(X, visible).tolist()


def test_intractable_passes_through(binary):
    X, y, visible = binary

    class Refusing(FullyIndependent):
        def methods(self, visible):
            raise IntractableError("no exact answer; hide less")

    joint = Refusing.from_data(torch.tensor(X), weights=torch.tensor((y == np.unique(y)[:, None]).astype(float)))
    classifier = GenerativeClassifier(joint).fit(X, y)
    assert classifier.predict(X).shape == (60,)
    for call in (lambda: classifier.predict(X, visible), lambda: classifier.method(visible)):
        with pytest.raises(IntractableError, match="hide less"):
            call()


# Conventions.


def test_clone_pickle_and_cross_validation(digits):
    X, y = digits
    classifier = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1})
    scores = cross_val_score(classifier, X[:400], y[:400], cv=3)
    assert scores.min() > 0.85
    fitted = clone(classifier).fit(X[:400], y[:400])
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(other.predict_proba(X[400:410]), fitted.predict_proba(X[400:410]))
    assert not hasattr(clone(fitted), "joint_")


def test_parameters_and_methods(binary):
    X, y, visible = binary
    count = {FullTable: 31, FullyIndependent: 5, MarkovChain: 9, ChowLiuTree: 9}
    for joint, each in count.items():
        assert GenerativeClassifier(joint, fit_options=BINARY).fit(X, y).num_parameters == 2 + 3 * each
        assert GenerativeClassifier(joint, prior="uniform", fit_options=BINARY).fit(X, y).num_parameters == 3 * each
    classifier = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.1}).fit(X, y)
    assert classifier.method(visible).tolist() == ["closed form"] * 60
    assert classifier.method(visible[0]).tolist() == ["closed form"]


def test_one_class(binary):
    X, _, visible = binary
    classifier = GenerativeClassifier(MarkovChain).fit(X, ["only"] * 60)
    assert (classifier.predict_proba(X, visible) == 1).all()
    assert set(classifier.predict(X, visible)) == {"only"}


def test_unseen_class_of_a_family_or_with_a_given_number(binary):
    X, _, _ = binary
    with pytest.raises(ValueError, match="at least one training row; got 'none of \\[1\\]'"):
        GenerativeClassifier(MarkovChain, 3).fit(X, np.where(np.arange(60) % 2, 0, 2))


class WantsAll(FullyIndependent):
    """A joint of a user whose fit knows no hidden cells."""

    @classmethod
    def from_data(cls, x, weights):
        raise AssertionError("not reached")


FIT_ERRORS = {
    "NaN where visible": (lambda X, y: (np.where(X > 0, X, np.nan), y, np.ones(5, bool)), {}, r"visible=~isnan\(X\)"),
    "infinity": (lambda X, y: (X + np.inf, y), {}, "infinity"),
    "hidden training cells": (lambda X, y: (X, y, np.eye(60, 5) > 0), {"likelihood": WantsAll}, "from_data wants complete training rows"),
    "short y": (lambda X, y: (X, y[:-1]), {}, "one label for each of the 60 rows; got 59"),
    "NaN label": (lambda X, y: (X, np.where(y == "ant", np.nan, 1.0)), {}, "NaN"),
    "None label": (lambda X, y: (X, [None, *y[1:]]), {}, "one type"),
    "continuous labels": (lambda X, y: (X, np.linspace(0, 1.5, 60)), {}, "continuous"),
    "no rows": (lambda X, y: (X[:0], y[:0]), {}, "0 sample"),
    "no rows, torch": (lambda X, y: (torch.tensor(X[:0]), y[:0]), {}, "rows of shape"),
    "one row as a vector": (lambda X, y: (X[0], y[:1]), {}, "2D array"),
    "text": (lambda X, y: (X.astype(str).astype(object) + "?", y), {}, "convert"),
    "fractions": (lambda X, y: (X / 2, y), {}, "whole numbers"),
    "prior's length": (lambda X, y: (X, y), {"prior": [0.5, 0.5]}, "3 probabilities that sum to 1"),
    "prior's sum": (lambda X, y: (X, y), {"prior": [0.5, 0.5, 0.5]}, "3 probabilities that sum to 1"),
    "prior's name": (lambda X, y: (X, y), {"prior": "flat"}, "'uniform'"),
    "number of classes": (lambda X, y: (X, y), {"num_classes": 4}, "4 different labels"),
    "no likelihood": (lambda X, y: (X, y), {"likelihood": 3}, "class with from_data"),
    "name of a likelihood": (lambda X, y: (X, y), {"likelihood": "Gaussian"}, "class with from_data"),
    "complex": (lambda X, y: (X + 1j, y), {}, "Complex data"),
    "two columns of labels": (lambda X, y: (X, np.stack([y, y], 1)), {}, "1d array"),
    "prior of names": (lambda X, y: (X, y), {"prior": ["a", "b", "c"]}, "3 probabilities"),
    "empty list": (lambda X, y: (X, y), {"likelihood": []}, "one joint"),
    "joint without classes": (lambda X, y: (X, y), {"likelihood": FullyIndependent(torch.zeros(5, 2))}, "batch shape"),
    "another number of cells": (lambda X, y: (X, y), {"likelihood": FullyIndependent(torch.zeros(3, 4, 2))}, "over 4 cells"),
    "two counts": (lambda X, y: (X, y), {"likelihood": FullyIndependent(torch.zeros(3, 5, 2)), "num_classes": 2}, "agree"),
    "module without context": (lambda X, y: (X, y), {"likelihood": torch.nn.Linear(1, 1)}, "context_dim"),
    "constant cells": (lambda X, y: (X * 0, y), {"likelihood": Gaussian}, "shrinkage"),
}


@pytest.mark.parametrize("name", FIT_ERRORS)
def test_fit_refuses(name, binary):
    data, options, match = FIT_ERRORS[name]
    with pytest.raises(ValueError, match=match):
        GenerativeClassifier(**({"likelihood": FullyIndependent} | options)).fit(*data(*binary[:2]))


PREDICT_ERRORS = {
    "NaN where visible": (lambda X, v: (np.where(v, np.nan, X), v), r"visible=~isnan\(X\)"),
    "infinity": (lambda X, v: (X + np.inf,), "infinity"),
    "features": (lambda X, v: (X[:, :4],), "X has 4 features, but GenerativeClassifier is expecting 5"),
    "features, torch": (lambda X, v: (torch.tensor(X[:, :4]),), "X has 4 features, but GenerativeClassifier is expecting 5"),
    "images": (lambda X, v: (X.reshape(60, 5, 1),), r"rows of shape \(5,\)"),
    "visible of names": (lambda X, v: (X, "half"), "bool"),
    "visible not bool": (lambda X, v: (X, v.astype(int)), "bool"),
    "visible of other cells": (lambda X, v: (X, v[:, :4]), "broadcasts"),
    "visible of other rows": (lambda X, v: (X, v[:7]), "one for each of the 60 rows"),
    "visible of too many dimensions": (lambda X, v: (X, v[None]), "broadcast"),
    "a state never declared": (lambda X, v: (X + 5,), "states"),
}


@pytest.mark.parametrize("name", PREDICT_ERRORS)
def test_predict_refuses(name, binary):
    X, y, visible = binary
    classifier = GenerativeClassifier(FullyIndependent).fit(X, y)
    data, match = PREDICT_ERRORS[name]
    for call in (classifier.predict, classifier.posterior, classifier.log_joint):
        with pytest.raises(ValueError, match=match):
            call(*data(X, visible))


def test_rows_that_no_class_can_have_are_refused():
    X = np.array([[0, 0], [0, 1], [0, 0], [0, 1]])
    classifier = GenerativeClassifier(FullyIndependent, fit_options={"pseudocount": 0.0}).fit(X, [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"possible under some class.*1 such rows of 2"):
        classifier.predict(np.array([[0, 1], [1, 1]]))
    assert classifier.log_joint(np.array([[1, 1]])).max() == -math.inf
    assert (classifier.predict_proba(np.array([[1, 1]]), visible=np.array([False, True])) == 0.5).all()


def test_model_refuses_unknown_labels(binary):
    X, y, _ = binary
    classifier = GenerativeClassifier(FullyIndependent).fit(X, y)
    with pytest.raises(ValueError, match="out of"):
        classifier.model(X[:1], y=["dog"])
    with pytest.raises(ValueError, match="equally many rows"):
        classifier.model(X[:3], y=["ant"])


def test_unfitted():
    for call in (lambda c: c.model(), lambda c: c.num_parameters, lambda c: c.method(np.ones(5, bool)), lambda c: c.log_joint(1)):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(GenerativeClassifier(FullyIndependent))
