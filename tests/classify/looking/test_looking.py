"""Information gain against enumeration of everything and against fine integrals; revealing against asking step by step."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from scipy import integrate, stats
from sklearn.datasets import load_digits
from torch.distributions.transforms import AffineTransform, ExpTransform

import pyro_ar as par

from pyro_ar.changes.transformed import logit
from pyro_ar.classify.looking.looks import information_gain, reveal
from pyro_ar.classify.looking.quadrature import line_information, neglected

pytestmark = pytest.mark.usefixtures("float64")

SIZES = (3, 2, 2, 3)


def labelled(likelihood, cells, prior=None):
    """A classifier around fitted class joints."""
    C = likelihood.batch_shape[0] if isinstance(likelihood, par.Joint) else len(likelihood)
    prior = torch.rand(C) + 0.2 if prior is None else torch.tensor(prior)
    rows = torch.zeros(C, cells) if prior is None else torch.full((C, cells), 0.5 if _real(likelihood) else 0.0)
    return par.GenerativeClassifier(likelihood, prior=(prior / prior.sum()).tolist()).fit(rows, torch.arange(C))


def _real(likelihood):
    return (likelihood if isinstance(likelihood, par.Joint) else likelihood[0]).num_states is None


def tables(*batch):
    return [torch.randn(*batch, k) for k in SIZES]


DISCRETE = {
    "independent": lambda: par.FullyIndependent(tables(3)),
    "full table": lambda: par.FullTable(torch.randn(3, *SIZES), num_states=SIZES),
    "chain": lambda: par.MarkovChain(torch.randn(2, 3), torch.randn(2, 3, 3, 3)),
    "trees": lambda: [par.ChowLiuTree.from_data(torch.randint(0, 2, (30, 4)), num_states=SIZES) for _ in range(3)],
    "mixture": lambda: par.Mixture(torch.randn(3, 2), par.FullyIndependent(tables(3, 2))),
    "mixtures of a list": lambda: [par.Mixture(torch.randn(2), [par.FullyIndependent(tables()), par.FullTable(
        torch.randn(*SIZES), num_states=SIZES)]) for _ in range(2)],
    "net": lambda: par.NADE(4, hidden=3, output=par.outputs.Categorical(3), context_dim=2).double()(torch.eye(2)),
    "mixture of a net and a table": lambda: [par.Mixture(torch.zeros(2), [par.NADE(4, hidden=3).double()(), par.FullyIndependent(
        torch.randn(4, 2))]), par.FullyIndependent(torch.randn(4, 2))],
}


def by_enumeration(classifier, x, visible):
    """I(y; x_i | x_v) from the whole table p(y, x), entropies by plain sums."""
    sizes = classifier.joint_.num_states
    states = torch.tensor(list(itertools.product(*(range(k) for k in sizes))), dtype=torch.get_default_dtype())
    p = classifier.log_joint(states).exp()  # (prod K, C)
    p = p.detach()
    answer = torch.zeros(x.shape)
    for r in range(len(x)):
        fits = ((states == x[r]) | ~visible[r]).all(1)
        here, given = states[fits], p[fits] / p[fits].sum()
        for i in range(x.shape[1]):
            information = 0.0
            for k in here[:, i].unique():
                cell = given[here[:, i] == k].sum(0)
                for c in range(p.shape[1]):
                    if cell[c] > 0:
                        information += cell[c] * math.log(cell[c] / (cell.sum() * given[:, c].sum()))
            answer[r, i] = information
    return answer


class OfItsOwn(par.Joint):
    """A user's joint, with other numbers of states in each variable: it can only be asked."""

    def __init__(self, table):
        self.table = table
        super().__init__(table.tensors, table.batch_shape, table.event_shape)

    num_states, support = property(lambda self: self.table.num_states), property(lambda self: self.table.support)

    def methods(self, visible):
        return self.table.methods(visible)

    def log_density(self, x):
        return self.table.log_density(x)

    def log_marginal(self, x, visible):
        return self.table.log_marginal(x, visible)


DISCRETE["a joint of one's own"] = lambda: OfItsOwn(par.FullTable(torch.randn(3, *SIZES), num_states=SIZES))


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_discrete_cells_by_enumeration_of_everything(make):
    torch.manual_seed(1)
    with torch.no_grad():
        classifier = labelled(make(), 4)
    x = torch.stack([torch.randint(0, k, (8,)) for k in classifier.joint_.num_states], 1).double()
    visible = torch.rand(8, 4) < 0.5
    visible[0], visible[1] = False, True
    visible[7] = visible[6]
    x[7] = x[6]
    gain = information_gain(classifier, torch.where(visible, x, torch.nan), visible)
    torch.testing.assert_close(gain, by_enumeration(classifier, x, visible), atol=1e-10, rtol=1e-8)
    assert (gain[visible] == 0).all()
    entropy = classifier.posterior(x, visible).entropy()
    assert (gain >= 0).all()
    assert (gain <= entropy[:, None] + 1e-12).all()


