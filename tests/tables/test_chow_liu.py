"""The best tree and the evidence of all trees, against listing every tree."""

import heapq
import itertools
import math
import random

import pytest
import torch

from listing import dirichlet_predictive, log_sum

from pyro_ar.tables import BayesNet, ChowLiuTree, FullyIndependent
from pyro_ar.tables.chow_liu import log_spanning_trees


def all_trees(n):
    """Every labelled tree as a set of edges, from its Pruefer code."""
    for code in itertools.product(range(n), repeat=n - 2):
        degree = [1 + code.count(v) for v in range(n)]
        leaves = [v for v in range(n) if degree[v] == 1]
        heapq.heapify(leaves)
        edges = []
        for v in code:
            edges.append((heapq.heappop(leaves), v))
            degree[v] -= 1
            if degree[v] == 1:
                heapq.heappush(leaves, v)
        edges.append((heapq.heappop(leaves), heapq.heappop(leaves)))
        yield edges


def rooted(edges, n, root):
    parents, reached = [()] * n, [root]
    for v in reached:
        for a, b in edges:
            for u, w in ((a, b), (b, a)):
                if u == v and w not in reached:
                    parents[w] = (v,)
                    reached.append(w)
    return parents


def correlated(n, count, seed, sizes=None):
    pick = random.Random(seed)
    sizes = sizes or [pick.choice([2, 3, 4]) for _ in range(n)]
    rows = []
    for _ in range(count):
        row = [pick.randrange(sizes[0])]
        for k in sizes[1:]:
            row.append(pick.choice(row) % k if pick.random() < 0.7 else pick.randrange(k))
        rows.append(row)
    return torch.tensor(rows), sizes


def log_likelihood(x, parents):
    """Of the maximum likelihood tables, by plain counting."""
    rows, total = x.tolist(), 0.0
    for v, p in enumerate(parents):
        for row in rows:
            same = [r for r in rows if all(r[u] == row[u] for u in p)]
            total += math.log(sum(r[v] == row[v] for r in same) / len(same))
    return total


@pytest.mark.parametrize("seed", range(4))
def test_no_tree_has_larger_likelihood(seed):
    x, sizes = correlated(5, 20, seed)
    tree = ChowLiuTree.from_data(x, pseudocount=0, num_states=sizes)
    assert sum(len(p) == 0 for p in tree.parents) == 1
    found = tree.log_prob(x).double().sum().item()
    assert found == pytest.approx(log_likelihood(x, tree.parents), abs=1e-3)
    best = max(log_likelihood(x, rooted(edges, 5, 0)) for edges in all_trees(5))
    assert log_likelihood(x, tree.parents) == pytest.approx(best, abs=1e-9)


def test_weighted_classes_share_the_tree_of_largest_summed_likelihood():
    x, sizes = correlated(4, 24, 7, [2, 2, 2, 2])
    y = torch.arange(24) % 2
    tree = ChowLiuTree.from_data(x, pseudocount=0, num_states=sizes, weights=(y == torch.arange(2)[:, None]).float())
    assert tree.batch_shape == (2,)
    scores = {i: sum(log_likelihood(x[y == c], rooted(edges, 4, 0)) for c in (0, 1))
              for i, edges in enumerate(all_trees(4))}
    own = sum(log_likelihood(x[y == c], tree.parents) for c in (0, 1))
    assert own == pytest.approx(max(scores.values()), abs=1e-9)


def tree_evidence(x, parents, sizes, strength):
    total = 0.0
    for v, p in enumerate(parents):
        urns = {}
        for row in x.tolist():
            urns.setdefault(tuple(row[u] for u in p), []).append((row[v], sizes[v]))
        cells = sizes[v] * math.prod(sizes[u] for u in p)
        total += sum(dirichlet_predictive(urn, strength / cells) for urn in urns.values())
    return total


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (3, 3), (4, 16), (5, 125)])
def test_evidence_is_the_mean_over_all_trees(n, count):
    x, sizes = correlated(n, 15, n)
    if n == 1:
        scores = [tree_evidence(x, [()], sizes, 2.5)]
    else:
        trees = list(all_trees(n))
        pick = random.Random(0)  # the root of a tree does not matter: each gets another one
        scores = [tree_evidence(x, rooted(edges, n, pick.randrange(n)), sizes, 2.5) for edges in trees]
    assert len(scores) == count
    found = ChowLiuTree.log_evidence(x, equivalent_sample_size=2.5, num_states=sizes)
    assert found.item() == pytest.approx(log_sum(scores) - math.log(count), abs=1e-9)


