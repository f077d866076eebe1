"""EM for latent trees: counts against autograd, the likelihood never falls, scikit-learn's mixture, weights, hidden cells, refusals."""

import math

import numpy as np
import pytest
import torch

from sklearn.mixture import GaussianMixture

from pyro_ar.classify import GenerativeClassifier
from pyro_ar.latent import LatentTree
from pyro_ar.latent.learner import Learner, Rows
from pyro_ar.latent.learning import Schedule, learn
from pyro_ar.outputs import (
    Bernoulli,
    Categorical,
    Constant,
    DiscretisedLogisticMixture,
    MixtureOfNormals,
    Normal,
    PerVariable,
)
from pyro_ar.tables import ChowLiuTree

randn = torch.randn
PARENTS, NODES = (2, 2, 4, 2, -1, 1), (0, 3, 3, 5, 1)
MIXED = PerVariable([Bernoulli(), Normal(), Categorical(3), DiscretisedLogisticMixture(4, 2), MixtureOfNormals(2)])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tree(output=None, n=5, K=3, parents=PARENTS, nodes=NODES):
    raw = (output or Bernoulli()).raw
    steps = 2 * randn(len(parents) - 1, K, K) if len(parents) > 1 else None
    return LatentTree(randn(K), steps, randn(n, K, raw), output, parents=parents, nodes=nodes)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("output", [None, MIXED, PerVariable.of_states((2, 3, 1, 5, 2))], ids=["binary", "mixed", "states"])
def test_counts_are_the_slopes_of_the_log_likelihood(output):
    """By the logs of the tables; by the log-likelihoods of the cells, which an identity puts into the emissions."""
    torch.manual_seed(0)
    joint = tree(output)
    x = joint.sample((40,))
    seen, weights = torch.rand(40, 5) < 0.7, torch.rand(40) * 3
    learner = Learner(joint._parameters(), joint._parameters(), 0.0, torch.float64)
    for part in torch.arange(40).split(7):  # parts add up
        rows = Rows(x, seen, weights).take(part)
        found = learner.upward(rows)
        torch.testing.assert_close(found.log_p, joint.marginal(seen[part]).log_prob(x[part]))
        learner.downward(found, rows.weights)
    leaves = {name: t.log_softmax(-1) if name != "emission" else t for name, t in joint.tensors.items()}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    again = joint.with_tensors(leaves)
    score = (again.marginal(seen).log_prob(x) * weights).sum()
    root, steps, raw = torch.autograd.grad(score, list(leaves.values()))
    # A gradient through log_softmax takes the expectation off: what is left of the counts, less their shares.
    counted_root, counted_steps, *shown = learner._counted
    order = torch.tensor(joint._tree.transitions).argsort()
    counted_steps = counted_steps[order]
    torch.testing.assert_close(root, counted_root - counted_root.sum() * joint.root_logits.softmax(-1))
    torch.testing.assert_close(steps, counted_steps - counted_steps.sum(-1, keepdim=True) * joint.transition_logits.softmax(-1))
    torch.testing.assert_close(counted_root.sum(), weights.sum())
    for kind, counts in zip(learner._kinds, shown, strict=True):
        o = kind.columns.output
        if isinstance(o, Bernoulli | Categorical):  # logits against state 0, as the tables of the hidden states
            p = kind.columns.expected()
            expected = (counts - counts.sum(1, keepdim=True) * p)[:, 1:].mT
            torch.testing.assert_close(raw[kind.variables][..., :o.raw], expected)


def score_of(learner, rows):
    return float((learner.log_p(rows) * (1 if rows.weights is None else rows.weights)).sum() + learner.log_prior())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strength", [0.0, 2.0])