def test_states_of_probability_zero():
    X, y = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 0], [2, 1, 1]]), torch.tensor([0, 0, 1, 1])
    classifier = par.GenerativeClassifier(par.MarkovChain, fit_options={"pseudocount": 0.0}).fit(X, y)
    visible = torch.tensor([False, True, False]).expand(4, 3)
    torch.testing.assert_close(information_gain(classifier, X.double(), visible), by_enumeration(classifier, X.double(), visible))
    torch.testing.assert_close(information_gain(classifier, X[:1])[0, 0], torch.tensor(math.log(2)))  # the first cell is the class
    with pytest.raises(ValueError, match="probability zero under all classes"):
        information_gain(classifier, torch.tensor([[0, 0, 0]]), torch.tensor([True, True, False]))


def matrices(*batch, size):
    root = torch.randn(*batch, size, size)
    return root @ root.mT / size + 0.2 * torch.eye(size)


REAL = {
    "Gaussian": lambda: par.Gaussian(torch.randn(3, 4), matrices(3, size=4)),
    "Student-t": lambda: par.StudentT(3.0, 2 * torch.randn(2, 4), matrices(2, size=4)),
    "low rank": lambda: par.LowRankGaussian(torch.randn(3, 4), torch.randn(3, 4, 2), torch.rand(3, 4) + 0.1),
    "mixture": lambda: par.Mixture(torch.randn(2, 3), par.StudentT(4.0, 2 * torch.randn(2, 3, 4), matrices(2, 3, size=4))),
    "one of each": lambda: [par.Gaussian(torch.randn(4), matrices(size=4)), par.StudentT(2.5, torch.randn(4), matrices(size=4)),
                            par.Mixture(torch.zeros(2), [par.Gaussian(torch.randn(4), matrices(size=4)), par.LowRankStudentT(
                                5.0, torch.randn(4), torch.randn(4, 1), torch.rand(4) + 0.1)])],
}


def by_integral(classifier, x, visible):
    """I(y; x_i | x_v) of one row by Simpson's rule over the classifier's own answers, cell by cell, at 40,001 values each."""
    u = torch.linspace(-14, 14, 40_001)  # x = sinh(u) reaches 600,000
    prior = classifier.posterior(x[None], visible[None]).probs
    before = classifier.log_joint(x[None], visible[None]).logsumexp(1)
    answer = torch.zeros(len(x))
    for i in (~visible).nonzero()[:, 0].tolist():
        rows, more = x.repeat(len(u), 1), visible.clone()
        rows[:, i], more[i] = u.sinh(), True
        f = (classifier.log_joint(rows, more[None]) - before).exp()
        told = torch.where(f > 1e-200, f * (f / (prior * f.sum(1, keepdim=True))).log(), 0.0).sum(1) * u.cosh()
        answer[i] = float(integrate.simpson(told.numpy(), x=u.numpy()))
    return answer


@pytest.mark.parametrize("make", REAL.values(), ids=REAL)
def test_real_cells_by_a_fine_integral(make):
    torch.manual_seed(2)
    classifier = labelled(make(), 4)
    x = torch.randn(2, 4)
    visible = torch.tensor([[False, False, True, False], [True, False, True, False]])
    for tolerance in (1e-2, 1e-4, 1e-7):
        gain = information_gain(classifier, torch.where(visible, x, torch.nan), visible, tolerance=tolerance)
        for r in range(2):
            torch.testing.assert_close(gain[r], by_integral(classifier, x[r], visible[r]), atol=tolerance, rtol=0)
    assert (gain <= classifier.posterior(x, visible).entropy()[:, None] + 1e-7).all()


def test_a_monotone_transform_changes_no_information():
    torch.manual_seed(3)
    joint = par.Mixture(torch.randn(2, 3), par.StudentT(5.0, torch.randn(2, 3, 4), matrices(2, 3, size=4)))
    z, visible = torch.randn(4, 4), torch.rand(4, 4) < 0.5
    plain = information_gain(labelled(joint, 4, [0.3, 0.7]), z, visible)
    for transform in (logit(-1.0, 17.0), AffineTransform(2.0, -0.5), ExpTransform()):
        classifier = labelled(par.Transformed(joint, transform), 4, [0.3, 0.7])
        x = torch.where(visible, transform(z), torch.nan)
        torch.testing.assert_close(information_gain(classifier, x, visible), plain, atol=1e-9, rtol=0)