def test_trees_are_counted_and_summed_exactly():
    for n in (2, 3, 7, 30):
        assert log_spanning_trees(torch.zeros(n, n, dtype=torch.float64)).item() == pytest.approx((n - 2) * math.log(n))
    torch.manual_seed(0)
    for scale in (1.0, 50.0, 1000.0):
        edge = scale * torch.randn(5, 5, dtype=torch.float64)
        edge = edge.tril(-1) + edge.tril(-1).T
        by_hand = log_sum(sum(edge[a, b].item() for a, b in edges) for edges in all_trees(5))
        assert log_spanning_trees(edge).item() == pytest.approx(by_hand, rel=1e-12)


def test_posterior_is_that_of_the_picked_tree():
    x, sizes = correlated(4, 30, 2)
    picked = ChowLiuTree.from_data(x, num_states=sizes).parents
    posterior = ChowLiuTree.posterior(x, concentration=1.0, num_states=sizes)
    assert isinstance(posterior.predictive(), ChowLiuTree)
    assert posterior.predictive().parents == picked
    as_net = BayesNet.posterior(x, concentration=1.0, num_states=sizes, parents=picked)
    torch.testing.assert_close(posterior.predictive().log_prob(x), as_net.predictive().log_prob(x))
    # The posterior mean under concentration 1 is the fit with pseudocount 1.
    torch.testing.assert_close(posterior.predictive().log_prob(x), ChowLiuTree.from_data(x, num_states=sizes).log_prob(x))


def test_given_parents_are_kept():
    x, sizes = correlated(3, 20, 5)
    parents = ((1,), (2,), ())
    assert ChowLiuTree.from_data(x, num_states=sizes, parents=parents).parents == parents
    assert ChowLiuTree.posterior(x, num_states=sizes, parents=parents, concentration=1.0).predictive().parents == parents


def test_degenerate_data():
    constant = torch.zeros(4, 3, dtype=torch.long)
    tree = ChowLiuTree.from_data(constant)
    assert tree.num_states == (2, 2, 2)
    assert bool(tree.log_prob(constant).isfinite().all())
    assert ChowLiuTree.from_data(torch.tensor([[0], [1]])).parents == ((),)


def test_parameters():
    assert ChowLiuTree.count_parameters([2] * 64) == 2 * 64 - 1
    x, sizes = correlated(6, 10, 1)
    tree = ChowLiuTree.from_data(x, num_states=sizes)
    by_hand = sum((sizes[v] - 1) * math.prod(sizes[u] for u in p) for v, p in enumerate(tree.parents))
    assert tree.num_parameters == by_hand
    assert tree.num_parameters >= FullyIndependent.count_parameters(sizes)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: ChowLiuTree([(), (), (0, 1)], [torch.zeros(2), torch.zeros(2), torch.zeros(2, 2, 2)]), "at most one parent"),
    (lambda: ChowLiuTree.from_data(torch.zeros(3, 3), parents=[(), (), (0, 1)]), "at most one parent"),
    (lambda: ChowLiuTree.log_evidence(torch.zeros(3, 3), concentration=1.0), "needs equivalent_sample_size; got 1.0"),
    (lambda: ChowLiuTree.log_evidence(torch.zeros(3, 3)), "needs equivalent_sample_size"),
    (lambda: ChowLiuTree.log_evidence(torch.zeros(3, 3), equivalent_sample_size=-1.0), "needs a positive number; got -1.0"),
    (lambda: ChowLiuTree.from_data(torch.zeros(3)), r"data must be rows of shape \(N, n\)"),
    (lambda: ChowLiuTree.from_data(torch.zeros(3, 3), weights=torch.ones(4)), r"weights must end in \(3,\)"),
    (lambda: ChowLiuTree.from_data(torch.zeros(3, 3), weights=torch.tensor([1.0, -1.0, 1.0])), "weights must be 0 or more"),
    (lambda: ChowLiuTree.from_data(torch.zeros(3, 3), weights=torch.tensor([1.0, math.nan, 1.0])), "not NaN"),
    (lambda: ChowLiuTree.posterior(torch.zeros(3, 3)), "give either concentration"),
], ids=range(10))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
