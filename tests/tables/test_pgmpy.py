"""Every query against pgmpy on networks that it bundles (asia has zero probabilities, alarm 37 variables)."""

import gzip
import itertools
import math
import pathlib
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from pyro_ar.tables import BayesNet, ChowLiuTree

with warnings.catch_warnings():  # pgmpy 1.1 warns of its own renamings while it imports itself
    warnings.filterwarnings("ignore", message=".*pgmpy.*", category=FutureWarning)
    pgmpy = pytest.importorskip("pgmpy")
    from pgmpy.estimators import K2, BDeu, TreeSearch
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.inference import VariableElimination
    from pgmpy.readwrite import BIFReader

pd = pytest.importorskip("pandas")

NAMES = ["asia", "alarm"]
TO_SIX_DIGITS = {"abs": 1e-6, "rel": 1e-6}


class Pair:
    """One network in both libraries; variables are numbered in pgmpy's order of nodes, states as in its tables."""

    def __init__(self, name):
        path = pathlib.Path(pgmpy.__file__).parent / "utils" / "example_models" / f"{name}.bif.gz"
        self.theirs = BIFReader(string=gzip.decompress(path.read_bytes()).decode()).get_model()
        self.nodes = list(self.theirs.nodes())
        self.states = {v: self.theirs.get_cpds(v).state_names[v] for v in self.nodes}
        parents, tables = [], []
        for v in self.nodes:
            table = self.theirs.get_cpds(v).to_factor()
            others = [u for u in table.variables if u != v]
            for u in table.variables:
                assert table.state_names[u] == self.states[u]
            values = np.transpose(table.values, [table.variables.index(u) for u in (*others, v)])
            parents.append([self.nodes.index(u) for u in others])
            tables.append(torch.tensor(values, dtype=torch.float64).log())
        self.ours = BayesNet(parents, tables)
        self.query = VariableElimination(self.theirs)

    def rows(self, count, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.ours.sample((count,))

    def evidence(self, row, visible):
        return {v: self.states[v][int(s)] for v, s, seen in zip(self.nodes, row, visible, strict=True) if seen}


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pgmpy.*", category=FutureWarning)
        return Pair(request.param)


def few(n, rows, most, seed):
    """One random pattern per row, with 1 to `most` visible cells."""
    pick = random.Random(seed)
    visible = torch.zeros(rows, n, dtype=torch.bool)
    for row in visible:
        row[pick.sample(range(n), pick.randint(1, most))] = True
    return visible


def test_the_networks_are_the_same(pair):
    assert pair.theirs.check_model()
    assert len(pair.nodes) in (8, 37)
    free = sum(c.get_values().size - c.get_values().shape[1] for c in pair.theirs.get_cpds())
    assert pair.ours.num_parameters == free
    x = pair.rows(20, 0)
    for row in x:
        chosen = pair.evidence(row, [True] * len(pair.nodes))
        by_hand = sum(math.log(pair.theirs.get_cpds(v).to_factor().get_value(
            **{u: chosen[u] for u in pair.theirs.get_cpds(v).variables})) for v in pair.nodes)
        assert pair.ours.log_prob(row).item() == pytest.approx(by_hand, abs=1e-9)


def test_the_probability_of_random_evidence(pair):
    x, visible = pair.rows(25, 1), few(len(pair.nodes), 25, 6, 1)
    found = pair.ours.marginal(visible).log_prob(x).exp()
    for i in range(len(x)):
        chosen = pair.evidence(x[i], visible[i])
        factor = pair.query.query(list(chosen), show_progress=False)
        assert found[i].item() == pytest.approx(factor.get_value(**chosen), **TO_SIX_DIGITS)


def test_every_single_marginal_given_random_evidence(pair):
    n = len(pair.nodes)
    x, visible = pair.rows(6, 2), few(n, 6, 5, 2)
    total = pair.ours.marginal(visible).log_prob(x)
    for v, k in enumerate(pair.ours.num_states):
        hidden = (~visible[:, v]).nonzero().flatten()
        both = x[hidden].repeat(k, 1, 1)
        both[..., v] = torch.arange(k)[:, None]
        seen = visible[hidden].clone()
        seen[:, v] = True
        found = (pair.ours.marginal(seen).log_prob(both) - total[hidden]).exp()  # (k, rows)
        for j, i in enumerate(hidden.tolist()):
            theirs = pair.query.query([pair.nodes[v]], evidence=pair.evidence(x[i], visible[i]), show_progress=False)
            values = [theirs.get_value(**{pair.nodes[v]: s}) for s in pair.states[pair.nodes[v]]]
            assert found[:, j].tolist() == pytest.approx(values, **TO_SIX_DIGITS)


def test_all_single_marginals_are_also_a_gradient(pair):
    """d log p(visible) / d logit of a root is posterior minus prior: autograd is belief propagation."""
    tensors = {name: t.clone().requires_grad_() for name, t in pair.ours.tensors.items()}
    x, visible = pair.rows(3, 3), few(len(pair.nodes), 3, 4, 3)
    roots = [i for i, p in enumerate(pair.ours.parents) if not p]
    for i in range(3):
        total = pair.ours.with_tensors(tensors).marginal(visible[i]).log_prob(x[i])
        gradients = torch.autograd.grad(total, [tensors[f"tables.{r}"] for r in roots])
        chosen = pair.evidence(x[i], visible[i])
        for r, g in zip(roots, gradients, strict=True):
            prior = pair.ours.tables[r].softmax(-1)
            if visible[i, r]:
                posterior = torch.nn.functional.one_hot(x[i, r].long(), len(prior)).double()
            else:
                theirs = pair.query.query([pair.nodes[r]], evidence=chosen, show_progress=False)
                posterior = torch.tensor([theirs.get_value(**{pair.nodes[r]: s}) for s in pair.states[pair.nodes[r]]])
            torch.testing.assert_close(g, posterior - prior, rtol=0, atol=1e-6, check_dtype=False)


def test_pairs_of_hidden_variables_given_evidence(pair):
    pick = random.Random(4)
    n = len(pair.nodes)
    x, visible = pair.rows(8, 4), few(n, 8, 4, 4)
    for i in range(8):
        a, b = pick.sample([v for v in range(n) if not visible[i, v]], 2)
        theirs = pair.query.query([pair.nodes[a], pair.nodes[b]], evidence=pair.evidence(x[i], visible[i]),
                                  show_progress=False)
        seen = visible[i].clone()
        seen[[a, b]] = True
        total = pair.ours.marginal(visible[i]).log_prob(x[i])
        for s, t in itertools.product(range(pair.ours.num_states[a]), range(pair.ours.num_states[b])):
            row = x[i].clone()
            row[a], row[b] = s, t
            found = (pair.ours.marginal(seen).log_prob(row) - total).exp().item()
            names = {pair.nodes[a]: pair.states[pair.nodes[a]][s], pair.nodes[b]: pair.states[pair.nodes[b]][t]}
            assert found == pytest.approx(theirs.get_value(**names), **TO_SIX_DIGITS)


def test_the_most_likely_completion(pair):
    """By probability, for several completions may tie; pgmpy lists all completions, so at most 8 cells are hidden."""
    n = len(pair.nodes)
    x, visible = pair.rows(12, 5), ~few(n, 12, 8 if n > 8 else 7, 5)
    given = pair.ours.given(x, visible)
    mode = given.mode
    assert bool((mode == x)[visible].all())
    for i in range(len(x)):
        hidden = [v for v, seen in zip(pair.nodes, visible[i].tolist(), strict=True) if not seen]
        theirs = pair.query.map_query(hidden, evidence=pair.evidence(x[i], visible[i]), show_progress=False)
        row = x[i].clone()
        for v, s in theirs.items():
            row[pair.nodes.index(v)] = pair.states[v].index(s)
        assert given.log_prob(mode)[i].item() == pytest.approx(
            (pair.ours.log_prob(row) - given.log_evidence[i]).item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_the_score_of_pgmpy(pair, seed):
    x = pair.rows(200, 10 + seed).long()
    frame = pd.DataFrame({v: [self_state[int(s)] for s in x[:, i]] for i, (v, self_state) in enumerate(pair.states.items())})
    names = {v: list(s) for v, s in pair.states.items()}
    structure = {"parents": pair.ours.parents, "num_states": pair.ours.num_states}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pgmpy.*", category=FutureWarning)
        k2 = K2(frame, state_names=names)
        bdeu = BDeu(frame, state_names=names, equivalent_sample_size=7)
        theirs = [sum(score.local_score(v, [pair.nodes[u] for u in p]) for v, p in zip(pair.nodes, pair.ours.parents, strict=True))
                  for score in (k2, bdeu)]
    # pgmpy 1.1.2 adds log Gamma(K) for every state of the parents that no row shows; such a state must add nothing.
    unseen = [math.prod(pair.ours.num_states[u] for u in p) - len({tuple(row) for row in x[:, list(p)].tolist()})
              for p in pair.ours.parents]
    surplus = sum(count * math.lgamma(k) for count, k in zip(unseen, pair.ours.num_states, strict=True))
    found = BayesNet.log_evidence(x, concentration=1.0, **structure).item()
    assert found in (pytest.approx(theirs[0] - surplus, abs=1e-6), pytest.approx(theirs[0], abs=1e-6))
    assert BayesNet.log_evidence(x, equivalent_sample_size=7.0, **structure).item() == pytest.approx(theirs[1], abs=1e-6)


def test_the_best_tree(pair):
    x = pair.rows(400, 20).long()
    sizes = pair.ours.num_states
    frame = pd.DataFrame(x.numpy(), columns=range(len(sizes)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pgmpy.*", category=FutureWarning)
        theirs = TreeSearch(frame, root_node=0, n_jobs=1).estimate(estimator_type="chow-liu", show_progress=False)
    tree = ChowLiuTree.from_data(x, pseudocount=0, num_states=sizes)
    ours = {frozenset((p[0], v)) for v, p in enumerate(tree.parents) if p}
    others = {frozenset(e) for e in theirs.edges()}

    def likelihood(edges):
        parents, reached = [()] * len(sizes), [0]
        for v in reached:
            for edge in edges:
                if v in edge and (w := next(u for u in edge if u != v)) not in reached:
                    parents[w] = (v,)
                    reached.append(w)
        return BayesNet.from_data(x.double(), pseudocount=0, num_states=sizes, parents=parents).log_prob(x).sum().item()

    # Ties (pairs of equal information) may be broken otherwise: compare the trees, else what they maximise.
    assert ours == others or likelihood(ours) == pytest.approx(likelihood(others), abs=1e-6)
    assert likelihood(ours) == pytest.approx(tree.log_prob(x).double().sum().item(), abs=0.05)


# Nets to and from pgmpy.


def shuffled(table, seed):
    """The same conditional table with its parents, and the states of each, in another order."""
    pick = random.Random(seed)
    variable, *evidence = table.variables
    order = pick.sample(evidence, len(evidence))
    names = {v: pick.sample(list(table.state_names[v]), len(table.state_names[v])) for v in order} | {variable: list(table.state_names[variable])}
    values = np.transpose(table.values, [0, *(table.variables.index(u) for u in order)])
    for axis, u in enumerate(order, 1):
        values = values.take([list(table.state_names[u]).index(s) for s in names[u]], axis)
    sizes = [len(names[u]) for u in order]
    return TabularCPD(variable, len(names[variable]), values.reshape(len(values), -1), order or None, sizes or None, state_names=names)


@pytest.mark.parametrize("mixed", [False, True], ids=["as it is", "tables with orders of their own"])
def test_a_net_from_pgmpy_answers_as_pgmpy(pair, mixed):
    """Also where every table lists its parents and their states in another order; asked by names."""
    model = pair.theirs.copy()
    if mixed:
        for i, v in enumerate(pair.nodes):
            table = model.get_cpds(v)
            model.remove_cpds(table)
            model.add_cpds(shuffled(table, i))  # `check_model` refuses other orders of states, readers of files may make them
    net = BayesNet.from_pgmpy(model)
    assert net.variables == tuple(pair.nodes)
    x, visible = pair.rows(12, 30), few(len(pair.nodes), 12, 5, 30)
    for i in range(12):
        chosen = pair.evidence(x[i], visible[i])
        row, seen = net.row_of(chosen)
        assert seen.tolist() == visible[i].tolist()
        wanted = pair.query.query(list(chosen), show_progress=False).get_value(**chosen)
        assert net.marginal(seen).log_prob(row).exp().item() == pytest.approx(wanted, **TO_SIX_DIGITS)
    backwards = BayesNet.from_pgmpy(model, variables=pair.nodes[::-1])
    assert backwards.state_names == net.state_names[::-1]
    torch.testing.assert_close(backwards.log_prob(x.flip(-1)), net.log_prob(x))


def test_to_pgmpy_and_back(pair):
    net = BayesNet.from_pgmpy(pair.theirs)
    model = net.to_pgmpy()
    assert model.check_model()
    assert set(model.edges()) == set(pair.theirs.edges())
    for v in pair.nodes:
        ours, theirs = model.get_cpds(v), pair.theirs.get_cpds(v)
        assert ours.variables == theirs.variables
        assert ours.state_names == theirs.state_names
        assert np.allclose(ours.values, theirs.values / theirs.values.sum(0), rtol=1e-14, atol=0)
    again = BayesNet.from_pgmpy(model)
    assert (again.parents, again.variables, again.state_names) == (net.parents, net.variables, net.state_names)
    for a, b in zip(again.tables, net.tables, strict=True):
        torch.testing.assert_close(a.softmax(-1), b.softmax(-1), rtol=1e-14, atol=0)
    assert net.with_tensors(net.tensors).variables == net.expand([3]).variables == net.variables


def test_a_net_of_our_own_in_pgmpy():
    """Of different numbers of states, parents against the order of the event."""
    torch.manual_seed(0)
    net = BayesNet([(2, 1), (), (1,)], [torch.randn(4, 3, 2), torch.randn(3), torch.randn(3, 4)])
    model = net.to_pgmpy()
    assert model.check_model()
    query = VariableElimination(model)
    for a, b, c in itertools.product(range(2), range(3), range(4)):
        wanted = query.query(["x0", "x1", "x2"], show_progress=False).get_value(x0=a, x1=b, x2=c)
        assert net.log_prob(torch.tensor([a, b, c])).exp().item() == pytest.approx(wanted, abs=1e-6)
    found = ChowLiuTree.from_pgmpy(BayesNet([(), (0,)], [torch.zeros(2), torch.randn(2, 2)]).to_pgmpy())
    assert isinstance(found, ChowLiuTree)


def test_what_is_no_net_of_pgmpy_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"wants a DiscreteBayesianNetwork.*; got 'str'"):
        BayesNet.from_pgmpy("asia.bif")
    net = BayesNet([(), (0,)], [torch.zeros(2), torch.zeros(2, 2)])
    model = net.to_pgmpy()
    with pytest.raises(ValueError, match="variables must name every node"):
        BayesNet.from_pgmpy(model, variables=["x0"])
    model.remove_cpds("x1")
    with pytest.raises(ValueError, match=r"needs a TabularCPD; without one are; got \['x1'\]"):
        BayesNet.from_pgmpy(model)
    with pytest.raises(ValueError, match="without batch dimensions"):
        net.expand([2]).to_pgmpy()
    with pytest.raises(ValueError, match="wants a net with names"):
        net.row_of({"x0": 1})
    named = BayesNet.from_pgmpy(net.to_pgmpy())
    with pytest.raises(ValueError, match="variables of the net; got 'y'"):
        named.row_of({"y": 1})
    with pytest.raises(ValueError, match="x0 has the states 0, 1; got 5"):
        named.row_of({"x0": 5})
    monkeypatch.setitem(sys.modules, "pgmpy.models", None)
    with pytest.raises(ImportError, match="to_pgmpy needs pgmpy, which is not installed"):
        net.to_pgmpy()