def test_a_transform_inside_the_list():
    parts = [par.Transformed(par.Gaussian(torch.randn(2), torch.eye(2)), ExpTransform()) for _ in range(2)]
    alike = labelled([par.Transformed(p.joint, parts[0].transform) for p in parts], 2)
    plain = labelled([p.joint for p in parts], 2, alike.log_prior_.exp().tolist())
    torch.testing.assert_close(information_gain(alike, torch.zeros(1, 2)), information_gain(plain, torch.zeros(1, 2)))


def test_cells_that_say_nothing_or_everything():
    loc = torch.tensor([[0.0, 0.0, 0.0], [0.0, 40.0, 1.0]])
    classifier = labelled(par.Gaussian(loc, torch.eye(3)), 3, [0.5, 0.5])
    gain = information_gain(classifier, torch.zeros(1, 3))[0]
    assert gain[0] == 0
    assert gain[1].item() == pytest.approx(math.log(2), abs=1e-4)
    expected = math.log(2) - integrate.quad(lambda x: stats.norm.pdf(x) * math.log1p(math.exp(x - 0.5)), -12, 12)[0]
    assert gain[2].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("df", [math.inf, 2.1])
def test_narrow_components_are_not_stepped_over(ratio, df):
    """A class that is one thin line, off the middle of the other: found however few nodes the wide one needs."""
    share, owner = torch.tensor([[0.5, 0.5]]), torch.eye(2)[None]
    loc, scale = torch.tensor([[0.0, 1.3]]), torch.tensor([[1.0, ratio]])
    t = stats.norm if math.isinf(df) else stats.t(df)

    def told(x):
        f = np.array([0.5 * t.pdf(x), 0.5 * t.pdf((x - 1.3) / ratio) / ratio])
        return float(sum(fc * math.log(fc / (0.5 * f.sum())) for fc in f if fc > 0))

    ends = [-math.inf, -10, -1, *(1.3 + ratio * s for s in (-100, -10, -3, 0, 3, 10, 100)), 30, math.inf]
    ends = sorted(ends)
    expected = sum(integrate.quad(told, a, b, epsabs=1e-10, limit=500)[0] for a, b in itertools.pairwise(ends))
    for tolerance in (1e-3, 1e-6):
        got = line_information(share, owner, loc, scale, torch.full((1, 2), df), tolerance=tolerance)
        assert got.item() == pytest.approx(expected, abs=tolerance)


def test_what_is_neglected_is_bounded():
    for tolerance, C in itertools.product((1e-1, 1e-4, 1e-8), (2, 1000)):
        d = neglected(tolerance, C)
        entropy = -d * math.log(d) - (1 - d) * math.log1p(-d)
        assert 0 < d < 1
        assert entropy + d * math.log(C) <= tolerance / 4 * 1.001


REFUSED = {
    "too narrow": lambda: par.Gaussian(torch.tensor([[0.0], [1.0]]).expand(2, 3), torch.tensor([1.0, 1e-14])[:, None, None] * torch.eye(3)),
    "transforms that differ": lambda: [par.Transformed(par.Gaussian(torch.zeros(3), torch.eye(3)), AffineTransform(0.0, s)) for s in (1.0, 2.0)],
    "not for ..Autoregressive": lambda: par.NADE(3, hidden=2, output=par.outputs.Normal(), context_dim=2).double()(torch.eye(2)),
    "any-order family": lambda: par.OrderlessNADE(3, hidden=2, context_dim=2).double()(torch.eye(2)),
}


@pytest.mark.parametrize(("match", "make"), REFUSED.items(), ids=REFUSED)
def test_no_exact_answer(match, make):
    classifier = labelled(make(), 3)
    with pytest.raises(par.IntractableError, match=match):
        information_gain(classifier, torch.zeros(1, 3))


def test_bad_input():
    row = torch.zeros(1, 3)
    classifier = labelled(par.FullyIndependent(torch.randn(2, 3, 2)), 3)
    with pytest.raises(ValueError, match="GenerativeClassifier"):
        information_gain(par.LogisticRegression(), row)
    with pytest.raises(ValueError, match="tolerance"):
        information_gain(classifier, row, tolerance=0.0)
    for order, match in (([0, 0], "each of them once"), ([3], "from 0 to 2"), ([0.5], "positions"), ("raster", "greedy")):
        with pytest.raises(ValueError, match=match):
            reveal(classifier, row, order)
    with pytest.raises(ValueError, match="hidden cells"):
        reveal(classifier, row, [1], visible=torch.tensor([False, True, False]))
    with pytest.raises(ValueError, match="steps"):
        reveal(classifier, row, steps=4)
    with pytest.raises(ValueError, match="finite"):
        reveal(classifier, row * math.nan)