@pytest.mark.parametrize("output", [Bernoulli(), PerVariable.of_states((2, 3, 1, 5, 2)), MIXED], ids=["binary", "states", "mixed"])
def test_no_full_step_lowers_the_likelihood(output, strength):
    torch.manual_seed(1)
    if strength and output is MIXED:
        pytest.skip("what rows made up add to real columns has no short formula")
    x = tree(output).sample((60,))
    rows = Rows(x, torch.rand(x.shape) < 0.8, torch.rand(60) * 2)
    learner = Learner(tree(output)._parameters(), tree(output)._parameters(), strength, torch.float64)
    scores = [score_of(learner, rows)]
    for _ in range(25):
        learner.downward(learner.upward(rows), rows.weights)
        learner.step(1.0, 1.0)
        scores.append(score_of(learner, rows))
    gains = torch.tensor(scores).diff()
    assert float(gains.min()) >= -1e-8, gains
    assert scores[-1] - scores[0] > 5


@pytest.mark.usefixtures("float64")
def test_a_star_of_normals_is_scikit_learns_mixture():
    torch.manual_seed(2)
    centres = torch.tensor([[0.0, 3.0, -2.0], [4.0, 0.0, 100.0], [-3.0, -3.0, 1.0]])
    x = torch.cat([c + randn(80, 3) * torch.tensor([1.0, 0.5, 2.0]) for c in centres])
    means = x[[5, 100, 200]]
    oracle = GaussianMixture(3, covariance_type="diag", tol=0.0, reg_covar=0.0, max_iter=40, means_init=means.numpy(),
                             weights_init=np.full(3, 1 / 3), precisions_init=1 / np.array([[1.0, 2.0, 30.0]] * 3))
    with pytest.warns(UserWarning, match="did not converge"):
        oracle.fit(x.numpy())
    scale = torch.tensor([1.0, 2.0, 30.0]).sqrt() - 1e-3
    raw = torch.stack([means.T, scale.expm1().log()[:, None].expand(3, 3) - math.log(math.e - 1)], -1)
    start = LatentTree(torch.zeros(3), None, raw, Normal())
    fitted = LatentTree.from_data(x, start=start, smoothing=0.0, batch_size=None, epochs=40)
    shown = Normal().distribution(fitted.emission)
    torch.testing.assert_close(fitted.root_logits.softmax(-1), torch.as_tensor(oracle.weights_))
    torch.testing.assert_close(shown.mean.T, torch.as_tensor(oracle.means_))
    torch.testing.assert_close(shown.variance.T, torch.as_tensor(oracle.covariances_))
    torch.testing.assert_close(fitted.log_prob(x).mean(), torch.tensor(oracle.score(x.numpy())))
    torch.testing.assert_close(fitted.hidden_posterior(x).probs[:, 0], torch.as_tensor(oracle.predict_proba(x.numpy())))


def test_a_batch_of_rows_is_a_share_of_the_running_counts(float64):
    torch.manual_seed(3)
    x = tree().sample((30,))
    learner = Learner(tree()._parameters(), tree()._parameters(), 0.0, torch.float64)
    learner.downward(learner.upward(Rows(x[:20])))
    learner.step(1.0, 30 / 20)
    old = [t.clone() for t in learner._running]
    assert math.isclose(float(old[0].sum()), 30)
    learner.downward(learner.upward(Rows(x[20:])))
    new = [t.clone() * 3 for t in learner._counted]
    learner.step(0.25, 3.0)
    for before, batch, now in zip(old, new, learner._running, strict=True):
        torch.testing.assert_close(now, 0.75 * before + 0.25 * batch)
    torch.testing.assert_close(learner.root, learner._running[0] / 30)


def test_running_counts_are_worth_all_rows(float64):
    """So that rows made up weigh the same in a minibatch as in a step over all rows."""
    x = tree().sample((30,))
    for weights in (None, torch.rand(30) + 0.5):
        learner = Learner(tree()._parameters(), tree()._parameters(), 1.0, torch.float64)
        learn([learner], Rows(x, None, weights), None, Schedule(3, 10, 1, False, seeded()))
        torch.testing.assert_close(learner._running[0].sum(), torch.tensor(30.0) if weights is None else weights.sum())


