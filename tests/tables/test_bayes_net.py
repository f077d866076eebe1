"""Bayes nets: evidence, posterior, counts and errors (queries: test_elimination.py, test_pgmpy.py)."""

import math
import random

import pytest
import torch

from listing import dirichlet_predictive

from pyro_ar.tables import BayesNet, FullTable, MarkovChain

SPROUT = [(), (0,), (0, 1), (2,)]
SIZES = (2, 3, 2, 4)


def random_parents(n, pick, most=3):
    names = pick.sample(range(n), n)
    parents = [()] * n
    for place, v in enumerate(names):
        parents[v] = tuple(pick.sample(names[:place], pick.randint(0, min(most, place))))
    return parents


def rows(count=20, seed=0, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(k, (count,), generator=generator) for k in sizes], -1)


def sequential(x, parents, sizes, alpha_of):
    """log p(x) by the chain rule over rows: every table a Polya urn."""
    total = 0.0
    for v, p in enumerate(parents):
        urns = {}
        for row in x.tolist():
            urns.setdefault(tuple(row[u] for u in p), []).append((row[v], sizes[v]))
        total += sum(dirichlet_predictive(urn, alpha_of(v)) for urn in urns.values())
    return total


@pytest.mark.parametrize("seed", range(8))
def test_evidence_is_the_product_of_predictive_probabilities(seed):
    pick = random.Random(seed)
    n = pick.randint(1, 6)
    sizes, parents = [pick.choice([2, 3, 5]) for _ in range(n)], random_parents(n, pick)
    x = rows(30, seed, sizes)
    found = BayesNet.log_evidence(x, concentration=0.6, parents=parents, num_states=sizes)
    assert found.item() == pytest.approx(sequential(x, parents, sizes, lambda v: 0.6), abs=1e-9)
    found = BayesNet.log_evidence(x, equivalent_sample_size=4.0, parents=parents, num_states=sizes)
    cells = [sizes[v] * math.prod(sizes[u] for u in p) for v, p in enumerate(parents)]
    assert found.item() == pytest.approx(sequential(x, parents, sizes, lambda v: 4.0 / cells[v]), abs=1e-9)


def test_equivalent_graphs_have_equal_evidence_and_others_do_not():
    x = rows(40, 3, (2, 3, 2))
    one, other, collider = (BayesNet.log_evidence(x, equivalent_sample_size=3.0, parents=p, num_states=(2, 3, 2))
                            for p in ([(), (0,), (1,)], [(1,), (2,), ()], [(), (0, 2), ()]))
    assert one.item() == pytest.approx(other.item(), abs=1e-9)
    assert abs(one.item() - collider.item()) > 1e-3


@pytest.mark.parametrize("prior", [{"concentration": 0.5}, {"equivalent_sample_size": 6.0}], ids=str)
def test_the_predictive_of_the_posterior_is_a_ratio_of_evidences(prior):
    x = rows(15)
    posterior = BayesNet.posterior(x, parents=SPROUT, num_states=SIZES, **prior)
    before = BayesNet.log_evidence(x, parents=SPROUT, num_states=SIZES, **prior)
    for new in rows(6, seed=9):
        after = BayesNet.log_evidence(torch.cat([x, new[None]]), parents=SPROUT, num_states=SIZES, **prior)
        found = posterior.predictive().log_prob(new)
        assert found.item() == pytest.approx((after - before).item(), abs=1e-5)  # the joint is float32


