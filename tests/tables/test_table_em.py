"""Tables from rows with hidden cells: expected counts by enumeration, scipy's maximum, no step down, complete rows as before."""

import itertools
import math

import numpy as np
import pytest
import torch

from scipy.optimize import minimize

from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.tables.chow_liu import _mutual_information

SIZES = [2, 3, 2, 2]
JOINTS = {
    "full table": (FullTable, {}),
    "independent": (FullyIndependent, {}),
    "chain": (MarkovChain, {}),
    "second-order chain": (MarkovChain, {"order": 2}),
    "net": (BayesNet, {"parents": [(), (0,), (0, 1), (1,)]}),
    "tree": (ChowLiuTree, {}),
}


@pytest.fixture
def rows():
    x = FullTable(1.5 * torch.randn(SIZES)).sample((150,)).double()
    visible = torch.rand(150, 4) > 0.4
    visible[0] = False
    return x, visible


@pytest.mark.parametrize("name", JOINTS)
@pytest.mark.parametrize("pseudocount", [0.0, 0.5])
def test_no_step_lowers_the_penalised_log_likelihood(name, pseudocount, rows):
    joint, options = JOINTS[name]
    x, visible = rows
    scores = []
    for steps in (0, 1, 2, 3, 6, 20):
        fitted = joint.from_data(x, visible=visible, num_states=SIZES, pseudocount=pseudocount, em_steps=steps, **options)
        prior = sum(float(t.sum()) for t in fitted._group_tables()) if pseudocount else 0.0
        if pseudocount and options.get("order"):  # the first two variables are one table
            first = fitted._group_tables()[0]
            prior += float((first.squeeze() * 2).sum())  # once for each of three states of the second, counted once so far
        scores.append(float(fitted.marginal(visible).log_prob(x).sum()) + pseudocount * prior)
    assert (np.diff(scores) > -1e-9).all(), scores
    assert scores[-1] > scores[0] or joint is FullyIndependent


def expected_counts_by_listing(joint, x, visible, scope):
    """{states of scope: expected number of rows}, one completion after another."""
    counts = {}
    every = list(itertools.product(*map(range, SIZES)))
    log_p = dict(zip(every, joint.log_prob(torch.tensor(every).double()).tolist(), strict=True))
    for row, seen in zip(x.tolist(), visible.tolist(), strict=True):
        fitting = [s for s in every if all(s[i] == row[i] for i in range(4) if seen[i])]
        total = sum(math.exp(log_p[s]) for s in fitting)
        for s in fitting:
            key = tuple(s[v] for v in scope)
            counts[key] = counts.get(key, 0.0) + math.exp(log_p[s]) / total
    return counts


@pytest.mark.parametrize(("name", "parents"), [
    ("chain", [(), (0,), (1,), (2,)]), ("net", [(), (0,), (0, 1), (1,)]), ("independent", [(), (), (), ()]),
    ("second-order chain", [(), (0,), (0, 1), (1, 2)])])
def test_one_step_is_the_expected_counts(name, parents, rows):
    joint, options = JOINTS[name]
    x, visible = rows
    start, after = (joint.from_data(x, visible=visible, num_states=SIZES, pseudocount=0.0, em_steps=k, **options) for k in (0, 1))
    after = {scope: table.exp() for scope, table in zip(after.scopes, after.factors(), strict=True)}
    for v, p in enumerate(parents):
        counts = expected_counts_by_listing(start, x, visible, (*p, v))
        for before in itertools.product(*(range(SIZES[u]) for u in p)):
            total = sum(counts.get((*before, k), 0.0) for k in range(SIZES[v]))
            for k in range(SIZES[v]):
                assert float(after[*p, v][*before, k]) == pytest.approx(counts.get((*before, k), 0.0) / total, abs=1e-9)


def test_the_maximum_is_scipys():
    """A chain of three binary variables: its five numbers by a simplex-free optimiser, from three starts."""
    truth = MarkovChain(torch.tensor([0.5, 0.0]), torch.tensor([[[1.0, -1.0], [-0.5, 1.0]]]).expand(2, 2, 2))
    x = truth.sample((80,)).double()
    visible = torch.rand(80, 3) > 0.35
    fitted = MarkovChain.from_data(x, visible=visible, pseudocount=0.0, num_states=2, em_steps=5000)

    def loss(logits):
        p = 1 / (1 + np.exp(-logits))
        start, step = [1 - p[0], p[0]], [[[1 - q, q] for q in p[1:3]], [[1 - q, q] for q in p[3:5]]]
        total = 0.0
        for row, seen in zip(x.int().tolist(), visible.tolist(), strict=True):
            total -= math.log(sum(start[a] * step[0][a][b] * step[1][b][c] for a, b, c in itertools.product(range(2), repeat=3)
                                  if all(s == r for s, r, v in zip((a, b, c), row, seen, strict=True) if v)))
        return total

    best = min(minimize(loss, s, method="BFGS").fun for s in (np.zeros(5), np.full(5, 0.7), np.array([-1, 1, -1, 1, -1.0])))
    assert -float(fitted.marginal(visible).log_prob(x).sum()) == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("name", JOINTS)