@pytest.mark.parametrize("batch_size", [None, 16])
def test_weights_hidden_cells_and_rows_without_weight(batch_size, float64):
    torch.manual_seed(4)
    start = tree()
    x = tree().sample((24,))
    visible = torch.rand(x.shape) < 0.7
    options = {"start": start, "epochs": 6, "smoothing": 0.5, "batch_size": batch_size}
    whole = LatentTree.from_data(torch.where(visible, x, math.nan), generator=seeded(), **options)
    told = LatentTree.from_data(torch.where(visible, x, 7.0), visible, generator=seeded(), **options)
    more = LatentTree.from_data(torch.cat([x, 1 - x]), torch.cat([visible, visible]), sample_weight=torch.cat([torch.ones(24), torch.zeros(24)]),
                                generator=seeded(), **options)
    for name, t in whole.tensors.items():
        assert torch.equal(t, told.tensors[name])
        torch.testing.assert_close(t, more.tensors[name])
    if batch_size is None:
        twice = LatentTree.from_data(x, visible, sample_weight=torch.full((24,), 2.0), **options)
        doubled = LatentTree.from_data(x.repeat(2, 1), visible.repeat(2, 1), **options)
        for name, t in twice.tensors.items():
            torch.testing.assert_close(t, doubled.tensors[name])
            assert not torch.allclose(t, whole.tensors[name])  # beside a smoothing that stays as it is


def test_hidden_states_say_what_a_table_cannot():
    torch.manual_seed(5)
    cause = torch.randint(3, (900,))
    p = torch.tensor([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4, [0.5, 0.9] * 4])[cause]
    x = torch.bernoulli(p)
    train, test = x[:600], x[600:]
    table = ChowLiuTree.from_data(train).log_prob(test).mean()
    truth = torch.stack([torch.distributions.Bernoulli(q).log_prob(test).sum(-1) for q in p[[int((cause == k).nonzero()[0]) for k in range(3)]]])
    best = (truth.logsumexp(0) - math.log(3)).mean()
    for structure in ("chow-liu", "star", "chain"):
        fitted = LatentTree.from_data(train, num_hidden=3, structure=structure, held_out=0.2, generator=seeded(1), batch_size=100)
        score = fitted.log_prob(test).mean()
        assert table + 0.1 < score < best + 0.02, (structure, score, table, best)


def test_the_best_epoch_is_kept_and_the_fit_stops():
    torch.manual_seed(6)
    x, held = (torch.rand(30, 6) < 0.5).float(), (torch.rand(300, 6) < 0.5).float()
    options = {"num_hidden": 16, "smoothing": 0.01, "held_out": held, "batch_size": None}
    kept = LatentTree.from_data(x, epochs=60, patience=3, generator=seeded(), **options)
    scores = []
    for epochs in range(12):
        fitted = LatentTree.from_data(x, epochs=epochs, patience=99, generator=seeded(), **options)
        scores.append(float(fitted.log_prob(held).mean()))
    assert math.isclose(float(kept.log_prob(held).mean()), max(scores), abs_tol=1e-5)
    last = LatentTree.from_data(x, num_hidden=16, smoothing=0.01, batch_size=None, epochs=60, generator=seeded())
    assert float(last.log_prob(held).mean()) < max(scores) - 0.05  # it had something to stop for
    assert float(last.log_prob(x).mean()) > float(kept.log_prob(x).mean())


def test_more_starts_are_no_worse_and_seeds_repeat():
    torch.manual_seed(7)
    x = tree().sample((200,))
    options = {"num_hidden": 2, "structure": "star", "batch_size": None, "epochs": 15, "smoothing": 0.1}
    one, same = (LatentTree.from_data(x, generator=seeded(3), **options) for _ in range(2))
    five = LatentTree.from_data(x, generator=seeded(3), restarts=5, **options)
    other = LatentTree.from_data(x, generator=seeded(4), **options)
    assert torch.equal(one.emission, same.emission)
    assert not torch.equal(one.emission, other.emission)
    assert float(five.log_prob(x).sum()) >= float(one.log_prob(x).sum()) - 1e-3