def test_the_posterior_is_dirichlet_with_the_counts_added():
    x = rows(50)
    posterior = BayesNet.posterior(x, parents=SPROUT, num_states=SIZES, concentration=0.5)
    for v, (p, dirichlet) in enumerate(zip(SPROUT, posterior.dirichlets, strict=True)):
        assert dirichlet.batch_shape == tuple(SIZES[u] for u in p)
        counts = torch.full((*dirichlet.batch_shape, SIZES[v]), 0.5)
        for row in x.tolist():
            counts[(*(row[u] for u in p), row[v])] += 1
        torch.testing.assert_close(dirichlet.mean, counts / counts.sum(-1, keepdim=True))
        torch.testing.assert_close(dirichlet.concentration, counts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = posterior.sample((7,))
    assert drawn.batch_shape == (7,)
    assert drawn.log_prob(x[:, None]).shape == (50, 7)


def test_drawn_tables_average_to_the_predictive():
    """p(new row | rows) is the mean of p(new row | tables) over the posterior: z-tests, false alarm 1e-6 in all."""
    x, new = rows(12), rows(5, seed=4)
    posterior = BayesNet.posterior(x, parents=SPROUT, num_states=SIZES, concentration=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = posterior.sample((20_000,)).log_prob(new[:, None]).double().exp()
    error = draws.std(-1) / math.sqrt(draws.shape[-1])
    z = (draws.mean(-1) - posterior.predictive().log_prob(new).double().exp()) / error
    assert bool((z.abs() < 5.2).all()), z


def test_from_data_is_relative_counts():
    x = rows(30)
    for pseudocount in (0.0, 0.5, 2.0):
        net = BayesNet.from_data(x, parents=SPROUT, num_states=SIZES, pseudocount=pseudocount)
        for v, p in enumerate(SPROUT):
            for row in x.tolist():
                same = [r for r in x.tolist() if all(r[u] == row[u] for u in p)]
                hits = sum(r[v] == row[v] for r in same)
                expected = math.log((hits + pseudocount) / (len(same) + pseudocount * SIZES[v]))
                assert net.conditional_log_prob(torch.tensor(row))[v].item() == pytest.approx(expected, abs=1e-5)


def test_weights_give_one_joint_per_batch_entry():
    x, y = rows(40), torch.arange(40) % 3
    one_hot = (y == torch.arange(3)[:, None]).double()
    batch = BayesNet.from_data(x, parents=SPROUT, num_states=SIZES, weights=one_hot)
    assert batch.batch_shape == (3,)
    for c in range(3):
        alone = BayesNet.from_data(x[y == c], parents=SPROUT, num_states=SIZES)
        torch.testing.assert_close(batch.log_prob(x[:, None])[:, c], alone.log_prob(x))
    doubled = BayesNet.from_data(x, parents=SPROUT, num_states=SIZES, weights=torch.full((40,), 2.0), pseudocount=2.0)
    torch.testing.assert_close(doubled.log_prob(x), BayesNet.from_data(x, parents=SPROUT, num_states=SIZES).log_prob(x))


@pytest.mark.parametrize("seed", range(10))
def test_parameters_are_those_of_the_tables(seed):
    pick = random.Random(seed)
    n = pick.randint(1, 12)
    sizes, parents = [pick.randint(1, 5) for _ in range(n)], random_parents(n, pick)
    tables = [torch.zeros(*[sizes[u] for u in p], sizes[v]) for v, p in enumerate(parents)]
    by_hand = sum(t.numel() - t.numel() // t.shape[-1] for t in tables)
    assert BayesNet(parents, tables).num_parameters == by_hand
    assert BayesNet.count_parameters(sizes, parents=parents) == by_hand


def test_parameters_of_known_graphs():
    complete = [tuple(range(i)) for i in range(40)]
    assert BayesNet.count_parameters([2] * 40, parents=complete) == FullTable.count_parameters([2] * 40) == 2**40 - 1
    k, n = 5, 30
    window = [tuple(range(max(0, i - k), i)) for i in range(n)]
    assert BayesNet.count_parameters([2] * n, parents=window) == MarkovChain.count_parameters([2] * n, order=k)


def test_order_puts_parents_first():
    net = BayesNet([(2,), (0,), (), (1, 2)], [torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 2, 2)])
    assert net.order.tolist() == [2, 0, 1, 3]


TWO = [torch.zeros(2), torch.zeros(2, 2)]


@pytest.mark.parametrize(("make", "match"), [
    (lambda: BayesNet([(1,), (0,)], [torch.zeros(2, 2)] * 2), "graph without cycles"),
    (lambda: BayesNet([(), (1,)], TWO), "parents of variable 1 must be other variables from 0 to 1"),
    (lambda: BayesNet([(), (2,)], TWO), "parents of variable 1 must be other variables"),
    (lambda: BayesNet([(), (-1,)], TWO), "parents of variable 1 must be other variables"),
    (lambda: BayesNet([(), (0, 0)], [torch.zeros(2), torch.zeros(2, 2, 2)]), "each once; got \\(0, 0\\)"),
    (lambda: BayesNet([()], TWO), "parents must list the parents of each of the 2 variables"),
    (lambda: BayesNet([], []), "at least one tensor of logits"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(3), torch.zeros(2, 2)]), r"table 1 must have the states \(3,\) of its parents"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(2), torch.zeros(2)]), "tables.1 must be a floating tensor of at least 2"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(2), torch.zeros(2, 2).long()]), "tables.1 must be a floating tensor"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(2), [[0.0]]]), "tables.1 must be a floating tensor"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(2), torch.full((2, 2), math.nan)]), "tables.1 must not hold NaN"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(3, 2), torch.zeros(4, 2, 2)]), "batch dimensions of the tensors must broadcast"),
    (lambda: BayesNet([(), (0,)], [torch.zeros(2), torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]])]), "finite logit"),
    (lambda: BayesNet.from_data(torch.zeros(3, 2)), "parents must list the parents of each of the 2"),
    (lambda: BayesNet.log_evidence(torch.zeros(3, 2), parents=[(), (5,)], concentration=1.0), "other variables from 0 to 1"),
], ids=range(16))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