def test_complete_rows_are_fitted_as_before(name, rows):
    joint, options = JOINTS[name]
    x, _ = rows
    weights = torch.rand(2, 150)
    plain = joint.from_data(x, num_states=SIZES, weights=weights, **options)
    seen = joint.from_data(x, num_states=SIZES, weights=weights, visible=torch.ones(4, dtype=torch.bool), **options)
    assert all(torch.equal(a, seen.tensors[k]) for k, a in plain.tensors.items())


@pytest.mark.parametrize("name", JOINTS)
def test_hidden_values_are_never_read_and_batches_are_separate_fits(name, rows):
    joint, options = JOINTS[name]
    x, visible = rows
    weights = torch.stack([torch.arange(150) % 2, torch.rand(150)]).double()
    options = {"num_states": SIZES, "visible": visible, "em_steps": 5} | options
    if joint is ChowLiuTree:
        options["parents"] = [(), (0,), (1,), (2,)]
    both = joint.from_data(x.masked_fill(~visible, math.nan), weights=weights, **options)
    assert both.batch_shape == (2,)
    for b in range(2):
        alone = joint.from_data(x.masked_fill(~visible, 9), weights=weights[b], **options)
        torch.testing.assert_close(both.log_prob(x[:, None])[:, b], alone.log_prob(x))


def by_the_kinds_of_rows(kinds, pseudocount):
    """EM of a full table over two coins in numpy; `kinds`: a row, None where hidden, and how many are such.

    Returns the table `(2, 2)` after each step, the first before any, and the penalised log-likelihood and the log-likelihood of each.
    """
    fits = np.array([[[all(s in (None, v) for s, v in zip(row, (a, b), strict=True)) for b in range(2)] for a in range(2)] for row, _ in kinds], float)
    many = np.array([count for _, count in kinds], float)
    counts = np.einsum("k,kab->ab", many * [None not in row for row, _ in kinds], fits)
    tables, penalised, plain = [], [], []
    for _ in range(400):
        p = (counts + pseudocount) / (counts + pseudocount).sum()
        each = (p * fits).sum((1, 2))
        tables.append(p)
        plain.append(float(many @ np.log(each)))
        penalised.append(plain[-1] + pseudocount * float(np.log(p).sum()))
        counts = np.einsum("k,kab->ab", many / each, p * fits)
    return tables, penalised, plain


@pytest.mark.parametrize("pseudocount", [0.5, 1.0])
def test_it_stops_where_likelihood_and_prior_together_gain_no_more(pseudocount):
    """One row is whole; of 60 others 70 % of what is seen are ones. The likelihood falls after a few steps, while the prior still gains more."""
    kinds = [((0, 1), 1), ((1, None), 21), ((0, None), 9), ((None, 1), 21), ((None, 0), 9)]
    x = torch.tensor([[math.nan if v is None else v for v in row] for row, count in kinds for _ in range(count)], dtype=torch.float64)
    tables, penalised, plain = by_the_kinds_of_rows(kinds, pseudocount)
    assert (np.diff(penalised) > -1e-12).all()
    first, last = (next(k for k in range(1, 400) if scores[k] - scores[k - 1] <= 1e-6 * len(x)) for scores in (plain, penalised))
    assert first < last / 2  # a rule without the prior stops here, far away:
    assert abs(tables[first] - tables[-1]).max() > 0.01
    states = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)

    def fitted(steps):
        return FullTable.from_data(x, num_states=2, pseudocount=pseudocount, em_steps=steps).log_prob(states).exp().reshape(2, 2).numpy()

    for steps in (0, 1, 5):
        np.testing.assert_allclose(fitted(steps), tables[steps], atol=1e-6)
    np.testing.assert_allclose(fitted(1000), tables[last + 1], atol=1e-6)  # the step that gains no more is kept
    np.testing.assert_allclose(fitted(1000), tables[-1], atol=0.004)


def test_independent_cells_are_the_shares_among_visible_ones(rows):
    x, visible = rows
    fitted = FullyIndependent.from_data(x, visible=visible, num_states=SIZES, pseudocount=0.5)
    for i, k in enumerate(SIZES):
        for state in range(k):
            cell, seen = x[:, i], visible[:, i]
            wanted = (float((cell[seen] == state).sum()) + 0.5) / (int(seen.sum()) + 0.5 * k)
            assert float(fitted.factors()[i][state].exp()) == pytest.approx(wanted, abs=1e-6)