def test_mixed_columns_learn_what_they_were_drawn_from(float64):
    torch.manual_seed(8)
    output = PerVariable([Bernoulli(), Normal(), Categorical(3), Constant(), Normal()])
    raw = torch.zeros(5, 2, 2)
    raw[0, :, 0], raw[1, :, 0], raw[4, :, 0] = torch.tensor([-3.0, 3.0]), torch.tensor([-3.0, 3.0]), torch.tensor([50.0, 60.0])
    raw[2] = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    truth = LatentTree(torch.zeros(2), None, raw, output)
    x, test = truth.sample((600,)), truth.sample((600,))
    visible = torch.rand(x.shape) < 0.7
    fitted = LatentTree.from_data(x, visible, num_hidden=2, structure="star", output=output, generator=seeded(1))
    assert abs(float((fitted.log_prob(test) - truth.log_prob(test)).mean())) < 0.05
    tied = LatentTree.from_data(x, visible, num_hidden=3, output=output, generator=seeded(1))
    assert abs(float((tied.log_prob(test) - truth.log_prob(test)).mean())) < 0.1


def test_columns_of_one_value_and_columns_never_seen():
    torch.manual_seed(9)
    x = (torch.rand(50, 4) < 0.5).float()
    x[:, 1], x[:, 2] = 1.0, math.nan
    for K in (1, 4, 80):  # more states than rows too
        fitted = LatentTree.from_data(x, num_hidden=K, generator=seeded(), epochs=5)
        assert all(bool(t.isfinite().all()) for t in fitted.tensors.values())
        mean = fitted.mean
        assert mean[1] > 0.9
        assert 0.3 < mean[2] < 0.7
    sharp = LatentTree.from_data(x, num_hidden=3, smoothing=0.0, generator=seeded(), epochs=5)
    assert bool(sharp.log_prob(torch.ones(4)).isfinite())


def test_a_mixture_weighs_its_trees(float64):
    torch.manual_seed(10)
    x = torch.cat([tree().sample((100,)), tree().sample((50,))])
    learners = [Learner(tree()._parameters(), tree()._parameters(), 0.0, torch.float64) for _ in range(2)]
    schedule = Schedule(1, None, 5, False, None)
    before = torch.tensor([0.3, 0.7]).log()
    joints = [LatentTree._of(each.parameters()) for each in learners]
    share = torch.stack([j.log_prob(x) for j in joints]).add(before[:, None]).softmax(0)
    expected = [LatentTree.from_data(x, start=j, sample_weight=w, smoothing=0.0, batch_size=None, epochs=1) for j, w in zip(joints, share, strict=True)]
    fitted, logs, _ = learn(learners, Rows(x), None, schedule, before)
    torch.testing.assert_close(logs.exp(), share.mean(-1))
    for one, other in zip(fitted, expected, strict=True):
        for name, t in LatentTree._of(one.parameters()).tensors.items():
            torch.testing.assert_close(t, other.tensors[name])


def test_refuses_what_cannot_be_fitted():
    x = (torch.rand(20, 3) < 0.5).float()

    def refused(words, rows=x, visible=None, **options):
        with pytest.raises(ValueError, match=words):
            LatentTree.from_data(rows, visible, epochs=1, **options)

    refused("rows of shape", x[0])
    refused("num_hidden must be 1 or more", num_hidden=0)
    refused("restarts", restarts=0)
    refused("smoothing", smoothing=-1.0)
    refused("structure must be", structure="ring")
    refused("0 roots", structure=(1, 2, 0))
    refused("from 0 to 2", structure=(-1, 0, 5))
    refused("nodes go with parents", nodes=(0, 0, 0))
    refused("need an output", x + 0.5)
    refused("states 0 to 1", x * 2, num_states=2)
    refused("support of Categorical", x * 2, output=Categorical(2))
    refused("not both", output=Bernoulli(), num_states=2)
    refused("per row", sample_weight=torch.ones(2, 20))
    refused("above 0", sample_weight=torch.zeros(20))
    refused("3 columns", held_out=x[:, :2])
    refused("leaves some", held_out=0.0001)
    refused("3 variables", start=tree())
    refused("outputs for 2 variables", output=PerVariable([Bernoulli(), Normal()]))


