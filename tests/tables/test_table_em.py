"""Tables from rows with hidden cells: expected counts by enumeration, scipy's maximum, no step down, complete rows as before."""

import itertools
import math

import numpy as np
import pytest
import torch

from scipy.optimize import minimize

from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

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
    after = {scope: table.exp() for scope, table in zip(after._scopes, after._factors(), strict=True)}
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


def test_independent_cells_are_the_shares_among_visible_ones(rows):
    x, visible = rows
    fitted = FullyIndependent.from_data(x, visible=visible, num_states=SIZES, pseudocount=0.5)
    for i, k in enumerate(SIZES):
        for state in range(k):
            cell, seen = x[:, i], visible[:, i]
            wanted = (float((cell[seen] == state).sum()) + 0.5) / (int(seen.sum()) + 0.5 * k)
            assert float(fitted._factors()[i][state].exp()) == pytest.approx(wanted, abs=1e-6)


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