@pytest.mark.parametrize("make", [DISCRETE["mixture"], REAL["mixture"]])
def test_reveal_is_asking_step_by_step(make):
    classifier = labelled(make(), 4)
    x = torch.zeros(5, 4) if classifier.joint_.num_states else torch.randn(5, 4)
    visible = torch.zeros(5, 4, dtype=torch.bool)
    visible[1, 2] = True
    looks = reveal(classifier, x, visible=visible)
    assert looks.cells.shape == (5, 3)
    for step in range(4):
        torch.testing.assert_close(looks.log_posterior[:, step].exp(), classifier.posterior(x, visible).probs)
        if step == 3:
            break
        gain = information_gain(classifier, x, visible, tolerance=1e-3)
        torch.testing.assert_close(looks.gains[:, step], gain)
        told = torch.where(gain.amax(1, keepdim=True) <= 1e-3, looks.gains[:, 0], gain)
        assert torch.equal(looks.cells[:, step], told.masked_fill(visible, -1.0).argmax(1))
        visible = visible.scatter(1, looks.cells[:, step:step + 1], True)
    given = reveal(classifier, x[:1], looks.cells[:1], visible=torch.zeros(1, 4, dtype=torch.bool))
    torch.testing.assert_close(given.log_posterior, looks.log_posterior[:1])
    assert given.gains is None


def test_a_decided_row_goes_on_with_what_told_most_at_first():
    """The third cell decides; the second tells much, the first nothing: though neither tells anything any longer, the second is next."""
    classifier = labelled(par.Gaussian(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.5, 60.0]]), torch.eye(3)), 3, [0.5, 0.5])
    looks = reveal(classifier, torch.zeros(1, 3))
    assert looks.cells.tolist() == [[2, 1, 0]]
    assert looks.gains[0, 1].max() == 0


def test_a_model_of_the_pattern_is_refused():
    X, y, seen = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]), torch.tensor([0, 0, 1, 1]), torch.tensor([[True, False]] * 2 + [[True, True]] * 2)
    classifier = par.GenerativeClassifier(par.FullyIndependent, pattern=par.FullyIndependent).fit(X, y, visible=seen)
    with pytest.raises(ValueError, match="without a model of the pattern"):
        information_gain(classifier, X)


def test_greedy_is_the_best_single_look():
    """Of all single looks the greedy one leaves the least expected entropy: by definition, checked by drawing the cell."""
    classifier = labelled(par.FullTable(torch.randn(3, 2, 2, 2), num_states=(2, 2, 2)), 3)
    gain = information_gain(classifier, torch.zeros(1, 3))[0]
    entropy = classifier.posterior(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)).entropy().item()
    for i in range(3):
        visible = torch.arange(3) == i
        left = 0.0
        for k in range(2):
            row = torch.full((1, 3), float(k))
            p = classifier.score_samples(row, visible[None]).exp().item()
            left += p * classifier.posterior(row, visible[None]).entropy().item()
        assert entropy - left == pytest.approx(gain[i].item(), abs=1e-10)


def test_images_and_float32():
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x.reshape(-1, 8, 8), dtype=torch.float32)
    classifier = par.DiscriminantAnalysis(0.2).fit(images[:500], y[:500])
    visible = torch.zeros(1, 8, 8, dtype=torch.bool)
    visible[:, :, 3] = True
    single = information_gain(classifier, images[500:503], visible)
    assert single.shape == (3, 8, 8)
    assert single.dtype == torch.float32
    double = par.DiscriminantAnalysis(0.2).fit(images[:500].double(), y[:500])
    torch.testing.assert_close(single.double(), information_gain(double, images[500:503].double(), visible), atol=2e-3, rtol=0)
    assert reveal(classifier, images[500:502], steps=2).gains.shape == (2, 2, 8, 8)


def test_digits_fast_and_far_better_than_chance():
    """Eight greedy looks against eight random ones, 60 rows: 92 against 62 % for a Gaussian, so half the gap is 6 standard errors."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    classifier = par.DiscriminantAnalysis().fit(x[:1400], y[:1400])
    test, label = x[1400:1460], torch.tensor(y[1400:1460])
    greedy = reveal(classifier, test, steps=8)
    random = reveal(classifier, test, np.random.default_rng(1).random((60, 64)).argsort(1)[:, :8])
    right = [(looks.log_posterior[:, -1].argmax(-1) == label).double().mean() for looks in (greedy, random)]
    assert right[0] > right[1] + 0.1
    assert (greedy.cells[:, 0] == greedy.cells[0, 0]).all()  # nothing was seen: the first look is the same
    models = {"independent": par.GenerativeClassifier(par.FullyIndependent, fit_options={"num_states": 17}),
              "trees": par.GenerativeClassifier(par.ChowLiuTree, fit_options={"num_states": 17})}
    for name, model in models.items():
        model.fit(x[:1400], y[:1400])
        start = time.process_time()
        information_gain(model, test[:1], np.arange(64) < 20)
        assert time.process_time() - start < 1, name  # about 0.02 and 0.15 s