def test_a_mixture_of_trees_finds_groups_that_one_tree_cannot():
    torch.manual_seed(11)
    cells = torch.rand(3, 6) < 0.5
    x = torch.where(torch.rand(600, 6) < 0.9, cells[torch.arange(600) % 3], torch.rand(600, 6) < 0.5).float()
    train, test = x[:300], x[300:]
    options = {"num_hidden": 1, "batch_size": 100, "held_out": 0.2, "epochs": 15}
    single = LatentTree.from_data(train, generator=seeded(), **options)
    hidden = torch.where(torch.rand(train.shape) < 0.9, train, math.nan)
    for rows in (train, hidden):
        mixture = LatentTree.mixture_from_data(rows, num_components=3, generator=seeded(), **options)
        again = LatentTree.mixture_from_data(rows, num_components=3, generator=seeded(), **options)
        assert torch.equal(mixture.log_prob(test), again.log_prob(test))
        assert float((mixture.log_prob(test) - single.log_prob(test)).mean()) > 0.2
        assert mixture.num_parameters == 2 + sum(j.num_parameters for j in mixture.joints)
    with pytest.raises(ValueError, match="as many rows"):
        LatentTree.mixture_from_data(train[:3], num_components=4)


def test_classes_have_trees_of_their_own_or_one_structure_that_pulls(float64):
    torch.manual_seed(12)
    x, y = torch.cat([tree().sample((40,)), tree().sample((60,))]), torch.arange(100) >= 40
    weights = torch.stack([~y, y]).double()
    options = {"num_hidden": 2, "epochs": 5, "batch_size": None}
    own = LatentTree.of_classes(x, weights, generator=seeded(), **options)
    mine = seeded()
    for joint, w in zip(own, weights, strict=True):
        alone = LatentTree.from_data(x[w > 0], generator=mine, **options)
        for name, t in joint.tensors.items():
            torch.testing.assert_close(t, alone.tensors[name])
    pulled = LatentTree.of_classes(x, weights, shared=1e7, generator=seeded(), **options)
    everyone = LatentTree.from_data(x, generator=seeded(), **options)
    assert pulled.batch_shape == (2,)
    assert pulled.parents == everyone.parents
    torch.testing.assert_close(pulled.log_prob(x.unsqueeze(1)), everyone.log_prob(x).unsqueeze(-1).expand(-1, 2), rtol=1e-4, atol=1e-4)
    some = LatentTree.of_classes(x, weights, shared=1.0, generator=seeded(), **options)
    gain = some.log_prob(x.unsqueeze(1)).gather(1, y.long()[:, None]).sum() - everyone.log_prob(x).sum()
    assert float(gain) > 2


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_the_classifier_is_bayes_rule_over_a_tree_per_class(shared):
    torch.manual_seed(13)
    cells = torch.rand(2, 6) < 0.5
    y = torch.arange(200) % 2
    x = torch.where(torch.rand(200, 6) < 0.85, cells[y], ~cells[y]).float()
    options = {"num_hidden": 2, "epochs": 10, "shared": shared, "generator": seeded()}
    seen = torch.rand(200, 6) < 0.8
    labels = np.array(["a", "b"])[y.numpy()]
    classifier = GenerativeClassifier(LatentTree, fit_options=options).fit(torch.where(seen, x, math.nan), labels)
    joints = classifier.likelihood_
    parts = joints if isinstance(joints, list) else [joints.with_tensors({n: t[c] for n, t in joints.tensors.items()}) for c in range(2)]
    visible = torch.rand(200, 6) < 0.5
    scores = torch.stack([j.marginal(visible).log_prob(x) for j in parts], -1) + classifier.log_prior_
    np.testing.assert_allclose(classifier.predict_proba(x, visible), scores.softmax(-1).numpy(), atol=1e-5)
    assert float((classifier.predict(x) == labels).mean()) > 0.85
    assert classifier.method(visible[0])[0] == "elimination"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("output", [Bernoulli(), MIXED], ids=["binary", "mixed"])
