"""The net that starts as a mixture: against a loop over components and levels in scipy, and the conformance kit."""

import numpy as np
import pytest
import torch

from scipy.stats import multivariate_t

import pyro_ar as par

from pyro_ar.neural.mixture_chain import MixtureChain
from pyro_ar.testing import CHECKS, NotApplicable

C, M, N, K, DF = 2, 3, 4, 3, 4.0


def parts(classes=C, n=N):
    root = torch.randn(classes, M, n, n)
    scores = torch.rand(n, K).add(0.3).cumsum(-1) - 1
    return torch.randn(classes, M), DF, torch.randn(classes, M, n), root @ root.mT / n + 0.3 * torch.eye(n), scores


def family(*, classes=C, trained=True, n=N, **options):
    made = MixtureChain(*parts(classes, n), hidden=5, **options)
    if trained:
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.randn(p.shape) * 0.5)
    return made


JOINTS = {
    "classes": lambda: family()(torch.eye(C)),
    "an image in an order": lambda: family(classes=1, event_shape=(2, 2), order=[2, 0, 3, 1])(),
    "one variable": lambda: family(classes=1, n=1)(),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", JOINTS.values(), ids=JOINTS.keys())
def test_conforms(make, check):
    torch.manual_seed(1)
    try:
        check(make())
    except NotApplicable as reason:
        pytest.skip(str(reason))


def by_hand(net, x, order, label):
    """log p of each variable in order: ratios of scipy's joint densities of the components, summed, times the width of the level."""
    scores, S, loc = net.scores.numpy(), net.scale_matrix[label].numpy(), net.loc[label].numpy()
    weights = net.log_weights[label].softmax(-1).numpy()
    z = np.array([scores[i, x[i]] for i in range(N)])

    def density(cells, values):
        if not cells:
            return 1.0
        return sum(w * multivariate_t(m[cells], s[np.ix_(cells, cells)], DF).pdf(values) for w, m, s in zip(weights, loc, S, strict=True))

    answers = []
    for place, i in enumerate(order):
        before = list(order[:place])
        edges = np.concatenate([[scores[i, 0] * 1.5 - scores[i, 1] / 2], (scores[i, 1:] + scores[i, :-1]) / 2,
                                [scores[i, -1] * 1.5 - scores[i, -2] / 2]])
        each = np.array([density([*before, i], [*z[before], scores[i, k]]) * (edges[k + 1] - edges[k]) for k in range(K)])
        answers.append(np.log(each[x[i]] / each.sum()))
    return np.array(answers)


@pytest.mark.usefixtures("float64")
def test_untrained_it_is_the_mixture_priced_on_levels():
    torch.manual_seed(0)
    made = family(trained=False)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        joint = made(torch.eye(C), torch.tensor(order))
        for x in torch.randint(K, (4, N)):
            got = joint.conditional_log_prob(x.double())
            for label in range(C):
                wanted = by_hand(made.net, x.tolist(), order, label)
                torch.testing.assert_close(got[label][order].detach(), torch.from_numpy(wanted), atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_correction_is_what_its_formula_says():
    torch.manual_seed(0)
    made = family()
    net, order, context = made.net, [2, 0, 3, 1], torch.eye(C)[1:]
    x = torch.randint(K, (1, N))
    place = torch.tensor([order])
    q = net.base(x.double().gather(1, place), context, place)[0]
    got = made(context, torch.tensor(order)).conditional_log_prob(x.double())[0]
    for t, i in enumerate(order):
        a = net.hidden_bias + net.hidden_context[1]
        for j in order[:t]:
            a = a + net.input_weight[j] * net.scores[j, x[0, j]] + net.known_weight[j]
        g = torch.tanh(a) @ net.output_weight[i]
        phi = torch.stack([net.scores[i], net.scores[i] ** 2, torch.eye(K)[0], torch.eye(K)[-1]])
        logits = torch.stack([q[t, k] * g[4].exp() + net.table[i, k] + (phi[:, k] @ g[:4]) for k in range(K)])
        torch.testing.assert_close(got[i], logits.log_softmax(0)[x[0, i]])


@pytest.mark.usefixtures("float64")
def test_marginal_stops_early_without_a_difference():
    torch.manual_seed(0)
    joint = family()(torch.eye(C))
    x, visible = torch.randint(K, (6, 1, N)).double(), torch.rand(6, 1, N) < 0.5
    whole = joint.marginal(visible).answering.conditional_log_prob(x)
    torch.testing.assert_close(joint.marginal(visible).log_prob(x), torch.where(visible, whole, 0).sum(-1))


def test_save_and_load(tmp_path):
    made = family(order=[3, 1, 0, 2])
    par.save(made, tmp_path / "chain.safetensors")
    again = par.load(tmp_path / "chain.safetensors")
    x = torch.randint(K, (5, 1, N)).float()
    torch.testing.assert_close(again(torch.eye(C)).log_prob(x), made(torch.eye(C)).log_prob(x))


@pytest.mark.parametrize(("change", "words"), [
    (lambda p: (p[0][0], *p[1:]), "log_weights must be"),
    (lambda p: (*p[:2], p[2][:, :1], *p[3:]), "loc must be"),
    (lambda p: (*p[:4], p[4].flip(-1)), "scores must increase"),
])
def test_bad_shapes_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        MixtureChain(*change(parts()))
