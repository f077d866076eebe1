"""The corrected classifier, against its formula and against what its parts say."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from sklearn.base import clone
from torch import Generator

from pyro_ar import data
from pyro_ar.classify import (
    CorrectedClassifier,
    DiscriminantAnalysis,
    GenerativeClassifier,
    MixtureDiscriminantAnalysis,
    PatternNet,
    TemperatureScaled,
)
from pyro_ar.classify.around.corrected import Weights
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.elliptical import Gaussian
from pyro_ar.tables import FullyIndependent


class Oracle(PartlySeenClassifier):
    """Reads the class off the last cell where it is visible; otherwise knows nothing."""

    def fit(self, X, y, visible=None):
        _, _, labels = self._read_training(X, y, visible)
        self.classes_ = np.unique(labels)
        return self

    num_parameters = 0

    def log_posterior(self, x, visible):
        told = torch.nn.functional.one_hot(x.flatten(1)[:, -1].nan_to_num().round().long() % 3, 3).to(x) * 0.97 + 0.01
        seen = torch.ones(len(x), dtype=torch.bool) if visible is None else visible.flatten(1)[:, -1].expand(len(x))
        return torch.where(seen[:, None], told, torch.full_like(told, 1 / 3)).log()


@pytest.fixture(scope="module")
def rows():
    """Three classes in 5 cells that overlap widely; the sixth cell is the class modulo 3, which no Gaussian can read."""
    generator = Generator().manual_seed(0)
    y = torch.arange(3).repeat(120)
    x = torch.randn(360, 6, generator=generator, dtype=torch.float64) + 0.4 * y[:, None]
    x[:, -1] = y + 3 * torch.randint(10, (360,), generator=generator)
    seen = torch.rand(360, 6, generator=generator) < 0.6
    return x, y.numpy(), seen


@pytest.fixture(scope="module")
def fitted(rows):
    x, y, _ = rows
    gaussian = GenerativeClassifier(Gaussian, fit_options={"shrinkage": 0.9}, prior=[0.2, 0.3, 0.5])
    return CorrectedClassifier(gaussian, Oracle()).fit(x[:240], y[:240])


def by_hand(fitted, log_p, log_q, seen):
    """The corrected posterior of one row, in plain Python from the tensors of the weights; classes are equally frequent in training."""
    weights, prior = fitted.weights_, [0.2, 0.3, 0.5]
    share = sum(seen) / len(seen)
    f = [share, math.log(share + 0.01)]
    log_p = [v - math.log(p) for v, p in zip(log_p, prior, strict=True)]
    log_q = [v - math.log(1 / 3) for v in log_q]
    for evidence in (log_p, log_q):
        log = [v - math.log(sum(math.exp(u) for u in evidence)) for v in evidence]
        f.append(-sum(math.exp(v) * max(v, -50) for v in log))
        f += [max(v, -20) / 10 for v in sorted(log, reverse=True)[:2]]
    first, bias = weights.inner.weight.tolist(), weights.inner.bias.tolist()
    hidden = [math.tanh(sum(w * v for w, v in zip(row, f, strict=True)) + b) for row, b in zip(first, bias, strict=True)]
    raw = [sum(w * h for w, h in zip(row, hidden, strict=True)) + b
           for row, b in zip(weights.outer.weight.tolist(), weights.outer.bias.tolist(), strict=True)]
    score = [math.log(of) + math.exp(raw[0]) * max(p, -50) + raw[1] * max(q, -50) + c
             for of, p, q, c in zip(prior, log_p, log_q, raw[2:], strict=True)]
    total = math.log(sum(math.exp(s - max(score)) for s in score)) + max(score)
    return [s - total for s in score]


def test_the_posterior_is_the_weighted_product(rows, fitted):
    x, _, seen = rows
    seen = seen & (torch.arange(360)[:, None] % 7 != 0)
    log_p, log_q = (c.predict_log_proba(x, seen) for c in (fitted.classifier_, fitted.net_))
    answer = fitted.predict_log_proba(x, seen)
    for i in range(0, 360, 5):
        if seen[i].any():
            assert answer[i] == pytest.approx(by_hand(fitted, log_p[i].tolist(), log_q[i].tolist(), seen[i].tolist()), abs=1e-4)
    everything = [by_hand(fitted, *(c.predict_log_proba(x[i:i + 1])[0].tolist() for c in (fitted.classifier_, fitted.net_)), [True] * 6)
                  for i in range(3)]
    assert fitted.predict_log_proba(x[:3]) == pytest.approx(np.array(everything), abs=1e-4)


def test_it_starts_as_the_generative_classifier():
    log_p, log_q = torch.randn(2, 5, 4, generator=Generator().manual_seed(0)).log_softmax(-1)
    torch.testing.assert_close(Weights(4)(log_p, log_q, torch.ones(5, 3, dtype=torch.bool)), log_p)


def test_it_learns_where_the_net_knows_more(rows, fitted):
    x, y, _ = rows
    last = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(5), True)
    gaussian = fitted.classifier_
    assert gaussian.score(x[240:], y[240:]) < 0.85
    assert fitted.score(x[240:], y[240:]) > 0.97
    assert fitted.score(x[240:], y[240:], visible=last) > 0.97
    # Where the net knows nothing the answer is the Gaussian's, or better by the score
    hidden = [-c.predict_log_proba(x[240:], ~last)[np.arange(120), y[240:]].mean() for c in (gaussian, fitted)]
    assert hidden[1] < hidden[0] + 0.05


def test_a_useless_net_leaves_the_classifier_or_mends_its_confidence():
    digits = data.digits().head(700)
    x, y = digits.x.double(), digits.y.numpy()
    few = CorrectedClassifier(DiscriminantAnalysis(shrinkage=0.1), PatternNet(hidden=2, members=1, steps=1), folds=3).fit(x[:500], y[:500])
    seen = torch.rand(200, 64, generator=Generator().manual_seed(1)) < 0.3
    plain, mended = (-c.predict_log_proba(x[500:], seen)[np.arange(200), y[500:]].mean() for c in (few.classifier_, few))
    assert mended < plain  # an overconfident Gaussian: 2.69 against 1.03 nats
    agree = (few.predict(x[500:], seen) == few.classifier_.predict(x[500:], seen)).mean()
    assert agree > 0.95


def test_what_is_hidden_is_never_read(rows, fitted):
    x, _, seen = rows
    torn = torch.where(seen, x, math.nan)
    np.testing.assert_array_equal(fitted.predict_log_proba(torn, seen), fitted.predict_log_proba(x, seen))
    torch.testing.assert_close(fitted.score_samples(torn, seen), fitted.classifier_.score_samples(x, seen))


def test_nothing_visible_gives_the_prior(rows, fitted):
    nothing = torch.zeros(6, dtype=torch.bool)
    assert fitted.predict_proba(rows[0][:2], nothing) == pytest.approx(np.array([[0.2, 0.3, 0.5]] * 2))
    torch.testing.assert_close(fitted.score_samples(rows[0][:2], nothing), torch.zeros(2, dtype=torch.float64))


def test_the_joint_sums_to_what_is_visible(rows, fitted):
    x, _, seen = rows
    joint = fitted.log_joint(x, seen)
    torch.testing.assert_close(joint.logsumexp(-1), fitted.score_samples(x, seen))
    np.testing.assert_allclose(joint.log_softmax(-1).numpy(), fitted.predict_log_proba(x, seen), atol=1e-6)


def test_the_model_is_that_joint(rows, fitted):
    x, _, seen = rows
    x, seen = x[:8], seen[:8] | (torch.arange(6) == 0)
    given = pyro.condition(fitted.model, {"y": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])})
    trace = pyro.poutine.trace(given).get_trace(x, seen)
    trace.compute_log_prob()
    total = trace.nodes["x"]["log_prob"] + trace.nodes["y"]["log_prob"]
    wanted = fitted.log_joint(x, seen)[torch.arange(8), trace.nodes["y"]["value"]]
    torch.testing.assert_close(total, wanted, check_dtype=False)
    guide = AutoDelta(pyro.poutine.block(fitted.model, hide=["y"]))
    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(fitted.model, guide, x, seen)
    np.testing.assert_allclose(marginals["y"].probs.detach().numpy(), fitted.predict_proba(x, seen), atol=1e-6)
    many = pyro.infer.Predictive(fitted.model, num_samples=4, parallel=True)(None, seen)
    assert (many["x"].shape, many["y"].shape) == ((4, 8, 6), (4, 8))
    with pyro.poutine.seed(rng_seed=0):
        drawn = pyro.poutine.trace(fitted.model).get_trace(None, seen).nodes["x"]["value"]
    assert (drawn.isnan() == ~seen).all()


def test_equal_data_give_equal_classifiers(rows):
    x, y, seen = rows
    make = CorrectedClassifier(DiscriminantAnalysis(shrinkage=0.3), PatternNet(hidden=4, members=1, steps=20), folds=2)
    state = torch.random.get_rng_state()
    first, second = (clone(make).fit(x, y) for _ in range(2))
    assert torch.random.get_rng_state().equal(state)
    np.testing.assert_array_equal(first.predict_log_proba(x, seen), second.predict_log_proba(x, seen))
    assert first.num_parameters == first.classifier_.num_parameters + first.net_.num_parameters + 8 * 16 + 16 + 5 * 16 + 5
    assert not hasattr(make, "classifier_")
    assert not hasattr(make.classifier, "joint_")


def test_the_prior_that_is_given_is_the_prior_of_every_answer(rows):
    # 240 rows of class 0 and 12 of class 1 in cells that say nothing: the posterior is near the prior of .5, whatever is visible.
    generator = Generator().manual_seed(5)
    x, y = torch.randn(252, 4, generator=generator, dtype=torch.float64), np.repeat([0, 1], [240, 12])
    gaussian = DiscriminantAnalysis(covariance="shared", prior="uniform")
    made = CorrectedClassifier(gaussian, PatternNet(hidden=4, members=1, steps=60, batch_size=32), folds=3).fit(x, y)
    fresh = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    for seen in ([False] * 4, [True, False, False, False], [True] * 4):
        assert made.predict_proba(fresh, np.array(seen)).mean(0) == pytest.approx([0.5, 0.5], abs=0.1)
    learnt = CorrectedClassifier(DiscriminantAnalysis(covariance="shared"), made.net, folds=3).fit(x, y)
    assert learnt.predict_proba(fresh, np.array([True, False, False, False])).mean(0) == pytest.approx([20 / 21, 1 / 21], abs=0.03)
    scaled = TemperatureScaled(learnt).fit(fresh, (torch.arange(100) < 5).long())
    assert scaled.predict_proba(fresh[:1], np.zeros(4, bool)) == pytest.approx(np.array([[20 / 21, 1 / 21]]))


def test_what_no_class_can_have_stays_impossible():
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(10, 1)
    y = (x[:, 0] > 0).long().numpy()
    tables = GenerativeClassifier(FullyIndependent, fit_options={"pseudocount": 0.0, "num_states": 2})
    made = CorrectedClassifier(tables, PatternNet(hidden=4, members=1, steps=5, batch_size=8), folds=2).fit(x, y)
    answer = made.predict_log_proba(x)
    assert (answer[y == 0, 1] == -math.inf).all()
    assert (made.log_joint(x)[y == 0, 1] == -math.inf).all()
    never = CorrectedClassifier(tables, made.net, folds=2).fit(torch.cat([x, torch.zeros(40, 1)], 1), y)
    assert (never.log_joint(torch.ones(2, 3)) == -math.inf).all()
    assert (never.score_samples(torch.ones(2, 3)) == -math.inf).all()
    assert made.predict_proba(x).sum(1) == pytest.approx(np.ones(40), abs=1e-12)


def test_images_keep_their_shape():
    digits = data.digits().head(200)
    images, y = digits.x.reshape(-1, 8, 8).double(), digits.y.numpy()
    made = CorrectedClassifier(net=PatternNet(hidden=8, members=1, steps=5, channels=2), folds=2, most=40).fit(images, y)
    alone = MixtureDiscriminantAnalysis().fit(images, y)
    np.testing.assert_array_equal(made.classifier_.predict_log_proba(images[:5]), alone.predict_log_proba(images[:5]))
    assert isinstance(made.net_.nets_[0][0], torch.nn.Conv2d)
    flat = CorrectedClassifier(net=PatternNet(hidden=8, members=1, steps=5, channels=2), folds=2, most=40, image_shape=()).fit(images, y)
    assert flat.classifier_.image_shape == ()
    told = CorrectedClassifier(MixtureDiscriminantAnalysis(1), folds=2, most=40, image_shape=(8, 8)).set_params(
        net=PatternNet(hidden=8, members=1, steps=5, channels=2)).fit(images.flatten(1), y)
    assert told._patterns(3, Generator()).shape == (3, 64)


def test_images_and_labels():
    digits = data.digits().head(300)
    images, names = digits.x.reshape(-1, 8, 8).double(), np.array([f"digit {k}" for k in digits.y.tolist()])
    net = PatternNet(hidden=16, members=1, steps=30, batch_size=32, image_shape=(8, 8), channels=4)
    made = CorrectedClassifier(MixtureDiscriminantAnalysis(1), net, image_shape=(8, 8), folds=2, most=100).fit(images, names)
    assert made.score(images, names) > 0.9
    assert made.predict_proba(images[:3], torch.ones(8, 8, dtype=torch.bool)) == pytest.approx(made.predict_proba(images[:3]))


@pytest.mark.parametrize(("settings", "message"), [
    ({"folds": 1}, "folds must be 2 or more"),
    ({"folds": 2.5}, "whole numbers"),
    ({"folds": 121}, "121 folds want 121 rows or more of every class"),
    ({"most": 0}, "most 1 or more"),
    ({"image_shape": (2, 2)}, "image_shape must be"),
    ({"classifier": PatternNet()}, "classifier must be a GenerativeClassifier"),
    ({"classifier": DiscriminantAnalysis(shrinkage=0.5, pattern=FullyIndependent)}, "must ignore patterns"),
    ({"net": torch.nn.Linear(2, 2)}, "net must be a classifier of this library"),
])
def test_bad_settings_are_refused(rows, settings, message):
    x, y, _ = rows
    with pytest.raises(ValueError, match=message):
        CorrectedClassifier(**{"classifier": DiscriminantAnalysis(shrinkage=0.5), "net": Oracle()} | settings).fit(x, y)


def test_one_class_is_refused(rows):
    with pytest.raises(ValueError, match="two classes or more"):
        CorrectedClassifier(DiscriminantAnalysis(shrinkage=0.5), Oracle()).fit(rows[0], np.zeros(360))


def test_hidden_training_cells_are_refused(rows):
    x, y, seen = rows
    with pytest.raises(ValueError, match="complete training rows"):
        CorrectedClassifier().fit(x, y, seen)


@pytest.mark.parametrize(("rows", "most", "steps", "times"), [
    (60, 5000, 1000, 24), (60, 40, 1000, 24), (1600, 5000, 1600, 12), (1600, 1200, 1200, 17), (5400, 6000, 5000, 4), (13000, 12000, 5000, 4),
])
def test_steps_and_patterns_for_each_row_that_was_held_out(rows, most, steps, times, monkeypatch):
    from pyro_ar.classify.around import corrected

    asked, learnt = [], corrected._learnt

    def recorded(*told, steps, seed):
        asked.append((steps, len(told[-1])))
        assert len(told[-2].unique(dim=0)) > min(2 * min(rows, most), 250)  # of 256 patterns: a row gets a new one every time
        return learnt(*told, steps=2, seed=seed)

    monkeypatch.setattr(corrected, "_learnt", recorded)
    X, y = np.random.default_rng(0).normal(size=(rows, 8)), np.arange(rows) % 3
    CorrectedClassifier(DiscriminantAnalysis(), Oracle(), folds=2, most=most).fit(X, y)
    assert asked == [(steps, times * min(rows, most))]