def test_states_are_those_seen(rows):
    x, visible = rows
    x[:, 1] = torch.where(visible[:, 1], x[:, 1] % 2, 2)
    assert FullyIndependent.from_data(x, visible=visible).num_states == (2, 2, 2, 2)


def test_the_tree_of_rows_that_show_pairs():
    """A chain 0 - 1 - 2 - 3 of copies that err in one of ten, every second cell hidden: found in each of five draws."""
    for _ in range(5):
        flips = (torch.rand(2000, 4) < 0.1).long()
        x = flips.cumsum(1) % 2
        tree = ChowLiuTree.from_data(x, visible=torch.rand(2000, 4) > 0.5)
        assert tree.parents == ((), (0,), (1,), (2,))


def information_of(x, weights):
    """Mutual information in nats of each pair of columns, times the weight of all rows: plain loops over the rows that show both (NaN: hidden)."""
    n = len(x[0])
    found = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        joint = {}
        for row, w in zip(x, weights, strict=True):
            if not (math.isnan(row[i]) or math.isnan(row[j])):
                joint[row[i], row[j]] = joint.get((row[i], row[j]), 0.0) + w
        both = sum(joint.values())
        left, right = ({v: sum(c for key, c in joint.items() if key[side] == v) for v in {key[side] for key in joint}} for side in (0, 1))
        found[i, j] = sum(weights) * sum(c / both * math.log(c * both / (left[a] * right[b])) for (a, b), c in joint.items() if c > 0)
    return found


def hidden_unevenly():
    """Copies that err, of four states; late columns are hidden far more often, and where 0 is stored under a hidden cell much would change."""
    x = torch.randint(0, 4, (300, 1)).expand(300, 5).clone()
    err = torch.rand(300, 5) < torch.tensor([0.0, 0.45, 0.4, 0.3, 0.2])
    x[err] = torch.randint(0, 4, (int(err.sum()),))
    seen = torch.rand(300, 5) > torch.tensor([0.0, 0.1, 0.4, 0.6, 0.75])
    return x.double(), seen


def best_by_listing(information):
    """Edges of the tree of largest sum: all 125 of five variables."""
    every = list(itertools.combinations(range(5), 2))
    trees = [edges for edges in itertools.combinations(every, 4) if len(reached(edges)) == 5]
    assert len(trees) == 125
    scores = sorted((sum(information[a, b] for a, b in edges), edges) for edges in trees)
    assert scores[-1][0] > scores[-2][0] + 1e-6
    return set(scores[-1][1])


def reached(edges):
    found = {0}
    for _ in edges:
        found |= {v for edge in edges if found & set(edge) for v in edge}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_judged_by_the_rows_that_show_both(seed):
    """The mutual informations, and the tree that is best of all trees by them; of several classes together, by the sum over their rows."""
    torch.manual_seed(seed)
    x, seen = hidden_unevenly()
    holed = x.masked_fill(~seen, math.nan)
    weights = torch.stack([(torch.arange(300) % 3 > 0).double(), torch.rand(300).double()])
    for w in (None, weights):
        wanted = sum(information_of(holed.tolist(), each.tolist()) for each in (torch.ones(1, 300) if w is None else w))
        found = _mutual_information(x.long(), (4,) * 5, w, seen).numpy()
        off = ~np.eye(5, dtype=bool)
        np.testing.assert_allclose(found[off], wanted[off], rtol=1e-9, atol=1e-9)
        tree = ChowLiuTree.from_data(holed, num_states=4, weights=w, em_steps=0)
        assert {tuple(sorted((v, *p))) for v, p in enumerate(tree.parents) if p} == best_by_listing(wanted)


def test_impossible_states_stay_possible_to_ask(rows):
    """Without pseudocount the maximum lies on the border; no NaN on the way."""
    x, visible = rows
    x[:, 3] = x[:, 0]
    fitted = MarkovChain.from_data(x, visible=visible, num_states=SIZES, pseudocount=0.0, em_steps=300)
    assert all(not t.isnan().any() for t in fitted.tensors.values())
    assert fitted.marginal(visible).log_prob(x).isfinite().all()


@pytest.mark.parametrize(("options", "match"), [
    ({"visible": torch.ones(4).long()}, "bool"), ({"visible": torch.ones(7, 4, dtype=torch.bool)}, "one for each of the 150"),
    ({"visible": torch.ones(3, dtype=torch.bool)}, "broadcasts"), ({"em_steps": -1}, "em_steps")])
def test_refusals(options, match, rows):
    with pytest.raises(ValueError, match=match):
        MarkovChain.from_data(rows[0], **options)


def test_nan_where_visible_is_refused(rows):
    x, visible = rows
    visible[5, 2] = True
    x[5, 2] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        MarkovChain.from_data(x, visible=visible)