def test_slopes_of_the_finish_are_autograds(output):
    torch.manual_seed(14)
    parts = [tree(output), tree(output)]
    x, y = parts[0].sample((30,)), torch.arange(30) % 2
    seen, log_prior = torch.rand(30, 5) < 0.7, torch.tensor([0.3, 0.7]).log()
    leaves = {name: torch.stack([p.tensors[name] for p in parts]).requires_grad_() for name in parts[0].tensors}
    scores = parts[0].with_tensors(leaves).marginal(seen.unsqueeze(1)).log_prob(x.unsqueeze(1))
    own = scores.gather(1, y[:, None]).sum()
    posterior = (scores + log_prior).log_softmax(-1)
    target = posterior.gather(1, y[:, None]).sum() + 0.25 * own
    expected = dict(zip(leaves, torch.autograd.grad(target, list(leaves.values())), strict=True))
    mine = torch.nn.functional.one_hot(y, 2)
    for c, part in enumerate(parts):
        learner = Learner(part._parameters(), part._parameters(), 0.0, torch.float64)
        learner.downward(learner.upward(Rows(x, seen)), (1.25 * mine - posterior.detach().exp())[:, c])
        leaf = learner.leaves()
        root, steps, *shown = learner.slopes(leaf)
        torch.testing.assert_close(root, expected["root_logits"][c])
        torch.testing.assert_close(steps[torch.tensor(part._tree.transitions).argsort()], expected["transition_logits"][c])
        for kind, slope in zip(learner._kinds, shown, strict=True):
            torch.testing.assert_close(slope, expected["emission"][c][kind.variables][..., :slope.shape[-1]])


def test_a_finish_weighs_rows():
    """Rows of the wrong class that weigh next to nothing change nothing; rows that all weigh the same weigh as none said."""
    torch.manual_seed(16)
    y = np.arange(200) % 2
    x = torch.where(torch.rand(200, 4) < 0.8, torch.tensor(y)[:, None], 1 - torch.tensor(y)[:, None]).float()
    lied = np.where(np.arange(200) < 60, 1 - y, y)
    options = {"num_hidden": 1, "structure": "star", "epochs": 5, "finish": 20}

    def sure(labels, weight):
        options["generator"] = seeded()
        model = GenerativeClassifier(LatentTree, fit_options=options).fit(x, labels, sample_weight=weight)
        return model.predict_proba(x)[:, 1]

    told = np.where(np.arange(200) < 60, 1e-7, 1.0)
    np.testing.assert_allclose(sure(lied, told), sure(y, told), atol=1e-4)
    assert np.abs(sure(lied, None) - sure(y, None)).max() > 0.1
    np.testing.assert_allclose(sure(y, np.full(200, 3.0)), sure(y, None), atol=0.02)  # EM's made-up rows weigh less beside three times as many


def test_a_finish_tells_classes_apart_and_stays_a_joint():
    torch.manual_seed(15)
    y = torch.rand(300) < 0.5
    said = torch.rand(300) < torch.where(y, 0.7, 0.3)
    x = torch.where(torch.rand(300, 5) < 0.97, said[:, None], ~said[:, None]).float()  # one weak witness, heard five times
    y = y.numpy()
    options = {"num_hidden": 1, "structure": "star", "epochs": 10, "generator": seeded()}  # naive Bayes, which is too sure
    visible = torch.rand(300, 5) < 0.7

    def fitted(**more):
        return GenerativeClassifier(LatentTree, fit_options=options | more).fit(x, y)

    def nats(classifier):
        p = classifier.predict_proba(x, visible)
        return float(-np.log(p[np.arange(300), y.astype(int)]).mean())

    plain, finished, both = fitted(), fitted(finish=30), fitted(finish=30, generative=5.0)
    assert nats(finished) < nats(plain) - 0.05
    assert nats(finished) < nats(both)
    density = [float(c.score_samples(x).mean()) for c in (plain, finished, both)]
    assert density[1] < density[2] < density[0] + 1e-3
    joint = finished.likelihood_[0]
    torch.testing.assert_close(joint.log_prob(joint.enumerate_support()).logsumexp(0), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert finished.num_parameters == plain.num_parameters
