"""`LatentTree` against sums over all hidden states, Pyro's hidden Markov model, and tables too small for single precision."""

import itertools
import math

import pytest
import torch

from pyro.distributions import DiscreteHMM
from pyro.distributions import Normal as PyroNormal
from torch.distributions import Categorical as TorchCategorical

from pyro_ar.checks import IntractableError
from pyro_ar.latent import LatentTree
from pyro_ar.latent.tree import Tree, rooted_at_centre
from pyro_ar.outputs import Bernoulli, Categorical, DiscretisedLogisticMixture, Normal, PerVariable

randn = torch.randn
PARENTS, NODES = (2, 2, 4, 2, -1, 1), (0, 3, 3, 5, 1)
MIXED = PerVariable([Bernoulli(), Normal(), Categorical(3), DiscretisedLogisticMixture(4, 2), Normal()])


def mixed(K=3):
    return LatentTree(randn(K), 2 * randn(5, K, K), randn(5, K, MIXED.raw), MIXED, parents=PARENTS, nodes=NODES)


def by_hand(joint, x, visible):
    """Log p(z, x_visible) of every joint hidden state, one number after the other: `(K^H,)`, and the states."""
    K, H = joint.num_hidden, len(joint.parents)
    root, steps = joint.root_logits.log_softmax(-1), None if H == 1 else joint.transition_logits.log_softmax(-1)
    others = [h for h in range(H) if joint.parents[h]]
    outputs = joint.output.variables(len(x))
    states, scores = list(itertools.product(range(K), repeat=H)), []
    for z in states:
        score = sum((root[z[h]] for h in range(H) if not joint.parents[h]), torch.zeros(()))
        for number, h in enumerate(others):
            score = score + steps[number, z[joint.parents[h][0]], z[h]]
        for i, output in enumerate(outputs):
            if visible[i]:
                score = score + output.distribution(joint.emission[i, z[joint.nodes[i]], :output.raw]).log_prob(x[i])
        scores.append(score)
    return torch.stack(scores), torch.tensor(states)


def rows(joint, many=6):
    x = joint.sample((many,))
    return x, torch.rand(x.shape) < torch.linspace(0, 1, many)[:, None]


@pytest.mark.usefixtures("float64")
def test_marginals_posteriors_and_moments_are_sums_over_all_hidden_states():
    torch.manual_seed(0)
    joint = mixed(K=2)
    x, visible = rows(joint)
    hidden = torch.where(visible, x, math.nan)
    posterior = joint.hidden_posterior(hidden, visible).probs
    given = joint.given(hidden, visible)
    for r in range(len(x)):
        scores, states = by_hand(joint, x[r], visible[r])
        torch.testing.assert_close(joint.marginal(visible[r]).log_prob(hidden[r]), scores.logsumexp(0))
        weight = scores.softmax(0)
        for h in range(6):
            for k in range(2):
                torch.testing.assert_close(posterior[r, h, k], weight[states[:, h] == k].sum())
        for i, output in enumerate(MIXED.outputs):
            if visible[r, i]:
                assert given.mean[r, i] == x[r, i]
                assert given.variance[r, i] == 0
                continue
            shown = output.distribution(joint.emission[i, :, :output.raw])
            if isinstance(shown, TorchCategorical):
                values = torch.arange(output.num_states).double()
                mean = (shown.probs * values).sum(-1)
                square = (shown.probs * values.square()).sum(-1)
            else:
                mean, square = shown.mean, shown.variance + shown.mean.square()
            at = states[:, NODES[i]]
            expected = (weight * mean[at]).sum()
            torch.testing.assert_close(given.mean[r, i], expected)
            torch.testing.assert_close(given.variance[r, i], (weight * square[at]).sum() - expected.square())


@pytest.mark.usefixtures("float64")
def test_entries_of_a_batch_are_trees_of_their_own():
    torch.manual_seed(1)
    parts = [LatentTree(randn(2), randn(2, 2, 2), randn(3, 2, 2), Categorical(3), parents=(1, -1, 1)) for _ in range(4)]
    stacked = {name: torch.stack([p.tensors[name] for p in parts]).unflatten(0, (2, 2)) for name in parts[0].tensors}
    joint = parts[0].with_tensors(stacked)
    x = torch.randint(3, (5, 1, 1, 3)).double()
    visible = torch.rand(5, 1, 2, 3) < 0.5
    together = joint.marginal(visible).log_prob(x)
    for e, part in enumerate(parts):
        torch.testing.assert_close(together[:, e // 2, e % 2], part.marginal(visible[:, 0, e % 2]).log_prob(x[:, 0, 0]))
    torch.testing.assert_close(joint.hidden_posterior(x, visible).probs[:, 1, 0], parts[2].hidden_posterior(x[:, 0, 0], visible[:, 0, 0]).probs)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["categorical", "normal"])
def test_a_chain_is_pyros_hidden_markov_model(kind):
    torch.manual_seed(2)
    K, length = 4, 9
    start, steps = randn(K), randn(length, K, K)
    if kind == "normal":
        output, raw = Normal(), randn(length, K, 2)
        shown = output.distribution(raw)
        x = randn(7, length)
    else:
        output, raw = Categorical(5), randn(length, K, 4)
        shown = TorchCategorical(logits=torch.nn.functional.pad(raw, (1, 0)))
        x = torch.randint(5, (7, length)).double()
    shown = PyroNormal(shown.loc, shown.scale) if kind == "normal" else type(output.distribution(raw))(logits=shown.logits)
    oracle = DiscreteHMM(start, steps, shown)  # it steps once before it shows anything
    first = (start.log_softmax(-1).unsqueeze(-1) + steps[0].log_softmax(-1)).logsumexp(0)
    joint = LatentTree(first, steps[1:], raw, output)
    torch.testing.assert_close(joint.log_prob(x), oracle.log_prob(x))
    filtered = joint.hidden_posterior(x).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(filtered, oracle.filter(x).logits.log_softmax(-1))


@pytest.mark.parametrize("shape", ["chain", "bushy"])
@pytest.mark.parametrize("size", [3.0, 300.0])
def test_nothing_underflows_over_784_variables(shape, size):
    torch.manual_seed(3)
    n, K = 784, 3
    parents = list(range(-1, n - 1)) if shape == "chain" else [(i - 1) // 9 if i else -1 for i in range(n)]
    tensors = [size * randn(K), size * randn(n - 1, K, K), size * randn(n, K, 1)]
    x, visible = (torch.rand(3, n) < 0.5).float(), torch.rand(3, n) < torch.tensor([[0.0], [0.5], [1.0]])
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
        answer = LatentTree(*leaves, parents=parents).marginal(visible).log_prob(x)
        answer.sum().backward()
        found[dtype] = [answer.detach(), *(t.grad for t in leaves)]
    single, double = found[torch.float32], found[torch.float64]
    assert all(bool(t.isfinite().all()) for t in single)
    assert double[0][2] < -500
    for a, b in zip(single, double, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-2 if size > 100 else 2e-3)  # sums of 1e5 nats are rounded


def test_sums_in_logarithms_and_products_of_matrices_agree(float64):
    torch.manual_seed(4)
    joint = mixed()
    x, visible = rows(joint)
    plain = joint.marginal(visible).log_prob(x)
    far = joint.root_logits.new_full((3, 3), -math.inf).fill_diagonal_(0.0)
    steps = torch.cat([joint.transition_logits[:4], far[None]])  # a table with zeros: no product of matrices
    sharp = joint.with_tensors({**joint.tensors, "transition_logits": steps})
    nearly = joint.with_tensors({**joint.tensors, "transition_logits": steps.clamp(min=-80.0)})
    torch.testing.assert_close(sharp.marginal(visible).log_prob(x), nearly.marginal(visible).log_prob(x))
    torch.testing.assert_close(sharp.hidden_posterior(x, visible).probs, nearly.hidden_posterior(x, visible).probs)
    off = LatentTree(*joint.tensors.values(), MIXED, parents=PARENTS, nodes=NODES, validate_args=False)
    mapped = torch.vmap(lambda r: off.with_tensors({**off.tensors, "root_logits": r}).log_marginal(x, visible))
    torch.testing.assert_close(mapped(off.root_logits[None])[0], plain)


def test_counts_its_parameters():
    # the table of the design: K - 1 + (n - 1) K (K - 1) + emissions
    assert LatentTree(randn(4), randn(6, 4, 4), randn(7, 4, 2), Categorical(3)).num_parameters == 3 + 6 * 12 + 7 * 4 * 2
    assert LatentTree(randn(4), None, randn(7, 4, 1)).num_parameters == 3 + 7 * 4
    assert mixed().num_parameters == 2 + 5 * 6 + 3 * (1 + 2 + 2 + 5 + 2)
    assert LatentTree.count_parameters(784, 16) == 15 + 783 * 240 + 784 * 16


def test_most_likely_completions_are_exact_or_refused(float64):
    torch.manual_seed(5)
    joint = LatentTree(randn(3), 2 * randn(12, 3, 3), randn(13, 3, 1))
    x, visible = joint.sample((4,)), torch.rand(4, 13) < 0.6
    completions = joint.given(x, visible).mode
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 13)
    for r in range(4):
        allowed = values[((values == x[r]) | ~visible[r]).all(-1)]
        assert torch.equal(completions[r], allowed[joint.log_prob(allowed).argmax()])
    with pytest.raises(IntractableError, match="mode"):
        joint.mode  # noqa: B018
    with pytest.raises(IntractableError, match="mode"):
        mixed().given(mixed().sample(), torch.ones(5, dtype=torch.bool).scatter(0, torch.tensor(0), False)).mode  # noqa: B018


def test_refuses_what_is_no_tree():
    def make(parents=None, nodes=None, root=(2,), steps=(2, 2, 2), emission=(3, 2, 1), output=None):
        return LatentTree(torch.zeros(root), None if steps is None else torch.zeros(steps), torch.zeros(emission), output, parents=parents, nodes=nodes)

    make((1, -1, 1))
    for parents, words in {(-1, 0): "2 parents", (-1, -1, 0): "2 roots", (1, 0, 0): "0 roots", (1, 0, -1): "descendant", (-1, 0, 3): "from 0 to 2",
                           (-1, (0, 1), 0): "at most one parent", (-1, 0.5, 0): "number of a node"}.items():
        with pytest.raises(ValueError, match=words):
            make(parents)
    for bad, words in {"nodes": ((0, 1, 3), "nodes must name"), "root": ((0,), "at least one"), "steps": ((2, 2, 3), "transition_logits"),
                       "emission": ((3, 2, 2), "raw parameters"), "output": ("Bernoulli", "par.outputs")}.items():
        with pytest.raises(ValueError, match=words[1]):
            make(**{bad: words[0]})
    with pytest.raises(ValueError, match="without `nodes`"):
        make(emission=(4, 2, 1))
    with pytest.raises(ValueError, match="finite logit"):
        LatentTree(torch.full((2,), -torch.inf), None, torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match="emission must be finite"):
        LatentTree(torch.zeros(2), None, torch.full((3, 2, 1), torch.nan))
    with pytest.raises(ValueError, match="one dtype"):
        LatentTree(torch.zeros(2).double(), None, torch.zeros(3, 2, 1))


def test_a_tree_is_rooted_where_it_is_least_deep():
    assert rooted_at_centre([(0, 1), (1, 2), (2, 3), (3, 4)], 5) == (1, 2, -1, 2, 3)
    assert rooted_at_centre([(3, 0), (0, 1), (1, 2)], 4)[0] == -1  # of two middles the lowest number
    assert rooted_at_centre([], 1) == (-1,)
    tree = Tree(PARENTS, NODES)
    assert tree.order == (4, 2, 0, 1, 3, 5)
    assert tree.levels == ((0, 1), (1, 2), (2, 5), (5, 6))
    assert [t.tolist() for t in tree.above] == [[0], [0, 0, 0], [1]]
    assert tree.transitions == (2, 0, 1, 3, 4)
